"""The public names are a promise: ``public_names.txt`` lists them, and a change of one is a change of that file."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LISTED = Path(__file__).with_name("public_names.txt")
PACKAGES = ("hostarch", "safemem", "usermem")
# Modules that a package names as public: in its __all__, or in its docstring as one that is imported by itself.
MODULES = (
    "hostarch/auxvec.py",
    "hostarch/mman.py",
    "safemem/atomics.py",
    "usermem/testing/corpus.py",
    "usermem/testing/edges.py",
    "usermem/testing/machine.py",
    "usermem/testing/operations.py",
    "usermem/testing/progress.py",
    "usermem/testing/strategies.py",
)


def defined(source: str) -> Iterator[str]:
    """What a module defines without an underscore, in its order: functions, classes, constants, types."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield from (inner.id for inner in ast.walk(target) if isinstance(inner, ast.Name))


def public(path: Path) -> list[str]:
    """The public names of a package, which its ``__all__`` has, or of a module; none of an internal package."""
    source = path.read_text()
    if path.name != "__init__.py":
        return sorted({name for name in defined(source) if not name.startswith("_")})
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and "__all__" in ast.unparse(node.targets[0]):
            return sorted(ast.literal_eval(node.value))
    return []


def listing() -> str:
    """The text of public_names.txt as the source has it: each public package and module, and its names."""
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("__init__.py")]
    rooms = {}
    for path in [*found, *(ROOT / module for module in MODULES)]:
        if names := public(path):
            room = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            rooms[room] = f"{room}\n" + "".join(f"    {name}\n" for name in names)
    return "\n".join(rooms[room] for room in sorted(rooms))


def test_public_names_are_those_that_are_listed() -> None:
    """A name that comes or goes is a line of public_names.txt that comes or goes; the failure shows which."""
    listed, found = LISTED.read_text(), listing()
    changes = difflib.unified_diff(listed.splitlines(), found.splitlines(), LISTED.name, "the source", lineterm="")
    assert listed == found, "\n" + "\n".join(changes)
