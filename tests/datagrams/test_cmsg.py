"""Control data: laid out as the kernel's, and no bytes are too odd to be read."""

from __future__ import annotations

import array
import os
import socket
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem.datagram.cmsg import Ancillary, local_of, pack_cmsgs, pktinfo_of, unpack_cmsgs
from safemem.datagram.flags import IP_PKTINFO, IPV6_PKTINFO, IPV6_RECVPKTINFO
from safemem.datagram.mmsg import is_native

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not is_native(), reason="the cmsghdr of Linux")
INET, INET6, UNIX = int(socket.AF_INET), int(socket.AF_INET6), int(socket.AF_UNIX)
IP, IPV6 = int(socket.IPPROTO_IP), int(socket.IPPROTO_IPV6)
int32 = st.integers(-(1 << 31), (1 << 31) - 1)
messages = st.lists(st.tuples(int32, int32, st.binary(max_size=40)), max_size=5)


@given(messages)
def test_sizes_are_those_of_the_socket_module(ancillary: list[Ancillary]) -> None:
    """CMSG_SPACE each, and a header of CMSG_LEN; all of it comes back."""
    packed = pack_cmsgs(ancillary)
    assert len(packed) == sum(socket.CMSG_SPACE(len(data)) for _, _, data in ancillary)
    at = 0
    for level, kind, data in ancillary:
        assert struct.unpack_from("=Qii", packed, at) == (socket.CMSG_LEN(len(data)), level, kind)
        at += socket.CMSG_SPACE(len(data))
    assert list(unpack_cmsgs(packed)) == ancillary


@pytest.mark.parametrize("order", ["<", ">"])
@given(ancillary=messages)
def test_machines_of_32_bits(order: str, ancillary: list[Ancillary]) -> None:
    """Words of 4 bytes, in either order."""
    packed = pack_cmsgs(ancillary, 4, order)
    assert len(packed) == sum(12 + len(data) + -len(data) % 4 for _, _, data in ancillary)
    assert list(unpack_cmsgs(packed, 4, order)) == ancillary
    if ancillary:
        level, kind, data = ancillary[0]
        assert struct.unpack_from(order + "Iii", packed) == (12 + len(data), level, kind)


@given(st.binary(max_size=80), st.sampled_from([4, 8]), messages, st.integers(0, 200))
def test_any_bytes_can_be_read(garbage: bytes, word: int, ancillary: list[Ancillary], cut: int) -> None:
    """What is whole before the garbage is read; a cut message ends it."""
    list(unpack_cmsgs(garbage, word))
    packed = pack_cmsgs(ancillary)
    found = list(unpack_cmsgs(packed + garbage))
    assert found[: len(ancillary)] == ancillary
    cut = min(cut, len(packed))
    left = list(unpack_cmsgs(packed[:cut]))
    assert left == ancillary[: len(left)]
    assert sum(socket.CMSG_SPACE(len(data)) for _, _, data in left[:-1]) <= cut


@pytest.mark.parametrize("length", [0, 15, 25, 1 << 63, (1 << 64) - 1])
def test_lengths_that_cannot_be(length: int) -> None:
    """End the walk."""
    assert list(unpack_cmsgs(struct.pack("=Qii8x", length, 1, 2))) == []


def test_buffers_of_wider_items() -> None:
    """Count in bytes, such as the array of descriptors that SCM_RIGHTS takes."""
    fds = array.array("i", [1, 2, 3])
    assert pack_cmsgs([(1, 1, fds)]) == pack_cmsgs([(1, 1, fds.tobytes())])  # type: ignore[list-item]


def test_what_cannot_be_packed() -> None:
    """ValueError for numbers beyond 32 bits, TypeError for what is no buffer."""
    for level, kind in ((1 << 31, 0), (0, -(1 << 31) - 1)):
        with pytest.raises(ValueError, match="32 bits"):
            pack_cmsgs([(level, kind, b"")])
    with pytest.raises(TypeError):
        pack_cmsgs([(0, 0, 5)])  # type: ignore[list-item]


def test_addresses_from_the_kernel_ipv4() -> None:
    """The local address that pktinfo tells is the one that the datagram was sent to."""
    with socket.socket(INET, socket.SOCK_DGRAM) as receiver, socket.socket(INET, socket.SOCK_DGRAM) as sender:
        receiver.settimeout(5)
        receiver.bind(("0.0.0.0", 0))
        port = receiver.getsockname()[1]
        receiver.setsockopt(IP, IP_PKTINFO, 1)
        receiver.setsockopt(IP, socket.IP_RECVTOS, 1)
        sender.setsockopt(IP, socket.IP_TOS, 8)
        sender.sendto(b"x", ("127.0.0.5", port))
        _, ancillary, _, _ = receiver.recvmsg(8, 256)
        assert local_of(ancillary, port) == ("127.0.0.5", port)
        assert local_of([each for each in ancillary if each[1] != IP_PKTINFO], port) is None
        assert (IP, socket.IP_TOS, b"\x08") in ancillary
        assert list(unpack_cmsgs(pack_cmsgs(ancillary))) == ancillary
        sender.sendmsg([b"x"], [pktinfo_of(INET, ("127.0.0.9", 1))], 0, ("127.0.0.1", port))
        assert receiver.recvmsg(8, 256)[3] == ("127.0.0.9", sender.getsockname()[1])


def test_addresses_from_the_kernel_ipv6() -> None:
    """The same, with a scope."""
    with socket.socket(INET6, socket.SOCK_DGRAM) as receiver, socket.socket(INET6, socket.SOCK_DGRAM) as sender:
        receiver.settimeout(5)
        try:
            receiver.bind(("::1", 0))
        except OSError as exc:
            pytest.skip(f"no IPv6 here: {exc}")
        port = receiver.getsockname()[1]
        receiver.setsockopt(IPV6, IPV6_RECVPKTINFO, 1)
        sender.sendmsg([b"x"], [pktinfo_of(INET6, ("::1", 0))], 0, ("::1", port))
        _, ancillary, _, _ = receiver.recvmsg(8, 256)
        found = local_of(ancillary, port)
        assert found is not None
        assert found[:3] == ("::1", port, 0)
        assert found[3] == socket.if_nametoindex("lo")
        assert local_of([pktinfo_of(INET6, ("fe80::1", 0, 0, 7))], 9) == ("fe80::1", 9, 0, 7)
        assert local_of([pktinfo_of(INET6, ("fe80::1%lo", 0))], 9) == ("fe80::1", 9, 0, socket.if_nametoindex("lo"))


def test_descriptors() -> None:
    """SCM_RIGHTS as packed here is read by the kernel's rules."""
    one, two = socket.socketpair(UNIX, socket.SOCK_DGRAM)
    with one, two, open(os.devnull, "rb") as file:  # noqa: PTH123
        [(level, kind, data)] = unpack_cmsgs(
            pack_cmsgs([(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", file.fileno()))])
        )
        one.sendmsg([b"x"], [(level, kind, data)])
        _, ancillary, _, _ = two.recvmsg(1, socket.CMSG_SPACE(4))
        (fd,) = struct.unpack("i", ancillary[0][2])
        assert os.fstat(fd).st_rdev == os.fstat(file.fileno()).st_rdev
        os.close(fd)


@given(messages)
def test_no_address_in_other_messages(ancillary: list[Ancillary]) -> None:
    """Nor in ones that are too short to have it."""
    assert local_of([each for each in ancillary if each[:2] not in ((IP, IP_PKTINFO), (IPV6, IPV6_PKTINFO))], 1) is None
    assert local_of([(IP, IP_PKTINFO, bytes(11)), (IPV6, IPV6_PKTINFO, bytes(19))], 1) is None
    assert local_of([(IP, IP_PKTINFO, bytes(range(12)))], 1) == ("4.5.6.7", 1)
    assert local_of([(IP, IP_PKTINFO, bytes(11)), (IP, IP_PKTINFO, bytes(12))], 1) == ("0.0.0.0", 1)


@pytest.mark.parametrize(
    ("family", "local"),
    [
        (INET, ("::1", 0)),
        (INET, ("localhost", 0)),
        (INET, (None, 0)),
        (INET, ()),
        (INET6, ("127.0.0.1", 0)),
        (INET6, ("::1", 0, 0, -1)),
        (INET6, ()),
        (UNIX, "path"),
        (UNIX, b"\0name"),
    ],
)
def test_no_local_address(family: int, local: str) -> None:
    """A ValueError that names it."""
    with pytest.raises(ValueError, match="is no local address"):
        pktinfo_of(family, local)
