"""The plans of accounts, which decide how much an owner may do."""

from enum import StrEnum


class Plan(StrEnum):
    """An account's plan."""

    DEFAULT = "default"
    STARTER = "starter"
    GROWTH = "growth"
    SCALE = "scale"
    ENTERPRISE = "enterprise"
