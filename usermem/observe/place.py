"""Place: where in a handler's code an access was made. Noting one takes 1 us; its lines are looked up when shown."""

from __future__ import annotations

import os
from sys import _getframe
from types import CodeType, FrameType
from typing import Any, Final, TypeAlias

from attrs import frozen

_ROOT: Final = __file__.removesuffix(f"usermem{os.sep}observe{os.sep}place.py")
_PACKAGES: Final = tuple(f"{_ROOT}{name}{os.sep}" for name in ("hostarch", "safemem", "usermem"))
_is_ours: Final[dict[str, bool]] = {}  # by file name, because a look takes 30 ns and startswith 100


Callers: TypeAlias = tuple[CodeType | int, ...]
"""Code, offset of the instruction it was at, code, offset, …: the innermost of the five callers first."""


@frozen(repr=False)
class Place:
    """The callers of an access. Frames of this library before the first one that is not its own are left out."""

    lines: tuple[tuple[str, int, str], ...]
    """The (file, line, function) of each caller, the innermost first."""

    @classmethod
    def of(cls, callers: Callers) -> Place:
        """The place with its lines."""
        pairs = zip(callers[::2], callers[1::2], strict=True)
        return cls(tuple((code.co_filename, _line(code, at), code.co_qualname) for code, at in pairs))  # type: ignore

    def __str__(self) -> str:
        """``handlers.py:12 in sys_readv, called from dispatch.py:40 in dispatch, …``"""
        return ", called from ".join(f"{os.path.basename(name)}:{line} in {who}" for name, line, who in self.lines)  # noqa: PTH119

    __repr__ = __str__


def here(above: int) -> Callers:
    """The items of the Place of whoever called this library. At least ``above`` frames of it lie between.

    CPython makes a frame's object when it is first asked for; those of the frames that are passed over are not made,
    which halves the time.
    """
    frame: Any = _getframe(above + 1)
    while frame is not None:
        name = frame.f_code.co_filename
        ours = _is_ours.get(name)
        if not (ours if ours is not None else _is_ours.setdefault(name, name.startswith(_PACKAGES))):
            break
        frame = frame.f_back
    try:  # without a loop, in half the time
        b = frame.f_back
        c = b.f_back
        d = c.f_back
        e = d.f_back
        return (
            frame.f_code,
            frame.f_lasti,
            b.f_code,
            b.f_lasti,
            c.f_code,
            c.f_lasti,
            d.f_code,
            d.f_lasti,
            e.f_code,
            e.f_lasti,
        )
    except AttributeError:  # there are fewer
        return _callers(frame)


def _callers(frame: FrameType | None) -> Callers:
    found: list[CodeType | int] = []
    while frame is not None:
        found += frame.f_code, frame.f_lasti
        frame = frame.f_back
    return tuple(found)


def _line(code: CodeType, at: int) -> int:
    """The line of the instruction at an offset."""
    return next((line for start, end, line in code.co_lines() if start <= at < end and line), code.co_firstlineno)
