"""recvmmsg into a guest's memory: entries, flags, errors behind the first, times to wait."""

from __future__ import annotations

import errno
import struct
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from datagram_ends import one, pair
from guest_messages import ARCHES, BASE, DATA, HOLE, NAME, PAGE, TIME, Guest
from hostarch import AMD64, I386, MIPS, WRITE, Arch, mman
from memory_endpoint import Datagram, MemoryEndpoint
from safemem.datagram import datagram_pair
from safemem.datagram.flags import UIO_MAXIOV
from usermem import FaultError, FaultReason, linux_result
from usermem.messages import TimeoutPolicy, recvmmsg_into_user, recvmsg_into_user
from watched_io import WatchedIO

PEEK, TRUNC, DONTWAIT, WAITFORONE = 2, 0x20, 0x40, 0x10000
each_arch = pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)


def batch(guest: Guest, n: int, room: int = 10) -> list[int]:
    """n entries, one after the other, with a page of data each; their addresses."""
    addresses = [BASE + i * guest.entry for i in range(n)]
    return [
        guest.put([(DATA + i * 256, room)], addr, name=NAME + 64 * i, namelen=16) for i, addr in enumerate(addresses)
    ]


def endpoint_of(*data: bytes) -> MemoryEndpoint:
    """These datagrams, each from a port of its own."""
    return MemoryEndpoint([Datagram(each, ("10.0.0.1", i + 1)) for i, each in enumerate(data)])


@each_arch
def test_entries(arch: Arch) -> None:
    """Each has its datagram, its length and its name, and those behind the last are as they were."""
    guest = Guest(arch)
    entries = batch(guest, 5)
    behind = guest.read(entries[3], 2 * guest.entry)
    endpoint = endpoint_of(b"one", b"", b"three of many")
    assert recvmmsg_into_user(guest.space, endpoint, BASE, 5) == 3
    assert [guest.get(addr, "msg_len") for addr in entries[:3]] == [3, 0, 10]
    assert [guest.get(addr, "flags") for addr in entries[:3]] == [0, 0, TRUNC]
    assert [guest.read(NAME + 64 * i + 2, 2) for i in range(4)] == [b"\0\1", b"\0\2", b"\0\3", b"\xee\xee"]
    assert [guest.read(DATA + i * 256, 10) for i in range(3)] == [b"one" + b"\xee" * 7, b"\xee" * 10, b"three of m"]
    assert guest.read(entries[3], 2 * guest.entry) == behind
    if arch.pointer_size == 8:
        assert guest.read(BASE + 60, 4) == b"\xee" * 4  # padding


def test_no_more_than_asked_for() -> None:
    """``vlen`` entries, of those that are there; 0 is 0, and nothing is looked at."""
    guest = Guest()
    batch(guest, 5)
    endpoint = endpoint_of(b"a", b"b", b"c")
    assert recvmmsg_into_user(guest.space, endpoint, BASE, 2) == 2
    assert len(endpoint.queue) == 1
    assert recvmmsg_into_user(guest.space, endpoint, 5, 0) == 0
    assert recvmmsg_into_user(guest.space, MemoryEndpoint(), 5, 0) == 0
    assert len(endpoint.queue) == 1
    assert recvmmsg_into_user(guest.space, endpoint, BASE, 1 << 32) == 0  # an unsigned int
    with pytest.raises(BlockingIOError) as caught:
        recvmmsg_into_user(guest.space, MemoryEndpoint(), BASE, 3)
    assert linux_result(caught.value) == -errno.EAGAIN


def test_1500_entries() -> None:
    """There is no limit."""
    guest = Guest()
    space, flags = guest.space, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
    space.mmap(0x900000, 24 * PAGE, 3, flags)
    assert recvmmsg_into_user(space, endpoint_of(*[b"x"] * 1501), 0x900000, 1500) == 1500


def test_peeking() -> None:
    """Every entry has the first datagram."""
    guest = Guest()
    entries = batch(guest, 3)
    endpoint = endpoint_of(b"one", b"two")
    assert recvmmsg_into_user(guest.space, endpoint, BASE, 3, PEEK) == 3
    assert [guest.get(addr, "msg_len") for addr in entries] == [3, 3, 3]
    assert guest.read(DATA + 512, 3) == b"one"
    assert len(endpoint.queue) == 2


def test_whole_lengths() -> None:
    """With MSG_TRUNC the length of an entry is its datagram's."""
    guest = Guest()
    entries = batch(guest, 2, 2)
    recvmmsg_into_user(guest.space, endpoint_of(b"seventy", b"a"), BASE, 2, TRUNC)
    assert [guest.get(addr, "msg_len") for addr in entries] == [7, 1]


@pytest.mark.parametrize(("flags", "passed"), [(0, [0, 0]), (WAITFORONE, [0, DONTWAIT]), (DONTWAIT, [DONTWAIT] * 2)])
def test_what_waits(flags: int, passed: list[int]) -> None:
    """MSG_WAITFORONE becomes MSG_DONTWAIT behind the first, and never reaches the endpoint."""
    guest = Guest()
    batch(guest, 2)
    endpoint = endpoint_of(b"one", b"two")
    recvmmsg_into_user(guest.space, endpoint, BASE, 2, flags)
    assert [got for got, _ in endpoint.calls] == passed


def test_the_forbidden_flag() -> None:
    """As in recvmsg."""
    guest = Guest()
    with pytest.raises(OSError) as caught:
        recvmmsg_into_user(guest.space, endpoint_of(b"x"), BASE, 0, 1 << 31)
    assert caught.value.errno == errno.EINVAL


BAD_SECOND = {
    "data": ({"iov": TIME, "iovlen": 1}, errno.EFAULT),
    "namelen": ({"name": NAME, "namelen": -1}, errno.EINVAL),
    "iovlen": ({"iovlen": 1025}, errno.EMSGSIZE),
    "name": ({"name": HOLE, "namelen": 4}, errno.EFAULT),
}


@pytest.mark.parametrize("policy", ["keep", "linux"])
@pytest.mark.parametrize("kind", BAD_SECOND)
def test_an_error_behind_the_first(kind: str, policy: str) -> None:
    """The first counts, the next receive has the error, and the one after it goes on."""
    fields, code = BAD_SECOND[kind]
    guest = Guest()
    batch(guest, 1)
    guest.space.copy_out(TIME, struct.pack("=QQ", HOLE - 1, 5))
    guest.put([], BASE + 64, **fields)
    endpoint = endpoint_of(b"one", b"two", b"three")
    assert recvmmsg_into_user(guest.space, endpoint, BASE, 2, fault_policy=policy) == 1  # type: ignore[arg-type]
    lost = policy == "linux" and code == errno.EFAULT
    assert [each.data for each in endpoint.queue] == [b"two", b"three"][lost:]
    good = guest.put([(DATA, 10)], BASE + 128)
    with pytest.raises(OSError) as caught:
        recvmmsg_into_user(guest.space, endpoint, good, 1)
    assert linux_result(caught.value) == -code
    assert recvmsg_into_user(guest.space, endpoint, good) == (5 if lost else 3)


def test_a_bad_msg_len() -> None:
    """Kept: it is seen before. By Linux: the datagram is lost and does not count."""
    for policy, left in (("keep", 2), ("linux", 1)):
        guest = Guest()
        addr = DATA + PAGE - 56
        guest.put([(TIME + PAGE, 9)], addr)
        guest.space.mprotect(DATA + PAGE, PAGE, mman.PROT_READ)
        endpoint = endpoint_of(b"one", b"two")
        with pytest.raises(FaultError) as caught:
            recvmmsg_into_user(guest.space, endpoint, addr, 1, fault_policy=policy)  # type: ignore[arg-type]
        assert linux_result(caught.value) == -errno.EFAULT
        assert len(endpoint.queue) == left
        assert recvmsg_into_user(guest.space, endpoint, addr) == 3  # which has no msg_len


def test_a_held_error_comes_before_a_bad_entry() -> None:
    """And before no entries at all; it comes once."""
    held = FaultError(5, WRITE, FaultReason.UNMAPPED, 3)
    for addr, vlen in ((HOLE, 1), (BASE, 0)):
        guest = Guest()
        endpoint = endpoint_of(b"x")
        endpoint.hold_error(held)
        with pytest.raises(FaultError) as caught:
            recvmmsg_into_user(guest.space, endpoint, addr, vlen)
        assert caught.value is held
        assert linux_result(held) == -errno.EFAULT
        with pytest.raises(FaultError) as other:
            recvmmsg_into_user(guest.space, endpoint, HOLE, 1)
        assert other.value is not held


def test_would_block_is_not_held() -> None:
    """The next receive finds what has come."""
    guest = Guest()
    batch(guest, 2)
    endpoint = endpoint_of(b"one")
    assert recvmmsg_into_user(guest.space, endpoint, BASE, 2) == 1
    endpoint.queue.append(Datagram(b"two"))
    assert recvmmsg_into_user(guest.space, endpoint, BASE, 2) == 1


# Times to wait.


def put_time(guest: Guest, sec: int, nsec: int, size: int) -> None:
    """A struct timespec at TIME, with fields of so many bytes."""
    guest.put_number(TIME, sec, size)
    guest.put_number(TIME + size, nsec, size)


@pytest.mark.parametrize(("arch", "time64"), [(AMD64, False), (I386, False), (I386, True), (MIPS, False), (MIPS, True)])
def test_the_time_left_is_stored(arch: Arch, time64: bool) -> None:
    """In the fields that the guest has; only if a datagram came."""
    size = 8 if time64 or arch is AMD64 else 4
    guest = Guest(arch)
    batch(guest, 2)
    put_time(guest, 1000, 999_999_999, size)
    assert recvmmsg_into_user(guest.space, endpoint_of(b"x", b"y"), BASE, 2, 0, TIME, time64=time64) == 2
    assert 990 < guest.number(TIME, size) <= 1000
    assert guest.number(TIME + size, size) < 10**9
    assert guest.read(TIME + 2 * size, 1) == b"\xee"
    put_time(guest, 0, 0, size)
    with pytest.raises(BlockingIOError):
        recvmmsg_into_user(guest.space, MemoryEndpoint(), BASE, 2, 0, TIME, time64=time64)
    assert guest.read(TIME, 2 * size) == bytes(2 * size)


def test_padding_of_a_time() -> None:
    """Where a 32-bit guest has 64-bit fields, the upper half of the nanoseconds is not looked at."""
    guest = Guest(I386)
    batch(guest, 1)
    put_time(guest, 5, 0xDEAD_0000_0000 + 7, 8)
    assert recvmmsg_into_user(guest.space, endpoint_of(b"x"), BASE, 1, 0, TIME, time64=True) == 1


@pytest.mark.parametrize(("sec", "nsec"), [(-1, 0), (0, -1), (0, 10**9)])
def test_bad_times(sec: int, nsec: int) -> None:
    """EINVAL, before all else."""
    guest = Guest()
    put_time(guest, sec, nsec, 8)
    with pytest.raises(OSError) as caught:
        recvmmsg_into_user(guest.space, endpoint_of(b"x"), HOLE, 0, 0, TIME)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(FaultError):
        recvmmsg_into_user(guest.space, endpoint_of(b"x"), HOLE, 0, 0, HOLE - 15)


@pytest.mark.parametrize("policy", ["keep", "linux"])
def test_a_time_that_cannot_be_stored(policy: str) -> None:
    """Kept: the call does not begin. By Linux: EFAULT, though datagrams have come."""
    guest = Guest()
    batch(guest, 1)
    put_time(guest, 1, 0, 8)
    guest.space.mprotect(TIME, PAGE, mman.PROT_READ)
    endpoint = endpoint_of(b"x")
    with pytest.raises(FaultError):
        recvmmsg_into_user(guest.space, endpoint, BASE, 1, 0, TIME, fault_policy=policy)  # type: ignore[arg-type]
    assert len(endpoint.queue) == (policy == "keep")


def timed(endpoint: MemoryEndpoint, nsec: int, flags: int = 0, policy: TimeoutPolicy = "deadline") -> tuple[int, float]:
    """The result of a call with a timeout for three datagrams, and how long it took."""
    guest = Guest()
    batch(guest, 3)
    put_time(guest, 0, nsec, 8)
    start = time.monotonic()
    try:
        result = recvmmsg_into_user(guest.space, endpoint, BASE, 3, flags, TIME, timeout_policy=policy)
    except OSError as exc:
        result = linux_result(exc)
    return result, time.monotonic() - start


def test_a_deadline() -> None:
    """It waits as long as it may for any datagram, and not at all where flags or time forbid it."""
    result, took = timed(MemoryEndpoint(), 30_000_000)
    assert (result, took >= 0.03) == (-errno.EAGAIN, True)
    result, took = timed(endpoint_of(b"one"), 30_000_000)
    assert (result, took >= 0.03) == (1, True)
    for nsec, flags in ((0, 0), (900_000_000, DONTWAIT), (900_000_000, WAITFORONE)):
        result, took = timed(endpoint_of(b"one", b"two"), nsec, flags)
        assert (result, took < 0.5) == (2, True)
    assert timed(endpoint_of(b"one", b"two", b"three", b"four"), 900_000_000)[0] == 3


@pytest.mark.parametrize("sec", [10**7, 10**12, 2**63 - 1])
@pytest.mark.parametrize("kind", ["socket", "pair"])
def test_a_deadline_far_away(kind: str, sec: int, tmp_path: Path) -> None:
    """As long as Linux takes it: the call waits for the datagram, whatever the host's own waits can count to."""
    guest = Guest()
    ends: AbstractContextManager[Any] = pair("unix", tmp_path) if kind == "socket" else nullcontext(datagram_pair())
    with ends as (receiver, sender):
        guest.put([(DATA, 16)])
        guest.put_number(TIME, sec, 8)
        guest.put_number(TIME + 8, 0, 8)
        later = threading.Timer(0.02, lambda: sender.sendmsg(one(b"hello")))
        later.start()
        assert recvmmsg_into_user(guest.space, receiver, BASE, 1, 0, TIME) == 1
        later.join()
        assert sec - 10 <= guest.number(TIME, 8) < sec


def test_what_comes_before_the_deadline() -> None:
    """Datagrams that come while it waits are taken, each by a call that does not wait in the endpoint."""
    endpoint = endpoint_of(b"one")
    endpoint.arrivals = [(3, Datagram(b"two")), (2, Datagram(b"three"))]
    assert timed(endpoint, 900_000_000)[0] == 3
    assert {flags for flags, _ in endpoint.calls} == {DONTWAIT}
    endpoint = MemoryEndpoint()
    endpoint.arrivals = [(3, Datagram(b"one")), (3, Datagram(b"two"))]
    assert timed(endpoint, 900_000_000, WAITFORONE)[0] == 1


def test_linuxs_timeout() -> None:
    """It is looked at behind a datagram only, and the endpoint does the waiting; 0 is one datagram."""
    endpoint = endpoint_of(b"one", b"two")
    assert timed(endpoint, 0, policy="linux")[0] == 1
    assert {flags for flags, _ in endpoint.calls} == {0}
    assert timed(endpoint_of(b"one", b"two"), 1, policy="linux")[0] == 1
    assert timed(endpoint_of(b"one", b"two"), 900_000_000, policy="linux")[0] == 2
    assert timed(MemoryEndpoint(), 900_000_000, policy="linux")[0] == -errno.EAGAIN


def test_options_go_to_every_access() -> None:
    """Those to the time too."""
    guest = Guest()
    batch(guest, 1)
    put_time(guest, 0, 5, 8)
    guest.space.mprotect(BASE, 16 * PAGE, mman.PROT_NONE)
    io = WatchedIO(guest.space)
    assert recvmmsg_into_user(io, endpoint_of(b"x"), BASE, 1, 0, TIME, ignore_permissions=True) == 1
    assert set(io.ignored) == {True}


def test_peeking_without_end() -> None:
    """One datagram fills UIO_MAXIOV entries at most, however many a guest asks for: others wait meanwhile."""
    guest = Guest()
    space, flags = guest.space, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
    space.mmap(0x900000, 32 * PAGE, 3, flags)
    endpoint = endpoint_of(b"x")
    assert recvmmsg_into_user(space, endpoint, 0x900000, (1 << 32) - 1, PEEK) == UIO_MAXIOV
    assert recvmmsg_into_user(space, endpoint, 0x900000, (1 << 32) - 1) == 1
