"""A list that counts how often it is read, to show that a walk is linear without a clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import SupportsIndex, TypeVar, overload

T = TypeVar("T")


class ReadCount:
    """How many items were read so far."""

    def __init__(self) -> None:
        self.items = 0


class CountingList(list[T]):
    """A list whose reads are counted: an item is one, a slice, a copy or an iteration as many as it gives.

    Slices and copies of it count too, with the same ``reads``.
    """

    def __init__(self, items: Iterable[T] = (), reads: ReadCount | None = None) -> None:
        super().__init__(items)
        self.reads = ReadCount() if reads is None else reads

    @overload
    def __getitem__(self, index: SupportsIndex) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> CountingList[T]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> T | CountingList[T]:
        if isinstance(index, slice):
            part = CountingList(super().__getitem__(index), self.reads)
            self.reads.items += len(part)
            return part
        self.reads.items += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[T]:
        for item in super().__iter__():
            self.reads.items += 1
            yield item

    def copy(self) -> CountingList[T]:
        """As list.copy."""
        return self[:]
