"""File objects that do what a list says, one entry a call."""

from __future__ import annotations


class GivesParts:
    """``readinto`` gives the parts one at a time: bytes; None for nothing there now; an exception to raise."""

    def __init__(self, *parts: bytes | BaseException | None) -> None:
        self.parts = list(parts)
        self.calls: list[int] = []

    def readinto(self, buffer: memoryview, /) -> int | None:
        """The next part, as far as it fits; what does not is the next part. 0 after the last."""
        self.calls.append(len(buffer))
        if not self.parts:
            return 0
        part = self.parts.pop(0)
        if isinstance(part, BaseException):
            raise part
        if part is None:
            return None
        n = min(len(part), len(buffer))
        buffer[:n] = part[:n]
        if n < len(part):
            self.parts.insert(0, part[n:])
        return n


class TakesParts:
    """``write`` takes as many bytes as the entries say, then everything; None and exceptions as above."""

    def __init__(self, *counts: int | BaseException | None) -> None:
        self.counts = list(counts)
        self.calls: list[int] = []
        self.got = b""

    def write(self, data: memoryview, /) -> int | None:
        """Take what the next entry says."""
        self.calls.append(len(data))
        count = self.counts.pop(0) if self.counts else len(data)
        if isinstance(count, BaseException):
            raise count
        if count is None:
            return None
        count = min(count, len(data))
        self.got += bytes(data[:count])
        return count
