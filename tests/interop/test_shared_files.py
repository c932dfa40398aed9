"""Shared memory of a file in an engine, which asks the space at each access: all see the same bytes, and faults."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from cpu import CODE, CPU, PAGE, RW, what, x86
from hostarch import READ, WRITE, mman
from usermem import AddressSpace, FaultError, FaultReason

BASE = 0x40_0000
SHARED = mman.MAP_SHARED | mman.MAP_FIXED


@pytest.fixture
def fd() -> Iterator[int]:
    """A file of four pages, each filled with its number."""
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(b"".join(bytes([page]) * PAGE for page in range(4)))
        yield file.fileno()


@pytest.fixture
def cpu(fd: int) -> Iterator[CPU]:
    """A CPU of a space that shares the file at BASE."""
    with AddressSpace() as space:
        cpu = CPU(space, copy_files=True)
        space.mmap(BASE, 4 * PAGE, RW, SHARED, fd, 0)
        yield cpu
        cpu.shared.close()


def test_all_see_the_same(cpu: CPU, fd: int) -> None:
    """The CPU, the file's writers, the space, and another space."""
    assert [cpu.load(BASE + page * PAGE) for page in range(4)] == [0, 1, 2, 3]
    os.pwrite(fd, b"\x33", PAGE)
    assert cpu.load(BASE + PAGE) == 0x33
    assert cpu.store(BASE + PAGE, 0x44) is None
    assert os.pread(fd, 2, PAGE) == b"\x44\1"
    cpu.space.copy_out(BASE, b"\x55")
    assert cpu.load(BASE) == 0x55
    with AddressSpace() as second:
        second.mmap(BASE, PAGE, RW, SHARED, fd, 0)
        other = CPU(second, copy_files=True)
        assert other.store(BASE, 0x66) is None
        assert cpu.load(BASE) == 0x66
        other.shared.close()


def test_wide_and_unaligned(cpu: CPU, fd: int) -> None:
    """All bytes of an access, over a page's end too, and those of string instructions."""
    run = [
        "8b042503004000",  # mov eax, [BASE + 3]
        "f30f6f0425f80f4000",  # movdqu xmm0, [BASE + PAGE - 8]
        "f30f7f042508204000",  # movdqu [BASE + 2 * PAGE + 8], xmm0
        "f0830425f02f400001",  # lock add dword ptr [BASE + 3 * PAGE - 16], 1
    ]
    os.pwrite(fd, bytes(range(16)), 0)
    code = b"".join(map(bytes.fromhex, run))
    cpu.space.copy_out(CODE, code, ignore_permissions=True)
    assert cpu.run(CODE, len(code)) is None
    assert cpu.eax() == 0x06050403
    assert os.pread(fd, 16, 2 * PAGE + 8) == bytes(8) + b"\1" * 8
    assert os.pread(fd, 4, 3 * PAGE - 16) == b"\3\2\2\2"


def test_its_mappings_change(cpu: CPU, fd: int) -> None:
    """Parts that are unmapped, protected, moved: what is left is the same file's page at the same address."""
    space = cpu.space
    pages = [cpu.load(BASE + page * PAGE) for page in range(4)]
    space.munmap(BASE + PAGE, PAGE)
    assert what(cpu.load(BASE + PAGE)) == (BASE + PAGE, 1, "unmapped", 11, 1)
    assert [cpu.load(BASE + page * PAGE) for page in (0, 2, 3)] == [pages[0], *pages[2:]]
    space.mprotect(BASE + 2 * PAGE, PAGE, mman.PROT_READ)
    fault = cpu.store(BASE + 2 * PAGE, 9)
    assert isinstance(fault, FaultError) and (fault.address, fault.si_code) == (BASE + 2 * PAGE, 2)
    assert [cpu.load(BASE + page * PAGE) for page in (0, 2, 3)] == [pages[0], *pages[2:]]
    assert cpu.store(BASE + 3 * PAGE, 7) is None
    space.mprotect(BASE + 3 * PAGE, PAGE, mman.PROT_NONE)
    assert isinstance(cpu.load(BASE + 3 * PAGE), FaultError)
    moved = space.mremap(BASE + 2 * PAGE, PAGE, PAGE, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, BASE + 9 * PAGE)
    assert cpu.load(moved) == 2
    assert os.pread(fd, 1, 3 * PAGE) == b"\7"
    assert os.pread(fd, 1, 2 * PAGE) == b"\2"


@pytest.mark.parametrize("stores", [False, True])
def test_truncated(cpu: CPU, fd: int, stores: bool) -> None:
    """An access behind the end is SIGBUS at its instruction; those before it were made, those after it were not."""
    cpu.load(BASE + 3 * PAGE)
    os.ftruncate(fd, PAGE)
    run = "ffc1" + ("890425fc0f4000890425fe1f4000" if stores else "8b0425fc0f40008b0425fe1f4000") + "ffc1"
    cpu.space.copy_out(CODE, bytes.fromhex(run), ignore_permissions=True)
    cpu.uc.reg_write(x86.UC_X86_REG_ECX, 0)
    assert what(cpu.run(CODE, len(run) // 2)) == (BASE + 2 * PAGE - 2, 2 if stores else 1, "beyond-file", 7, 2)
    assert cpu.uc.reg_read(x86.UC_X86_REG_RIP) == CODE + 9
    assert cpu.uc.reg_read(x86.UC_X86_REG_ECX) == 1
    os.ftruncate(fd, 4 * PAGE)
    assert cpu.load(BASE + 3 * PAGE) == 0


def test_code(fd: int) -> None:
    """A page that is executed is a copy, until the CPU or the space writes it."""
    os.pwrite(fd, bytes.fromhex("b82a000000"), PAGE)
    with AddressSpace() as space:
        cpu = CPU(space, copy_files=True)
        space.mmap(BASE, 4 * PAGE, RW | mman.PROT_EXEC, SHARED, fd, 0)
        for value, write in (
            (42, lambda: None),
            (43, lambda: cpu.store(BASE + PAGE + 1, 43)),
            (44, lambda: space.copy_out(BASE + PAGE + 1, b"\x2c")),
            (45, lambda: os.pwrite(fd, b"\x2d", PAGE + 1)),
            (45, lambda: space.mprotect(BASE, 4 * PAGE, mman.PROT_READ | mman.PROT_EXEC)),
        ):
            write()
            assert cpu.run(BASE + PAGE, 5) is None
            assert (cpu.eax(), cpu.load(BASE + PAGE + 1)) == (value, value)
            assert os.pread(fd, 2, PAGE) == bytes([0xB8, value])
        assert what(cpu.store(BASE + PAGE, 1)) == what(FaultError(BASE + PAGE, WRITE, FaultReason.PERMISSION))
        os.ftruncate(fd, PAGE)
        assert what(cpu.load(BASE + PAGE)) == what(FaultError(BASE + PAGE, READ, FaultReason.BEYOND_FILE))
        cpu.shared.close()


def test_a_guard_page_hides_nothing(cpu: CPU, fd: int) -> None:
    """Behind one the file goes on, and ends where it ends: whichever is touched first."""
    space = cpu.space
    for guard in range(4):
        space.mmap(BASE, 8 * PAGE, RW, SHARED, fd, 0)  # nothing of it is in the engine
        space.madvise(BASE + guard * PAGE, PAGE, mman.MADV_GUARD_INSTALL)
        for page in (3, 2, 1, 0, 5):
            found = cpu.load(BASE + page * PAGE)
            if page == 5:
                assert what(found) == what(FaultError(BASE + 5 * PAGE, READ, FaultReason.BEYOND_FILE))
            elif page == guard:
                assert isinstance(found, FaultError) and found.signo == 11
            else:
                assert found == page


def test_what_else_goes_wrong_is_told(cpu: CPU, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is no fault comes out of take_fault, and the next access is made again."""
    assert cpu.load(BASE) == 0

    def refused(*args: object, **options: object) -> bytes:
        raise MemoryError("none left")

    with monkeypatch.context() as patch:
        patch.setattr(cpu.space, "read_bytes", refused)
        with pytest.raises(MemoryError, match="none left"):
            cpu.load(BASE)
    assert cpu.load(BASE) == 0
