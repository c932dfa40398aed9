"""SharedFiles: shared memory of files in an engine, which has no host address and asks for it at each access.

A file may become shorter at any time. What lies behind its end is not mapped in the engine, so that the access is a
fault of the engine's, which knows exactly where it is.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from hostarch import mman
from usermem.errors import FaultError
from usermem.unicorn import engine
from usermem.unicorn.engine import PAGE, Engine
from usermem.unicorn.regions import THROUGH, Region, Regions

if TYPE_CHECKING:
    from usermem.address_space import AddressSpace


class SharedFiles:
    """Shared memory of files of one engine; its regions ask here."""

    def __init__(self, uc: Engine, space: AddressSpace) -> None:
        self.regions: Regions = Regions(uc, self)
        self.failed: BaseException | None = None
        """What the space raised that is no fault."""
        self._uc = uc
        self._space = space
        self._copies: set[int] = set()  # pages that are executed
        self._cut: set[int] = set()  # pages that the engine asked for, and a file had no longer

    def region(self, start: int, end: int, prot: int) -> list[Region]:
        """The region for a part of one mapping, up to the file's end or a guard page; none if nothing is there."""
        pages = range(start, end, PAGE)
        count = bisect_left(pages, True, key=self._is_behind)
        prot &= ~mman.PROT_EXEC  # see copy_code
        end = min(end, start + count * PAGE)
        return [Region(start, end, THROUGH + start, prot, frozenset())] if prot and count else []

    def _is_behind(self, page: int) -> bool:
        try:
            self._space.read_bytes(page, 1, ignore_permissions=True)
        except FaultError:
            return True
        return False

    def load(self, addr: int, size: int) -> int:
        """What the CPU loads."""
        try:
            data = self._space.read_bytes(addr, size, ignore_permissions=True)
            return int.from_bytes(data, self._space.arch.byte_order)
        except BaseException as exc:
            self._end(exc, addr, engine.ERR_READ_UNMAPPED)
            return 0

    def store(self, addr: int, size: int, value: int) -> None:
        """Store what the CPU stores."""
        try:
            data = value.to_bytes(size, self._space.arch.byte_order)
            self._space.copy_out(addr, data, ignore_permissions=True)
        except BaseException as exc:
            self._end(exc, addr, engine.ERR_WRITE_UNMAPPED)

    def _end(self, exc: BaseException, addr: int, code: int) -> None:
        """End the emulation at an access that the space refuses: a file has become shorter.

        The engine does not tell where an unaligned access begins. So it is made again, after :meth:`drop_cut`.
        """
        if isinstance(exc, FaultError):
            self._cut.add(addr // PAGE * PAGE)
        else:
            self.failed = exc.with_traceback(None)
        engine.end_by_error(self._uc, code)

    def drop_cut(self) -> bool:
        """Unmap what lies behind a file's end; whether an access has ended there."""
        ended = bool(self._cut)
        while self._cut:
            page = self._cut.pop()
            self.regions.remove(page, page + PAGE)
        return ended

    def copy_code(self, page: int) -> None:
        """Give the engine a copy of a page: it executes nothing that it asks for. A store takes the copy away."""
        self.regions.remove(page, page + PAGE)
        for run in self._space.host_runs(page, page + PAGE, copy_files=True):
            self._copies.add(page)
            self.regions.add(Region(page, run.end, run.address, mman.PROT_READ | mman.PROT_EXEC, run.keepers))

    def drop_code(self, start: int = 0, end: int = 1 << 64) -> None:
        """Take away the copies of pages in [start, end)."""
        for page in [page for page in self._copies if page < end and start < page + PAGE]:
            self.regions.remove(page, page + PAGE)
            self._copies.discard(page)
