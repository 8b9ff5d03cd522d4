"""Real servers as child processes, for development and tests: PostgreSQL and Valkey.

Production uses the servers at its URLs and none of this.
"""
