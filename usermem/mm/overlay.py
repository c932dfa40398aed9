"""Overlay: images of private host memory, mapped over it where it was written.

An *image* has pages as they were at one moment; nobody writes to it any more. Mapped privately over the memory that it
was taken of, it shows the same bytes at the same host addresses; what is written from then on goes into copies of the
process's own, whoever writes. So the pages that were written since are those own copies, and giving them up brings the
bytes of the image back, at a cost that follows the pages written and not the memory's size. Below lies the *base*:
zeros of an arena, or a file that is mapped privately.

Images can be mapped where the host has memory files, takes MAP_FIXED, and forgets own copies by MADV_DONTNEED.
Elsewhere the bytes are copied back instead, and compared.

Source: mmap(2), MAP_PRIVATE; madvise(2), MADV_DONTNEED.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import tee
from typing import Final, NamedTuple

from safemem import HostFaultError, safecopy
from safemem.fork import fork_safe_lock
from safemem.safecopy import address_of, view_at
from usermem.mm import host_calls, host_pages
from usermem.mm.image import Image, new_image
from usermem.mm.ranges import Ranges, differing, joined, near
from usermem.mm.segment import SegmentSet
from usermem.mm.segment_diff import differences

MAX_EXTENTS: Final = 1 << 10
"""How many extents the memory of one space may be covered by. Each is up to two of the host's 65,530 mappings. Beyond
it those that are near each other become one, whose pages are copied."""

_CHUNK: Final = 1 << 28  # bytes that the host is asked of at a time
_MOST_COPIED: Final = 1 << 30  # by one pwrite(2)
_SMALLEST_PAGE: Final = 4096
_PAGE: Final = mmap.PAGESIZE

# A process that is forked off has the extents and the mappings of one moment: nobody maps while it is made.
_mapping: Final = fork_safe_lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_mapping.acquire, after_in_parent=_mapping.release, after_in_child=_mapping.release)


class Extent:
    """Host addresses [start, end) show the bytes of an image from ``offset`` on. A value."""

    __slots__ = ("end", "image", "offset", "start")

    def __init__(self, start: int, end: int, image: Image, offset: int) -> None:
        self.start = start
        self.end = end
        self.image = image
        self.offset = offset

    @property
    def floor(self) -> int:
        """See Segment.floor."""
        return self.start

    def cut(self, start: int, end: int) -> Extent:
        """The part in [start, end)."""
        return Extent(start, end, self.image, self.offset + start - self.start)

    def data(self) -> Ranges:
        """Where in it an image that is mapped has bytes, in whole pages: elsewhere it has a hole, of zeros."""
        fd, offset = self.image.place(self.offset)
        found = host_calls.data(fd, offset, offset + self.end - self.start)
        return [
            (self.start + (low - offset & -_PAGE), min(self.start - (offset - high & -_PAGE), self.end))
            for low, high in found
        ]

    def moved(self, distance: int) -> Extent:
        """The same bytes, ``distance`` addresses further up."""
        return Extent(self.start + distance, self.end + distance, self.image, self.offset)


class ExtentSet(SegmentSet[Extent]):
    """What an overlay shows, in the order of host addresses. Immutable."""

    __slots__ = ()


class Part(NamedTuple):
    """What private memory of one owner showed: its overlay, and the images in the host ranges that are the space's."""

    overlay: Overlay
    extents: ExtentSet
    spans: Ranges


class Overlay:
    """What private host memory of one owner shows where nobody has written since. Many spaces may have parts of it."""

    def __init__(self, fd: int = -1, origin: int = 0) -> None:
        """The base is zeros; or the file of a descriptor, of which host address ``a`` shows the byte at origin + a."""
        self.extents = ExtentSet()
        self.copies = False
        """Whether bytes are compared and copied back, though images could be mapped."""
        self._fd = fd
        self._origin = origin

    def __del__(self, forget: Callable[[object], None] = host_calls.count_images) -> None:
        forget(self)

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
            extents = self._flattened(own, there, spans)
        else:
            own = [(at, min(at + _MOST_COPIED, end)) for start, end in own for at in range(start, end, _MOST_COPIED)]
            extents = _pictured(own)
            if self.maps:
                self._put(own, extents, copying=True)
                return
            self._fill_all(extents)
        if self.maps:
            self.cover(extents)
        else:  # the bytes are there
            self._swap(lambda now: _with(now, [(each.start, each.end) for each in extents], extents))

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
            places = [(each.start, min(each.end, each.start + _MOST_COPIED)) for each in extents]
            copied = host_calls.copies_to_be(places, [each.image.place(each.offset) for each in extents])
            extents = [each for each, count in zip(extents, copied, strict=True) if count < each.end - each.start]
        for each in extents:
            _fill(each.image, each.offset, each.start, each.end)

    def written(self, spans: Ranges) -> Ranges:
        """Where in some host ranges, in order, somebody has written since."""
        found = host_pages.written(spans) if self.maps else None
        return [each for span in spans for each in self._compared(*span)] if found is None else found

    def show(self, then: ExtentSet, spans: Ranges) -> None:
        """Show in some host ranges, in order, the images that they showed ``then``. Raises MemoryError."""
        if self.extents is then:
            return
        for start, end in spans:
            both = differences(self.extents.within(start, end), then.within(start, end))
            others = [(low, high, new) for low, high, old, new in both if not same_page(old, new)]
            self._put([(low, high) for low, high, new in others if new is None], [])
            self.cover([new.cut(low, high) for low, high, new in others if new is not None])

    def show_anew(self, then: ExtentSet, spans: Ranges) -> None:
        """As :meth:`show`, clean: all of it is mapped again, or copied back where it is others' bytes."""
        if self.maps:
            self._put(spans, [])
            self.cover([extent for start, end in spans for extent in then.within(start, end)])
        else:
            for start, end in spans:
                self._copy_back(start, end)

    def cover(self, extents: list[Extent]) -> None:
        """Show images at some host addresses, which are this owner's, clean. Raises MemoryError."""
        extents = sorted(extents, key=lambda extent: extent.start)
        self._put([(extent.start, extent.end) for extent in extents], extents)

    def uncover(self, start: int, end: int) -> None:
        """Show the base in [start, end), clean. Raises MemoryError."""
        self._put([(start, end)], [])

    def _put(self, places: Ranges, extents: list[Extent], *, copying: bool = False) -> None:
        """Show ``extents`` at ``places``, or the base if there are none; with ``copying``, with the bytes of there."""
        if not places:
            return
        if not self.maps:
            self._swap(lambda now: _with(now, places, extents))
            for start, end in places:
                self._copy_back(start, end)
            return
        files = [each.image.place(each.offset) for each in extents]
        if not extents:
            files = [(self._fd, self._origin + start if self._fd >= 0 else 0) for start, _ in places]
        # Of what the host does not copy, nothing is mapped.
        copied, lengths = tee(host_calls.copies_to_be(places, files) if copying else [end - at for at, end in places])
        todo = zip(copied, host_calls.mappings_to_be(places, lengths, files), strict=False)
        made: list[tuple[int, int]] = []
        while not made:
            old = self.extents
            new = _with(old, places, extents)
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
            self._swap(lambda now: _with(now, failed, [part for place in failed for part in old.within(*place)]))
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

    def _copy_back(self, start: int, end: int) -> None:
        """Put the bytes back that were there before somebody wrote, where they are others."""
        for low, high in self._compared(start, end):
            if self._is_plain(low, high):
                view_at(low, high - low)[:] = self._clean(low, high)
                continue
            for at in range(low, high, _PAGE):
                with suppress(HostFaultError):  # the file has been truncated
                    safecopy.copy_out(at, memoryview(self._clean(at, at + _PAGE)))

    def _is_plain(self, start: int, end: int) -> bool:
        """Whether nothing in [start, end) can fault: no file that somebody can truncate."""
        return self._fd < 0 and not any(extent.image.may_fault for extent in self.extents.within(start, end))

    def _read(self, start: int, end: int) -> bytes:
        """The bytes of [start, end) now: what cannot be read is zeros."""
        return bytes(view_at(start, end - start)) if self._is_plain(start, end) else _read(start, end)

    def _compared(self, start: int, end: int) -> Ranges:
        """Where the bytes are others than those of the images and the base: for hosts that do not tell."""
        touched = [(extent.start, extent.end) for extent in self.extents.within(start, end)]
        for at in range(start, end, _CHUNK):
            touched += host_pages.touched(at, min(at + _CHUNK, end))
        return differing(joined(touched), self._read, self._clean)

    def _clean(self, start: int, end: int) -> bytes:
        """The bytes of [start, end) as they were before somebody wrote."""
        base = os.pread(self._fd, end - start, self._origin + start) if self._fd >= 0 else b""
        clean = bytearray(base.ljust(end - start, b"\0"))
        for extent in self.extents.within(start, end):
            extent.image.read_at(extent.offset, memoryview(clean)[extent.start - start : extent.end - start])
        return bytes(clean)


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


def same_page(old: Extent | None, new: Extent | None) -> bool:
    """Whether two extents show the same at the addresses that they have in common."""
    if old is None or new is None:
        return old is new
    return old.image is new.image and old.offset - old.start == new.offset - new.start


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
            image.fill(offset + at - start, memoryview(_read(at, at + _PAGE)))


def _with(now: ExtentSet, places: Ranges, extents: list[Extent]) -> ExtentSet:
    """The set with some extents, which lie in ``places``, and nothing else there. Both are in order.

    Places with nothing between take one step: a fork of 256 extents 0.5 ms instead of 5.
    """
    i = j = 0
    while i < len(places):
        start, end = places[i]
        i += 1
        while i < len(places) and now.is_free(end, places[i][0]):
            end = places[i][1]
            i += 1
        first = j
        while j < len(extents) and extents[j].start < end:
            j += 1
        now = now.replace(start, end, extents[first:j])
    return now


def _read(start: int, end: int) -> bytes:
    """The bytes at host addresses, which may fault: what cannot be read is zeros."""
    read = bytearray(end - start)
    with suppress(HostFaultError):
        safecopy.copy_in(memoryview(read), start)
    return bytes(read)


@cache
def maps_images() -> bool:
    """Whether images can be mapped here: a memory file over private pages, which MADV_DONTNEED shows again.

    No page of the host's may be larger than a guest's: it could belong to two mappings. Raises MemoryError if the host
    is out of descriptors or memory, and so cannot say.
    """
    if _PAGE > _SMALLEST_PAGE:
        return False
    size = _PAGE
    try:
        fd = os.memfd_create("usermem-probe", os.MFD_CLOEXEC)
    except AttributeError:
        return False
    except OSError as exc:
        if exc.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            return False
        raise MemoryError(f"the host has no memory file for the pages of a snapshot now: {exc}") from exc
    try:
        os.pwrite(fd, b"\1" * size, 0)
        with host_calls.reserve(size) as memory, memoryview(memory) as view:
            address = address_of(view)
            if list(host_calls.mappings_to_be([(address, address + size)], [size], [(fd, 0)])) != [address]:
                return False
            memory[0] = 2
            host_calls.drop([address], [size])
            return memory[0] == 1
    except (AttributeError, OSError):
        return False
    finally:
        os.close(fd)
