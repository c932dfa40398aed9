"""What a campaign counts and shows: the edges of the modules named and of no other, distinct failures, one line."""

from __future__ import annotations

import io
import json
import pickle
import re
import sys
from types import ModuleType

import pytest

from usermem.testing.edges import Edges
from usermem.testing.progress import Progress, Tally


def edges_of(call: object, *modules: ModuleType) -> Edges:
    """The edges that a call takes."""
    edges = Edges(*modules)
    with edges:
        call()  # type: ignore[operator]
    return edges


def sign(n: int) -> str:
    """Two ways through."""
    if n < 0:
        return "-"
    return "+"


THIS = sys.modules[__name__]


def test_each_way_is_an_edge() -> None:
    """Both ways are more than either, and the same way again is nothing new, within one and in a new one."""
    one, other, again, all_of_them = (
        {edge for edge in edges_of(lambda ns=ns: [*map(sign, ns)], THIS).seen if edge[0].endswith(":sign")}
        for ns in ([1], [-1], [1], [1, -1, 1])
    )
    assert one
    assert one == again != other
    assert one | other == all_of_them


def test_only_the_modules_count() -> None:
    """A package counts with all that is below it; what is outside is not seen. The tracer before it is put back."""
    before = sys.gettrace()
    assert not edges_of(lambda: sign(1), json).seen
    seen = edges_of(lambda: (json.loads("[1]"), sign(1)), json).seen
    assert seen
    assert all(name.startswith("json/") for name, _, _ in seen)
    assert sys.gettrace() is before


def test_edges_go_on() -> None:
    """Entered again it collects more; after an exception too."""
    edges = edges_of(lambda: sign(1), THIS)
    first = set(edges.seen)
    with pytest.raises(ZeroDivisionError), edges:
        sign(-1)
        raise ZeroDivisionError
    assert edges.seen > first


def test_a_module_without_a_file() -> None:
    """There is nothing to see in it."""
    with pytest.raises(ValueError, match="module sys has no file"):
        Edges(sys)


def fail(error: Exception) -> None:
    """One line that raises."""
    raise error


def test_failures_are_told_apart() -> None:
    """By type and line; the sum of two processes' tallies has each once."""
    tally = Tally()
    for error in (ValueError(1), ValueError(2), KeyError(1)):
        with pytest.raises(type(error)), tally.example():
            fail(error)
    with tally.example(Edges(THIS)):
        sign(1)
    assert (tally.examples, len(tally.failures)) == (4, 2)
    other = pickle.loads(pickle.dumps(tally))
    tally.add(other)
    assert (tally.examples, tally.failures, tally.edges) == (8, other.failures, other.edges)
    assert other.edges
    total = Tally()
    total.add(other)
    assert vars(total) == vars(other)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is renewed, and stays at the end."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("guest", every=0) as progress:
        for _ in range(3):
            with progress.example():
                pass
    *shown, end = terminal.getvalue().split("\r")[1:]
    assert [line[:17] for line in shown] == [f"guest: {n} examples" for n in (1, 2, 3)]
    assert end.startswith("guest: 3 examples, ")
    assert end.endswith(" 0 edges, 0 failures, 0 s\x1b[K\n")


def test_elsewhere_lines_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    """From time to time, and at the end, also after an exception."""
    with pytest.raises(ValueError, match="x"), Progress("guest") as progress, progress.example():
        raise ValueError("x")
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"guest: 1 examples, \d+/s, 0 edges, 1 failures, 0 s", line)
    with Progress("sum", every=0) as total:
        total.add(progress)
    assert len(capsys.readouterr().err.splitlines()) == 2


class Gone(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("stderr", [Gone(), None])
def test_a_campaign_goes_on_unseen(stderr: Gone | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure of an example is still that, and the count goes on."""
    monkeypatch.setattr(sys, "stderr", stderr)
    with Progress("guest", every=0) as progress:
        for _ in range(3):
            with pytest.raises(ValueError, match="x"), progress.example():
                raise ValueError("x")
    assert (progress.examples, len(progress.failures)) == (3, 1)
