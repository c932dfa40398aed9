"""Overlay: images of private host memory, mapped over it where it was written.

An *image* has pages as they were at one moment; nobody writes to it any more. Mapped privately over the memory that it
was taken of, it shows the same bytes at the same host addresses; what is written from then on goes into copies of the
process's own, whoever writes. So the pages that were written since are those own copies, and giving them up brings the
bytes of the image back, at a cost that follows the pages written and not the memory's size. Below lies the *base*:
zeros of an arena, or a file that is mapped privately.

Images can be mapped where the host has memory files, takes MAP_FIXED, and forgets own copies by MADV_DONTNEED.
Elsewhere the bytes are copied back instead, and compared (:mod:`usermem.mm.contents`).

Source: mmap(2), MAP_PRIVATE; madvise(2), MADV_DONTNEED.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Callable
from itertools import tee
from typing import Final, NamedTuple

from safemem.fork import fork_safe_lock
from safemem.safecopy import view_at
from usermem.mm import host_calls, host_pages
from usermem.mm.contents import Contents, bytes_at
from usermem.mm.extent import Extent, ExtentSet, same_page
from usermem.mm.image import Image, maps_images, new_image
from usermem.mm.memory_file import MOST_WRITTEN
from usermem.mm.ranges import Ranges, joined, near
from usermem.mm.segment_diff import differences

MAX_EXTENTS: Final = 1 << 10
"""How many extents the memory of one space may be covered by. Each is up to two of the host's 65,530 mappings. Beyond
it those that are near each other become one, whose pages are copied."""

_PAGE: Final = mmap.PAGESIZE

# A process that is forked off has the extents and the mappings of one moment: nobody maps while it is made.
_mapping: Final = fork_safe_lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_mapping.acquire, after_in_parent=_mapping.release, after_in_child=_mapping.release)


class Overlay(Contents):
    """What private host memory of one owner shows where nobody has written since. Many spaces may have parts of it."""

    extents: ExtentSet
    copies = False
    """Whether bytes are compared and copied back, though images could be mapped."""

    def __del__(self, ended: Callable[[], bool] = sys.is_finalizing) -> None:
        if not ended():
            host_calls.count_images(self)

    @property
    def maps(self) -> bool:
        """Whether images are mapped."""
        return maps_images() and not self.copies

    def covers(self, start: int, end: int) -> bool:
        """Whether an image shows in [start, end)."""
        return self.extents.count > 0 and not self.extents.is_free(start, end)

    def capture(self, spans: Ranges) -> None:
        """Have images of all that was written in some host ranges, in order. Raises MemoryError.

        The images have the bytes of the moment in which they are mapped: what a signal handler writes in the middle of
        this call is not lost, but for where extents that are too many (MAX_EXTENTS) become one.
        """
        own = self.written(spans)
        if not own:
            return
        there = [extent for start, end in spans for extent in self.extents.within(start, end)]
        if len(there) + 2 * len(own) > MAX_EXTENTS:
            self.cover(self._flattened(own, there, spans))
        elif self.maps:
            own = [(at, min(at + MOST_WRITTEN, end)) for start, end in own for at in range(start, end, MOST_WRITTEN)]
            self._map(own, _pictured(own), copying=True)
        else:
            extents = _pictured(own)
            self._fill_all(extents)
            self._swap(lambda now: now.replace_all(own, extents))  # the bytes are there

    def _flattened(self, own: Ranges, there: list[Extent], spans: Ranges) -> list[Extent]:
        """Few extents of a new image with what some ranges and extents hold now: those near each other become one.

        They cover all of the old extents, which else kept their images; but holes stay holes.
        """
        whole = [(each.start, each.end) for each in there]
        extents = _pictured(near(joined([*own, *whole]), spans, MAX_EXTENTS // 2, _PAGE))
        parts = joined([*own, *([part for each in there for part in each.data()] if self.maps else whole)])
        todo, left = [], parts[::-1]
        for each in extents:
            if self._fd >= 0:
                todo.append(each)
            while self._fd < 0 and left and left[-1][0] < each.end:  # zeros are holes of the image
                todo.append(each.cut(*left.pop()))
        self._fill_all(todo)
        return extents

    def _fill_all(self, extents: list[Extent]) -> None:
        """Put the bytes at the host addresses of extents into their images."""
        if self.maps:  # 3 us each, not 10
            places = [(each.start, min(each.end, each.start + MOST_WRITTEN)) for each in extents]
            copied = host_calls.copies_to_be(places, [each.image.place(each.offset) for each in extents])
            extents = [each for each, count in zip(extents, copied, strict=True) if count < each.end - each.start]
        for each in extents:
            _fill(each.image, each.offset, each.start, each.end)

    def written(self, spans: Ranges) -> Ranges:
        """Where in some host ranges, in order, somebody has written since."""
        found = host_pages.written(spans) if self.maps else None
        return [each for span in spans for each in self.compared(*span)] if found is None else found

    def show(self, then: ExtentSet, spans: Ranges) -> None:
        """Show in some host ranges, in order, the images that they showed ``then``. Raises MemoryError."""
        if self.extents is then:
            return
        for start, end in spans:
            both = differences(self.extents.within(start, end), then.within(start, end))
            others = [(low, high, new) for low, high, old, new in both if not same_page(old, new)]
            self._show([(low, high) for low, high, new in others if new is None], [])
            self.cover([new.cut(low, high) for low, high, new in others if new is not None])

    def show_anew(self, then: ExtentSet, spans: Ranges) -> None:
        """As :meth:`show`, clean: all of it is mapped again, or copied back where it is others' bytes."""
        if self.maps:
            self._map(spans, [])
            self.cover([extent for start, end in spans for extent in then.within(start, end)])
        else:
            for start, end in spans:
                self.copy_back(start, end)

    def cover(self, extents: list[Extent]) -> None:
        """Show images at some host addresses, which are this owner's, clean. Raises MemoryError."""
        extents = sorted(extents, key=lambda extent: extent.start)
        self._show([(extent.start, extent.end) for extent in extents], extents)

    def uncover(self, start: int, end: int) -> None:
        """Show the base in [start, end), clean. Raises MemoryError."""
        self._show([(start, end)], [])

    def _show(self, places: Ranges, extents: list[Extent]) -> None:
        """Show ``extents`` at ``places``, in order, or the base if there are none; clean."""
        if self.maps and places:
            self._map(places, extents)
        elif places:
            self._swap(lambda now: now.replace_all(places, extents))
            for start, end in places:
                self.copy_back(start, end)

    def _map(self, places: Ranges, extents: list[Extent], *, copying: bool = False) -> None:
        """:meth:`_show` where images are mapped; with ``copying``, with the bytes of there."""
        files = [each.image.place(each.offset) for each in extents]
        if not extents:
            files = [(self._fd, self._origin + start if self._fd >= 0 else 0) for start, _ in places]
        # Of what the host does not copy, nothing is mapped.
        copied, lengths = tee(host_calls.copies_to_be(places, files) if copying else [end - at for at, end in places])
        todo = zip(copied, host_calls.mappings_to_be(places, lengths, files), strict=False)
        made: list[tuple[int, int]] = []
        while not made:
            old = self.extents
            new = old.replace_all(places, extents)
            if new.count > old.count:
                host_calls.check_mappings(2 * (new.count - old.count))
            with _mapping:
                # In one line: what is noted is mapped, before a handler can run.
                if self.extents is old: self.extents = new; made = list(todo)  # fmt: skip # noqa: E701, E702
                host_calls.count_images(self, self.extents.count)
        failed = [
            (start + (max(count, 0) & -_PAGE if at != host_calls.FAILED else 0), end)
            for (start, end), (count, at) in zip(places, made, strict=True)
            if at == host_calls.FAILED or count < end - start
        ]
        if failed:  # what is there is as it was
            self._swap(lambda now: now.replace_all(failed, [part for place in failed for part in old.within(*place)]))
            self._raise_why([new.within(*place)[0] for place in failed] if copying else [])

    def _raise_why(self, not_copied: list[Extent]) -> None:
        """Raise MemoryError for what the host has refused to copy, or to map if that is nothing."""
        for each in not_copied:
            _fill(each.image, each.offset, each.start, each.start + _PAGE)
        # What a file has lost that was truncated meanwhile, nobody has written.
        if not not_copied or self.written([(each.start, each.end) for each in not_copied]):
            raise MemoryError("the host has no mapping left for the pages of an image (vm.max_map_count)")

    def _swap(self, build: Callable[[ExtentSet], ExtentSet]) -> None:
        while True:
            old = self.extents
            new = build(old)
            with _mapping:
                self.extents = done = new if self.extents is old else self.extents
            if done is new:
                return


class Part(NamedTuple):
    """What private memory of one owner showed: its overlay, and the images in the host ranges that are the space's."""

    overlay: Overlay
    extents: ExtentSet
    spans: Ranges


def become(parts: list[Part]) -> None:
    """Show in the host ranges of some parts what they showed then, clean. Raises OSError, MemoryError.

    The host is asked once for all of them: a guest may have many mappings of files, and each is a part.
    """
    anew: list[Part] = []
    mapped: Ranges = []
    for part in parts:
        part.overlay.show(part.extents, part.spans)
        if part.overlay.maps:
            mapped += part.spans
        else:
            anew.append(part)
    if mapped:
        try:
            host_pages.revert(mapped)
        except OSError:  # a sandbox since then
            anew = parts
    for part in anew:
        part.overlay.show_anew(part.extents, part.spans)


def _pictured(ranges: Ranges) -> list[Extent]:
    """Extents of a new image, which is yet to be filled, one for each range. Raises MemoryError."""
    image, offset = new_image(sum(end - start for start, end in ranges)), 0
    extents = []
    for start, end in ranges:
        extents.append(Extent(start, end, image, offset))
        offset += end - start
    return extents


def _fill(image: Image, offset: int, start: int, end: int) -> None:
    """Put the bytes at host addresses into an image. What a truncated file has taken away meanwhile is zeros."""
    try:
        image.fill(offset, view_at(start, end - start))
    except OSError as exc:
        if exc.errno != errno.EFAULT:
            raise MemoryError(f"the host has no memory left for the pages of a snapshot: {exc}") from exc
        for at in range(start, end, _PAGE):
            image.fill(offset + at - start, memoryview(bytes_at(at, at + _PAGE)))
