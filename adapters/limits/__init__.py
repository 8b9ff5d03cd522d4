"""Adapters of ``StartLimitPort``: the rate limit of the picture provider."""
