"""Adapters of the start limit."""
