"""The repository is laid out as promised: who may import whom, what importing costs, what lies where, what has words.

hostarch knows nobody, safemem knows hostarch, usermem knows both; nothing else but the standard library and attrs.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import operator
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("hostarch", "safemem", "usermem")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
NEED_HYPOTHESIS = {Path("usermem/testing/strategies.py"), Path("usermem/testing/machine.py")}
ALLOWED_AT_TOP = {*PACKAGES, "tests", "pyproject.toml", "README.md", "LICENSE"}
with_modules = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))


def imported(tree: ast.AST) -> Iterator[str]:
    """All that is imported, at the top, inside a function or for type checkers; "." for a relative import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ("." if node.level else f"{node.module}.{alias.name}" for alias in node.names)


def module_name(path: Path) -> str:
    """The dotted name of a module."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@with_modules
def test_imports_go_downward(path: Path) -> None:
    """A module imports the standard library, attrs, and packages not above its own; the strategies hypothesis too."""
    package = path.relative_to(ROOT).parts[0]
    below = set(PACKAGES[: PACKAGES.index(package) + 1])
    allowed = below | set(sys.stdlib_module_names) | {"attrs", "_typeshed"}
    if path.relative_to(ROOT) in NEED_HYPOTHESIS:
        allowed.add("hypothesis")
    if path.relative_to(ROOT) == Path("safemem/tls/engines/cryptography.py"):
        allowed.add("cryptography")
    assert {name.partition(".")[0] for name in imported(ast.parse(path.read_text()))} <= allowed


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Which of the modules each of them names in its imports, given their sources. A package is its own module."""
    graph = {}
    for module, source in sources.items():
        names = set(imported(ast.parse(source)))
        graph[module] = {name if name in sources else name.rpartition(".")[0] for name in names} & sources.keys()
    return graph


def test_no_import_cycles() -> None:
    """Modules can be read in an order in which each follows all that it imports."""
    graph = import_graph({module_name(path): path.read_text() for path in MODULES})
    TopologicalSorter(graph).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter(import_graph({"a.b": "from a import c", "a.c": "def f():\n    import a.b"})).prepare()


def test_the_walk_sees_imports() -> None:
    """The walk finds imports of every form, wherever they are."""
    source = "import a.b, c\nfrom d.e import f\nfrom . import g\ndef h():\n    if 1:\n        from i import j"
    assert list(imported(ast.parse(source))) == ["a.b", "c", "d.e.f", ".", "i.j"]


REPORT = """
import json, sys
before = set(sys.modules)
import {package}
print(json.dumps(sorted(set(sys.modules) - before)))
"""
NO_LIBRARIES = """
import ctypes

def refuse(self, name, *args, **kwargs):
    raise AssertionError(f"a library was loaded: {{name}}")

ctypes.CDLL.__init__ = refuse
import {package}
"""
NOT_LOADED = {"_socket", "_ssl", "cryptography", "hypothesis", "numpy", "pytest", "socket", "ssl", "unicorn"}
SLOW_TO_LOAD = {"ctypes", "dataclasses", "hashlib", "pathlib", "random", "subprocess", "tempfile", "usermem.doctor"}


def in_a_child(script: str) -> str:
    """What a fresh interpreter prints when it runs the script."""
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert child.returncode == 0, child.stderr
    return child.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_loads_little(package: str) -> None:
    """A package alone loads no sockets, no TLS, no emulator, no test tools, and nothing of the packages above it.

    Nor does it load what takes milliseconds and few programs need: that is imported where it is used.
    """
    loaded = set(json.loads(in_a_child(REPORT.format(package=package))))
    assert package in loaded
    above = PACKAGES[PACKAGES.index(package) + 1 :]
    rooms = {
        "safemem.tls",
        "safemem.datagram",
        "usermem.memories",
        "usermem.messages",
        "usermem.testing",
        "usermem.tour",
        "usermem.unicorn",
    }
    unwanted = NOT_LOADED | SLOW_TO_LOAD | set(above) | rooms
    assert not loaded & unwanted


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_opens_no_library(package: str) -> None:
    """Nor does it call ctypes.CDLL where ctypes is there already."""
    in_a_child(NO_LIBRARIES.format(package=package))


def test_the_top_level_is_small() -> None:
    """What git tracks lies in the packages, the tests, four files, and names that start with a dot."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout to know which files belong to it")
    listed = subprocess.run(
        [git, "-c", f"safe.directory={ROOT}", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert listed.returncode == 0, listed.stderr
    top = {name.split("/")[0] for name in listed.stdout.split("\0") if name}
    assert {name for name in top if not name.startswith(".")} <= ALLOWED_AT_TOP
    assert top >= ALLOWED_AT_TOP


def documented(tree: ast.Module) -> Iterator[tuple[str, str | None]]:
    """The public functions, classes and methods of a module, with their docstrings."""
    yield "the module", ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, ast.get_docstring(node)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", ast.get_docstring(inner)


@with_modules
def test_every_public_name_has_words(path: Path) -> None:
    """Modules, and all functions, classes and methods without an underscore, have a docstring, or inherit one."""
    missing = [name for name, doc in documented(ast.parse(path.read_text())) if not doc]
    if any("." in name for name in missing):
        module = importlib.import_module(module_name(path))
        missing = [name for name in missing if not inspect.getdoc(operator.attrgetter(name)(module))]
    assert not missing


@with_modules
def test_no_module_is_long(path: Path) -> None:
    """At most 400 lines."""
    assert path.read_text().count("\n") <= 400


@pytest.mark.parametrize(
    "name",
    [
        *PACKAGES,
        "safemem.tls",
        "safemem.datagram",
        "usermem.memories",
        "usermem.messages",
        "usermem.observe",
        "usermem.testing",
    ],
)
def test_all_is_what_is_there(name: str) -> None:
    """``__all__`` names every public name of a package once, and no more: its submodules only where it says so."""
    package = importlib.import_module(name)
    exported: list[str] = package.__all__
    assert len(exported) == len(set(exported))
    public = {key for key, value in vars(package).items() if key[0] != "_" and not isinstance(value, ModuleType)}
    assert {key for key in exported if not isinstance(getattr(package, key), ModuleType)} == public


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_are_typed(name: str) -> None:
    """py.typed is there, so that type checkers read the package."""
    assert (ROOT / name / "py.typed").is_file()


def test_the_project_is_as_declared() -> None:
    """The wheel has the three packages, and running needs nothing but attrs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert tuple(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == PACKAGES
    assert [requirement.split(">")[0].strip() for requirement in project["project"]["dependencies"]] == ["attrs"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"] == {"path": "usermem/__init__.py"}
    assert project["project"]["scripts"] == {"usermem": "usermem.__main__:main"}
