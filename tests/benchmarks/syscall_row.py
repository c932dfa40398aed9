"""A row of ``syscall``: statements that do the same work, of which the first is ours and another the reference."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from syscall_guest import Names
from timing import Prepared, Run, loop

_NEEDS = {"unicorn": "uc", "qiling": "ql", "libatomic": "host", "before": "old"}


@frozen
class Row:
    """One measurement: ``runs["ours"]`` may take at most ``bar`` times as long as ``runs[against]``."""

    name: str
    against: str
    bar: float
    runs: Mapping[str, Run | Prepared]


def row(known: Names, name: str, against: str, bar: float, **statements: str) -> Row:
    """A row of statements over known names."""
    return Row(name, against, bar, runs(known, statements))


def runs(known: Names, statements: Mapping[str, str]) -> dict[str, Run]:
    """The statements as functions; a contender that is not there is left out."""
    return {
        who: loop(statement, {key: value for key, value in known.items() if key in statement})
        for who, statement in statements.items()
        if who not in _NEEDS or _NEEDS[who] in known
    }
