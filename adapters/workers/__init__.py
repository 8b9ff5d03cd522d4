"""Adapters of ``WorkerRepoPort``: what workers report of themselves."""
