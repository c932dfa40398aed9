"""copy_between: from one user memory to another, without a buffer in between.

Source: process_vm_readv(2); Linux mm/process_vm_access.c.
"""

from __future__ import annotations

from hostarch import AddrRangeSeq
from safemem import BlockSeq, BlockSeqReader, WriterFunc
from usermem.memory_io import IO

_TOP = 1 << 64


def copy_between(
    dst: IO,
    dst_ars: AddrRangeSeq,
    src: IO,
    src_ars: AddrRangeSeq,
    *,
    dst_ignore_permissions: bool = False,
    src_ignore_permissions: bool = False,
) -> int:
    """Copy min(dst_ars.num_bytes, src_ars.num_bytes) bytes from src to dst and return how many.

    Raises the FaultError of the side that faults first, with the exact count. If both stop at the same byte, it is the
    source's where nothing can be read there, and the destination's where only touching the source's host memory would
    have shown it. Where source and destination overlap in memory, each run of memory is copied as by memmove.
    """
    # An ill-formed range makes num_bytes negative: it is longer than any other, and faults.
    n = min(dst_ars.num_bytes % _TOP, src_ars.num_bytes % _TOP)
    to = dst_ars.take_first(n)

    def write(srcs: BlockSeq) -> int:
        part = to.take_first(srcs.num_bytes)
        return dst.copy_out_from(part, BlockSeqReader(srcs), ignore_permissions=dst_ignore_permissions)

    return src.copy_in_to(src_ars.take_first(n), WriterFunc(write), ignore_permissions=src_ignore_permissions)
