"""WatchedIO: any IO behind the eight methods of the contract and nothing more, noting each access."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hostarch import AddrRangeSeq
from safemem import Reader, Writer
from usermem import DEFAULT_OPTS, IO, IOOpts, arch_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class WatchedIO:
    """``accesses`` are (method, address, bytes) in order, the address -1 where there are ranges; ``options`` theirs."""

    def __init__(self, inner: IO) -> None:
        self._inner = inner
        self.arch = arch_of(inner)
        self.accesses: list[tuple[str, int, int]] = []
        self.options: list[IOOpts] = []

    def _note(self, method: str, addr: int, n: int, opts: IOOpts) -> None:
        self.accesses.append((method, addr, n))
        self.options.append(opts)

    def copy_out(self, addr: int, src: ReadableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See IO.copy_out."""
        self._note("copy_out", addr, memoryview(src).nbytes, opts)
        return self._inner.copy_out(addr, src, opts)

    def copy_in(self, addr: int, dst: WriteableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See IO.copy_in."""
        self._note("copy_in", addr, memoryview(dst).nbytes, opts)
        return self._inner.copy_in(addr, dst, opts)

    def zero_out(self, addr: int, n: int, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See IO.zero_out."""
        self._note("zero_out", addr, n, opts)
        return self._inner.zero_out(addr, n, opts)

    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See IO.copy_out_from."""
        self._note("copy_out_from", -1, ars.num_bytes, opts)
        return self._inner.copy_out_from(ars, reader, opts)

    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See IO.copy_in_to."""
        self._note("copy_in_to", -1, ars.num_bytes, opts)
        return self._inner.copy_in_to(ars, writer, opts)

    def swap_uint32(self, addr: int, new: int, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See IO.swap_uint32."""
        self._note("swap_uint32", addr, 4, opts)
        return self._inner.swap_uint32(addr, new, opts)

    def compare_and_swap_uint32(self, addr: int, old: int, new: int, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See IO.compare_and_swap_uint32."""
        self._note("compare_and_swap_uint32", addr, 4, opts)
        return self._inner.compare_and_swap_uint32(addr, old, new, opts)

    def load_uint32(self, addr: int, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See IO.load_uint32."""
        self._note("load_uint32", addr, 4, opts)
        return self._inner.load_uint32(addr, opts)
