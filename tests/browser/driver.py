"""Whether this machine can drive a browser."""

import os
from importlib.util import find_spec

import pytest

from tests.support.chromium import PROGRAM


def require_driver() -> None:
    """Skip the module that calls this where playwright or chromium is missing, except in CI."""
    missing = []
    if find_spec("playwright") is None:
        missing.append("playwright (make browser)")
    if PROGRAM is None:
        missing.append("chromium (Debian: apt-get install chromium)")
    if missing and os.environ.get("CI"):
        pytest.fail(f"CI lacks {', '.join(missing)}")
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed", allow_module_level=True)
