"""What pytest needs to know before it collects: options, hypothesis profiles."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from vectors.recorded import OPEN, SUMMARY

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True, database=None)
settings.register_profile("nightly", max_examples=5000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--vectors FILE``: replay these recorded answers of gVisor instead of the ones in the repository."""
    parser.addoption(
        "--vectors",
        metavar="FILE",
        type=Path,
        default=OPEN,
        help="recorded answers of gVisor to replay (.jsonl or .jsonl.gz)",
    )


@pytest.fixture(autouse=True, scope="module")
def old_objects_apart() -> None:
    """Keep the collector away from what there was before a module's tests, pytest's objects above all.

    gc.collect(), which many tests call, takes a tenth then.
    """
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What the replay of the vectors compared and which rules explained a difference."""
    lines = config.stash.get(SUMMARY, [])
    if lines:
        terminalreporter.section("gVisor's recorded answers")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture
def no_descriptor_is_left() -> Iterator[None]:
    """What the next descriptor is says whether all were closed."""
    before = os.dup(0)
    os.close(before)
    yield
    after = os.dup(0)
    os.close(after)
    assert after == before
