"""Addresses, ranges of them, pages and access rights: the words in which user memory is spoken of.

Imports nothing but the standard library and attrs.
"""

from hostarch import auxvec as auxvec
from hostarch import mman as mman
from hostarch.access_type import (
    ANY_ACCESS,
    EXECUTE,
    NO_ACCESS,
    READ,
    READ_EXECUTE,
    READ_WRITE,
    WRITE,
    AccessType,
)
from hostarch.addr import Addr
from hostarch.addr_range import AddrRange
from hostarch.addr_range_seq import AddrRangeSeq
from hostarch.arch import (
    AMD64,
    ARM,
    ARM64,
    ARM64_16K,
    ARM64_64K,
    HOST_BYTE_ORDER,
    I386,
    MIPS,
    MIPSEL,
    PPC64,
    RISCV64,
    S390X,
    Arch,
    ByteOrder,
)

__all__ = [
    "AMD64",
    "ANY_ACCESS",
    "ARM",
    "ARM64",
    "ARM64_16K",
    "ARM64_64K",
    "EXECUTE",
    "HOST_BYTE_ORDER",
    "I386",
    "MIPS",
    "MIPSEL",
    "NO_ACCESS",
    "PPC64",
    "READ",
    "READ_EXECUTE",
    "READ_WRITE",
    "RISCV64",
    "S390X",
    "WRITE",
    "AccessType",
    "Addr",
    "AddrRange",
    "AddrRangeSeq",
    "Arch",
    "ByteOrder",
    "auxvec",
    "mman",
]
