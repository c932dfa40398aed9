"""One allocation of Python's fails in the middle of a mapping call: all or nothing, and the call can be made again.

In processes of their own, since a fault of the interpreter's there would end this one. The nightly profile tries every
allocation, the others each some of them.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from mm.test_memory_map_interrupts import CALLS, outcome, sample, state
from safemem import fork
from usermem.mm import memory_file
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
    memory_file._current = None
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
def test_an_allocation_fails() -> None:
    """The address space is as before or as after, whole, and no lock is held; what was written is not lost."""
    paths = [str(Path(__file__).parents[2]), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    program = [sys.executable, "-X", "faulthandler", __file__, str(STEP)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    failed = json.loads(done.stdout)
    assert set(failed) == set(CALLS)
    assert {name: count for name, count in failed.items() if count * STEP <= 10} == {}, done.stderr


def main(step: int) -> None:
    """Print how many failures each call met, a child for each; none if its child ended otherwise."""
    gc.disable()
    sys.unraisablehook = bool  # in a destructor nothing can be raised: Python reports it, and goes on
    failed = {}
    for name in CALLS:
        ends = os.pipe()
        child = os.fork()
        if not child:
            count = 0
            try:
                count = try_all(name, step)
            except BaseException:
                traceback.print_exc()
            os.write(ends[1], str(count).encode())
            os._exit(0)
        os.close(ends[1])
        with os.fdopen(ends[0], "rb") as found:
            failed[name] = int(found.read() or b"0")
        if os.waitpid(child, 0)[1]:
            failed[name] = 0
    print(json.dumps(failed))


if __name__ == "__main__":
    main(int(sys.argv[1]))
