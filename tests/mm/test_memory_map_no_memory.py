"""One allocation of Python's fails in the middle of a mapping call: all or nothing, and the call can be made again.

In a process of its own, since a fault of the interpreter's there would end this one. The nightly profile tries every
allocation, the others each some of them.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from mm.test_memory_map_interrupts import CALLS, outcome, sample, state
from safemem import fork
from usermem.mm.backing import shared_memory
from usermem.mm.backing.object_pages import write_back_released

_testcapi: Any = None
with suppress(ImportError):
    _testcapi = import_module("_testcapi")

STEP = 1 if settings().max_examples >= 1000 else 7
PATIENCE = 16
"""After so many allocations that were not made by the call, there are no more."""

MADE = {
    "munmap of an object": "what was written goes back into the object after it",
    "madvise": "the listener is told after it",
    "a stack grows": "the access comes after it",
}
"""Calls that may raise MemoryError although they have changed what they should, and what comes then."""


def try_all(name: str, step: int) -> int:
    """Make the call with each failure in turn; returns how many there were."""
    call = CALLS[name]
    shared_memory._current = None
    before, after = outcome(), outcome(call)
    at = failed = quiet = 0
    while quiet < PATIENCE:
        space, file = sample()
        found: BaseException | None = None
        try:
            _testcapi.set_nomemory(at, at + 1)
            call(space)
        except (MemoryError, OSError) as exc:
            found = exc
        finally:
            _testcapi.remove_mem_hooks()
        quiet = quiet + step if found is None else 0
        failed += found is not None
        assert found is None or isinstance(found, MemoryError) or found.errno == 12, (at, found)  # type: ignore[attr-defined]
        assert not any(lock._is_owned() for lock in fork._locks), at  # type: ignore[attr-defined]
        seen = state(space)
        assert seen == after or (seen == before and found is not None), (at, found)
        assert found is None or seen == before or before == after or name in MADE, (at, found)
        if seen == before:
            call(space)
            assert state(space) == after, at
        with suppress(ValueError, MemoryError):  # of a closed space; what no memory was there to write back
            space.close()
        del space, found  # its traceback has what the call was about
        write_back_released()
        assert bytes(file.data[:7]) == b"written", at
        at += step
    return failed


CLOSURES = """
import _testcapi, gc
gc.disable()
class Cell:
    pass
def outer(a, b):
    def inner(c):
        return a, b, c
    return inner
for at in range(12):
    a, b = Cell(), Cell()
    try:
        _testcapi.set_nomemory(at, at + 1)
        outer(a, b)
    except MemoryError:
        pass
    finally:
        _testcapi.remove_mem_hooks()
    for _ in range(50):
        assert outer(a, b)(3) == (a, b, 3), at
"""


@pytest.fixture(scope="module")
def _survives() -> None:
    """Skip where the interpreter breaks when it makes a closure and an allocation fails, as 3.12 and 3.13 do."""
    if _testcapi is None:
        pytest.skip("this Python has no _testcapi, which makes allocations fail")
    if subprocess.run([sys.executable, "-c", CLOSURES], capture_output=True).returncode:
        pytest.skip("this Python corrupts its memory when there is none for a closure")


@pytest.mark.usefixtures("_survives")
@pytest.mark.parametrize("name", CALLS)
def test_an_allocation_fails(name: str) -> None:
    """The address space is as before or as after, whole, and no lock is held; what was written is not lost."""
    paths = [str(Path(__file__).parents[2]), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    program = [sys.executable, "-X", "faulthandler", __file__, name, str(STEP)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * STEP > 10


if __name__ == "__main__":
    gc.disable()
    sys.unraisablehook = bool  # in a destructor nothing can be raised: Python reports it, and goes on
    print(try_all(sys.argv[1], int(sys.argv[2])))
