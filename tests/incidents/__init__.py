"""What can go wrong at night, on real processes, and how soon ``wearon status`` names the cause.

``night.py`` is a service at rest, ``table.py`` has the incidents, ``run.py`` measures them. Run it
with ``make incidents``.
"""
