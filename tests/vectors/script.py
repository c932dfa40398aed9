"""The scripted readers and writers of the recorded vectors, as Python's streams and as functions over buffers.

In Go a Read may give bytes and an error at once. Here the error is raised and carries the count (``transferred``);
the end of the stream is 0, after which the script is over: calls that only hear 0 again are no part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Boom(Exception):
    """The vectors' arbitrary error of a reader or writer."""


class ScriptReader:
    """Gives the entries ``{d, err}`` one after the other; ``calls`` are the sizes it was asked for."""

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self._entries = [(bytes.fromhex(e.get("d") or ""), e.get("err")) for e in entries]
        self.calls: list[int] = []
        self.ended = False

    def readinto(self, buffer: memoryview) -> int:
        """One Read of the script."""
        if self.ended:
            return 0
        self.calls.append(len(buffer))
        if not self._entries:
            self.ended = True
            return 0
        data, err = self._entries.pop(0)
        n = min(len(buffer), len(data))
        buffer[:n] = data[:n]
        if n < len(data):
            self._entries.insert(0, (data[n:], err))
        elif err == "EOF":
            self.ended = True
        elif err:
            boom = Boom(err)
            boom.transferred = n  # type: ignore[attr-defined]
            raise boom
        return n


class VecReader:
    """A function over buffers on top of a script; ``ret``, if it is given, is what it claims to have read."""

    def __init__(self, script: ScriptReader, ret: int | None) -> None:
        self._script = script
        self._ret = ret
        self.vec: list[int] = []

    def __call__(self, buffers: Sequence[memoryview]) -> int:
        """One Read a buffer, up to the first error or short one. After the end of its script it claims nothing."""
        if self._script.ended:
            return 0
        total = 0
        try:
            for buffer in buffers:
                if self._script.ended:
                    break
                self.vec.append(len(buffer))
                n = self._script.readinto(buffer)
                total += n
                if n < len(buffer):
                    break
        except Boom as boom:
            total += boom.transferred  # type: ignore[attr-defined]
            boom.transferred = total if self._ret is None else self._ret  # type: ignore[attr-defined]
            raise
        return total if self._ret is None else self._ret


class ScriptWriter:
    """Accepts what the entries ``{n, err}`` say, then everything."""

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self._entries = list(entries)
        self.calls: list[int] = []
        self.got = b""

    def write(self, data: memoryview) -> int:
        """One Write of the script."""
        self.calls.append(len(data))
        if not self._entries:
            self.got += data
            return len(data)
        entry = self._entries.pop(0)
        n: int = min(entry.get("n", 0), len(data))
        self.got += data[:n]
        if entry.get("err"):
            boom = Boom(entry["err"])
            boom.transferred = n  # type: ignore[attr-defined]
            raise boom
        return n

    def write_vec(self, buffers: Sequence[memoryview]) -> int:
        """One Write a buffer, up to the first error or short one."""
        total = 0
        try:
            for buffer in buffers:
                n = self.write(buffer)
                total += n
                if n < len(buffer):
                    break
        except Boom as boom:
            boom.transferred += total  # type: ignore[attr-defined]
            raise
        return total
