"""safecopy: copying memory that faults is exact to the byte, names the address, and tells SIGSEGV from SIGBUS.

The memory really faults; which signal touching it raises is asked of the running kernel, in a process of its own.
"""

from __future__ import annotations

import builtins
import errno
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from safemem import AlignmentError, Block, HostFaultError, atomics, copy, safecopy
from usermem.testing.faulty_memory import Fault, FaultyMemory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process_vm_readv(2) is Linux's")

SIGNALS: dict[str, signal.Signals] = {"segv": signal.SIGSEGV, "bus": signal.SIGBUS}
LENGTH = 40
BOUNCE = 1 << 16
KEPT = b"\xee"


def data(length: int) -> bytes:
    """So many bytes, none of them 0, that do not repeat with the pages."""
    return (bytes(range(1, 224)) * (length // 223 + 1))[:length]


class Routine(NamedTuple):
    """One of the copy and zero routines, ready to run on memory of which only the first bytes are there."""

    run: Callable[[], int]
    found: Callable[[], bytes]
    """What is in the destination, as far as that is there. It was KEPT bytes."""
    expected: bytes
    """What should be in the destination if nothing faults."""


def copy_in(faulty: FaultyMemory, valid: int, length: int) -> Routine:
    """From memory that faults to a view."""
    src = faulty.block(length, valid, data(length))
    dst = bytearray(KEPT * length)
    return Routine(lambda: safecopy.copy_in(memoryview(dst), src.address), lambda: bytes(dst), data(length))


def copy_out(faulty: FaultyMemory, valid: int, length: int) -> Routine:
    """From a view to memory that faults."""
    dst = faulty.block(length, valid, KEPT * valid)
    src = memoryview(data(length))
    return Routine(lambda: safecopy.copy_out(dst.address, src), lambda: faulty.before_edge(valid), data(length))


def copy_from(faulty: FaultyMemory, valid: int, length: int) -> Routine:
    """Between addresses, the source faulting."""
    src = faulty.block(length, valid, data(length))
    dst = bytearray(KEPT * length)
    address = Block(dst).address
    return Routine(lambda: safecopy.copy(address, src.address, length), lambda: bytes(dst), data(length))


def copy_to(faulty: FaultyMemory, valid: int, length: int) -> Routine:
    """Between addresses, the destination faulting."""
    dst = faulty.block(length, valid, KEPT * valid)
    src = Block(data(length))
    return Routine(
        lambda: safecopy.copy(dst.address, src.address, length), lambda: faulty.before_edge(valid), data(length)
    )


def zero_out(faulty: FaultyMemory, valid: int, length: int) -> Routine:
    """Zeroing memory that faults."""
    dst = faulty.block(length, valid, KEPT * valid)
    return Routine(lambda: safecopy.zero_out(dst.address, length), lambda: faulty.before_edge(valid), bytes(length))


Make = Callable[[FaultyMemory, int, int], Routine]
every_fault = pytest.mark.parametrize("fault", ["segv", "bus"])
every_routine = pytest.mark.parametrize("make", [copy_in, copy_out, copy_from, copy_to, zero_out])


def check_fault(make: Make, faulty: FaultyMemory, valid: int, length: int) -> HostFaultError:
    """The routine moves exactly what is there, touches nothing behind it and tells where it stopped."""
    routine = make(faulty, valid, length)
    with pytest.raises(HostFaultError) as caught:
        routine.run()
    assert (caught.value.transferred, caught.value.address) == (valid, faulty.edge)
    found = routine.found()
    assert found == (routine.expected[:valid] + KEPT * (length - valid))[: len(found)]
    return caught.value


def check_success(make: Make, faulty: FaultyMemory, length: int) -> None:
    """The routine moves all bytes up to the edge."""
    routine = make(faulty, length, length)
    assert routine.run() == length
    assert routine.found() == routine.expected


@pytest.mark.parametrize("valid", range(33))
@every_fault
@every_routine
def test_fault_at(make: Make, fault: Fault, valid: int) -> None:
    """A fault k bytes in: k bytes have moved, the next one's address and signal are told, nothing behind is touched."""
    error = check_fault(make, FaultyMemory(fault), valid, LENGTH)
    assert error.signo is SIGNALS[fault]
    assert error.errno == errno.EFAULT


@pytest.mark.parametrize("length", [0, 1, LENGTH, mmap.PAGESIZE, mmap.PAGESIZE + 1])
@every_fault
@every_routine
def test_no_fault(make: Make, fault: Fault, length: int) -> None:
    """Up to the very edge all bytes move."""
    check_success(make, FaultyMemory(fault), length)


@pytest.mark.parametrize("bounce", [1, 7, LENGTH - 1, LENGTH, LENGTH + 1])
@every_routine
def test_small_buffers(make: Make, bounce: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for every k when the buffer and what the kernel moves a call are smaller than the memory."""
    monkeypatch.setattr(safecopy, "_BOUNCE", bounce)
    monkeypatch.setattr(safecopy, "_MAX_TRANSFER", 5)
    faulty = FaultyMemory("segv")
    for valid in range(LENGTH):
        check_fault(make, faulty, valid, LENGTH)
    check_success(make, faulty, LENGTH)


@pytest.mark.parametrize("beyond", [0, 1, 70_000])
@pytest.mark.parametrize("valid", [BOUNCE - 1, BOUNCE, BOUNCE + 1, 3 * BOUNCE])
@every_routine
def test_large(make: Make, valid: int, beyond: int) -> None:
    """Memory larger than the bounce buffer is moved exactly too, with a fault around its multiples and without."""
    faulty = FaultyMemory("bus", good_pages=64, bad_pages=32)
    if beyond:
        check_fault(make, faulty, valid, valid + beyond)
    else:
        check_success(make, faulty, valid)


@pytest.mark.parametrize("src_valid", [0, 1, 4, 5, 8])
@pytest.mark.parametrize("dst_valid", [0, 1, 4, 5, 8])
def test_both_fault(dst_valid: int, src_valid: int) -> None:
    """When both sides fault the nearer one is told, and the source's if it is the same byte."""
    src, dst = FaultyMemory("bus"), FaultyMemory("segv")
    with pytest.raises(HostFaultError) as caught:
        copy(dst.block(9, dst_valid, KEPT * 9), src.block(9, src_valid, data(9)))
    nearer = src if src_valid <= dst_valid else dst
    n = min(src_valid, dst_valid)
    assert (caught.value.transferred, caught.value.address) == (n, nearer.edge)
    assert caught.value.signo is (signal.SIGBUS if nearer is src else signal.SIGSEGV)
    assert dst.before_edge(dst_valid) == data(n) + KEPT * (dst_valid - n)


# What touching memory really does, in a process of its own: (how it is mapped, whether it is written).
TOUCH = """
import ctypes, mmap, os, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
sys.path[:0] = sys.argv[3:]
from test_safecopy import mapped
memory, address = mapped(sys.argv[1])
if sys.argv[2] == "write":
    ctypes.memset(address, 1, 1)
else:
    ctypes.string_at(address, 1)
"""


def mapped(how: str) -> tuple[object, int]:
    """Memory and an address in it: nothing there, no rights, read-only, or beyond its file's end (read-only or not)."""
    if how == "unmapped":
        return None, mmap.PAGESIZE // 2
    if how == "no rights":
        faulty = FaultyMemory("segv")
        return faulty, faulty.edge
    fd = os.memfd_create("mapped")
    try:
        os.ftruncate(fd, 2 * mmap.PAGESIZE)
        prot = mmap.PROT_READ | (0 if "read-only" in how else mmap.PROT_WRITE)
        memory = mmap.mmap(fd, 2 * mmap.PAGESIZE, prot=prot)
        if "beyond" in how:
            os.ftruncate(fd, mmap.PAGESIZE)
    finally:
        os.close(fd)
    return memory, safecopy.address_of(memoryview(memory)) + mmap.PAGESIZE


@pytest.mark.parametrize("access", ["read", "write"])
@pytest.mark.parametrize("how", ["unmapped", "no rights", "read-only", "beyond file", "read-only beyond file"])
def test_signal_is_the_kernels(how: str, access: str) -> None:
    """The signal in the error is the one that kills a process which touches the same memory itself."""
    command = [sys.executable, "-c", TOUCH, how, access, str(Path(__file__).parent), *filter(None, sys.path)]
    died = -subprocess.run(command, check=False, timeout=60).returncode
    memory, address = mapped(how)
    block = Block.from_address(address, 1, memory)
    try:
        n = copy(block, Block(b"x")) if access == "write" else copy(Block(bytearray(1)), block)
    except HostFaultError as fault:
        assert (fault.signo, fault.address, fault.transferred) == (died, address, 0)
    else:
        assert (n, died) == (1, 0)


WORDS: dict[str, tuple[int, Callable[[Block], int]]] = {
    "swap_uint32": (4, lambda block: atomics.swap_uint32(block, 0)),
    "swap_uint64": (8, lambda block: atomics.swap_uint64(block, 0)),
    "compare_and_swap_uint32": (4, lambda block: atomics.compare_and_swap_uint32(block, 0xEEEEEEEE, 0)),
    "compare_and_swap_uint64": (8, lambda block: atomics.compare_and_swap_uint64(block, 0xEEEEEEEE_EEEEEEEE, 0)),
    "load_uint32": (4, atomics.load_uint32),
    "load_uint64": (8, atomics.load_uint64),
}


@every_fault
@pytest.mark.parametrize("name", WORDS)
def test_atomics_near_a_fault(name: str, fault: Fault) -> None:
    """A misaligned word is an alignment error even where it would fault; an aligned one faults; neither touches it."""
    size, operation = WORDS[name]
    faulty = FaultyMemory(fault)
    for before in range(1, size):
        with pytest.raises(AlignmentError) as caught:
            operation(faulty.block(4 * size, before, KEPT * before))
        assert (caught.value.address, caught.value.alignment) == (faulty.edge - before, size)
        assert caught.value.transferred == 0
        assert faulty.before_edge(before) == KEPT * before
    assert operation(faulty.block(size, size, KEPT * size)) in (0xEEEEEEEE, 0xEEEEEEEE_EEEEEEEE)
    with pytest.raises(HostFaultError) as fault_caught:
        operation(faulty.block(size, 0))
    assert (fault_caught.value.address, fault_caught.value.transferred) == (faulty.edge, 0)
    assert fault_caught.value.signo is SIGNALS[fault]


def failing(calls: list[BaseException | None]) -> Callable[[str], Callable[[int, int, int], int]]:
    """The kernel's calls, of which some raise instead: one entry a call, None for those that go through."""
    real = safecopy._process_vm

    def process_vm(name: str) -> Callable[[int, int, int], int]:
        def call(local: int, remote: int, length: int) -> int:
            error = calls.pop(0) if calls else None
            if error is not None:
                raise error
            return real(name)(local, remote, length)

        return call

    return process_vm


def test_interrupted_call_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that a signal interrupts is made again."""
    monkeypatch.setattr(safecopy, "_process_vm", failing([OSError(errno.EINTR, "") for _ in range(3)]))
    check_success(copy_in, FaultyMemory("segv"), LENGTH)


@every_routine
def test_refused_call(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a sandbox refuses the calls its error comes through, and nothing is touched."""
    routine = make(FaultyMemory("segv"), LENGTH, LENGTH)
    refusal = PermissionError(errno.EPERM, "refused")
    monkeypatch.setattr(safecopy, "_process_vm", failing([refusal]))
    with pytest.raises(PermissionError) as caught:
        routine.run()
    assert caught.value is refusal
    assert routine.found() == KEPT * LENGTH


@pytest.mark.parametrize("after", [1, 2, 3, 4])
@every_routine
def test_other_error_midway(make: Make, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is no fault, after some calls went through, has the count of what has arrived, as a fault has."""
    routine = make(FaultyMemory("segv"), LENGTH, LENGTH)
    monkeypatch.setattr(safecopy, "_BOUNCE", 8)
    monkeypatch.setattr(safecopy, "_MAX_TRANSFER", 8)
    monkeypatch.setattr(safecopy, "_process_vm", failing([*[None] * after, OSError(errno.ENOMEM, "no memory")]))
    with pytest.raises(OSError, match="no memory") as caught:
        routine.run()
    n = getattr(caught.value, "transferred", 0)
    assert routine.found() == routine.expected[:n] + KEPT * (LENGTH - n)


def test_missing_call() -> None:
    """A host without the system call is told so: ENOSYS, and the name of what is missing."""
    with pytest.raises(OSError, match="process_vm_nothing") as caught:
        safecopy._process_vm("process_vm_nothing")
    assert caught.value.errno == errno.ENOSYS


@every_routine
def test_no_fault_of_a_file_reads_all_mappings(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells the signal by the page alone: the list of mappings, as long as guests make it, is not read."""
    if safecopy._populate() is None:
        pytest.skip("this kernel is older than MADV_POPULATE_READ")
    monkeypatch.setattr(safecopy, "mapping_at", None)
    assert check_fault(make, FaultyMemory("bus"), 5, LENGTH).signo is signal.SIGBUS
    with pytest.raises(HostFaultError) as caught:
        safecopy.copy_in(memoryview(bytearray(1)), 0)
    assert caught.value.signo is signal.SIGSEGV


@every_fault
@every_routine
def test_an_older_kernel_tells_the_signal(make: Make, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the page cannot be asked for, the list of mappings has the answer."""
    monkeypatch.setattr(safecopy, "_populate", lambda: None)
    assert check_fault(make, FaultyMemory(fault), 5, LENGTH).signo is SIGNALS[fault]


def test_a_host_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no /proc either the fault is told all the same, as SIGSEGV."""

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise FileNotFoundError(errno.ENOENT, "no /proc")

    monkeypatch.setattr(safecopy, "_populate", lambda: lambda page, advice: errno.EPERM)
    monkeypatch.setattr(builtins, "open", refuse)
    error = check_fault(copy_in, FaultyMemory("bus"), 5, LENGTH)
    monkeypatch.undo()
    assert error.signo is signal.SIGSEGV
