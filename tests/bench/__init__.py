"""Benchmarks: how fast wearon is, as ratios to baselines measured in the same run (`make bench`).

The parts: ``stage`` runs the servers and processes, ``load`` puts load on an API, ``floors`` and
``targets`` are the baselines, ``slots`` measures in rounds, ``growth`` compares a database of years
with a new one, ``soak`` watches memory, ``figures`` does the arithmetic, ``report`` prints.
"""
