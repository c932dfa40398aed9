"""sendmsg and sendmmsg out of a guest's memory: every layout, names and control data by tables, all or nothing."""

from __future__ import annotations

import errno
import socket

import pytest

from guest_messages import ARCHES, BASE, CONTROL, DATA, HOLE, NAME, PAGE, Guest
from hostarch import AMD64, I386, MIPS, READ, S390X, Arch, mman
from memory_endpoint import Datagram, MemoryEndpoint
from safemem.datagram import Address, Ancillary
from usermem import FaultError, FaultReason, linux_result
from usermem.messages import sendmmsg_from_user, sendmsg_from_user
from usermem.observe import FaultPlan, FaultyIO
from watched_io import WatchedIO

each_arch = pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)
SCOPE = 0x01020304


def sockaddr(arch: Arch, family: int, rest: str, scope: bool = False) -> bytes:
    """A guest's: family, bytes in hex, perhaps a scope."""
    tail = SCOPE.to_bytes(4, arch.byte_order) if scope else b""
    return family.to_bytes(2, arch.byte_order) + bytes.fromhex(rest) + tail


V4, V6 = "12340a010203" + "00" * 8, "1234000abcde" + "fe80" + "00" * 13 + "05"


@each_arch
def test_every_field(arch: Arch) -> None:
    """Data gathered, name and control data, each from where the layout has it; the struct is only read."""
    guest = Guest(arch)
    guest.space.copy_out(DATA, b"hello world")
    guest.space.copy_out(NAME, sockaddr(arch, 2, V4))
    word = arch.pointer_size
    head = (word + 8 + 3).to_bytes(word, arch.byte_order)
    numbers = (7).to_bytes(4, arch.byte_order) + (9).to_bytes(4, arch.byte_order)
    guest.space.copy_out(CONTROL, head + numbers + b"abc")
    iov = [(DATA, 5), (HOLE - 1, 0), (DATA + 6, 5)]
    addr = guest.put(iov, name=NAME, namelen=16, control=CONTROL, controllen=word + 16)
    guest.space.mprotect(BASE, 16 * PAGE, mman.PROT_READ)
    endpoint = MemoryEndpoint()
    assert sendmsg_from_user(guest.space, endpoint, addr, 0x40) == 10
    assert endpoint.sent == [Datagram(b"helloworld", ("10.1.2.3", 0x1234), None, ((7, 9, b"abc"),), 0x40)]


INET, INET6, UNIX = 2, 10, 1
NAMES: dict[str, tuple[int | None, int, str, bool, Address | int | None]] = {
    "inet": (INET, 2, V4, False, ("10.1.2.3", 0x1234)),
    "inet, more than that": (INET, 2, V4 + "00" * 40, False, ("10.1.2.3", 0x1234)),
    "inet of no family": (INET, 0, V4, False, ("10.1.2.3", 0x1234)),
    "inet, short": (INET, 2, V4[:-2], False, errno.EINVAL),
    "inet, port 0": (INET, 2, "0000" + V4[4:], False, errno.EINVAL),
    "inet, a path": (INET, 1, V4, False, errno.EAFNOSUPPORT),
    "inet, one byte": (INET, 2, "", False, errno.EINVAL),
    "inet6": (INET6, 10, V6, True, ("fe80::5", 0x1234, 0x0ABCDE, SCOPE)),
    "inet6, no scope": (INET6, 10, V6, False, ("fe80::5", 0x1234, 0x0ABCDE, 0)),
    "inet6, short": (INET6, 10, V6[:-2], False, errno.EINVAL),
    "inet6, port 0": (INET6, 10, "0000" + V6[4:], True, errno.EINVAL),
    "inet6, inet": (INET6, 2, V4, False, ("::ffff:10.1.2.3", 0x1234, 0, 0)),
    "inet6, inet short": (INET6, 2, V4[:-2], False, errno.EINVAL),
    "inet6 of no family": (INET6, 0, V6, True, None),
    "inet6, a path": (INET6, 1, V6, True, errno.EINVAL),
    "path": (UNIX, 1, b"/a/b\0xx".hex(), False, "/a/b"),
    "path, longest": (UNIX, 1, (b"/" + b"a" * 107).hex(), False, "/" + "a" * 107),
    "path, too long": (UNIX, 1, (b"/" + b"a" * 108).hex(), False, errno.EINVAL),
    "abstract": (UNIX, 1, b"\0a\0b".hex(), False, b"\0a\0b"),
    "path, none": (UNIX, 1, "", False, errno.EINVAL),
    "path, inet": (UNIX, 2, V4, False, errno.EINVAL),
    "untold inet": (None, 2, V4, False, ("10.1.2.3", 0x1234)),
    "untold inet6": (None, 10, V6, True, ("fe80::5", 0x1234, 0x0ABCDE, SCOPE)),
    "untold path": (None, 1, b"/a".hex(), False, "/a"),
    "untold": (None, 77, V4, False, errno.EAFNOSUPPORT),
    "another": (77, 77, V4, False, errno.EAFNOSUPPORT),
}


@pytest.mark.parametrize("arch", [AMD64, MIPS, S390X], ids=lambda arch: arch.name)
@pytest.mark.parametrize("kind", NAMES)
def test_names(arch: Arch, kind: str) -> None:
    """What an endpoint of a family makes of a name: an address, or an errno, and then nothing is sent."""
    told, family, rest, scope, expected = NAMES[kind]
    guest = Guest(arch)
    name = sockaddr(arch, family, rest, scope)
    guest.space.copy_out(NAME, name)
    addr = guest.put([(DATA, 1)], name=NAME, namelen=len(name))
    endpoint = MemoryEndpoint(family=told)
    if isinstance(expected, int):
        with pytest.raises(OSError) as caught:
            sendmsg_from_user(guest.space, endpoint, addr)
        assert caught.value.errno == expected
        assert endpoint.sent == []
    else:
        assert sendmsg_from_user(guest.space, endpoint, addr) == 1
        assert endpoint.sent[0].peer == expected


def test_sizes_of_a_name() -> None:
    """Of more than 128 bytes 128 count, and are read; of none, or from nowhere, there is no name."""
    guest = Guest()
    guest.space.copy_out(HOLE - 128, sockaddr(AMD64, 2, V4))
    endpoint = MemoryEndpoint(family=socket.AF_INET)
    for name, namelen in ((HOLE - 128, 1000), (HOLE, 0), (0, 16), (0, -1)):
        sendmsg_from_user(guest.space, endpoint, guest.put([], name=name, namelen=namelen))
    assert [each.peer for each in endpoint.sent] == [("10.1.2.3", 0x1234), None, None, None]
    cases = [({"name": HOLE - 127, "namelen": 1000}, errno.EFAULT), ({"name": NAME, "namelen": 1}, errno.EINVAL)]
    cases += [({"name": NAME, "namelen": -1}, errno.EINVAL), ({"iovlen": 1025}, errno.EMSGSIZE)]
    cases += [({"name": HOLE, "namelen": 5, "iovlen": 1025}, errno.EFAULT)]
    for fields, code in cases:
        for told in (2, None):
            with pytest.raises(OSError) as caught:
                sendmsg_from_user(guest.space, MemoryEndpoint(family=told), guest.put([], **fields))
            assert linux_result(caught.value) == -code, fields


def cmsg(arch: Arch, length: int, data: bytes) -> bytes:
    """A struct cmsghdr that says it has this length, and data, padded."""
    head = length.to_bytes(arch.pointer_size, arch.byte_order) + b"".join(
        n.to_bytes(4, arch.byte_order) for n in (1, 2)
    )
    return head + data + bytes(-len(data) % arch.pointer_size)


@each_arch
def test_control_data(arch: Arch) -> None:
    """Messages one after the other; what is too short for one is passed over, a wrong length is EINVAL."""
    head = arch.pointer_size + 8
    two = cmsg(arch, head + 3, b"abc") + cmsg(arch, head, b"")
    found: list[tuple[bytes, tuple[Ancillary, ...] | None]] = [
        (two, ((1, 2, b"abc"), (1, 2, b""))),
        (two[:-1], ((1, 2, b"abc"),)),
        (bytes(head - 1), ()),
        (bytes(head), None),
        (cmsg(arch, head + 4, b"abc"), ((1, 2, b"abc\0"),)),
        (cmsg(arch, head - 1, b"abc"), None),
        (cmsg(arch, head + 100, b"abc"), None),
        (two + cmsg(arch, 5, b""), None),
    ]
    for control, expected in found:
        guest = Guest(arch)
        guest.space.copy_out(CONTROL, control)
        addr = guest.put([], control=CONTROL, controllen=len(control))
        endpoint = MemoryEndpoint()
        if expected is None:
            with pytest.raises(OSError) as caught:
                sendmsg_from_user(guest.space, endpoint, addr)
            assert caught.value.errno == errno.EINVAL
            assert endpoint.sent == []
        else:
            sendmsg_from_user(guest.space, endpoint, addr)
            assert endpoint.sent[0].ancillary == expected


def test_bad_control_data() -> None:
    """From nowhere, and too many."""
    guest = Guest()
    cases = [
        (0, 1, errno.EFAULT),
        (HOLE - 3, 4, errno.EFAULT),
        (HOLE, 131072, errno.ENOBUFS),
        (HOLE, 131071, errno.EFAULT),
    ]
    for control, length, code in [*cases, (0, (1 << 64) - 1, errno.ENOBUFS)]:
        with pytest.raises(OSError) as caught:
            sendmsg_from_user(guest.space, MemoryEndpoint(), guest.put([], control=control, controllen=length))
        assert linux_result(caught.value) == -code
    endpoint = MemoryEndpoint()
    assert sendmsg_from_user(guest.space, endpoint, guest.put([], control=HOLE, controllen=0)) == 0


def test_all_or_nothing() -> None:
    """One byte that cannot be read, wherever, and nothing is sent; the fault is named and counts nothing."""
    for iov in ([(HOLE - 5, 6)], [(HOLE, 1)], [(DATA, 5), (HOLE, 1), (DATA, 5)], [(HOLE - 5, 5), (HOLE, 9)]):
        guest = Guest()
        endpoint = MemoryEndpoint()
        with pytest.raises(FaultError) as caught:
            sendmsg_from_user(guest.space, endpoint, guest.put(iov))
        fault = caught.value
        assert (fault.address, fault.access, fault.reason) == (HOLE, READ, FaultReason.UNMAPPED)
        assert linux_result(fault) == -errno.EFAULT
        assert endpoint.sent == []


def test_an_empty_datagram() -> None:
    """It is sent, by no iovecs or by empty ones."""
    for iov in ([], [(DATA, 0)], [(HOLE, 0)]):
        guest = Guest()
        endpoint = MemoryEndpoint()
        assert sendmsg_from_user(guest.space, endpoint, guest.put(iov)) == 0
        assert endpoint.sent == [Datagram(b"")]
    with pytest.raises(FaultError):
        sendmsg_from_user(guest.space, endpoint, guest.put([(1 << 63, 0)]))
    assert len(endpoint.sent) == 1


def test_an_injected_fault() -> None:
    """One in the data, after the struct and the iovecs were read."""
    for step, sent in ((None, 1), (0, 0), (3, 0)):
        guest = Guest()
        io = FaultyIO(guest.space, FaultPlan((None, None, step)))
        endpoint = MemoryEndpoint()
        try:
            assert sendmsg_from_user(io, endpoint, guest.put([(DATA, 5)])) == 5
        except FaultError as exc:
            assert linux_result(exc) == -errno.EFAULT
        assert len(endpoint.sent) == sent


def batch(guest: Guest, n: int, **fields: int) -> list[int]:
    """n entries with one byte more each; their addresses."""
    return [guest.put([(DATA, i + 1)], BASE + i * guest.entry, **fields) for i in range(n)]


@each_arch
def test_many(arch: Arch) -> None:
    """Each has its length stored, and nothing else is."""
    guest = Guest(arch)
    entries = batch(guest, 3)
    behind = guest.read(entries[2], guest.entry)
    endpoint = MemoryEndpoint()
    assert sendmmsg_from_user(guest.space, endpoint, BASE, 2, 0x40) == 2
    assert [len(each.data) for each in endpoint.sent] == [1, 2]
    assert [each.flags for each in endpoint.sent] == [0x40, 0x40]
    assert [guest.get(addr, "msg_len") for addr in entries] == [1, 2, 0x6666_6666]
    assert (guest.get(BASE, "flags"), guest.read(entries[2], guest.entry)) == (0x5555_5555, behind)
    assert sendmmsg_from_user(guest.space, endpoint, 5, 0) == 0


def test_limits_of_many() -> None:
    """1024 and no more; MSG_EOR is taken from an entry's flags, in sendmsg not; a forbidden flag is EINVAL."""
    guest = Guest()
    flags = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
    guest.space.mmap(0x900000, 20 * PAGE, 3, flags)
    endpoint = MemoryEndpoint()
    assert sendmmsg_from_user(guest.space, endpoint, 0x900000, 1100) == 1024
    endpoint = MemoryEndpoint()
    batch(guest, 1, flags=0xFFFF_FFFF)
    sendmmsg_from_user(guest.space, endpoint, BASE, 1, 1)
    sendmsg_from_user(guest.space, endpoint, BASE, 1)
    assert [each.flags for each in endpoint.sent] == [0x81, 1]
    with pytest.raises(OSError) as caught:
        sendmmsg_from_user(guest.space, endpoint, BASE, 0, 1 << 31)
    assert caught.value.errno == errno.EINVAL
    old = Guest(I386)
    batch(old, 1)
    assert sendmmsg_from_user(old.space, endpoint, BASE, 1, -(1 << 31)) == 1
    assert endpoint.sent[-1].flags == 0


def test_errors_of_many() -> None:
    """Behind the first they end the call and are forgotten; the first's is raised."""
    guest = Guest()
    batch(guest, 3)
    endpoint = MemoryEndpoint()
    endpoint.failures = {1: ConnectionRefusedError(errno.ECONNREFUSED, "refused")}
    assert sendmmsg_from_user(guest.space, endpoint, BASE, 3) == 1
    endpoint.failures = {1: ConnectionRefusedError(errno.ECONNREFUSED, "refused")}
    with pytest.raises(ConnectionRefusedError):
        sendmmsg_from_user(guest.space, endpoint, BASE + 64, 2)
    endpoint = MemoryEndpoint()
    guest.put([(HOLE - 1, 2)], BASE + 64)
    assert sendmmsg_from_user(guest.space, endpoint, BASE, 3) == 1
    with pytest.raises(FaultError) as caught:
        sendmmsg_from_user(guest.space, endpoint, BASE + 64, 2)
    assert linux_result(caught.value) == -errno.EFAULT


def test_a_short_send_ends_it() -> None:
    """As a stream's would; it counts."""
    guest = Guest()
    entries = batch(guest, 3)
    endpoint = MemoryEndpoint()
    endpoint.most = 1
    assert sendmmsg_from_user(guest.space, endpoint, BASE, 3) == 2
    assert [guest.get(addr, "msg_len") for addr in entries] == [1, 1, 0x6666_6666]


def test_a_bad_msg_len() -> None:
    """The datagram has gone, and does not count."""
    guest = Guest()
    guest.put([(DATA, 1)], DATA + PAGE - 56)
    guest.space.mprotect(DATA + PAGE, PAGE, mman.PROT_READ)
    endpoint = MemoryEndpoint()
    with pytest.raises(FaultError) as caught:
        sendmmsg_from_user(guest.space, endpoint, DATA + PAGE - 56, 1)
    assert linux_result(caught.value) == -errno.EFAULT
    assert len(endpoint.sent) == 1


def test_options_go_to_every_access() -> None:
    """Those to control data and names too."""
    guest = Guest()
    guest.space.copy_out(NAME, sockaddr(AMD64, 2, V4))
    guest.space.copy_out(CONTROL, cmsg(AMD64, 16, b""))
    batch(guest, 1, name=NAME, namelen=16, control=CONTROL, controllen=16)
    guest.space.mprotect(BASE, 16 * PAGE, mman.PROT_NONE)
    io = WatchedIO(guest.space)
    assert sendmmsg_from_user(io, MemoryEndpoint(), BASE, 1, ignore_permissions=True) == 1
    assert set(io.ignored) == {True}
