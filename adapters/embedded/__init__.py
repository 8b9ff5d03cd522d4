"""Real servers as child processes, for development and tests: PostgreSQL and Valkey.

Production names its servers by URL and needs nothing of this.
"""
