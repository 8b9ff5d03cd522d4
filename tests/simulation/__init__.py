"""The use cases under every fault that a network and an operating system can cause.

``world`` has the database, the queue and the rules that hold at every step; ``fates`` decides how
each call ends, and ``processes`` what becomes of its process; ``actors`` are the programs and their
users; ``scenarios`` and ``situations`` are whole runs.
"""
