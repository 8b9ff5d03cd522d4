"""Real processes: the command itself, its API and workers, real PostgreSQL, real Redis protocol."""
