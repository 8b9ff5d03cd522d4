"""The use cases under every fault that a network and an operating system can do to them.

``world`` has the store, the queue and the processes, and what must hold at every step; ``fates``
decides what becomes of each call; ``actors`` are the processes and who uses them.
"""
