"""AddressSpace: guest memory that system calls map, and everything else copies.

This is the face. How it works is told in :mod:`usermem.mm`: what is mapped and where its bytes are
(:mod:`usermem.mm.memory_map`), the calls that change it (a module each), and why a short copy is quick
(:mod:`usermem.mm.page_cache`). Mapping calls take the arguments, constants and errnos of Linux's, so that a simulator's
handler is one line.

Threads: map changes hold a lock; copies and lookups do not. A copy sees each range once, and may still land after a
change that overtook it; the memory it lands in is not reused before it ends.

Source: gVisor pkg/sentry/mm; Linux mm/.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn, Self

from attrs import evolve

from hostarch import AMD64, ANY_ACCESS, READ, AccessType, AddrRangeSeq, Arch, mman
from safemem import BlockSeq, atomics
from safemem.buffers import check_int
from usermem.mm import brk, host_runs, madvise, maps, mincore, mlock, mmap, mprotect, mremap, msync, pins
from usermem.mm.backing.caller_buffer import CallerBuffer
from usermem.mm.backing.mapped_object import MappedObject
from usermem.mm.check import check
from usermem.mm.host_runs import GuestRun
from usermem.mm.limits import MAX_MAP_COUNT, MEMLOCK_LIMIT, STACK_LIMIT, Limits
from usermem.mm.listeners import Listener
from usermem.mm.mapped_io import MappedIO
from usermem.mm.mmap import RIGHTS
from usermem.mm.vma import VMA

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class AddressSpace(MappedIO):
    """The memory of one guest. Starts empty; nothing it maps costs host memory until it is touched.

    Use it as a context manager, or close it: then it is empty for good, and mapping and unmapping raise ValueError.
    """

    def __init__(
        self,
        arch: Arch = AMD64,
        *,
        max_map_count: int = MAX_MAP_COUNT,
        address_limit: int | None = None,
        stack_limit: int = STACK_LIMIT,
        data_limit: int | None = None,
        memlock_limit: int | None = MEMLOCK_LIMIT,
        seed: int | None = None,
    ) -> None:
        """``max_map_count`` is how many mappings there may be, ``address_limit`` how many bytes (RLIMIT_AS).

        ``stack_limit`` is how long a MAP_GROWSDOWN mapping may grow, in bytes (RLIMIT_STACK), ``data_limit`` how many
        bytes the heap may have, and all private writable memory (RLIMIT_DATA), ``memlock_limit`` how many bytes may be
        locked (RLIMIT_MEMLOCK; 0 forbids it). None is any number.

        With a ``seed`` mappings begin at an address that follows from it, as with address space layout randomisation.
        """
        # Loaded now: at a guest's first access the process may have no descriptor left to open a file.
        import ctypes  # noqa: F401 - 2 ms

        with suppress(OSError, ValueError):  # which the first atomic operation raises
            atomics.native()
        super().__init__(arch, Limits(max_map_count, address_limit, stack_limit, data_limit, memlock_limit), seed)

    def __enter__(self) -> Self:
        self._map.check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be copied or pickled: its memory is this process's")

    def close(self) -> None:
        """Unmap everything. Blocks and views that were handed out stay valid. A second close does nothing.

        Raises what an object raised that was to take what the guest wrote to it; the space is closed all the same.
        """
        self._map.close()

    @property
    def limits(self) -> Limits:
        """The limits of the guest (getrlimit(2), vm.max_map_count, and our own), which may be changed."""
        return self._map.limits

    @property
    def on_change(self) -> Listener | None:
        """A function ``(start, end, kind)`` that is called for each change of the map, for emulators and caches.

        ``kind`` is a :class:`ChangeKind`: mapped, unmapped, protected, moved, or the host memory behind the addresses
        is another. It is called after the change and before the call returns that made it, without a lock, in the
        order of the changes. It may map and unmap itself. What it raises comes out of a mapping call, whose change is
        made. The promise: until it is called, the host addresses that :meth:`host_runs` gave stay what they are.
        """
        return self._map.listeners.listener

    @on_change.setter
    def on_change(self, listener: Listener | None) -> None:
        """Set the listener; None for none."""
        self._map.listeners.listener = listener

    def host_runs(self, start: int, end: int, *, copy_files: bool = False) -> list[GuestRun]:
        """Where the memory of [start, end) is in this process, in order of addresses, holes left out.

        For an emulator that aliases it. What has no host memory yet gets some, untouched. Each run keeps its memory
        alive; its address stays true until :attr:`on_change` tells of a change.

        Memory of a file that somebody can truncate must not be aliased: touching it beyond the file's end kills the
        process with SIGBUS. Raises ValueError, naming the mapping, if the range has any; with ``copy_files`` such runs
        are copies of what the file holds now, up to its end. A closed space has no runs. Raises MemoryError if the
        host has no address space left, or more than 1 TiB would get some; and what the code of a mapped object raises.
        """
        return host_runs.host_runs(self._map, start, end, copy_files)

    def maps(self) -> str:
        """The mappings as the text of /proc/PID/maps."""
        return maps.format_maps(self._map.tables, self.arch.pointer_size)

    def mappings(self) -> list[VMA]:
        """The mappings as they are now, in the order of their addresses, each with its name as in :meth:`maps`."""
        tables = self._map.tables
        return [evolve(vma, name=maps.name_of(vma, tables)) for vma in tables.vmas]

    def blocks(self, ars: AddrRangeSeq, access: AccessType = READ, *, ignore_permissions: bool = False) -> BlockSeq:
        """The host memory behind all of ars, for hashing, NumPy, an emulator. Raises FaultError if a byte is missing.

        Memory that is unmapped meanwhile stays readable through the blocks, and is reused only when the last block,
        view or array made from them is gone. As long as one is there that ``access`` lets write, the space is busy:
        see :class:`usermem.BusyError`.
        """
        self._map.check_open()
        return pins.blocks(self, ars, access, ignore_permissions=ignore_permissions)

    def mmap(self, addr: int, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
        """mmap(2): map anonymous memory, or a file by its descriptor, and return its address.

        ``addr`` is a hint, or the place with MAP_FIXED or MAP_FIXED_NOREPLACE. Raises OSError: EINVAL, ENOMEM, EEXIST,
        EPERM, EACCES, EBADF, ENODEV, EOVERFLOW as Linux; then nothing has changed. A file of the host's may grow,
        shrink and be written by others meanwhile; where the host cannot copy memory that may fault it is ENODEV.
        """
        self._map.check_open()
        return mmap.mmap(self._map, addr, length, prot, flags, (fd, offset))

    def map_object(
        self,
        addr: int,
        length: int,
        prot: int,
        flags: int,
        mapped: MappedObject | None,
        offset: int = 0,
        max_prot: int = ANY_ACCESS,
        name: str = "",
    ) -> int:
        """Map what a system call cannot say: an object of the simulator's, a limit to mprotect, a name for ``maps``.

        ``mapped`` None is anonymous memory. An object's pages are read when first touched. Shared mappings of one
        object have them in common, in all address spaces of this process; what is written there goes back into the
        object by msync, and when they are unmapped, if it has ``write_at``. What the object refuses then is told by
        the next msync or by close. A SharedMemory is mapped as it is. Raises OSError as :meth:`mmap`, and EACCES if
        ``prot`` is more than ``max_prot``.
        """
        self._map.check_open()
        offset = check_int(offset, "offset")
        mmap.check_offset(self._map, offset)
        prot = check_int(prot, "prot") & RIGHTS
        what = VMA(0, 0, prot, check_int(max_prot, "max_prot"), False, self._map.anonymous, offset, 0, name)
        return mmap.map_object(self._map, addr, length, flags, mapped, what)

    def attach(self, addr: int, buffer: ReadableBuffer, prot: int = RIGHTS, flags: int = 0, name: str = "") -> int:
        """Map a buffer of the caller's, without a copy, and return where: both see what either writes.

        Its length must be a multiple of the page size. ``addr`` and ``flags`` are as for mmap; a read-only buffer never
        becomes writable. It is kept, and cannot be resized or closed, as long as something refers to its pages. Raises
        OSError as mmap, TypeError if it is no buffer, ValueError for its length.
        """
        attached = CallerBuffer(buffer)
        if not attached.size() or not self.arch.is_page_aligned(attached.size()):
            raise ValueError(f"buffer must be whole pages of {self.arch.page_size} bytes, not {attached.size()}")
        flags = check_int(flags, "flags") & ~mman.MAP_TYPE | mman.MAP_SHARED
        prot = check_int(prot, "prot") & attached.max_prot
        return self.map_object(addr, attached.size(), prot, flags, attached, 0, attached.max_prot, name)

    def munmap(self, addr: int, length: int) -> int:
        """munmap(2): unmap all pages in the range, mapped or not, and return 0. Raises OSError: EINVAL as Linux."""
        self._map.check_open()
        return mmap.munmap(self._map, addr, length)

    def mprotect(self, addr: int, length: int, prot: int) -> int:
        """mprotect(2): change the rights of all pages in the range and return 0.

        Raises OSError as Linux: EINVAL; ENOMEM if a page is not mapped and EACCES if a right cannot be granted, each
        after the pages before it were changed.
        """
        self._map.check_open()
        return mprotect.mprotect(self._map, addr, length, prot)

    def set_name(self, addr: int, length: int, name: str | None) -> int:
        """prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME): name anonymous memory for :meth:`maps`, or unname it, and return 0.

        Raises OSError as Linux: EINVAL for the name or the range; EBADF if a file is mapped there and ENOMEM if a page
        is not mapped, each after the rest was done as far as Linux does it.
        """
        self._map.check_open()
        return mprotect.set_name(self._map, addr, length, name)

    def mremap(self, old_addr: int, old_size: int, new_size: int, flags: int = 0, new_addr: int = 0) -> int:
        """mremap(2): resize or move what is mapped, and return where it is now.

        ``old_size`` 0 maps shared memory a second time. With MREMAP_FIXED and no change of size there may be several
        mappings in the range, with holes between them, as since Linux 6.17. Raises OSError as Linux: EINVAL; EFAULT if
        nothing is mapped at ``old_addr``, or the range is not one mapping; ENOMEM if it cannot grow where it is and may
        not move, nothing is free, or a limit is reached. After an error nothing has changed.
        """
        self._map.check_open()
        return mremap.mremap(self._map, old_addr, old_size, new_size, flags, new_addr)

    def set_brk(self, start: int) -> None:
        """Let the heap begin at ``start``, empty, as a program's loader does. What was heap before stays mapped.

        Raises ValueError if it lies below ``arch.min_addr`` or above ``arch.max_addr``.
        """
        self._map.check_open()
        brk.set_brk(self._map, start)

    def brk(self, addr: int) -> int:
        """brk(2), the system call: let the heap end at addr if that can be, and return where it ends now.

        A page stays free between the heap and what is mapped above it. Without :meth:`set_brk` there is no heap, and
        the answer is 0.
        """
        self._map.check_open()
        return brk.brk(self._map, addr)

    def madvise(self, addr: int, length: int, advice: int) -> int:
        """madvise(2): returns 0. MADV_DONTNEED makes private memory what it was when it was mapped.

        MADV_FREE may do so at any time, and does nothing here. MADV_REMOVE makes shared memory zero, for all who share
        it. MADV_GUARD_INSTALL lets all accesses to some pages fault, until MADV_GUARD_REMOVE; what was there is lost,
        but for what is shared. MADV_COLLAPSE only looks at what there is.

        Raises OSError as Linux: EINVAL, of much advice for locked memory too; EACCES and EOPNOTSUPP of MADV_REMOVE;
        ENOMEM if a page is not mapped, after the rest was done, but EFAULT or ENOMEM at once where memory is populated.
        """
        self._map.check_open()
        return madvise.madvise(self._map, addr, length, advice)

    def msync(self, addr: int, length: int, flags: int) -> int:
        """msync(2): returns 0. Raises OSError as Linux: EINVAL; EBUSY of MS_INVALIDATE if memory is locked; ENOMEM if a
        page is not mapped, after the others were synced (but with MS_ASYNC only those before it).

        Raises too what a mapped object raises, now or when it was last unmapped.
        """
        self._map.check_open()
        return msync.msync(self._map, addr, length, flags)

    def mlock(self, addr: int, length: int, flags: int = 0) -> int:
        """mlock(2), and with MLOCK_ONFAULT mlock2(2): lock all pages in the range, touch them, and return 0.

        Raises OSError as Linux: EINVAL; EPERM, ENOMEM of the limit (RLIMIT_MEMLOCK); ENOMEM if a page is not mapped or
        cannot be had, after the pages before it were locked. The host's own memory is not locked.
        """
        self._map.check_open()
        return mlock.mlock(self._map, addr, length, flags)

    def munlock(self, addr: int, length: int) -> int:
        """munlock(2): unlock all pages in the range and return 0.

        Raises OSError as Linux: EINVAL; ENOMEM if a page is not mapped, after the pages before it were unlocked.
        """
        self._map.check_open()
        return mlock.munlock(self._map, addr, length)

    def mlockall(self, flags: int) -> int:
        """mlockall(2): lock what is mapped now (MCL_CURRENT), or later (MCL_FUTURE), and return 0.

        Raises OSError as Linux: EINVAL; EPERM, ENOMEM of the limit. After an error nothing has changed.
        """
        self._map.check_open()
        return mlock.mlockall(self._map, flags)

    def munlockall(self) -> int:
        """munlockall(2): unlock everything, what is mapped later too, and return 0."""
        self._map.check_open()
        return mlock.munlockall(self._map)

    def mincore(self, addr: int, length: int) -> bytes:
        """mincore(2): a byte for each page, 1 if the host holds it in memory.

        Where the host cannot tell, it is 1 if the page has a place, and places are as large as windows. Raises OSError
        as Linux: EINVAL; ENOMEM if a page is not mapped.
        """
        self._map.check_open()
        return mincore.mincore(self._map, addr, length)

    def _check(self) -> None:
        """Raise AssertionError if the tables contradict each other: for stress tests."""
        check(self._map, self._cache)
