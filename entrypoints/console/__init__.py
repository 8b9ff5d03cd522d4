"""The operators' console: what happens, why, what it costs, and what to do about it.

A process and a port of its own, so that no cookie reaches the API. Pages are rendered here, work
without scripts, and answer ``Accept: application/json`` with the same data.
"""
