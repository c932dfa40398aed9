"""recvmsg into a guest's memory: every layout, names and control data by tables, and what becomes of a datagram."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from guest_messages import ARCHES, CONTROL, DATA, HOLE, NAME, PAGE, Guest
from hostarch import AMD64, I386, MIPS, S390X, Arch
from memory_endpoint import Datagram, MemoryEndpoint
from safemem.datagram import Address
from usermem import FaultError, linux_result
from usermem.messages import recvmsg_into_user

PEEK, CTRUNC, TRUNC, DONTWAIT = 2, 8, 0x20, 0x40
each_arch = pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)
INET: Address = ("10.1.2.3", 0x1234)
INET6: Address = ("fe80::5", 0x1234, 0x0ABCDE, 0x01020304)


def numbers(arch: Arch, *values: int) -> bytes:
    """32-bit numbers in the guest's byte order."""
    return b"".join(value.to_bytes(4, arch.byte_order) for value in values)


@each_arch
def test_every_field(arch: Arch) -> None:
    """The data scattered, the name, its length, control data and flags, each where the layout has it."""
    guest = Guest(arch)
    endpoint = MemoryEndpoint([Datagram(b"hello", INET, None, ((7, 9, b"abc"),))], socket.AF_INET)
    addr = guest.put(
        [(DATA, 2), (DATA + 100, 0), (DATA + 200, 9)], name=NAME, namelen=128, control=CONTROL, controllen=64
    )
    assert recvmsg_into_user(guest.space, endpoint, addr) == 5
    assert (guest.read(DATA, 3), guest.read(DATA + 200, 4)) == (b"he\xee", b"llo\xee")
    family = (2).to_bytes(2, arch.byte_order)
    assert guest.read(NAME, 17) == family + b"\x12\x34\x0a\x01\x02\x03" + bytes(8) + b"\xee"
    word = arch.pointer_size
    assert guest.answers(addr) == (16, {8: 24, 4: 16}[word], 0)
    head = (word + 8 + 3).to_bytes(word, arch.byte_order) + numbers(arch, 7, 9)
    assert guest.read(CONTROL, word + 16) == head + b"abc" + b"\xee" * 5
    assert guest.get(addr, "msg_len") == 0x6666_6666
    assert endpoint.queue == []


NAMES = {
    "inet6": (INET6, "1234000abcde" + "fe80" + 26 * "0" + "05", 10),
    "path": ("/a/b", b"/a/b\0".hex(), 1),
    "abstract": (b"\0xyz", b"\0xyz".hex(), 1),
    "inet": (INET, "12340a010203" + "00" * 8, 2),
}


@each_arch
@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("told", [True, False])
def test_names(arch: Arch, kind: str, told: bool) -> None:
    """Each family by its form or by the endpoint's; family and scope are in the guest's byte order."""
    address, packed, family = NAMES[kind]
    guest = Guest(arch)
    endpoint = MemoryEndpoint([Datagram(b"", address)], family if told else None)
    addr = guest.put([], name=NAME, namelen=100)
    assert recvmsg_into_user(guest.space, endpoint, addr) == 0
    name = family.to_bytes(2, arch.byte_order) + bytes.fromhex(packed)
    if family == 10:
        name += numbers(arch, 0x01020304)
    assert guest.get(addr, "namelen") == len(name)
    assert guest.read(NAME, len(name) + 1) == name + b"\xee"


@pytest.mark.parametrize("room", [0, 1, 2, 15, 16, 17, 128, 1000])
def test_rooms_for_a_name(room: int) -> None:
    """It is cut to the room, and its length told all the same."""
    guest = Guest()
    addr = guest.put([], name=NAME, namelen=room)
    recvmsg_into_user(guest.space, MemoryEndpoint([Datagram(b"", INET)]), addr)
    name = bytes.fromhex("020012340a010203") + bytes(8)
    assert guest.get(addr, "namelen") == 16
    assert guest.read(NAME, 20) == name[:room].ljust(20, b"\xee")


def test_no_name() -> None:
    """A sender without one has length 0; a guest that asks for none finds its field as it was."""
    guest = Guest()
    for nobody in (None, "", b""):
        addr = guest.put([], name=NAME, namelen=16)
        recvmsg_into_user(guest.space, MemoryEndpoint([Datagram(b"", nobody)], socket.AF_UNIX), addr)
        assert guest.get(addr, "namelen") == 0
        assert guest.read(NAME, 1) == b"\xee"
    addr = guest.put([], namelen=77)
    recvmsg_into_user(guest.space, MemoryEndpoint([Datagram(b"", INET)]), addr)
    assert guest.get(addr, "namelen") == 77


def test_a_wild_name_of_no_room() -> None:
    """An address that is none is fine where nothing is written."""
    guest = Guest()
    addr = guest.put([], name=1 << 63, namelen=0, control=1 << 63, controllen=0)
    assert recvmsg_into_user(guest.space, MemoryEndpoint([Datagram(b"", INET)]), addr) == 0
    assert guest.get(addr, "namelen") == 16


# Two messages of 4 and 2 bytes: rooms for them, how much of each is used, and from which on nothing is cut.
CUTS = {
    8: ([0, 15, 16, 19, 20, 24, 39, 40, 41, 42, 44, 48, 49], [0, 0, 16, 19, 20, 24, 24, 40, 41, 42, 44, 48, 48], 42),
    4: ([0, 11, 12, 15, 16, 27, 28, 29, 30, 31, 32, 33], [0, 0, 12, 15, 16, 16, 28, 29, 30, 31, 32, 32], 30),
}


@pytest.mark.parametrize("arch", [AMD64, I386, MIPS, S390X], ids=lambda arch: arch.name)
def test_rooms_for_control_data(arch: Arch) -> None:
    """A message is cut where its data do not fit, and left out where its header does not."""
    word = arch.pointer_size
    rooms, all_used, uncut = CUTS[word]
    for room, used in zip(rooms, all_used, strict=True):
        guest = Guest(arch)
        ancillary = ((1, 2, b"four"), (3, 4, b"ab"))
        endpoint = MemoryEndpoint([Datagram(b"", None, None, ancillary)])
        addr = guest.put([], control=CONTROL, controllen=room)
        recvmsg_into_user(guest.space, endpoint, addr)
        assert (guest.get(addr, "controllen"), guest.get(addr, "flags")) == (used, CTRUNC * (room < uncut)), room
        assert guest.read(CONTROL + used, 4) == b"\xee" * 4
        if used >= word + 8:
            assert guest.number(CONTROL, word) == min(room, word + 12)
        if used > 2 * word + 20:
            second = CONTROL + {8: 24, 4: 16}[word]
            assert guest.number(second, word) == min(used - (second - CONTROL), word + 10)


@each_arch
def test_room_that_the_endpoint_is_given(arch: Arch) -> None:
    """All that finds room at the guest finds room on the way; wild lengths do not become wild buffers."""
    guest = Guest(arch)
    word = arch.pointer_size
    for room in range(0, 100, 5):
        endpoint = MemoryEndpoint([Datagram(b"")])
        recvmsg_into_user(guest.space, endpoint, guest.put([], control=CONTROL, controllen=room))
        ((_, given),) = endpoint.calls
        assert (given == room) if word == 8 else given >= max(room // 12 * 16, room // 16 * 24)
    for control, controllen, most in ((CONTROL, (1 << 8 * word) - 1, 1 << 18), (0, 4096, 0)):
        endpoint = MemoryEndpoint([Datagram(b"")])
        recvmsg_into_user(guest.space, endpoint, guest.put([], control=control, controllen=controllen))
        assert all(given <= most for _, given in endpoint.calls)


def test_the_local_address_is_control_data() -> None:
    """IP_PKTINFO, IPV6_PKTINFO with the scope, once, and nothing for a path."""
    cases: list[tuple[Datagram, int, bytes]] = [
        (Datagram(b"", None, ("10.0.0.1", 5)), 28, struct.pack("=Qiii4s4s", 28, 0, 8, 0, *[bytes((10, 0, 0, 1))] * 2)),
        (Datagram(b"", None, ("::1", 5, 0, 7)), 36, struct.pack("=Qii16sI", 36, 41, 50, bytes(15) + b"\1", 7)),
        (Datagram(b"", None, ("1.1.1.1", 5), ((0, 8, bytes(12)),)), 28, struct.pack("=Qii12x", 28, 0, 8)),
        (Datagram(b"", None, "/path"), 0, b""),
    ]
    for datagram, length, packed in cases:
        guest = Guest()
        addr = guest.put([], control=CONTROL, controllen=100)
        recvmsg_into_user(guest.space, MemoryEndpoint([datagram]), addr)
        used = length + -length % 8
        assert guest.get(addr, "controllen") == used
        assert guest.read(CONTROL, used + 1)[:-1][:length] == packed[:length]


FLAGS = [
    (0, 3, TRUNC, 0),
    (TRUNC, 5, TRUNC, 0),
    (PEEK, 3, TRUNC, 1),
    (PEEK | TRUNC, 5, TRUNC, 1),
    (0x4000_0000, 3, TRUNC | 0x4000_0000, 0),
]


@pytest.mark.parametrize(("flags", "result", "told", "left"), FLAGS)
def test_flags(flags: int, result: int, told: int, left: int) -> None:
    """What a call's flags make of a datagram of 5 bytes where 3 fit."""
    guest = Guest()
    endpoint = MemoryEndpoint([Datagram(b"hello")])
    addr = guest.put([(DATA, 3)])
    assert recvmsg_into_user(guest.space, endpoint, addr, flags) == result
    assert guest.get(addr, "flags") == told
    assert len(endpoint.queue) == left
    assert endpoint.calls == [(flags & ~TRUNC, 0)]
    assert guest.read(DATA, 4) == b"hel\xee"


def test_the_endpoints_flags_are_told() -> None:
    """Those that the endpoint reports reach the guest."""
    guest = Guest()
    addr = guest.put([(DATA, 9)])
    recvmsg_into_user(guest.space, MemoryEndpoint([Datagram(b"x", flags=0x80)]), addr)
    assert guest.get(addr, "flags") == 0x80


def test_the_forbidden_flag() -> None:
    """MSG_CMSG_COMPAT is EINVAL in a 64-bit guest, also as a negative int, and nothing in a 32-bit one."""
    for flags in (1 << 31, -(1 << 31)):
        guest = Guest()
        with pytest.raises(OSError) as caught:
            recvmsg_into_user(guest.space, MemoryEndpoint([Datagram(b"")]), guest.put([]), flags)
        assert caught.value.errno == errno.EINVAL
        guest = Guest(I386)
        assert recvmsg_into_user(guest.space, MemoryEndpoint([Datagram(b"")]), guest.put([]), flags) == 0


def test_no_iovecs() -> None:
    """They consume a datagram all the same."""
    guest = Guest()
    endpoint = MemoryEndpoint([Datagram(b"hello"), Datagram(b"")])
    addr = guest.put([])
    assert (recvmsg_into_user(guest.space, endpoint, addr), guest.get(addr, "flags")) == (0, TRUNC)
    addr = guest.put([])
    assert (recvmsg_into_user(guest.space, endpoint, addr), guest.get(addr, "flags")) == (0, 0)
    with pytest.raises(BlockingIOError):
        recvmsg_into_user(guest.space, endpoint, addr)


BAD_HEADERS = {
    "namelen": ({"name": NAME, "namelen": -1}, errno.EINVAL),
    "namelen before iovlen": ({"name": NAME, "namelen": -1, "iovlen": 1025}, errno.EINVAL),
    "iovlen": ({"iovlen": 1025}, errno.EMSGSIZE),
    "iovlen before iov": ({"iovlen": 1025, "iov": 5}, errno.EMSGSIZE),
    "iov": ({"iovlen": 1, "iov": 5}, errno.EFAULT),
}


@pytest.mark.parametrize("policy", ["keep", "linux"])
@pytest.mark.parametrize("kind", BAD_HEADERS)
def test_bad_headers(kind: str, policy: str) -> None:
    """Nothing is received by them, whatever the policy, and linux_result says why."""
    fields, code = BAD_HEADERS[kind]
    guest = Guest()
    endpoint = MemoryEndpoint([Datagram(b"x")])
    addr = guest.put([], **fields)
    with pytest.raises(OSError) as caught:
        recvmsg_into_user(guest.space, endpoint, addr, fault_policy=policy)  # type: ignore[arg-type]
    assert linux_result(caught.value) == -code
    assert endpoint.calls == []
    for bad in (HOLE - 1, 1 << 63, -1):
        with pytest.raises(FaultError) as fault:
            recvmsg_into_user(guest.space, endpoint, bad)
        assert linux_result(fault.value) == -errno.EFAULT


def test_1024_iovecs() -> None:
    """As many as there may be."""
    guest = Guest()
    guest.space.copy_out(DATA + PAGE * 2, b"".join(struct.pack("=QQ", DATA + i, 1) for i in range(1024)))
    addr = guest.put([], iov=DATA + PAGE * 2, iovlen=1024)
    assert recvmsg_into_user(guest.space, MemoryEndpoint([Datagram(bytes(range(256)) * 4)]), addr) == 1024
    assert guest.read(DATA, 1025) == bytes(range(256)) * 4 + b"\xee"
