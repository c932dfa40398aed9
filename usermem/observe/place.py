"""Place: where in a handler's code an access was made. Noting one takes 0.7 us; its lines are looked up when shown."""

from __future__ import annotations

import os
import sys
from types import CodeType, FrameType
from typing import Final

_DEPTH: Final = 2 * 6  # items of a Place
_ROOT: Final = __file__.removesuffix(f"usermem{os.sep}observe{os.sep}place.py")
_PACKAGES: Final = tuple(f"{_ROOT}{name}{os.sep}" for name in ("hostarch", "safemem", "usermem"))
_is_ours: Final[dict[str, bool]] = {}  # by file name, because a look takes 30 ns and startswith 100


class Place(tuple[CodeType | int, ...]):
    """The callers of an access, the innermost first: code, offset of the instruction it was at, code, offset, …

    Frames of this library before the first one that is not its own are left out. Equal for equal callers.
    """

    __slots__ = ()

    @property
    def lines(self) -> list[tuple[str, int, str]]:
        """The (file, line, function) of each caller."""
        pairs = zip(self[::2], self[1::2], strict=True)
        return [(code.co_filename, _line(code, at), code.co_qualname) for code, at in pairs]  # type: ignore

    def __str__(self) -> str:
        """``handlers.py:12 in sys_readv, called from dispatch.py:40 in dispatch, …``"""
        return ", called from ".join(f"{os.path.basename(name)}:{line} in {who}" for name, line, who in self.lines)  # noqa: PTH119

    __repr__ = __str__


def here(above: int) -> Place:
    """The place of whoever called this library. At least ``above`` frames of it lie between.

    CPython makes a frame's object when it is first asked for; those of the frames that are passed over are not made,
    which halves the time.
    """
    frame: FrameType | None = sys._getframe(above + 1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not (_is_ours[name] if name in _is_ours else _is_ours.setdefault(name, name.startswith(_PACKAGES))):
            break
        frame = frame.f_back
    found: list[CodeType | int] = []
    while frame is not None and len(found) < _DEPTH:
        found += frame.f_code, frame.f_lasti
        frame = frame.f_back
    return Place(found)


def _line(code: CodeType, at: int) -> int:
    """The line of the instruction at an offset."""
    return next((line for start, end, line in code.co_lines() if start <= at < end and line), code.co_firstlineno)
