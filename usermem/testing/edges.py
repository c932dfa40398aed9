"""Edges: which ways through a simulator's code were taken, without a compiled fuzzer.

From CPython 3.12 on an edge is a branch and the way it went, or a function that was entered. ``sys.monitoring`` reports
a branch until both ways of it are known, and then costs nothing. CPython 3.11 has only ``sys.settrace``: there an edge
is a line that ran after another in one call. So compare the numbers of runs of one version only.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, ClassVar

Edge = tuple[str, int, int]
"""A function, by its file, line and name; from where; to where. Equal in all processes of one version of CPython."""


class Edges:
    """A context manager that collects the edges taken within it, in ``seen``, in code of these modules.

    Of a package, all modules below it count. Measured on an example of 31 operations on two spaces, 1.3 ms: with
    ``sys.monitoring`` it takes 1.4 ms for a small module, and 4.9 ms for all of usermem, whose branches that go one
    way only are reported each time; with ``sys.settrace`` 3.4 ms and 6.1 ms, since each call of any Python function is
    reported. So name the simulator's modules. With ``sys.settrace`` only the thread that entered counts, and a debugger
    or another tracer pauses until the end. Two are not entered at once.
    """

    def __init__(self, *modules: ModuleType) -> None:
        """Raises ValueError for a module that has no file."""
        self.seen: set[Edge] = set()
        self._roots = [_root(module) for module in modules]
        self._files: dict[str, str | None] = {}
        self._collector = _collector(self)

    def __enter__(self) -> Edges:
        """Raises RuntimeError if other tools hold all numbers of ``sys.monitoring`` that are free for use."""
        self._collector.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._collector.stop()

    def name(self, code: CodeType) -> str | None:
        """The name of a function of the modules, as edges have it; None for other code."""
        try:
            file = self._files[code.co_filename]
        except KeyError:
            path = Path(code.co_filename)
            base = next((root.parent for root in self._roots if path.is_relative_to(root)), None)
            self._files[code.co_filename] = file = None if base is None else str(path.relative_to(base))
        return file and f"{file}:{code.co_firstlineno}:{code.co_qualname}"


def _root(module: ModuleType) -> Path:
    """A module's file, or a package's folder."""
    file = getattr(module, "__file__", None)
    if file is None:
        raise ValueError(f"module {module.__name__} has no file")
    return Path(file).parent if hasattr(module, "__path__") else Path(file)


class _Traced:
    """By sys.settrace."""

    def __init__(self, edges: Edges) -> None:
        self._edges = edges
        self._before: Any = None

    def start(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._call)

    def stop(self) -> None:
        sys.settrace(self._before)
        self._before = None

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        name = self._edges.name(frame.f_code)
        if name is None:
            return None
        add = self._edges.seen.add
        last = 0

        def line(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal last
            if event == "line":
                add((name, last, last := frame.f_lineno))
            return line

        return line


if sys.version_info >= (3, 12):
    _EVENTS = sys.monitoring.events
    _BRANCHES = ("BRANCH_LEFT", "BRANCH_RIGHT") if sys.version_info >= (3, 14) else ("BRANCH",)

    class _Monitored:
        """By sys.monitoring. A branch whose ways are all known is no longer reported, nor is other code."""

        _latest: ClassVar[_Monitored | None] = None  # the one whose edges are not reported again

        def __init__(self, edges: Edges) -> None:
            self._edges = edges
            self._tool: int | None = None
            self._first: dict[tuple[str, int], int] = {}

        def start(self) -> None:
            tool = next(
                (tool for tool in (4, 3, sys.monitoring.PROFILER_ID) if not sys.monitoring.get_tool(tool)), None
            )
            if tool is None:
                raise RuntimeError("sys.monitoring: no number is free for another tool")
            sys.monitoring.use_tool_id(tool, "usermem.testing.edges")
            branches = (_EVENTS.BRANCH_LEFT, _EVENTS.BRANCH_RIGHT) if sys.version_info >= (3, 14) else (_EVENTS.BRANCH,)
            sys.monitoring.register_callback(tool, _EVENTS.PY_START, self._enter)
            events = _EVENTS.PY_START
            for event in branches:
                sys.monitoring.register_callback(tool, event, self._one_way if len(branches) == 2 else self._branch)
                events |= event
            self._tool = tool
            if _Monitored._latest is not self:
                sys.monitoring.restart_events()
                _Monitored._latest = self
            sys.monitoring.set_events(tool, events)

        def stop(self) -> None:
            if self._tool is not None:
                sys.monitoring.set_events(self._tool, 0)
                sys.monitoring.free_tool_id(self._tool)
                self._tool = None

        def _enter(self, code: CodeType, offset: int) -> Any:
            return self._one_way(code, -1, offset)

        def _one_way(self, code: CodeType, offset: int, destination: int) -> Any:
            name = self._edges.name(code)
            if name is not None:
                self._edges.seen.add((name, offset, destination))
            return sys.monitoring.DISABLE

        def _branch(self, code: CodeType, offset: int, destination: int) -> Any:
            name = self._edges.name(code)
            if name is None:
                return sys.monitoring.DISABLE
            self._edges.seen.add((name, offset, destination))
            other = self._first.setdefault((name, offset), destination)
            return None if other == destination else sys.monitoring.DISABLE


def _collector(edges: Edges) -> Any:
    if sys.version_info >= (3, 12):
        return _Monitored(edges)
    return _Traced(edges)
