"""No function raises an error out of a local that it keeps: error, traceback, frame and local would be a cycle.

tests/contract/test_reference_cycles.py sees what such a cycle does; this finds the places that no test runs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = [path for package in ("hostarch", "safemem", "usermem") for path in sorted((ROOT / package).rglob("*.py"))]


def kept(node: ast.AST, deleted: frozenset[str]) -> Iterator[str]:
    """The lines of ``node`` that raise a name which is not among the ``deleted``."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name) and node.exc.id not in deleted:
        yield f"{node.lineno}: raise {node.exc.id}"
    if isinstance(node, ast.ExceptHandler) and node.name is not None:
        deleted |= {node.name}  # Python deletes it when the handler is left
    if isinstance(node, ast.Try):
        names = [ast.walk(line) for line in node.finalbody if isinstance(line, ast.Delete)]
        inside = deleted | {name.id for walk in names for name in walk if isinstance(name, ast.Name)}
        for child in (*node.body, *node.handlers, *node.orelse):
            yield from kept(child, inside)
        for child in node.finalbody:
            yield from kept(child, deleted)
        return
    for child in ast.iter_child_nodes(node):
        yield from kept(child, deleted)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_frame_keeps_the_error_it_raises(path: Path) -> None:
    """A local that is raised is the handler's own name, or deleted in a ``finally`` around the raise."""
    # A name with a capital is a class.
    found = [line for line in kept(ast.parse(path.read_text()), frozenset()) if line.split()[-1].islower()]
    assert not found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f(exc):\n    raise exc", 1),
        ("try:\n    pass\nexcept OSError as exc:\n    raise exc", 0),
        ("try:\n    raise exc\nfinally:\n    del exc", 0),
        ("try:\n    raise exc\nfinally:\n    del other", 1),
        ("try:\n    pass\nfinally:\n    del exc\nraise exc", 1),
    ],
)
def test_the_search_tells_them_apart(source: str, found: int) -> None:
    """The search itself finds what keeps its error, and nothing else."""
    assert len(list(kept(ast.parse(source), frozenset()))) == found
