"""WatchedIO: any IO behind the eight methods of the contract and nothing more, noting each access."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hostarch import AddrRangeSeq
from safemem import Reader, Writer
from usermem import IO, arch_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class WatchedIO:
    """``accesses`` are (method, address, bytes) in order, the address -1 where there are ranges.

    ``ignored`` says for each whether it ignored permissions.
    """

    def __init__(self, inner: IO) -> None:
        self.inner = inner
        self.arch = arch_of(inner)
        self.accesses: list[tuple[str, int, int]] = []
        self.ignored: list[bool] = []

    def _note(self, method: str, addr: int, n: int, ignore_permissions: bool) -> None:
        self.accesses.append((method, addr, n))
        self.ignored.append(ignore_permissions)

    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        self._note("copy_out", addr, memoryview(src).nbytes, ignore_permissions)
        return self.inner.copy_out(addr, src, ignore_permissions=ignore_permissions)

    def copy_in(self, addr: int, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        self._note("copy_in", addr, memoryview(dst).nbytes, ignore_permissions)
        return self.inner.copy_in(addr, dst, ignore_permissions=ignore_permissions)

    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        self._note("zero_out", addr, n, ignore_permissions)
        return self.inner.zero_out(addr, n, ignore_permissions=ignore_permissions)

    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        self._note("copy_out_from", -1, ars.num_bytes, ignore_permissions)
        return self.inner.copy_out_from(ars, reader, ignore_permissions=ignore_permissions)

    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, *, ignore_permissions: bool = False) -> int:
        self._note("copy_in_to", -1, ars.num_bytes, ignore_permissions)
        return self.inner.copy_in_to(ars, writer, ignore_permissions=ignore_permissions)

    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        self._note("swap_uint32", addr, 4, ignore_permissions)
        return self.inner.swap_uint32(addr, new, ignore_permissions=ignore_permissions)

    def compare_and_swap_uint32(self, addr: int, old: int, new: int, *, ignore_permissions: bool = False) -> int:
        self._note("compare_and_swap_uint32", addr, 4, ignore_permissions)
        return self.inner.compare_and_swap_uint32(addr, old, new, ignore_permissions=ignore_permissions)

    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        self._note("load_uint32", addr, 4, ignore_permissions)
        return self.inner.load_uint32(addr, ignore_permissions=ignore_permissions)
