"""Adapters of ``BookCheckRepoPort``: when the books were checked, and what that found."""
