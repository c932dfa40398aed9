"""No interrupt passes a clean-up by: not at a loop's jump back, and not between a lock's ``acquire()`` and its ``try``.

CPython lets a signal handler run when a loop jumps back. Where it raises there, the interpreter looks up who handles
that at another place than one reads in the source:

- From 3.13 on, at the jump. The compiler puts no handler to one that it made of a condition: at the end of ``while
  condition``, or of ``for ...: if condition: ...``, an ``except BaseException``, ``finally`` or ``__exit__`` around the
  loop does not run, and a lock stays held.
- Before, at the instruction before the loop's first one, which may lie before the ``try``.

So such a loop is a function of its own: an exception that a call lets through is handled where the call is.

Source: CPython, normalize_jumps_in_block (Python/flowgraph.c) and JUMP_BACKWARD (Python/bytecodes.c).
"""

from __future__ import annotations

import ast
import dis
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("hostarch", "safemem", "usermem")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

ACQUIRED = {"safemem/datagram/memory_queue.py": 2, "safemem/fork.py": 1, "usermem/mm/listeners.py": 2}
"""Calls of ``acquire()``: of locks that nobody else knows yet, a waiter's and an event's; in InUse, which looks who has
it; and of one that others wait for a moment."""

pytestmark = pytest.mark.skipif(sys.implementation.name != "cpython", reason="reads CPython's instructions")


class Handlers:
    """Who handles an exception, at each instruction of a function."""

    def __init__(self, code: CodeType) -> None:
        self.instructions = list(dis.get_instructions(code))
        self._entries: list[Any] = dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]
        self._index = {each.offset: i for i, each in enumerate(self.instructions)}

    def cleanups(self, offset: int) -> set[int]:
        """The handlers that run whatever was raised, innermost or not."""
        found = set()
        while (target := next((x.target for x in self._entries if x.start <= offset < x.end), None)) is not None:
            if self._cleans_up(self._index[target]):
                found.add(target)
            offset = target
        return found

    def _cleans_up(self, index: int) -> bool:
        first, *rest = self.instructions[index : index + 12]
        if first.opname != "PUSH_EXC_INFO":  # of the interpreter's own
            return False
        names = [x.argval for x in rest if x.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
        typed = any(x.opname == "CHECK_EXC_MATCH" for x in rest)
        return not typed or names[:1] == ["BaseException"]


def open_loops(code: CodeType) -> Iterator[str]:
    """The loops of a function, and of those in it, whose jumps back lie outside of a clean-up that the loop is in."""
    handlers = Handlers(code)
    line = 0
    for each in handlers.instructions:
        line = (each.positions and each.positions.lineno) or line
        if each.opname == "JUMP_BACKWARD" or each.opname.startswith("POP_JUMP_BACKWARD"):
            looked_up = each.offset if sys.version_info >= (3, 13) else each.argval - 2
            if handlers.cleanups(each.argval) - handlers.cleanups(looked_up):
                yield f"{code.co_name}, line {line}"
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from open_loops(inner)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_jump_back_passes_a_cleanup_by(path: Path) -> None:
    """In no loop within a ``try`` or a ``with``."""
    assert not list(open_loops(compile(path.read_text(), str(path), "exec")))


def test_no_lock_is_acquired_before_its_try() -> None:
    """``with lock:`` takes and holds it in one step; a call of ``acquire()`` returns before its ``try`` begins."""
    found = {}
    for path in MODULES:
        calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        if number := sum(isinstance(func, ast.Attribute) and func.attr == "acquire" for func in calls):
            found[str(path.relative_to(ROOT))] = number
    assert found == ACQUIRED


OPEN = [
    "with a:\n  while b(): c()",
    "try:\n  while b(): c()\nfinally: d()",
    "try:\n  for x in a:\n    if x: b()\nexcept BaseException: c()",
]
COVERED = [
    "with a:\n  for x in b: c()",
    "with a:\n  while True:\n    if b(): break\n    c()",
    "with a:\n  while True:\n    b()\n    if c(): break",
    "for x in a:\n  with b: c()",
    "try:\n  while b(): c()\nexcept OSError: pass",
    "def f():\n  while b(): c()\nwith a: f()",
]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="other loops")
@pytest.mark.parametrize(("source", "found"), [*((source, 1) for source in OPEN), *((source, 0) for source in COVERED)])
def test_the_search_tells_them_apart(source: str, found: int) -> None:
    """The search finds the loops that an interrupt leaves by the side, and no others."""
    assert len(list(open_loops(compile(source, "", "exec")))) == found
