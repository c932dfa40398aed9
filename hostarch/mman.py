"""The constants of mmap(2), mprotect(2), mremap(2), madvise(2), msync(2) and mlock(2).

The standard library has some of them, with the values of the host it runs on. These have the values of Linux's
generic ABI; :class:`MapFlags` has the ones an address space acts on, as they are on one machine.

Source: Linux include/uapi/asm-generic/mman-common.h, mman.h; arch/{mips,powerpc}/include/uapi/asm/mman.h.
"""

from __future__ import annotations

from attrs import frozen

from hostarch.short_repr import short_repr

PROT_NONE = 0x0
PROT_READ = 0x1
PROT_WRITE = 0x2
PROT_EXEC = 0x4
PROT_SEM = 0x8
PROT_GROWSDOWN = 0x01000000
PROT_GROWSUP = 0x02000000

MAP_SHARED = 0x01
MAP_PRIVATE = 0x02
MAP_SHARED_VALIDATE = 0x03
MAP_TYPE = 0x0F
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_32BIT = 0x40
MAP_ABOVE4G = 0x80
MAP_GROWSDOWN = 0x0100
MAP_DENYWRITE = 0x0800
MAP_EXECUTABLE = 0x1000
MAP_LOCKED = 0x2000
MAP_NORESERVE = 0x4000
MAP_POPULATE = 0x8000
MAP_NONBLOCK = 0x10000
MAP_STACK = 0x20000
MAP_HUGETLB = 0x40000
MAP_SYNC = 0x80000
MAP_FIXED_NOREPLACE = 0x100000
MAP_HUGE_SHIFT = 26
MAP_HUGE_MASK = 0x3F

MADV_NORMAL = 0
MADV_RANDOM = 1
MADV_SEQUENTIAL = 2
MADV_WILLNEED = 3
MADV_DONTNEED = 4
MADV_FREE = 8
MADV_REMOVE = 9
MADV_DONTFORK = 10
MADV_DOFORK = 11
MADV_MERGEABLE = 12
MADV_UNMERGEABLE = 13
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
MADV_DONTDUMP = 16
MADV_DODUMP = 17
MADV_WIPEONFORK = 18
MADV_KEEPONFORK = 19
MADV_COLD = 20
MADV_PAGEOUT = 21
MADV_POPULATE_READ = 22
MADV_POPULATE_WRITE = 23
MADV_DONTNEED_LOCKED = 24
MADV_COLLAPSE = 25
MADV_GUARD_INSTALL = 102
MADV_GUARD_REMOVE = 103

MS_ASYNC = 1
MS_INVALIDATE = 2
MS_SYNC = 4

MREMAP_MAYMOVE = 1
MREMAP_FIXED = 2
MREMAP_DONTUNMAP = 4

MLOCK_ONFAULT = 1

MCL_CURRENT = 1
MCL_FUTURE = 2
MCL_ONFAULT = 4


@frozen(repr=False)
class MapFlags:
    """The values on one machine of the MAP_* flags that an address space acts on, and of mlockall(2)'s.

    ``MAP_SHARED``, ``MAP_PRIVATE`` and ``MAP_TYPE`` are the same on all. The defaults are the generic values, which
    x86, ARM and RISC-V use. ``map_32bit`` is 0 where nothing heeds it: everywhere but on x86-64.
    """

    fixed: int = MAP_FIXED
    anonymous: int = MAP_ANONYMOUS
    growsdown: int = MAP_GROWSDOWN
    denywrite: int = MAP_DENYWRITE
    executable: int = MAP_EXECUTABLE
    locked: int = MAP_LOCKED
    noreserve: int = MAP_NORESERVE
    populate: int = MAP_POPULATE
    nonblock: int = MAP_NONBLOCK
    stack: int = MAP_STACK
    hugetlb: int = MAP_HUGETLB
    fixed_noreplace: int = MAP_FIXED_NOREPLACE
    map_32bit: int = 0
    mcl_current: int = MCL_CURRENT
    mcl_future: int = MCL_FUTURE
    mcl_onfault: int = MCL_ONFAULT

    __repr__ = short_repr


GENERIC_MAP_FLAGS = MapFlags()
AMD64_MAP_FLAGS = MapFlags(map_32bit=MAP_32BIT)
MIPS_MAP_FLAGS = MapFlags(
    anonymous=0x0800,
    growsdown=0x1000,
    denywrite=0x2000,
    executable=0x4000,
    locked=0x8000,
    noreserve=0x0400,
    populate=0x10000,
    nonblock=0x20000,
    stack=0x40000,
    hugetlb=0x80000,
)
POWERPC_MAP_FLAGS = MapFlags(noreserve=0x40, locked=0x80, mcl_current=0x2000, mcl_future=0x4000, mcl_onfault=0x8000)
