"""ObjectPages: the pages of a simulator's object that shared mappings have in common, and their way back into it.

All shared mappings of one object, in all address spaces of this process, see the same pages. Pages are read when they
are first touched; those that have changed since are written back by msync and when they are unmapped, if the object
has ``write_at``.

The object's code is called without a lock: two threads may both read a window, and the first to come keeps its copy.

A copy that is in flight when the last mapping goes may still write. So the pages are looked at once more when nothing
refers to them any longer; and because that may be anywhere, in any thread, they wait in a queue until somebody calls
:func:`write_back_released`: each mapping call and each access to memory that is not cached does.

Source: mmap(2), MAP_SHARED; gVisor pkg/sentry/fsutil (CachingInodeOperations); Linux's errseq_t for what failed.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final
from weakref import WeakValueDictionary

from safemem.buffers import check_int
from safemem.errors import is_interrupt
from usermem.mm.backing.backing import Backing
from usermem.mm.backing.mapped_object import MappedObject
from usermem.mm.backing.private_object import PrivateObject
from usermem.mm.backing.shared_memory import SharedMemory
from usermem.mm.host_mapping import Held
from usermem.mm.host_run import HostRun

WINDOW: Final = 1 << 16
"""How much of an object is read at a time, in bytes: all of it is host memory, though a guest touched one byte."""

_PAGE: Final = 4096  # the unit that is written back

# How often a page is written while others write it too: then it waits for the next time.
_ATTEMPTS: Final = range(8)


class _Window:
    """Some pages, and a digest of each as it was when the object last had it; b"" if nobody knows what it has."""

    __slots__ = ("digests", "failed", "run", "view")

    def __init__(self, run: HostRun, filled: object) -> None:
        """``filled`` is how many bytes the object says it had: what lies behind them is not touched."""
        self.run = run
        self.failed: set[int] = set()  # the pages that the object did not take when it was last asked
        self.view = run.view()
        end = filled if isinstance(filled, int) else len(run)
        self.digests = [self.digest(at) if at < end else _zero_digest() for at in range(0, len(run), _PAGE)]

    def digest(self, at: int) -> bytes:
        """The digest of the page at an offset."""
        return _digest(self.view[at : at + _PAGE])

    def page(self, at: int) -> bytes:
        """A copy of the page at an offset."""
        return self.view[at : at + _PAGE].tobytes()


def _digest(page: memoryview | bytes) -> bytes:
    from hashlib import blake2b  # 3 ms at import

    return blake2b(page, digest_size=16).digest()


@cache
def _zero_digest() -> bytes:
    return _digest(bytes(_PAGE))


class _Releasing:
    """What queues the pages of an object when they go. Nothing refers to it weakly: see host_calls."""

    __slots__ = ("mapped", "windows")

    def __init__(self, mapped: MappedObject, windows: dict[int, _Window]) -> None:
        self.mapped = mapped
        self.windows = windows

    def __del__(self, ended: Callable[[], bool] = sys.is_finalizing) -> None:
        if self.windows and not ended() and getattr(self.mapped, "write_at", None) is not None:
            released.append((self.mapped, self.windows))


class ObjectPages(Backing):
    """The pages of an object that shared mappings see. Use :func:`pages_of`."""

    steady = False  # the object may shrink at any time

    def __init__(self, mapped: MappedObject) -> None:
        import hashlib  # noqa: F401 - see AddressSpace

        self._mapped = mapped
        self._windows: dict[int, _Window] = {}
        self._releasing = _Releasing(mapped, self._windows)

    @property
    def mapped(self) -> object:
        """The object."""
        return self._mapped

    def accessible(self, page: int) -> int:
        """The object's size in whole pages. See Backing.accessible."""
        return -(-check_int(self._mapped.size(), "what size() returned") // page) * page

    def run(self, offset: int, low: int, high: int) -> tuple[int, HostRun]:
        """The window around ``offset``, read if it is touched for the first time. See Backing.run."""
        start = offset // WINDOW * WINDOW
        window = self._windows.get(start)
        if window is None:
            _, memory = SharedMemory(WINDOW).run(0, 0, WINDOW)  # no host mapping for each
            filled = self._mapped.read_at(start, memory.view())
            window = self._windows.setdefault(start, _Window(memory, filled))
        run = window.run
        return start, HostRun(run.memory, run.base, run.start, run.end, Held(self))

    def resident(self, start: int, end: int, page: int) -> bytes:
        # Resident are the windows that somebody has touched.
        at, found = start, []
        for base in _bases(self._windows, start, end):
            if base in self._windows:
                low, high = max(base, at), min(base + WINDOW, end)
                found += [bytes((low - at) // page), b"\1" * ((high - low) // page)]
                at = high
        return b"".join([*found, bytes((end - at) // page)])

    def private(self) -> PrivateObject:
        """The object's own bytes. See Backing.private."""
        return PrivateObject(self._mapped)

    def write_back(self, start: int, end: int) -> None:
        """Write back the pages of [start, end) that have changed, as far as the object reaches now."""
        _write_back(self._mapped, self._windows, start, end)


def _write_back(mapped: Any, windows: dict[int, _Window], start: int, end: int) -> None:
    """Give the object all pages that changed. One that fails stays changed; the first error is raised at the end."""
    write_at = getattr(mapped, "write_at", None)
    if write_at is None or not windows:
        return
    end = min(end, check_int(mapped.size(), "what size() returned"))
    failed: Exception | None = None
    for base in _bases(windows, start, end):
        window = windows.get(base)
        if window is None:
            continue
        for offset in range(max(base, start // _PAGE * _PAGE), min(base + WINDOW, end), _PAGE):
            try:
                _write_page(write_at, window, base, offset, end)
            except Exception as exc:
                failed = failed or exc
    if failed is not None:
        try:
            raise failed
        finally:
            del failed


def _write_page(write_at: Callable[..., object], window: _Window, base: int, offset: int, end: int) -> None:
    """Give the object the page at ``offset``, up to ``end``, if it has changed.

    The digest is of the very bytes that are written, for the guest may write meanwhile. Two threads may write one page
    at the same time, the older bytes last: the one that sees that another came writes again.
    """
    at = offset - base
    number = at // _PAGE
    for _ in _ATTEMPTS:
        page = window.page(at)
        digest = _digest(page)
        if digest == window.digests[number]:
            return
        window.digests[number] = digest  # before the call: it may itself unmap
        try:
            write_at(offset, memoryview(page)[: end - offset])
        except BaseException as exc:
            window.digests[number] = b""
            if not is_interrupt(exc):  # after one of those the object may still take it
                window.failed.add(at)
            raise
        window.failed.discard(at)
        if window.digests[number] is digest:
            return
        window.digests[number] = b""


def _bases(windows: dict[int, _Window], start: int, end: int) -> Sequence[int]:
    """Where windows that lie in [start, end), also in part, may begin, in order; not all of them are there."""
    bases = range(start // WINDOW * WINDOW, end, WINDOW)
    return bases if len(bases) < len(windows) else [base for base in sorted(windows) if base in bases]


_known: WeakValueDictionary[int, ObjectPages] = WeakValueDictionary()
released: deque[tuple[MappedObject, dict[int, _Window]]] = deque()
"""Pages whose last mapping is gone, with what copies in flight then wrote to them: for :func:`write_back_released`."""


def pages_of(mapped: MappedObject) -> ObjectPages:
    """The pages of an object: the same as long as somebody has them mapped."""
    write_back_released()
    pages = _known.get(id(mapped))
    if pages is None:
        pages = _known.setdefault(id(mapped), ObjectPages(mapped))
    return pages


def write_back_released() -> None:
    """Write back what was written to pages after their last mapping was gone, by copies that were in flight then.

    Nobody waits for the outcome, so an error goes to sys.unraisablehook, as an error of a destructor does. A page that
    the object refused before is given up: that was told. After an interrupt the next call goes on.
    """
    while released:
        try:
            mapped, windows = released.popleft()
        except IndexError:
            return
        try:
            for window in windows.values():
                for at in window.failed:
                    window.digests[at // _PAGE] = _digest(window.page(at))
            _write_back(mapped, windows, 0, 1 << 64)
        except Exception as exc:
            _Unraisable(exc)
        except BaseException:
            released.append((mapped, windows))
            raise


class _Unraisable:
    """Gives an exception to sys.unraisablehook, as it goes."""

    def __init__(self, exc: Exception) -> None:
        self._exc = exc

    def __del__(self) -> None:
        raise self._exc
