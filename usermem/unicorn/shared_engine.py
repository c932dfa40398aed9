"""share: an engine runs in a space's own memory, and its map follows the space's.

Nothing is copied: the engine's regions are the space's host memory, which ``host_runs`` names and ``on_change`` keeps
true. The engine gets them as the CPU touches them, in windows around the access, as a kernel fills page tables: so
mapping is quick, a guest pays the host for what it touches only, stacks grow, and regions stay few. What the space
changes is unmapped or changed in the engine before the call returns.

- Hooks for invalid accesses may change the map (a stack grows, the space's ``on_fault`` maps). But an engine that is
  in the middle of an access without the right crashes if its region is replaced then (Unicorn 2.1.4). Such an access
  ends the emulation without a fault: start it again at the program counter.
- Unicorn caches translated code and sees no write of the host's. What changes of the map, restores and copies through
  the space bring is looked after; who writes host memory calls :meth:`SharedEngine.written`.
- UC_CTL_CONTEXT_MEMORY makes an engine write to copies of its own. It is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

from hostarch import EXECUTE, AccessType, mman
from safemem.buffers import check_count, check_int
from usermem.errors import FaultError, FaultReason
from usermem.mm.listeners import ChangeKind
from usermem.unicorn import engine
from usermem.unicorn.engine import PAGE, Engine
from usermem.unicorn.listener import Listener
from usermem.unicorn.regions import MANY, Region, joined
from usermem.unicorn.shared_files import SharedFiles

if TYPE_CHECKING:
    from usermem.address_space import AddressSpace
    from usermem.mm.host_runs import GuestRun
    from usermem.mm.vma import VMA

# What is mapped around an access, in bytes: beside what is there already, usually, and where mappings are many.
_LARGE: Final = 64 << 20
_USUAL: Final = 1 << 20
_SMALL: Final = 64 << 10

_IMPLY_READ: Final = mman.PROT_WRITE | mman.PROT_EXEC


def share(uc: Engine, space: AddressSpace, *, copy_files: bool = False, eager: bool = False) -> SharedEngine:
    """Keep the map of a Unicorn engine equal to a space's, until the result is closed or left as a context manager.

    The engine's map must be empty, and nothing else may share it: raises ValueError otherwise. Its regions are the
    space's from then on; map others only where the guest does not. A listener that the space has is called after each
    change has been made in the engine. Changes must come from the thread that runs the engine (a hook), or while it
    does not run.

    The engine has what the CPU has touched: read and write memory through the space. With ``eager`` it has all
    mappings of at most 64 MiB from the beginning, for code that calls ``uc.mem_read``; mapping then takes four times as
    long, and where they are more than 128 some are forgotten all the same.

    Memory of a host's file cannot be aliased, for somebody may truncate the file. Without ``copy_files`` the engine
    has none of it, and an access is a ValueError from :meth:`SharedEngine.take_fault`. With it, a private mapping has a
    copy of the file's pages when the CPU touches it, in the space too, as if it had written them. Of a shared one the
    engine asks the space at each access (1 us); a page of it that is executed is a copy until the space or the CPU
    writes it, or the emulation ends.
    """
    if next(uc.mem_regions(), None) is not None:
        raise ValueError("the engine's map is not empty: share() it first, and map what is your own afterwards")
    if isinstance(getattr(uc.ctl, "__self__", None), SharedEngine):
        raise ValueError("the engine is shared already: close() that first")
    shared = SharedEngine(uc, space, copy_files, eager)
    try:
        shared._begin()
    except BaseException:
        shared.close()
        raise
    return shared


class SharedEngine:
    """An engine whose map is kept equal to a space's. Use :func:`share`."""

    def __init__(self, uc: Engine, space: AddressSpace, copy_files: bool, eager: bool) -> None:
        self._uc = uc
        self._space = space
        self._copy_files = copy_files
        self._eager = eager
        self._files = SharedFiles(uc, space)
        self._regions = self._files.regions
        self._fault: FaultError | None = None
        self._failed: BaseException | None = None
        self._last = -1  # where the last fault was
        self._fetched = False  # whether the engine has fetched from where nothing was mapped
        self._closed = False
        self._ctl, self._emu_start = uc.ctl, uc.emu_start
        self._hook: int | None = None
        self._listeners = [
            Listener(space, "on_change", self._changed),
            Listener(space, "on_code_write", self._code_written),
        ]

    def _begin(self) -> None:
        """Follow the space, and map what is there already. What an error leaves, close undoes."""
        uc, space = self._uc, self._space
        uc.ctl(engine.CTL_CONTEXT_MODE, engine.CTL_IO_WRITE, engine.CTL_CONTEXT_CPU)
        uc.ctl = self._checked_ctl
        uc.emu_start = self._start
        self._hook = uc.hook_add(engine.HOOK_MEM_INVALID, self._invalid)
        for listener in self._listeners:
            listener.join()
        for vma in space.mappings():
            self._follow(vma.start, vma.end, ChangeKind.MAP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the space's memory in the engine, and let both go. A second close does nothing.

        A listener that was set in the space after :func:`share` stays, and goes on to be called.
        """
        if self._closed:
            return
        self._regions.forget()
        for listener in self._listeners:
            listener.leave()
        hook, self._hook = self._hook, None
        if hook is not None:
            self._uc.hook_del(hook)
        for name in ("ctl", "emu_start"):
            self._uc.__dict__.pop(name, None)
        self._closed = True

    @property
    def fault(self) -> FaultError | None:
        """The access of the CPU's that ended the emulation, for a signal: see :meth:`take_fault`."""
        return self._fault

    def take_fault(self) -> FaultError | None:
        """Return and forget the access that ended the emulation, after ``emu_start`` has raised an UcError.

        The error says where (``address``), what for (``access``) and why (``reason``, ``signo``, ``si_code``). None if
        no access did; if the UcError is for memory, the access was made good: start again at the program counter.
        Raises what the space raised when it was asked, such as ValueError for memory of a file.
        """
        fault, failed = self._fault, self._failed or self._files.failed
        self._fault = self._failed = self._files.failed = None
        self._last = -1
        if self._files.drop_cut():
            fault = None  # of another part of the same access, which is made again
        try:
            if failed is not None:
                raise failed
            return fault
        finally:
            del failed, fault

    def written(self, addr: int, n: int) -> None:
        """Say that n bytes at addr were written: the engine translates anew what it knows of code there.

        Writes through the space need no call: :attr:`AddressSpace.on_code_write` tells of them. Others do: to host
        memory (``host_runs``, blocks), and to the same memory at another address. A block that is running comes to its
        end first. Costs 2 us for each region that is executable, and less than 1 elsewhere.
        """
        start = check_int(addr, "addr")
        self._retranslate(start, start + check_count(n, "n"))

    def _retranslate(self, start: int, end: int) -> None:
        if self._regions.retranslate(start, end) and self._fetched:
            # A block at which the engine found nothing mapped is known by its address alone (Unicorn 2.1.4).
            self._fetched = False
            self._ctl(engine.CTL_TLB_FLUSH, engine.CTL_IO_WRITE)

    # --- following the space

    def _changed(self, start: int, end: int, kind: ChangeKind) -> None:
        """Make a change in the engine."""
        try:
            if not self._closed:
                self._follow(start, end, kind)
        except BaseException:
            self._regions.forget()
            raise

    def _code_written(self, start: int, end: int) -> None:
        """Have the engine translate anew what is about to be written."""
        try:
            if not self._closed:
                self._retranslate(start, end)
                self._files.drop_code(start, end)
        except BaseException:
            self._regions.forget()
            raise

    def _follow(self, start: int, end: int, kind: ChangeKind) -> None:
        if self._eager and kind is not ChangeKind.UNMAP and end - start <= _LARGE:
            self._match(start, end)
        elif kind in (ChangeKind.PROTECT, ChangeKind.MEMORY):
            for part in joined(self._regions.parts(start, end)):
                self._match(part.start, part.end)
        else:
            self._regions.remove(start, end)

    def _match(self, start: int, end: int) -> None:
        """Map in the engine what the space has in [start, end)."""
        regions = self._regions
        wanted = self._wanted(start, end)
        there = regions.parts(start, end)
        if there:
            if self._protect(there, wanted):
                self._retranslate(start, end)
                return
            regions.remove(start, end)
        for region in wanted:
            regions.add(region)

    def _protect(self, there: list[Region], wanted: list[Region]) -> bool:
        """Give regions other rights if that is all they lack; whether it was."""
        there = joined(there)
        if any(region.asks for region in there):
            return False
        if [region[:3] for region in there] != [region[:3] for region in wanted]:
            return False
        if any(old.prot & ~new.prot & mman.PROT_EXEC for old, new in zip(there, wanted, strict=True)):
            return False  # Unicorn would stop, without an error, if the program counter is there
        for old, new in zip(there, wanted, strict=True):
            if old.prot != new.prot:
                for part in self._regions.parts(old.start, old.end):
                    self._regions.protect(part.start, part.end, new.prot)
        return True

    def _wanted(self, start: int, end: int) -> list[Region]:
        """The regions for [start, end), without memory of files that cannot be had."""
        try:
            return self._regions_of(self._space.host_runs(start, end))
        except ValueError:  # it has memory of a file somewhere
            found = []
            for vma in self._space.mappings():
                if vma.start < end and start < vma.end:
                    found += self._wanted_of(vma, max(start, vma.start), min(end, vma.end))
            return found

    def _wanted_of(self, vma: VMA, start: int, end: int) -> list[Region]:
        """The regions for a part of one mapping."""
        try:
            return self._regions_of(self._space.host_runs(start, end))
        except ValueError:
            if not self._copy_files:
                return []
        if not vma.shared:
            return self._regions_of(self._space.host_runs(start, end, copy_files=True))
        return self._files.region(start, end, _rights(vma.prot))

    def _regions_of(self, runs: list[GuestRun]) -> list[Region]:
        """Regions of runs, but those without rights: Unicorn 2.1.4 lets loads pass there once a store has failed."""
        return [Region(run.start, run.end, run.address, _rights(run.prot), run.keepers) for run in runs if run.prot]

    # --- what the CPU cannot access

    def _invalid(self, uc: Engine, access: int, addr: int, size: int, value: int, data: object) -> bool:
        """Whether the engine is to try an access again: UC_HOOK_MEM_INVALID."""
        before = self._regions.replaced
        try:
            return self._is_mended(addr, access) and (access < engine.FIRST_PROT or self._regions.replaced == before)
        except BaseException as exc:  # Unicorn would hide it behind its own
            self._failed = exc.with_traceback(None)
            self._regions.forget()
            return False

    def _is_mended(self, addr: int, access: int) -> bool:
        """Whether the space allows an access, now that it has grown a stack or called its hook; else note the fault."""
        kind = engine.ACCESS[access]
        self._fetched = self._fetched or kind == EXECUTE
        _, fault = self._space.resolve(addr, 1, kind)
        if self._closed:  # by a hook of the space
            return False
        found = self._regions.prot(addr)
        if fault is None and found is None:
            fault = self._fill(addr, kind)
        if fault is not None:
            # An access that goes on in a page without the right faults byte by byte: the first counts.
            if self._fault is None or addr != self._last + 1:
                self._fault = self._space.range_fault(addr, 1, kind) or fault
            self._last = addr
            return False
        page = addr // PAGE * PAGE
        if found is not None and not found & kind:
            self._match(page, page + PAGE)
        if kind == EXECUTE and self._regions.asks(addr):
            self._files.copy_code(page)
        return bool((self._regions.prot(addr) or 0) & kind)

    def _fill(self, addr: int, kind: AccessType) -> FaultError | None:
        """Map what the engine does not have of the window around addr.

        Returns a fault if addr lies behind a file's end. Raises ValueError for a file's memory.
        """
        regions, page = self._regions, addr // PAGE * PAGE
        before, after = regions.gap(page)
        usual = page // _USUAL * _USUAL
        goes_on = len(regions) < MANY and (before == usual or after == usual + _USUAL)
        for window in (_LARGE if goes_on else _USUAL, _SMALL):
            low = page // window * window
            start, end = max(before, low), min(after, low + window)
            wanted = self._wanted(start, end)
            if window == _LARGE:
                wanted = [each for each in joined(wanted) if each.start <= page < each.end]
            if len(wanted) < MANY:
                break
        regions.remove(start, end)  # what came meanwhile
        if len(wanted) > 1:  # the page last, for adding may forget those before
            wanted.sort(key=lambda each: each.start <= page < each.end)
        for region in wanted:
            regions.add(region)
        if regions.prot(page) is None:  # a guard page may hide where a file ends
            for region in self._wanted(page, page + PAGE):
                regions.add(region)
        if regions.prot(page) is None:
            if not self._space.host_runs(page, page + PAGE, copy_files=self._copy_files):
                return FaultError(addr, kind, FaultReason.BEYOND_FILE)
            self._space.host_runs(page, page + PAGE)  # which says why
            raise ValueError(f"the memory at {page:#x} is not mapped in the engine")
        return None

    def _start(self, *args: Any, **options: Any) -> None:
        """Uc.emu_start, which finds the code of shared files as it is now."""
        self._files.drop_code()
        self._emu_start(*args, **options)

    def _checked_ctl(self, ctl: int, op: int, *args: Any) -> Any:
        """Uc.ctl, which all its controls go through, without snapshots of memory."""
        if ctl == engine.CTL_CONTEXT_MODE and args:
            mode = getattr(args[0], "value", args[0])
            if mode & engine.CTL_CONTEXT_MEMORY:
                raise ValueError(
                    "UC_CTL_CONTEXT_MEMORY makes the engine write to copies of the space's memory: "
                    "use AddressSpace.snapshot and restore"
                )
        return self._ctl(ctl, op, *args)


def _rights(prot: int) -> int:
    """The rights of a region: on Linux's machines what can be written or executed can be read."""
    return prot | mman.PROT_READ if prot & _IMPLY_READ else prot
