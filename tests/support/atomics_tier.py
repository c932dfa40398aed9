"""Forcing a tier of atomics in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from safemem import atomics


@contextmanager
def forced(tier: str) -> Iterator[None]:
    """Have this tier meanwhile; skips the test where it is not there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(atomics.FORCED, tier)
        atomics.native.cache_clear()
        try:
            try:
                assert atomics.tier() == tier
            except OSError as exc:
                pytest.skip(f"no {tier} atomics here: {exc}")
            yield
        finally:
            atomics.native.cache_clear()
