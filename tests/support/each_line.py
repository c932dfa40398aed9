"""Something that happens in the middle of a call: once before each line that the call runs in some files.

As a signal handler's: it may raise, or use what the call is in the middle of.
"""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from collections.abc import Callable, Collection
from dis import opname
from types import FrameType, ModuleType
from typing import Any


class Event:
    """``act`` happens once, before line number ``at`` (from 1) that is run in the files; never if it is 0.

    A line that is run more often than ``often`` counts no more. With ``between`` it is not lines that count but the
    instructions before which CPython lets a signal handler run: the first of a function, and those after calls and
    jumps back.
    """

    def __init__(
        self,
        modules: Collection[ModuleType],
        at: int = 0,
        act: Callable[[], object] = bool,
        often: int = 1 << 60,
        between: bool = False,
    ) -> None:
        self._files = {module.__file__ for module in modules}
        self._at = at
        self._act = act
        self._often = often
        self._between = between
        self._before: dict[FrameType, str] = {}  # the instruction that a frame has run last
        self._counts: Counter[tuple[object, int]] = Counter()
        self.lines = 0
        """How many lines were run; those after the event are not counted."""
        self.where = ""
        """The line that the event came before."""

    def during(self, call: Callable[[], object]) -> None:
        """Make the call."""
        before = sys.gettrace()
        if self._between:  # CPython 3.12 tells of no instruction if no frame asked for them before
            sys._getframe().f_trace_opcodes = True
        sys.settrace(self._enter)
        try:
            call()
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        if not self._between:
            return self._line
        frame.f_trace = self._instruction  # before the next line, or CPython 3.13 tells of some instructions only
        frame.f_trace_opcodes = True
        return self._instruction

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line":
            self._count(frame, frame.f_lineno, _no_handler(frame))
        return self._line

    def _instruction(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "opcode" and frame.f_lineno is not None:  # None: 3.12 closes a generator, in its destructor
            before = self._before.get(frame, "")
            self._before[frame] = opname[frame.f_code.co_code[frame.f_lasti]]
            if before.startswith(("CALL", "RESUME", "JUMP_BACKWARD")):
                self._count(frame, frame.f_lasti, False)
        else:  # it returns, or what it called has raised: no handler runs then
            self._before.pop(frame, None)
        return self._instruction

    def _count(self, frame: FrameType, place: int, skipped: bool) -> None:
        self._counts[frame.f_code, place] += 1
        if self._counts[frame.f_code, place] <= self._often and not skipped:
            self.lines += 1
            if self.lines == self._at:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"
                self._before.clear()
                sys.settrace(None)
                self._act()


def _no_handler(frame: FrameType) -> bool:
    """Whether no handler runs between this line and the one before: at a ``try:``, which does nothing; at the first
    line of a finally; where a with block is about to call __exit__.
    """
    file, number = frame.f_code.co_filename, frame.f_lineno
    name = opname[frame.f_code.co_code[frame.f_lasti]]
    leaves_with = linecache.getline(file, number).lstrip().startswith("with ") and name == "LOAD_CONST"
    return name == "NOP" or leaves_with or linecache.getline(file, number - 1).strip() == "finally:"


def interrupt() -> None:
    """As Ctrl-C."""
    raise KeyboardInterrupt
