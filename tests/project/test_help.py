"""What ``help()`` shows of the packages can be read: enums list their members, and signatures are short."""

from __future__ import annotations

import importlib
import pydoc
from enum import Enum

import pytest

from safemem.tls import Alert, ContentType
from usermem import ChangeKind, FaultReason, Signal
from usermem.observe import FindingKind

LINES = {"hostarch": 1100, "safemem": 1500, "usermem": 3600}
"""How long each may be: between versions of Python they differ by some hundred lines."""


@pytest.mark.parametrize("package", LINES)
def test_help_is_no_longer_than_it_was(package: str) -> None:
    """Nothing that is added brings the methods of its base classes or a default that fills the screen."""
    shown = pydoc.plain(pydoc.render_doc(importlib.import_module(package))).splitlines()
    assert len(shown) <= LINES[package]
    assert max(map(len, shown)) <= 360


@pytest.mark.parametrize("kind", [Alert, ChangeKind, ContentType, FaultReason, FindingKind, Signal])
def test_enums_list_their_members(kind: type[Enum]) -> None:
    """And nothing of str or int, whose methods the members have all the same."""
    shown = pydoc.plain(pydoc.render_doc(kind))
    assert "inherited from builtins" not in shown
    assert all(f"| {name} = " in shown.replace("|  ", "| ") for name in kind.__members__)
    assert {*dir(str), *dir(int)} & set(dir(kind)) == {"__class__", "__doc__"}
    assert kind(next(iter(kind)).value) is next(iter(kind))
