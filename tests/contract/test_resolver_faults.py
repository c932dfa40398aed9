"""What a ResolvedIO makes of memory it cannot use: a fault of the guest's that says where, how, why and how far.

Above all of a fault that only the host's memory knows of, and of words that no atomic operation can reach.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from edge_layouts import BASE, one, sink, source
from hostarch import READ, READ_WRITE, WRITE, AccessType
from patchy_io import PatchyIO
from safemem import Block, HostFaultError, safecopy
from usermem import FaultError, FaultReason, ResolvedIO
from usermem.testing.faulty_memory import Fault, FaultyMemory

HOST_FAULTS: list[Fault] = ["segv", "bus"]
REASONS = {"segv": FaultReason.UNMAPPED, "bus": FaultReason.BEYOND_FILE}

Call = Callable[[ResolvedIO], object]
COPIES: dict[str, tuple[AccessType, Call]] = {
    "copy_out": (WRITE, lambda io: io.copy_out(BASE, bytes(12))),
    "zero_out": (WRITE, lambda io: io.zero_out(BASE, 12)),
    "copy_out_from": (WRITE, lambda io: io.copy_out_from(one(BASE, 12), source(bytes(12)))),
    "copy_in": (READ, lambda io: io.copy_in(BASE, bytearray(12))),
    "read_bytes": (READ, lambda io: io.read_bytes(BASE, 12)),
    "copy_in_to": (READ, lambda io: io.copy_in_to(one(BASE, 12), sink(memoryview(bytearray(12))))),
}


@pytest.mark.parametrize("fault", HOST_FAULTS)
@pytest.mark.parametrize("name", COPIES)
def test_host_memory_that_faults_behind_whole_pieces(name: str, fault: Fault) -> None:
    """The guest's fault has the address and count of all pieces, the access that was made, and the host's reason."""
    access, call = COPIES[name]
    for valid in range(7):
        io = PatchyIO({BASE: bytearray(2), BASE + 2: bytearray(3), BASE + 5: FaultyMemory(fault).block(7, valid)})
        with pytest.raises(FaultError) as caught:
            call(io)
        assert (caught.value.address, caught.value.transferred) == (BASE + 5 + valid, 5 + valid)
        assert (caught.value.access, caught.value.reason) == (access, REASONS[fault])


ATOMICS: dict[str, tuple[AccessType, Callable[[ResolvedIO, int], int]]] = {
    "load": (READ, lambda io, addr: io.load_uint32(addr)),
    "swap": (READ_WRITE, lambda io, addr: io.swap_uint32(addr, 1)),
    "compare and swap": (READ_WRITE, lambda io, addr: io.compare_and_swap_uint32(addr, 0, 1)),
}
WORDS: list[tuple[str, int, Callable[[], dict[int, Block | bytearray]], FaultReason]] = [
    ("not aligned", BASE + 2, lambda: {BASE: bytearray(8)}, FaultReason.UNALIGNED),
    ("in two pieces", BASE, lambda: {BASE: bytearray(2), BASE + 2: bytearray(2)}, FaultReason.UNALIGNED),
    ("in a piece of three bytes", BASE, lambda: {BASE: bytearray(3), BASE + 3: bytearray(9)}, FaultReason.UNALIGNED),
    ("half there", BASE, lambda: {BASE: bytearray(2)}, FaultReason.UNMAPPED),
    ("not there", BASE, lambda: {BASE + 4: bytearray(2)}, FaultReason.UNMAPPED),
    ("not mapped by the host", BASE, lambda: {BASE: FaultyMemory("segv").block(8, 0)}, FaultReason.UNMAPPED),
    ("half mapped by the host", BASE, lambda: {BASE: FaultyMemory("segv").block(8, 2)}, FaultReason.UNMAPPED),
    ("beyond the host's file", BASE, lambda: {BASE: FaultyMemory("bus").block(8, 0)}, FaultReason.BEYOND_FILE),
]


@pytest.mark.parametrize("name", ATOMICS)
@pytest.mark.parametrize(("addr", "pieces", "reason"), [row[1:] for row in WORDS], ids=[row[0] for row in WORDS])
def test_words_that_cannot_be_reached(
    addr: int, pieces: Callable[[], dict[int, Block | bytearray]], reason: FaultReason, name: str
) -> None:
    """The fault of an atomic operation names the word's first byte, whichever is at fault, and nothing was moved."""
    access, operate = ATOMICS[name]
    with pytest.raises(FaultError) as caught:
        operate(PatchyIO(pieces()), addr)
    assert (caught.value.address, caught.value.transferred) == (addr, 0)
    assert (caught.value.access, caught.value.reason) == (access, reason)


def at_base(operate: Callable[[ResolvedIO, int], int]) -> Call:
    """The operation on the word at BASE."""
    return lambda io: operate(io, BASE)


CALLS: dict[str, Call] = {name: call for name, (_, call) in COPIES.items()}
CALLS |= {name: at_base(operate) for name, (_, operate) in ATOMICS.items()}


@pytest.mark.parametrize("name", CALLS)
def test_the_hosts_fault_is_the_cause(name: str) -> None:
    """The guest's fault has the host's as its cause, for who looks for it, without the frames it came through."""
    memory = FaultyMemory("segv")
    with pytest.raises(FaultError) as caught:
        CALLS[name](PatchyIO({BASE: memory.block(12, 0)}))
    cause = caught.value.__cause__
    assert isinstance(cause, HostFaultError)
    assert (cause.address, cause.__traceback__) == (memory.edge, None)


@pytest.mark.parametrize("name", CALLS)
def test_what_the_host_refuses_is_no_fault(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a sandbox forbids the calls that memory which may fault needs, their error comes out as it is."""
    refusal = PermissionError(errno.EPERM, "refused")

    def refuse(call: str) -> Callable[[int, int, int], int]:
        raise refusal

    monkeypatch.setattr(safecopy, "_process_vm", refuse)
    with pytest.raises(PermissionError) as caught:
        CALLS[name](PatchyIO({BASE: FaultyMemory("segv").block(12, 12)}))
    assert caught.value is refusal


@pytest.mark.parametrize("valid", [0, 3])
def test_a_host_fault_keeps_nothing_of_the_callers(valid: int) -> None:
    """While its error is held, the caller's buffer can be resized: no frame of ours holds a view of it."""
    errors = []
    for io in (PatchyIO({BASE: FaultyMemory("segv").block(12, valid)}), PatchyIO({BASE: bytearray(valid)})):
        buffer = bytearray(12)
        for call in (io.copy_in, io.copy_out):
            with pytest.raises(FaultError) as caught:
                call(BASE, buffer)
            errors.append(caught.value)
        buffer.append(0)
    assert [error.transferred for error in errors] == [valid] * 4


@pytest.mark.parametrize("name", [*COPIES])
def test_a_refusal_midway_counts_what_came_before(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is no fault, after a piece and a part of the next, says how many bytes have arrived."""
    memory = FaultyMemory("segv")
    io = PatchyIO({BASE: bytearray(5), BASE + 5: memory.block(7, 7)})
    real = safecopy._process_vm
    left = [None]

    def scarce(call: str) -> Callable[[int, int, int], int]:
        def move(local: int, remote: int, length: int) -> int:
            if not left:
                raise OSError(errno.ENOMEM, "no memory")
            left.pop()
            return real(call)(local, remote, length)

        return move

    monkeypatch.setattr(safecopy, "_MAX_TRANSFER", 4)
    monkeypatch.setattr(safecopy, "_process_vm", scarce)
    with pytest.raises(OSError, match="no memory") as caught:
        COPIES[name][1](io)
    assert getattr(caught.value, "transferred", 0) == 9
