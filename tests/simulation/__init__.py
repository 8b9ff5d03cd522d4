"""The use cases under every fault that a network and an operating system can cause.

``world`` has the database, the queue, the processes and the rules that hold at every step;
``fates`` decides how each call ends; ``actors`` are the processes and their users; ``scenarios``
are whole runs.
"""
