"""Threads that take turns far more often than every 5 ms."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def quick_switches(interval: float = 1e-6) -> Iterator[None]:
    """Threads take turns every ``interval`` seconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def run_beside(calls: Iterable[Callable[[], object]]) -> None:
    """Make the calls beside each other, a thread each, and wait for all of them."""
    threads = [threading.Thread(target=call) for call in calls]
    with quick_switches():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
