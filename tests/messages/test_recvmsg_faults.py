"""What becomes of a datagram that meets memory which cannot be written: it stays, or is lost as in Linux."""

from __future__ import annotations

import errno
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_messages import BASE, CONTROL, DATA, HOLE, NAME, PAGE, Guest
from hostarch import READ_WRITE, WRITE, AddrRangeSeq, mman
from memory_endpoint import Datagram, MemoryEndpoint
from patchy_io import PatchyIO
from safemem import Block, Reader
from safemem.datagram import Address, BadBlocksError
from safemem.errors import HostFaultError
from usermem import FaultError, FaultReason, linux_result
from usermem.messages import recvmsg_into_user
from usermem.observe import FaultPlan, FaultyIO
from watched_io import WatchedIO

PEEK, CTRUNC, TRUNC = 2, 8, 0x20
INET: Address = ("10.1.2.3", 0x1234)
INET6: Address = ("::5", 1, 0, 0)


@pytest.mark.parametrize("policy", ["keep", "linux"])
@pytest.mark.parametrize("length", [0, 1, 3, 4])
def test_memory_behind_the_datagram_does_not_matter(policy: str, length: int) -> None:
    """Three bytes before a hole take a datagram of three bytes or fewer."""
    guest = Guest()
    endpoint = MemoryEndpoint([Datagram(b"abcd"[:length])])
    addr = guest.put([(HOLE - 3, 100)])
    if length < 4:
        assert recvmsg_into_user(guest.space, endpoint, addr, fault_policy=policy) == length  # type: ignore[arg-type]
        assert guest.read(HOLE - 3, 3) == b"abc"[:length].ljust(3, b"\xee")
        assert guest.get(addr, "flags") == 0
        return
    with pytest.raises(FaultError) as caught:
        recvmsg_into_user(guest.space, endpoint, addr, fault_policy=policy)  # type: ignore[arg-type]
    fault = caught.value
    assert (fault.address, fault.access, fault.reason) == (HOLE, WRITE, FaultReason.UNMAPPED)
    assert (linux_result(fault), fault.transferred) == (-errno.EFAULT, 0)
    assert isinstance(fault.__cause__, BadBlocksError)
    assert guest.read(HOLE - 3, 3) == (b"abc" if policy == "linux" else b"\xee" * 3)
    assert len(endpoint.queue) == (policy == "keep")
    assert guest.get(addr, "flags") == 0x5555_5555
    assert str(pickle.loads(pickle.dumps(fault))) == str(fault)


@pytest.mark.parametrize("policy", ["keep", "linux"])
def test_no_memory_at_all(policy: str) -> None:
    """An empty datagram needs none; another one faults. Read-only memory is named as such."""
    guest = Guest()
    guest.space.mprotect(DATA, PAGE, mman.PROT_READ)
    endpoint = MemoryEndpoint([Datagram(b""), Datagram(b"x"), Datagram(b"next")])
    addr = guest.put([(DATA, 0), (DATA, 5)])
    assert recvmsg_into_user(guest.space, endpoint, addr, fault_policy=policy) == 0  # type: ignore[arg-type]
    with pytest.raises(FaultError) as caught:
        recvmsg_into_user(guest.space, endpoint, addr, fault_policy=policy)  # type: ignore[arg-type]
    assert (caught.value.address, caught.value.reason) == (DATA, FaultReason.PERMISSION)
    assert len(endpoint.queue) == 1 + (policy == "keep")


@pytest.mark.parametrize("policy", ["keep", "linux"])
def test_nothing_to_receive_comes_before_a_fault(policy: str) -> None:
    """Bad memory is no matter where there is no datagram."""
    guest = Guest()
    addr = guest.put([(HOLE, 5)], name=HOLE, namelen=16)
    with pytest.raises(BlockingIOError):
        recvmsg_into_user(guest.space, MemoryEndpoint(), addr, fault_policy=policy)  # type: ignore[arg-type]


def test_peeking_into_bad_memory_loses_nothing() -> None:
    """By either policy."""
    guest = Guest()
    endpoint = MemoryEndpoint([Datagram(b"abc")])
    with pytest.raises(FaultError):
        recvmsg_into_user(guest.space, endpoint, guest.put([(HOLE, 5)]), PEEK, fault_policy="linux")
    assert len(endpoint.queue) == 1


def protected(guest: Guest, where: str, prot: int = mman.PROT_READ) -> int:
    """A header by which something that comes beside the data meets bad memory."""
    addr = BASE
    name, control = NAME, CONTROL
    if where == "name":
        name = HOLE - 15
    elif where == "control":
        control = HOLE - 19
    elif where == "fields":
        addr = DATA + PAGE - 48  # msg_flags is the first of the next page
    elif where == "namelen":
        addr = DATA + PAGE - 12  # msg_namelen is the last of its page
    guest.put([(DATA, 9)], addr, name=name, namelen=16, control=control, controllen=40)
    if where == "fields":
        guest.space.mprotect(DATA + PAGE, PAGE, prot)
    elif where == "namelen":
        guest.put([(DATA + 2 * PAGE, 9)], addr, name=name, namelen=16, control=control, controllen=40)
        guest.space.mprotect(DATA, PAGE, prot)
    return addr


@pytest.mark.parametrize("where", ["name", "control", "fields", "namelen"])
def test_beside_the_data(where: str) -> None:
    """Kept: nothing is touched. By Linux: the data have been written, and the control data's fault is no error."""
    datagram = Datagram(b"data", INET, None, ((1, 2, b"four"),))
    guest = Guest()
    endpoint = MemoryEndpoint([datagram])
    addr = protected(guest, where)
    before = guest.read(BASE, 16 * PAGE)
    with pytest.raises(FaultError) as caught:
        recvmsg_into_user(guest.space, endpoint, addr)
    assert linux_result(caught.value) == -errno.EFAULT
    assert endpoint.queue == [datagram]
    assert guest.read(BASE, 16 * PAGE) == before
    if where == "control":
        assert recvmsg_into_user(guest.space, endpoint, addr, fault_policy="linux") == 4
        assert guest.answers(addr) == (16, 0, 0)
    else:
        with pytest.raises(FaultError):
            recvmsg_into_user(guest.space, endpoint, addr, fault_policy="linux")
    assert endpoint.queue == []
    assert guest.read(BASE, 16 * PAGE).count(b"data") == 1
    if where == "fields":
        assert guest.get(addr, "controllen") == 40  # it comes behind the flags


def test_what_will_not_be_written_need_not_be_writable() -> None:
    """Room for more name than comes, for control data where none come, and a namelen field that nobody asked for."""
    guest = Guest()
    endpoint = MemoryEndpoint([Datagram(b"a", INET), Datagram(b"b", INET6), Datagram(b"c")])
    addr = guest.put([(DATA, 9)], name=HOLE - 16, namelen=128, control=HOLE - 5, controllen=40)
    assert recvmsg_into_user(guest.space, endpoint, addr) == 1
    assert guest.read(HOLE - 16, 16) == bytes.fromhex("020012340a010203") + bytes(8)
    addr = guest.put([(DATA, 9)], name=HOLE - 16, namelen=128)
    with pytest.raises(FaultError):
        recvmsg_into_user(guest.space, endpoint, addr)
    endpoint.queue.pop(0)
    guest.put([(DATA + 2 * PAGE, 9)], DATA + PAGE - 40)
    guest.space.mprotect(DATA, PAGE, mman.PROT_READ)
    assert recvmsg_into_user(guest.space, endpoint, DATA + PAGE - 40) == 1


def test_good_memory_costs_no_look_at_the_datagram() -> None:
    """One receive and no more."""
    guest = Guest()
    endpoint = MemoryEndpoint([Datagram(b"a", INET, None, ((1, 2, b""),))])
    recvmsg_into_user(
        guest.space, endpoint, guest.put([(DATA, 9)], name=NAME, namelen=128, control=CONTROL, controllen=99)
    )
    assert len(endpoint.calls) == 1


def test_memory_that_really_faults() -> None:
    """Its fault is the guest's; the endpoint keeps the datagram, and by Linux's policy it goes."""
    bad = Block.from_address(8, 100)
    for policy, left in (("keep", 1), ("linux", 0)):
        guest = Guest()
        guest.put([(0x900000, 50)], iov=BASE + 512)
        guest.space.copy_out(BASE + 512, (0x900000).to_bytes(8, "little") + (50).to_bytes(8, "little"))
        whole = bytearray(guest.read(BASE, PAGE))
        io = PatchyIO({BASE: whole, 0x900000: bad})
        endpoint = MemoryEndpoint([Datagram(b"abc")])
        with pytest.raises(FaultError) as caught:
            recvmsg_into_user(io, endpoint, BASE, fault_policy=policy)  # type: ignore[arg-type]
        assert isinstance(caught.value.__cause__, HostFaultError)
        assert caught.value.address == 0x900000
        assert len(endpoint.queue) == left


class Narrow(WatchedIO):
    """User memory that ends sooner than its arch says."""

    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        """See IO.copy_out_from."""
        for start, _ in ars.pairs():
            if start >= HOLE:
                raise FaultError(start, WRITE, FaultReason.OUTSIDE_RANGE)
        return super().copy_out_from(ars, reader, ignore_permissions=ignore_permissions)


@pytest.mark.parametrize("policy", ["keep", "linux"])
@pytest.mark.parametrize("data", [b"", b"abc"])
def test_a_range_outside_user_space_receives_nothing(policy: str, data: bytes) -> None:
    """Not even an empty datagram, nor for an empty range: the ranges come before the queue."""
    for iov in ([(HOLE, 0)], [(DATA, 5), (HOLE, 0)], [(HOLE, 5)]):
        guest = Guest()
        endpoint = MemoryEndpoint([Datagram(data)])
        with pytest.raises(FaultError):
            recvmsg_into_user(Narrow(guest.space), endpoint, guest.put(iov), fault_policy=policy)  # type: ignore[arg-type]
        assert endpoint.calls == []


@pytest.mark.parametrize("policy", ["keep", "linux"])
@pytest.mark.parametrize("held", [FaultError(5, WRITE, FaultReason.UNMAPPED), OSError(errno.ECONNREFUSED, "refused")])
def test_a_held_error_comes_first(policy: str, held: OSError) -> None:
    """It is raised as it is, and takes no datagram with it."""
    for iov in ([(DATA, 5)], [(HOLE, 5)], []):
        guest = Guest()
        endpoint = MemoryEndpoint([Datagram(b"abc")])
        endpoint.hold_error(held)
        with pytest.raises(OSError) as caught:
            recvmsg_into_user(guest.space, endpoint, guest.put(iov), fault_policy=policy)  # type: ignore[arg-type]
        assert caught.value is held
        assert len(endpoint.queue) == 1


def test_ignored_permissions() -> None:
    """The options go to every access."""
    guest = Guest()
    addr = guest.put([(DATA, 9)], name=NAME, namelen=16, control=CONTROL, controllen=40)
    guest.space.mprotect(BASE, 16 * PAGE, mman.PROT_NONE)
    io = WatchedIO(guest.space)
    endpoint = MemoryEndpoint([Datagram(b"abc", INET, None, ((1, 2, b"four"),))] * 2)
    assert recvmsg_into_user(io, endpoint, addr, ignore_permissions=True) == 3
    assert set(io.ignored) == {True}


FAULT_STEPS = st.lists(st.none() | st.integers(0, 60), max_size=14).map(tuple)


@given(FAULT_STEPS, st.integers(0, 12))
def test_injected_faults(steps: tuple[int | None, ...], length: int) -> None:
    """Whatever faults, the call returns what Linux could, and a datagram is there, or queued, or its loss reported."""
    guest = Guest()
    data = bytes(range(length))
    endpoint = MemoryEndpoint([Datagram(data, INET, None, ((1, 2, b"four"),))])
    addr = guest.put([(DATA, 4), (DATA + 8, 6)], name=NAME, namelen=16, control=CONTROL, controllen=40)
    io = FaultyIO(guest.space, FaultPlan(steps))
    try:
        result = recvmsg_into_user(io, endpoint, addr)
    except OSError as exc:
        assert linux_result(exc) == -errno.EFAULT
        return
    assert result == min(length, 10)
    assert (guest.read(DATA, 4) + guest.read(DATA + 8, 6))[:result] == data[:result]
    assert endpoint.queue == []


@given(
    length=st.sampled_from([0, 1, 5, 10, 4096, 5000]),
    rights=st.lists(st.sampled_from([READ_WRITE, READ_WRITE, mman.PROT_READ, mman.PROT_NONE]), min_size=9, max_size=9),
    places=st.lists(st.integers(2 * PAGE - 60, 11 * PAGE - 60), min_size=4, max_size=4),
    sizes=st.tuples(*[st.sampled_from([0, 1, 10, 16, 60, 128, 4000])] * 4),
)
def test_keeping_differs_only_in_that(
    length: int, rights: list[int], places: list[int], sizes: tuple[int, int, int, int]
) -> None:
    """Where a datagram is received by one policy, it is by the other, with the same bytes; else it is still queued.

    There are two exceptions: control data that Linux leaves out without a word, and room for them that nobody uses.
    """
    outcomes = []
    for policy in ("keep", "linux"):
        guest = Guest()
        datagram = Datagram(bytes(i % 251 for i in range(length)), INET, None, ((1, 2, b"four"),))
        endpoint = MemoryEndpoint([datagram])
        fields = {"name": BASE + places[2], "namelen": sizes[2], "control": BASE + places[3], "controllen": sizes[3]}
        addr = guest.put([(BASE + places[0], sizes[0]), (BASE + places[1], sizes[1])], **fields)
        for i, right in enumerate(rights):
            guest.space.mprotect(BASE + (i + 2) * PAGE, PAGE, int(right))
        before = guest.space.read_bytes(BASE, 16 * PAGE, ignore_permissions=True)
        try:
            result = recvmsg_into_user(guest.space, endpoint, addr, fault_policy=policy)
        except FaultError as exc:
            result = linux_result(exc)
        after = guest.space.read_bytes(BASE, 16 * PAGE, ignore_permissions=True)
        outcomes.append((result, after))
        if result < 0 and policy == "keep":
            assert endpoint.queue == [datagram]
            assert after == before
        else:
            assert endpoint.queue == []
    keep, linux = outcomes
    if keep != linux:
        assert keep[0] == -errno.EFAULT
        control = BASE + places[3]
        pages = {(control - BASE) // PAGE, (control + max(sizes[3], 1) - 1 - BASE) // PAGE}
        assert linux[0] == keep[0] or any(page >= 2 and page < 11 and rights[page - 2] != READ_WRITE for page in pages)
