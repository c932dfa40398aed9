"""SystemCalls: the mapping calls of Linux's, with its arguments, constants and errnos, as methods.

A simulator's handler of one is one line. Each is a module beside this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hostarch import ANY_ACCESS, mman
from safemem.buffers import check_int
from usermem.mm import brk, madvise, mincore, mlock, mmap, mprotect, mremap, msync
from usermem.mm.backing.caller_buffer import CallerBuffer
from usermem.mm.backing.mapped_object import MappedObject
from usermem.mm.mapped_io import MappedIO
from usermem.mm.mmap import RIGHTS
from usermem.mm.vma import VMA

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class SystemCalls(MappedIO):
    """MappedIO whose map system calls change."""

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
        but for what is shared. MADV_DONTFORK and MADV_WIPEONFORK, undone by MADV_DOFORK and MADV_KEEPONFORK, say what
        a forked child has of a mapping: nothing, or zeros. MADV_COLLAPSE only looks at what there is.

        Raises OSError as Linux: EINVAL, of much advice for locked memory too; EACCES and EOPNOTSUPP of MADV_REMOVE;
        EAGAIN where advice about forking would make more mappings than ``max_map_count``; ENOMEM if a page is not
        mapped, after the rest was done, but EFAULT or ENOMEM at once where memory is populated.
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
