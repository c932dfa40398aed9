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
from typing import NoReturn, Self

from attrs import evolve

from hostarch import AMD64, READ, AccessType, AddrRangeSeq, Arch
from safemem import BlockSeq, atomics
from usermem.mm import host_runs, maps, pins, spawn
from usermem.mm.check import check
from usermem.mm.code_writes import CodeListener, watch_code
from usermem.mm.descriptor import Path
from usermem.mm.dirty import different, dirty, page_ranges
from usermem.mm.futex_key import FutexKey, futex_key
from usermem.mm.host_runs import GuestRun
from usermem.mm.limits import MAX_MAP_COUNT, MEMLOCK_LIMIT, STACK_LIMIT, Limits
from usermem.mm.listeners import Listener
from usermem.mm.memory_map import MemoryMap
from usermem.mm.quiet import quietly
from usermem.mm.ranges import Ranges
from usermem.mm.restore import restore
from usermem.mm.saved_state import load_state, save_state
from usermem.mm.state import State, take
from usermem.mm.system_calls import SystemCalls
from usermem.mm.vma import VMA


class AddressSpace(SystemCalls):
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
        self._tracked: Snapshot | None = None

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

    @property
    def on_code_write(self) -> CodeListener | None:
        """A function ``(start, end)`` that is called before bytes of executable mappings are written, for code caches.

        It hears of writes through this space, by whatever call, rights ignored or not, and of blocks that can be
        written when they are handed out; not of writes through :meth:`host_runs`, at another address of the same
        memory, or in another space. What it raises comes out of the call, which has written nothing then.

        While one is set, each write to executable memory looks its pages up (2 us). Other memory is as quick as ever.
        """
        return self._map.code_listener

    @on_code_write.setter
    def on_code_write(self, listener: CodeListener | None) -> None:
        """Set the listener; None for none."""
        watch_code(self._map, listener)

    def host_runs(self, start: int, end: int, *, copy_files: bool = False) -> list[GuestRun]:
        """Where the memory of [start, end) is in this process, in order of addresses, holes left out.

        For an emulator that aliases it. What has no host memory yet gets some, untouched. Each run keeps its memory
        alive; its address stays true until :attr:`on_change` tells of a change.

        Memory of a file that somebody can truncate must not be aliased: touching it beyond the file's end kills the
        process with SIGBUS. Raises ValueError, naming the mapping, if the range has any; with ``copy_files`` such runs
        hold copies of what the file holds now, up to its end: those of private mappings are the guest's memory from
        then on, as if it had written all of it, and those of shared ones nobody else's. A closed space has no runs.
        Raises MemoryError if the host has no address space left, or more than 1 TiB would get some; and what the code
        of a mapped object raises.
        """
        return host_runs.host_runs(self._map, start, end, copy_files)

    def maps(self) -> str:
        """The mappings as the text of /proc/PID/maps."""
        return maps.format_maps(self._map.tables, self.arch.pointer_size)

    def mappings(self) -> list[VMA]:
        """The mappings as they are now, in the order of their addresses, each with its name as in :meth:`maps`."""
        tables = self._map.tables
        return [evolve(vma, name=maps.name_of(vma, tables)) for vma in tables.vmas]

    def futex_key(self, addr: int, access: AccessType = READ) -> FutexKey:
        """What a word is to all that share it (Linux's get_futex_key without FUTEX_PRIVATE_FLAG): for usermem.futex.

        The object and the offset of a shared mapping, and of a private one of a file that cannot be written; else this
        space and the address. Raises FaultError where the page cannot be accessed, or is private anonymous memory that
        cannot be written; then, with access WRITE, for all that cannot be.
        """
        self._map.check_open()
        return futex_key(self, self._map, addr, access)

    def blocks(self, ars: AddrRangeSeq, access: AccessType = READ, *, ignore_permissions: bool = False) -> BlockSeq:
        """The host memory behind all of ars, for hashing, NumPy, an emulator. Raises FaultError if a byte is missing.

        Memory that is unmapped meanwhile stays readable through the blocks, and is reused only when the last block,
        view or array made from them is gone. As long as one is there that ``access`` lets write, the space is busy:
        see :class:`usermem.BusyError`.
        """
        self._map.check_open()
        return pins.blocks(self, ars, access, ignore_permissions=ignore_permissions)

    def snapshot(self, *, timeout: float | None = 0) -> Snapshot:
        """What the space is now, to be restored or to start others from, as often as one likes.

        It costs a copy of the pages that were written since the last one, which the guest shares copy-on-write from
        then on. Mappings, rights, names, the heap's end, locked pages and all private memory belong to it, and shared
        anonymous memory. Files of the host's, objects of the simulator's and attached buffers do not: what shared
        mappings of them show is theirs.

        Raises BusyError while another thread is in the middle of an access or a hook, or blocks that can be written are
        referred to, after ``timeout`` seconds (None waits for ever), and at once if this thread itself is in the middle
        of one. Raises ValueError if the space is closed, MemoryError if the host has no memory left. Nothing has
        changed then.
        """
        self._map.check_open()
        return Snapshot(self._map, quietly(self._map, lambda: take(self._map), timeout=timeout))

    def restore(self, snapshot: Snapshot, *, timeout: float | None = 0) -> None:
        """Be again what the space was when its ``snapshot`` was made, at a cost that follows the pages written since.

        Host addresses of what is mapped then and now stay what they are, and what was written through them is undone;
        :attr:`on_change` is told of everything else, and of memory that has other bytes, at the end. Shared anonymous
        memory is put back in place, for all who share it; limits and hooks are left alone.

        Raises BusyError as :meth:`snapshot`; ValueError if the snapshot is of another space (use
        :meth:`Snapshot.spawn`), or one of the two is closed. Nothing has changed then. Raises MemoryError or OSError if
        the host refuses. Only then, and after an interrupt, contents may be partly restored
        while the mappings are not: restore again.
        """
        state = _state_of(snapshot, self._map)
        self._map.check_open()
        quietly(self._map, lambda: restore(self._map, state), timeout=timeout)

    def fork(self, *, timeout: float | None = 0) -> AddressSpace:
        """The space of a forked child (fork(2)): private memory is shared copy-on-write, shared memory is shared.

        What MADV_DONTFORK was said of is not mapped there, and what MADV_WIPEONFORK was said of is zeros. Memory that
        is locked here is not there. The limits are the same at first; hooks and listeners are not inherited. Raises as
        :meth:`snapshot`; then nothing has changed.
        """
        self._map.check_open()
        state = quietly(self._map, lambda: take(self._map), timeout=timeout)
        child = AddressSpace._like(self._map)
        spawn.fork(child._map, state)
        return child

    def dirty_pages(self, since: Snapshot | None = None, *, timeout: float | None = 0) -> AddrRangeSeq:
        """The pages that are mapped and were written since a snapshot of this space, whoever wrote them.

        Pages that have other memory than then belong to it, and what shared anonymous memory has other bytes; a page
        that was only read does not, unless its memory had to be filled for it: with an object's bytes, or with zeros
        over old ones. None is for since :meth:`start_dirty_tracking`. Shared mappings of files, objects and attached
        buffers are not looked at. Raises BusyError as :meth:`snapshot`, ValueError if there is no such snapshot, or it
        is of another space, or one of the two is closed.
        """
        since = self._tracked if since is None else since
        if since is None:
            raise ValueError("dirty_pages needs a snapshot, or start_dirty_tracking() before it")
        state = _state_of(since, self._map)
        self._map.check_open()
        found = quietly(self._map, lambda: dirty(self._map.tables, state), timeout=timeout)
        return page_ranges(self.arch, found)

    def start_dirty_tracking(self, *, timeout: float | None = 0) -> AddrRangeSeq:
        """Let :meth:`dirty_pages` tell what is written from now on, for code caches or to move a guest while it runs.

        Returns the pages written since the last call, none at the first; no write falls between the two. So who moves
        a guest copies all of it after the first call, and after each of the next what that call returned. Each call
        makes a snapshot of its own, in the place of the one before. Raises as :meth:`snapshot`; then the old one stays.
        """
        self._map.check_open()
        before = self._tracked

        def act() -> tuple[Ranges, State]:
            found = dirty(self._map.tables, _state_of(before, self._map)) if before is not None else []
            return found, take(self._map)

        found, state = quietly(self._map, act, timeout=timeout)
        self._tracked = Snapshot(self._map, state)
        return page_ranges(self.arch, found)

    @classmethod
    def _like(cls, parent: MemoryMap) -> AddressSpace:
        """An empty space with a parent's machine and limits."""
        space = cls(parent.arch)
        space._map.follow(parent)
        return space

    def _check(self) -> None:
        """Raise AssertionError if the tables contradict each other: for stress tests."""
        check(self._map, self._cache)


class Snapshot:
    """What an address space was at one moment. It outlives the space. Make one by :meth:`AddressSpace.snapshot`.

    It keeps the memory of its pages until it is closed, or nothing refers to it.
    """

    def __init__(self, mm: MemoryMap, state: State) -> None:
        """Use :meth:`AddressSpace.snapshot`."""
        self._mm = mm
        self._state: State | None = state

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Snapshot cannot be copied or pickled: save it to a file")

    def close(self) -> None:
        """Give its pages up. Spaces that it started keep theirs. A second close does nothing."""
        self._state = None

    def _open(self) -> State:
        if self._state is None:
            raise ValueError("the snapshot is closed")
        return self._state

    def spawn(self) -> AddressSpace:
        """A new address space that begins as the old one was, on its own.

        Private memory is shared copy-on-write; shared anonymous memory is new, with the bytes of then. Limits are those
        that the old space has; it has neither hooks nor listeners. Raises MemoryError if the host has none left, and
        OSError (EIO) if shared memory was loaded from a file that has been truncated since.
        """
        state = self._open()
        space = AddressSpace._like(self._mm)
        spawn.spawn(space._map, state)
        return space

    def diff(self, other: Snapshot) -> AddrRangeSeq:
        """The pages whose bytes are others in another snapshot, or that are mapped in only one of the two.

        A page of a private mapping of a file or an object counts, too, if only one of the two had a copy of it.
        Raises ValueError if one of the two is closed.
        """
        return page_ranges(self._mm.arch, different(self._open(), other._open()))

    def save(self, path: Path) -> None:
        """Write it to a file, from which any process, on any machine like this, can load it.

        The file at ``path`` stays what it was until the new one is whole on the disk. Private mappings of files and
        objects are saved with the bytes that they show. Raises ValueError, naming it, if a mapping shares a file, an
        object or a buffer, which is not the space's; OSError if the host refuses, and EIO if pages are lost with a file
        that was truncated after it was loaded; and what an object raises. The format is that of
        :mod:`usermem.mm.snapshot_file`.
        """
        save_state(path, self._open(), self._mm)

    @classmethod
    def load(cls, path: Path, *, in_memory: bool = False) -> Snapshot:
        """A snapshot out of a file, all of which is verified first.

        The spaces that it starts map the pages of the file, and so share those that they do not write with all
        processes that do the same. Somebody might truncate the file: copies then say how far they came, and
        :meth:`AddressSpace.host_runs` refuses such memory. With ``in_memory`` the pages are read into this process, for
        emulators that alias memory, and the file is not needed any more.

        Raises SnapshotFileError (a ValueError) if it is no snapshot, damaged, truncated, or of a newer version;
        OSError if the host refuses; MemoryError if there is no room for it.
        """
        return cls(*load_state(path, in_memory=in_memory))


def _state_of(snapshot: Snapshot, mm: MemoryMap) -> State:
    """The state of a snapshot, if it is one of that map's."""
    if not isinstance(snapshot, Snapshot):
        raise TypeError(f"snapshot must be a Snapshot, not {type(snapshot).__name__}")
    state = snapshot._open()
    if snapshot._mm is not mm:
        raise ValueError("the snapshot is of another address space: spawn() starts a new one from it")
    return state
