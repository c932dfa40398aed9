"""A campaign of any number of processes that share one example database, in Redis: what one finds, others replay first.

On one machine, and the same on each other one, in ``tests/interop``::

    CAMPAIGN_REDIS=redis://the.host:6379 python -m pytest -s -n auto --dist each campaigns/shared_database.py

What is found while Redis cannot be written stays in a folder here, and is shared when the campaign is started again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import Phase, given, settings
from hypothesis.database import DirectoryBasedExampleDatabase, MultiplexedDatabase
from hypothesis.extra.redis import RedisExampleDatabase
from redis import Redis

from campaigns import sample
from usermem.testing.edges import Edges
from usermem.testing.operations import Operation
from usermem.testing.progress import Progress

PROGRESS = Progress(os.environ.get("PYTEST_XDIST_WORKER", "campaign"), every=float(os.environ.get("EVERY", 10)))
EDGES, GUEST = Edges(sample), sample.begin()
PHASES = (Phase.reuse, Phase.generate, Phase.shrink)
SHARED = RedisExampleDatabase(Redis.from_url(os.environ["CAMPAIGN_REDIS"]))
DATABASE = MultiplexedDatabase(DirectoryBasedExampleDatabase(".hypothesis/examples"), SHARED)


@pytest.fixture(scope="module", autouse=True)
def shown() -> Iterator[None]:
    with PROGRESS, GUEST:
        yield


@settings(database=DATABASE, derandomize=False, max_examples=20_000, deadline=None, phases=PHASES)
@given(sample.OPERATIONS)
def test_the_memory_is_right(operations: list[Operation]) -> None:
    with PROGRESS.example(EDGES):
        sample.check(GUEST, operations)
