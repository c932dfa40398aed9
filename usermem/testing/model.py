"""ModelMemory: user memory as plainly as it can be said, to judge others by.

One dict holds the bytes, one the rights of each page, and every access goes from byte to byte. It shares no code with
the library's own memories: no resolver, no tables, no cache. Only the words are the same: errors, blocks, ranges.

Rules are those of :mod:`usermem.memory_io`. Quick it is not: some tenths of a microsecond a byte.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from hostarch import AMD64, READ, READ_WRITE, WRITE, AccessType, AddrRangeSeq, Arch
from safemem import Block, BlockSeq, Reader, Writer
from safemem.buffers import writable_view
from usermem.errors import FaultError, FaultReason, NameTooLongError
from usermem.memory_io import IO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_EVERYTHING = 7  # PROT_READ | PROT_WRITE | PROT_EXEC


class ModelMemory(IO):
    """An IO over ``bytes``, a dict from address to value (0 where nothing was written), and the rights of its pages."""

    _atomics_aligned = True  # an atomic's address must be a multiple of 4

    def __init__(self, arch: Arch = AMD64) -> None:
        self.arch = arch
        self.bytes: dict[int, int] = {}
        # For each mapped page: its rights, the most it can be given, and whether it lies in its file.
        self._pages: dict[int, tuple[int, int, bool]] = {}

    # --- mapping

    def map(self, addr: int, length: int, prot: int, max_prot: int = _EVERYTHING, file_size: int | None = None) -> None:
        """Map whole pages of zeros, over what was there. Pages wholly beyond ``file_size`` bytes cannot be accessed.

        Raises ValueError if address and length are not those of pages.
        """
        if addr % self.arch.page_size or length % self.arch.page_size or addr < 0 or length <= 0:
            raise ValueError(f"{length:#x} bytes at {addr:#x} are no whole pages of {self.arch.page_size:#x} bytes")
        self.unmap(addr, length)
        for offset in range(0, length, self.arch.page_size):
            inside = file_size is None or offset < file_size
            self._pages[addr + offset] = (prot, max_prot, inside)

    def unmap(self, addr: int, length: int) -> None:
        """Unmap every page that has an address in the range."""
        first, end = addr - addr % self.arch.page_size, addr + length
        self._pages = {page: rights for page, rights in self._pages.items() if not first <= page < end}
        self.bytes = {at: value for at, value in self.bytes.items() if self._page_of(at) in self._pages}

    def protect(self, addr: int, length: int, prot: int) -> None:
        """Change the rights page by page. Raises OSError (ENOMEM, EACCES) at the first page where it cannot."""
        for page in range(addr, addr + length, self.arch.page_size):
            if page not in self._pages:
                raise OSError(errno.ENOMEM, f"{page:#x} is not mapped")
            _, most, inside = self._pages[page]
            if prot & ~most:
                raise OSError(errno.EACCES, f"{page:#x} cannot have rights {prot}")
            self._pages[page] = (prot, most, inside)

    # --- what one byte may

    def reason(self, addr: int, access: AccessType, *, ignore_permissions: bool = False) -> FaultReason | None:
        """Why one byte cannot be accessed; None if it can."""
        page = self._page_of(addr)
        if page not in self._pages:
            return FaultReason.UNMAPPED
        prot, most, inside = self._pages[page]
        granted = most if ignore_permissions else prot
        can_read, can_write = granted != 0, granted & 2 != 0  # what can be written or executed can be read
        if (access.read and not can_read) or (access.write and not can_write):
            return FaultReason.PERMISSION
        return None if inside else FaultReason.BEYOND_FILE

    def edges(self) -> list[int]:
        """Where what may be done with a byte changes, in order."""
        size = self.arch.page_size
        bounds = {bound for page in self._pages for bound in (page, page + size)}
        return sorted(at for at in bounds if self._pages.get(at) != self._pages.get(at - size))

    def spans(self) -> list[tuple[int, int]]:
        """(address, length) of each piece that is mapped, in order; all bytes of one have the same rights."""
        return [(page, self.arch.page_size) for page in sorted(self._pages)]

    def content(self, addr: int, length: int) -> bytes:
        """The bytes of a range, whatever may be done with them; 0 where nothing was written."""
        if length <= len(self.bytes):
            return bytes([self.bytes.get(at, 0) for at in range(addr, addr + length)])
        found = bytearray(length)
        for at, value in self.bytes.items():
            if addr <= at < addr + length:
                found[at - addr] = value
        return bytes(found)

    def leaves_user_space(self, addr: int, length: int) -> bool:
        """Whether a range does, so that nothing of it may be touched."""
        return addr < 0 or addr + length > self.arch.max_addr

    def reach(
        self, addr: int, length: int, access: AccessType, *, ignore_permissions: bool = False
    ) -> tuple[int, FaultReason | None]:
        """How many bytes from addr on can be accessed, and why the next one cannot."""
        first = self.plain(addr)
        if self.leaves_user_space(first, length):
            return 0, FaultReason.OUTSIDE_RANGE
        done = 0
        while done < length:
            reason = self.reason(first + done, access, ignore_permissions=ignore_permissions)
            if reason is not None:
                return done, reason
            done += self._same_rights(first + done)
        return length, None

    def _same_rights(self, addr: int) -> int:
        """How many bytes from addr on have the rights that it has: those of its page."""
        return self.arch.page_size - addr % self.arch.page_size

    def plain(self, addr: int) -> int:
        """The address without a tag: on ARM64 the top byte is ignored, and what counts is copies of bit 55."""
        if not self.arch.ignores_top_byte or not 0 <= addr < 1 << 64:
            return addr
        return addr | 0xFF << 56 if addr >> 55 & 1 else addr % (1 << 56)

    def _page_of(self, addr: int) -> int:
        return addr - addr % self.arch.page_size

    # --- IO

    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        data = bytes(memoryview(src).cast("B"))
        n, reason = self.reach(addr, len(data), WRITE, ignore_permissions=ignore_permissions)
        for at, value in enumerate(data[:n], self.plain(addr)):
            self.bytes[at] = value
        return _all_or_fault(addr, n, WRITE, reason)

    def copy_in(self, addr: int, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        view = writable_view(dst, "dst")
        n, reason = self.reach(addr, len(view), READ, ignore_permissions=ignore_permissions)
        view[:n] = self.content(self.plain(addr), n)
        return _all_or_fault(addr, n, READ, reason)

    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        if n < 0:
            raise ValueError(f"n must not be negative: {n}")
        zeroed, reason = self.reach(addr, n, WRITE, ignore_permissions=ignore_permissions)
        for at in range(self.plain(addr), self.plain(addr) + zeroed):
            self.bytes[at] = 0
        return _all_or_fault(addr, zeroed, WRITE, reason)

    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        addrs, buffers, fault = self._prefix(ars, WRITE, ignore_permissions)
        moved = 0
        try:
            if addrs:
                moved = _possible(reader.read_to_blocks(BlockSeq(map(Block, buffers))), len(addrs))
        except BaseException as exc:
            moved = getattr(exc, "transferred", 0)
            if not (isinstance(exc, BlockingIOError) and moved):
                raise
            return moved
        finally:
            for at, value in zip(addrs[:moved], b"".join(buffers), strict=False):
                self.bytes[at] = value
        return _count_or_fault(moved, fault if moved == len(addrs) else None)

    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, *, ignore_permissions: bool = False) -> int:
        addrs, buffers, fault = self._prefix(ars, READ, ignore_permissions)
        moved = 0
        try:
            if addrs:
                moved = _possible(writer.write_from_blocks(BlockSeq(map(Block, buffers))), len(addrs))
        except BlockingIOError as exc:
            moved = getattr(exc, "transferred", 0)
            if not moved:
                raise
            return moved
        return _count_or_fault(moved, fault if moved == len(addrs) else None)

    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        _check_word(new)
        return self._word(addr, READ_WRITE, ignore_permissions, lambda found: new)

    def compare_and_swap_uint32(self, addr: int, old: int, new: int, *, ignore_permissions: bool = False) -> int:
        _check_word(old)
        _check_word(new)
        return self._word(addr, READ_WRITE, ignore_permissions, lambda found: new if found == old else found)

    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        return self._word(addr, READ, ignore_permissions, None)

    # --- what an IO may offer beside: here, so that none of the library's own ways is taken

    def copy_string_in(self, addr: int, maxlen: int, *, ignore_permissions: bool = False) -> bytes:
        """The bytes before the NUL at addr, at most maxlen of them. Raises as :func:`usermem.copy_string_in`."""
        if maxlen < 0:
            raise ValueError(f"maxlen must not be negative: {maxlen}")
        found = bytearray()
        while len(found) < maxlen:
            at = addr + len(found)
            _, reason = self.reach(at, 1, READ, ignore_permissions=ignore_permissions)
            if reason is not None:
                fault = FaultError(at, READ, reason, len(found))
                fault.partial = bytes(found)
                try:
                    raise fault
                finally:
                    del fault
            value = self.bytes.get(self.plain(at), 0)
            if not value:
                return bytes(found)
            found.append(value)
        raise NameTooLongError(bytes(found))

    def copy_out_vec(self, ars: AddrRangeSeq, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        """Copy the bytes of src to the memory at ars, and return how many. Raises FaultError."""
        data = bytes(memoryview(src).cast("B"))
        addrs, fault = self._first(len(data), ars, WRITE, ignore_permissions)
        self.bytes.update(zip(addrs, data, strict=False))
        return _count_or_fault(len(addrs), fault)

    def copy_in_vec(self, ars: AddrRangeSeq, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        """Fill dst with the bytes at ars, and return how many. Raises FaultError."""
        view = writable_view(dst, "dst")
        addrs, fault = self._first(len(view), ars, READ, ignore_permissions)
        for i, at in enumerate(addrs):
            view[i] = self.bytes.get(at, 0)
        return _count_or_fault(len(addrs), fault)

    def zero_out_vec(self, ars: AddrRangeSeq, n: int, *, ignore_permissions: bool = False) -> int:
        """Set the first n bytes at ars to 0, and return how many. Raises FaultError; ValueError if n < 0."""
        if n < 0:
            raise ValueError(f"n must not be negative: {n}")
        addrs, fault = self._first(n, ars, WRITE, ignore_permissions)
        self.bytes.update(dict.fromkeys(addrs, 0))
        return _count_or_fault(len(addrs), fault)

    def _first(
        self, n: int, ars: AddrRangeSeq, access: AccessType, ignore_permissions: bool
    ) -> tuple[list[int], FaultError | None]:
        """The addresses of the first n bytes of ars, as far as they can be accessed one range after the other."""
        addrs: list[int] = []
        for ar in ars:
            if len(addrs) == n:
                break
            got, reason = self.reach(
                ar.start, min(ar.length, n - len(addrs)), access, ignore_permissions=ignore_permissions
            )
            addrs += range(self.plain(ar.start), self.plain(ar.start) + got)
            if reason is not None:
                return addrs, FaultError(ar.start + got, access, reason)
        return addrs, None

    def _word(
        self, addr: int, access: AccessType, ignore_permissions: bool, change: Callable[[int], int] | None
    ) -> int:
        if self._atomics_aligned and addr % 4:
            raise FaultError(addr, access, FaultReason.UNALIGNED)
        _, reason = self.reach(addr, 4, access, ignore_permissions=ignore_permissions)
        if reason is not None:
            raise FaultError(addr, access, reason)
        found = int.from_bytes(self.content(self.plain(addr), 4), self.arch.byte_order)
        if change is not None:
            for i, value in enumerate(change(found).to_bytes(4, self.arch.byte_order)):
                self.bytes[self.plain(addr) + i] = value
        return found

    def _prefix(
        self, ars: AddrRangeSeq, access: AccessType, ignore_permissions: bool
    ) -> tuple[list[int], list[bytearray], FaultError | None]:
        """The addresses of the accessible prefix, a buffer with its bytes for each range, and what stopped it."""
        ranges = [(ar.start, ar.length) for ar in ars]
        for start, length in ranges:
            if self.leaves_user_space(self.plain(start), length):
                raise FaultError(start, access, FaultReason.OUTSIDE_RANGE)
        addrs: list[int] = []
        buffers: list[bytearray] = []
        for start, length in ranges:
            n, reason = self.reach(start, length, access, ignore_permissions=ignore_permissions)
            addrs += range(self.plain(start), self.plain(start) + n)
            buffers.append(bytearray(self.content(self.plain(start), n)))
            if reason is not None:
                return addrs, buffers, FaultError(start + n, access, reason)
        return addrs, buffers, None


class ModelBytes(ModelMemory):
    """The model of BytesIO: ``size`` bytes from address 0, no pages, no rights, no alignment."""

    _atomics_aligned = False

    def __init__(self, content: bytes, arch: Arch = AMD64) -> None:
        super().__init__(arch)
        self.size: int = len(content)
        self.bytes: dict[int, int] = dict(enumerate(content))

    def reason(self, addr: int, access: AccessType, *, ignore_permissions: bool = False) -> FaultReason | None:
        return None if 0 <= addr < self.size else FaultReason.UNMAPPED

    def map(self, addr: int, length: int, prot: int, max_prot: int = _EVERYTHING, file_size: int | None = None) -> None:
        """Raises ValueError: there are no pages."""
        raise ValueError("ModelBytes has no pages to map")

    def edges(self) -> list[int]:
        return [0, self.size]

    def _same_rights(self, addr: int) -> int:
        return 1

    def spans(self) -> list[tuple[int, int]]:
        return [(0, self.size)] if self.size else []

    def leaves_user_space(self, addr: int, length: int) -> bool:
        """Only a range so long that its length is negative as an int64 does."""
        return length >= 1 << 63


def _check_word(value: int) -> None:
    if not 0 <= value < 1 << 32:
        raise ValueError(f"{value:#x} is no uint32")


def _all_or_fault(addr: int, n: int, access: AccessType, reason: FaultReason | None) -> int:
    if reason is not None:
        raise FaultError(addr + n, access, reason, n)
    return n


def _possible(moved: int, most: int) -> int:
    if not 0 <= moved <= most:
        raise ValueError(f"a reader or writer returned {moved} for {most} bytes")
    return moved


def _count_or_fault(moved: int, fault: FaultError | None) -> int:
    if fault is not None:
        fault.transferred = moved
        try:
            raise fault
        finally:
            del fault
    return moved
