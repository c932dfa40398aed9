"""How long a test goes on: short for who waits for the suite, long in the nightly profile (HYPOTHESIS_PROFILE)."""

from __future__ import annotations

import os

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"


def times(by_day: int, by_night: int) -> int:
    """How often to repeat something: ``by_night`` in the nightly profile, else ``by_day``."""
    return by_night if NIGHTLY else by_day
