"""A CPU in a space's own memory sees every byte, right and fault as the space does, whatever is mapped."""

from __future__ import annotations

import gc
import random
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from cpu import ANON, CODE, CPU, FIXED, PAGE, RW, RWX, RX, SYSCALL, unicorn, what, x86
from hostarch import EXECUTE, READ, WRITE, AccessType, mman
from usermem import AddressSpace, FaultError, FaultReason
from usermem.mm.listeners import ChangeKind
from usermem.unicorn import share
from usermem.unicorn.regions import Region, joined

BASE = 0x1000_0000
GROWS = FIXED | mman.MAP_GROWSDOWN


@pytest.fixture
def cpu() -> Iterator[CPU]:
    """A CPU over an empty space."""
    with AddressSpace() as space:
        cpu = CPU(space)
        yield cpu
        cpu.shared.close()


def test_bytes_go_both_ways(cpu: CPU) -> None:
    """Without a copy: what either stores the other loads, at once."""
    cpu.space.mmap(BASE, 2 * PAGE, RW, FIXED)
    cpu.space.copy_out(BASE + 5, b"x")
    assert cpu.load(BASE + 5) == ord("x")
    assert cpu.store(BASE + PAGE, 7) is None
    assert cpu.space.read_bytes(BASE + PAGE, 1) == b"\7"
    assert bytes(cpu.uc.mem_read(BASE + 5, 1)) == b"x"


def test_an_eager_engine_has_all_mappings() -> None:
    """Before the CPU touches them, also those that were there before; and it follows as well."""
    with AddressSpace() as space:
        space.mmap(BASE, PAGE, RW, FIXED)
        space.copy_out(BASE, b"x")
        uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        with share(uc, space, eager=True):
            space.mmap(BASE + 2 * PAGE, 2 * PAGE, RW, FIXED)
            space.mprotect(BASE + 2 * PAGE, PAGE, mman.PROT_READ)
            assert bytes(uc.mem_read(BASE, 1)) == b"x"
            uc.mem_write(BASE + 3 * PAGE, b"y")
            assert space.read_bytes(BASE + 3 * PAGE, 1) == b"y"
            assert [(start - BASE, prot) for start, _, prot in uc.mem_regions()] == [(0, 3), (0x2000, 1), (0x3000, 3)]


def test_faults_are_those_of_the_space(cpu: CPU) -> None:
    """Address, access, reason, signal and code, for loads, stores and fetches."""
    space = cpu.space
    space.mmap(BASE, 4 * PAGE, RW, FIXED)
    space.mprotect(BASE + PAGE, PAGE, mman.PROT_READ)
    space.mprotect(BASE + 2 * PAGE, PAGE, mman.PROT_NONE)
    for addr in (BASE + PAGE, BASE + 2 * PAGE, BASE + 4 * PAGE, BASE - 1):
        assert what(cpu.store(addr, 1)) == what(space.resolve(addr, 1, WRITE)[1]) != None  # noqa: E711
    assert what(cpu.load(BASE + 2 * PAGE)) == what(space.resolve(BASE + 2 * PAGE, 1, READ)[1])
    assert what(cpu.load(1 << 47)) == what(space.range_fault(1 << 47, 1, READ))
    fault = cpu.run(BASE, 4)
    assert fault is not None
    assert (fault.address, fault.access, fault.reason) == (BASE, EXECUTE, FaultReason.PERMISSION)
    assert (fault.signo, fault.si_code) == (11, 2)
    assert cpu.shared.take_fault() is None


def test_an_access_over_the_end_names_the_first_byte_missing(cpu: CPU) -> None:
    """Eight bytes of which four are there: Unicorn asks for each of the others, and the first counts."""
    cpu.space.mmap(BASE, PAGE, RW, FIXED)
    cpu.space.copy_out(CODE, b"\x48\x89\x03", ignore_permissions=True)  # mov [rbx], rax
    cpu.uc.reg_write(x86.UC_X86_REG_RBX, BASE + PAGE - 4)
    fault = cpu.run(CODE, 3)
    assert fault is not None
    assert fault.address == BASE + PAGE


def test_a_stack_grows_as_it_is_touched(cpu: CPU) -> None:
    """By a page a fault, to its limit; then it is a fault."""
    space = cpu.space
    space.limits.stack_limit = 300 * PAGE
    top = BASE + 512 * PAGE
    space.mmap(top - PAGE, PAGE, RW, GROWS)
    for page in range(1, 301):
        assert cpu.store(top - page * PAGE, page & 0xFF) is None
    assert isinstance(cpu.store(top - 301 * PAGE, 1), FaultError)
    assert [space.read_bytes(top - page * PAGE, 1)[0] for page in (1, 2, 300)] == [1, 2, 44]
    assert len(list(cpu.uc.mem_regions())) < 64
    assert len({kept for each in cpu.shared._regions.parts(0, 1 << 64) for kept in each.kept}) < 4


def test_where_memory_goes_on_no_other_comes_with_it(cpu: CPU) -> None:
    """A stack that comes to the next MiB does not bring the mappings 64 MiB around, which would make all calls slow."""
    for page in range(0, 40, 2):
        cpu.space.mmap(BASE + page * PAGE, PAGE, RW, FIXED)
    top = BASE + 1024 * PAGE
    cpu.space.mmap(top - PAGE, PAGE, RW, GROWS)
    for page in range(1, 300):
        assert cpu.store(top - page * PAGE, 1) is None
    assert BASE not in [start for start, _, _ in cpu.uc.mem_regions()]


def test_moved_discarded_guarded(cpu: CPU) -> None:
    """mremap, MADV_DONTNEED and guards: what the CPU loads is what the space has."""
    space = cpu.space
    space.mmap(BASE, 4 * PAGE, RW, FIXED)
    assert cpu.store(BASE, 5) is None
    at = space.mremap(BASE, 4 * PAGE, 8 * PAGE, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, BASE + 64 * PAGE)
    assert cpu.load(at) == 5
    assert isinstance(cpu.load(BASE), FaultError)
    space.madvise(at, PAGE, mman.MADV_DONTNEED)
    assert cpu.load(at) == 0
    space.madvise(at + PAGE, PAGE, mman.MADV_GUARD_INSTALL)
    fault = cpu.load(at + PAGE)
    assert isinstance(fault, FaultError)
    assert fault.reason is FaultReason.GUARD
    space.madvise(at + PAGE, PAGE, mman.MADV_GUARD_REMOVE)
    assert cpu.load(at + PAGE) == 0


def test_a_system_call_may_unmap_what_runs(cpu: CPU) -> None:
    """munmap in a hook: the memory lives on as long as the engine has it, and what comes next is a fault."""
    space = cpu.space
    code = BASE
    space.mmap(code, 2 * PAGE, RWX, FIXED)
    space.copy_out(code, SYSCALL + b"\x8a\x03" + b"\x90" * 4)
    space.mmap(BASE + 16 * PAGE, PAGE, RW, FIXED)
    cpu.uc.reg_write(x86.UC_X86_REG_RBX, BASE + 16 * PAGE)

    def syscall(uc: Any, data: Any) -> None:
        space.munmap(BASE + 16 * PAGE, PAGE)
        space.munmap(code + PAGE, PAGE)
        gc.collect()
        taken = [space.mmap(0, 64 * PAGE, RW, ANON) for _ in range(4)]
        for each in taken:
            space.copy_out(each, b"\xee" * 64 * PAGE)

    cpu.uc.hook_add(unicorn.UC_HOOK_INSN, syscall, None, 1, 0, x86.UC_X86_INS_SYSCALL)
    fault = cpu.run(code, 8)
    assert fault is not None
    assert (fault.address, fault.reason) == (BASE + 16 * PAGE, FaultReason.UNMAPPED)


def test_what_the_fault_hook_of_the_space_maps(cpu: CPU) -> None:
    """It maps what is missing, gives a right, or puts other memory there: the access goes on."""
    space = cpu.space
    space.mmap(BASE, 4 * PAGE, RW, FIXED)
    space.mprotect(BASE, 4 * PAGE, mman.PROT_READ)

    def on_fault(addr: int, access: AccessType) -> bool:
        page = addr & -PAGE
        if page == BASE + PAGE or page >= BASE + 4 * PAGE:
            space.mmap(page, PAGE, RW, FIXED)
        else:
            space.mprotect(page, PAGE, RW)
        return True

    space.on_fault = on_fault
    for page in (0, 1, 2, 3, 4, 9):
        assert cpu.store(BASE + page * PAGE, page + 1) is None
        assert space.read_bytes(BASE + page * PAGE, 1)[0] == cpu.load(BASE + page * PAGE) == page + 1


def test_closed_by_a_hook(cpu: CPU) -> None:
    """In the middle of a fault that is made good: the engine gets nothing any more, and stops."""

    def on_fault(addr: int, access: AccessType) -> bool:
        cpu.space.mmap(BASE, PAGE, RW, FIXED)
        cpu.shared.close()
        return True

    cpu.space.on_fault = on_fault
    with pytest.raises(AssertionError, match="does not get on"):
        cpu.store(BASE, 1)
    assert list(cpu.uc.mem_regions()) == []


def test_large_mappings_cost_what_is_touched(cpu: CPU) -> None:
    """A guest maps 16 TiB; the engine has windows of it, where they were touched."""
    space = cpu.space
    size = 16 << 40
    at = space.mmap(0, size, RW, ANON | mman.MAP_NORESERVE)
    for offset in (0, size // 2, size - 1):
        assert cpu.store(at + offset, 9) is None
        assert space.read_bytes(at + offset, 1) == b"\t"
    assert sum(end - start for start, end, _ in cpu.uc.mem_regions()) < 1 << 30
    space.mprotect(at, size, mman.PROT_READ)
    assert isinstance(cpu.store(at, 1), FaultError)
    space.munmap(at, size)
    assert isinstance(cpu.load(at), FaultError)


def test_many_mappings_are_few_regions(cpu: CPU) -> None:
    """2,000 mappings with holes between: all can be touched, in any order."""
    space = cpu.space
    for i in range(2000):
        space.mmap(BASE + 2 * i * PAGE, PAGE, RW, FIXED)
        assert len(list(cpu.uc.mem_regions())) <= 130
    order = list(range(2000))
    random.Random(1).shuffle(order)
    for i in order[:400]:
        assert cpu.store(BASE + 2 * i * PAGE, i & 0xFF) is None
        assert isinstance(cpu.load(BASE + (2 * i + 1) * PAGE), FaultError)
        assert len(list(cpu.uc.mem_regions())) <= 129
    assert all(space.read_bytes(BASE + 2 * i * PAGE, 1)[0] == i & 0xFF for i in order[:400])


def test_regions_that_become_one_keep_the_memory_of_all() -> None:
    """Those that meet here and in the guest, with the same rights; no others."""
    first, second = Region(0, PAGE, 0x1000, 3, frozenset("a")), Region(PAGE, 2 * PAGE, 0x2000, 3, frozenset("b"))
    other = Region(2 * PAGE, 3 * PAGE, 0x9000, 3, frozenset("c"))
    assert joined([first, second, other]) == [Region(0, 2 * PAGE, 0x1000, 3, frozenset("ab")), other]
    assert joined([first, second._replace(prot=1)]) == [first, second._replace(prot=1)]


def test_files() -> None:
    """Refused without copies, when they are touched; with them read-only ones are copies, private ones become ours."""
    with AddressSpace() as space, tempfile.TemporaryFile(buffering=0) as file:
        file.write(b"f" * 3 * PAGE)
        fd = file.fileno()
        cpu = CPU(space)
        space.mmap(BASE, PAGE, mman.PROT_READ, mman.MAP_PRIVATE | mman.MAP_FIXED, fd, 0)
        with pytest.raises(ValueError, match="must not be aliased"):
            cpu.load(BASE)
        cpu.shared.close()
    with AddressSpace() as space, tempfile.TemporaryFile(buffering=0) as file:
        file.write(b"f" * 3 * PAGE)
        fd = file.fileno()
        cpu = CPU(space, copy_files=True)
        space.mmap(BASE, PAGE, mman.PROT_READ, mman.MAP_PRIVATE | mman.MAP_FIXED, fd, 0)
        space.mmap(BASE + 4 * PAGE, 3 * PAGE, RW, mman.MAP_PRIVATE | mman.MAP_FIXED, fd, 0)
        space.mmap(BASE + 8 * PAGE, PAGE, RW, mman.MAP_SHARED | mman.MAP_FIXED, fd, 0)
        assert cpu.load(BASE) == cpu.load(BASE + 5 * PAGE) == ord("f")
        assert cpu.store(BASE + 5 * PAGE, 1) is None
        assert space.read_bytes(BASE + 5 * PAGE, 2) == b"\1f"
        space.mprotect(BASE, PAGE, RW)
        assert cpu.store(BASE, 2) is None
        assert space.read_bytes(BASE, 2) == b"\2f"
        with pytest.raises(ValueError, match="aliased"):
            cpu.load(BASE + 8 * PAGE)
        file.seek(0)
        assert file.read(1) == b"f"


def test_behind_the_end_of_a_file() -> None:
    """SIGBUS, as the CPU has it: no region can be had for such a page."""
    with AddressSpace() as space, tempfile.TemporaryFile(buffering=0) as file:
        file.write(b"f" * 10)
        cpu = CPU(space, copy_files=True)
        for at, prot in ((BASE, mman.PROT_READ), (BASE + 4 * PAGE, RW)):
            space.mmap(at, 2 * PAGE, prot, mman.MAP_PRIVATE | mman.MAP_FIXED, file.fileno(), 0)
            assert cpu.load(at) == ord("f")
            fault = cpu.load(at + PAGE + 5)
            assert isinstance(fault, FaultError)
            assert (fault.address, fault.access, fault.signo, fault.si_code) == (at + PAGE + 5, READ, 7, 2)


def test_snapshots_of_the_engines_memory_are_refused(cpu: CPU) -> None:
    """They would have it write to copies; those of its registers are not."""
    with pytest.raises(ValueError, match="UC_CTL_CONTEXT_MEMORY"):
        cpu.uc.ctl(unicorn.UC_CTL_CONTEXT_MODE, unicorn.UC_CTL_IO_WRITE, 3)
    cpu.uc.ctl(unicorn.UC_CTL_CONTEXT_MODE, unicorn.UC_CTL_IO_WRITE, 1)
    context = cpu.uc.context_save()
    cpu.space.mmap(BASE, PAGE, RW, FIXED)
    assert cpu.store(BASE, 3) is None
    cpu.uc.context_restore(context)
    assert cpu.space.read_bytes(BASE, 1) == b"\3"


def test_listeners_are_chained() -> None:
    """One that was set before hears of all changes; after close all is as before, and the engine is empty."""
    told: list[ChangeKind] = []
    with AddressSpace() as space:

        def listen(start: int, end: int, kind: ChangeKind) -> None:
            told.append(kind)

        space.on_change = listen
        first, second = CPU(space), unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        with share(second, space, eager=True):
            space.mmap(BASE, PAGE, RW, FIXED)
            assert first.store(BASE, 4) is None
            assert bytes(second.mem_read(BASE, 1)) == b"\4"
            space.munmap(BASE, PAGE)
            assert BASE not in [start for uc in (first.uc, second) for start, _, _ in uc.mem_regions()]
            space.mmap(BASE, PAGE, RW, FIXED)
            assert first.store(BASE, 5) is None
        assert list(second.mem_regions()) == []
        assert len(list(first.uc.mem_regions())) == 2
        first.shared.close()
        first.shared.close()
        assert space.on_change is listen
        space.munmap(BASE, PAGE)
        assert told[-1] is ChangeKind.UNMAP
        assert list(first.uc.mem_regions()) == []
        first.uc.ctl(unicorn.UC_CTL_CONTEXT_MODE, unicorn.UC_CTL_IO_WRITE, 2)
        second.mem_map(BASE, PAGE)
        with pytest.raises(ValueError, match="not empty"):
            share(second, space)


def test_an_engine_has_one_space() -> None:
    """Also while nothing of it is mapped; after close it may have another."""
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    with AddressSpace() as one, AddressSpace() as other:
        with share(uc, one), pytest.raises(ValueError, match="shared already"):
            share(uc, other)
        assert other.on_change is None
        assert other.on_code_write is None
        with share(uc, other):
            assert other.on_change is not None


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_random_calls(seed: int, eager: bool) -> None:
    """After each mapping call the CPU loads, stores and faults as the space does, page by page."""
    choice = random.Random(seed)
    pages = 24
    with AddressSpace(max_map_count=1000) as space:
        cpu = CPU(space, eager=eager)
        snapshots = []
        for turn in range(250):
            at = BASE + choice.randrange(pages) * PAGE
            length = choice.randrange(1, 6) * PAGE
            prot = choice.choice([0, 1, RW, RW, RX, RWX, 2])
            try:
                match choice.randrange(9):
                    case 0 | 1:
                        shared = choice.choice([ANON, mman.MAP_SHARED | mman.MAP_ANONYMOUS, ANON | mman.MAP_GROWSDOWN])
                        space.mmap(at, length, prot, shared | mman.MAP_FIXED)
                    case 2:
                        space.munmap(at, length)
                    case 3:
                        space.mprotect(at, length, prot)
                    case 4:
                        to = BASE + choice.randrange(pages) * PAGE
                        flags = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED
                        space.mremap(at, PAGE, choice.randrange(1, 4) * PAGE, flags, to)
                    case 5:
                        space.madvise(at, length, mman.MADV_DONTNEED)
                    case 6:
                        advice = choice.choice([mman.MADV_GUARD_INSTALL, mman.MADV_GUARD_REMOVE])
                        space.madvise(at, length, advice)
                    case 7:
                        snapshots.append(space.snapshot())
                    case 8 if snapshots:
                        space.restore(choice.choice(snapshots))
            except OSError:
                pass
            for page in choice.sample(range(-1, pages + 6), 6):
                addr = BASE + page * PAGE + choice.randrange(PAGE)
                data, fault = b"", None
                try:
                    data = space.read_bytes(addr, 1)
                except FaultError as exc:
                    fault = exc.with_traceback(None)
                assert what(cpu.load(addr)) == (what(fault) if fault else data[0]), (turn, hex(addr))
                fault = space.resolve(addr, 1, WRITE)[1]
                assert what(cpu.store(addr, turn & 0xFF)) == what(fault)
                if fault is None:
                    assert space.read_bytes(addr, 1)[0] == turn & 0xFF
        cpu.shared.close()
