"""Socket addresses: the bytes are those of the kernel, and no bytes are too odd to be read."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem.datagram.address import NAME_SIZE, AddressCache, pack_sockaddr, unpack_sockaddr

linux = pytest.mark.skipif(sys.platform != "linux", reason="the sockaddrs of Linux")
pytestmark = linux
INET, INET6, UNIX = int(socket.AF_INET), int(socket.AF_INET6), int(socket.AF_UNIX)


def kernel_name(sock: socket.socket) -> bytes:
    """What getsockname(2) writes."""
    room = ctypes.create_string_buffer(b"\xee" * 128, 128)
    length = ctypes.c_uint32(128)
    assert ctypes.CDLL(None).getsockname(sock.fileno(), room, ctypes.byref(length)) == 0
    return room.raw[: length.value]


def kernel_bind(sock: socket.socket, name: bytes) -> int:
    """bind(2) to these bytes."""
    return int(ctypes.CDLL(None).bind(sock.fileno(), name, len(name)))


def bound(family: int, address: Any) -> socket.socket:
    """A datagram socket at an address."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.bind(address)
    except OSError as exc:
        sock.close()
        pytest.skip(f"no {address!r} here: {exc}")
    return sock


@pytest.mark.parametrize(
    ("family", "host"), [(INET, "127.0.0.1"), (INET, "0.0.0.0"), (INET, "127.1.2.3"), (INET6, "::1"), (INET6, "::")]
)
def test_internet_addresses_are_the_kernels(family: int, host: str) -> None:
    """Both ways, and as Python's own."""
    with bound(family, (host, 0)) as sock:
        address = sock.getsockname()
        assert address[1] != 0
        assert pack_sockaddr(family, address) == kernel_name(sock)
        assert unpack_sockaddr(kernel_name(sock)) == address
        assert len(kernel_name(sock)) == NAME_SIZE[family]
        assert pack_sockaddr(family, address[:2]) == kernel_name(sock)
        assert pack_sockaddr(family, list(address)) == kernel_name(sock)
    with socket.socket(family, socket.SOCK_DGRAM) as again:
        assert kernel_bind(again, pack_sockaddr(family, address)) == 0
        assert again.getsockname() == address


def test_each_part_of_an_ipv6_address() -> None:
    """Flow information in the network's order, as Python's; the scope in the host's."""
    with bound(INET6, ("::1", 0, 0x12345, 0)) as receiver, socket.socket(INET6, socket.SOCK_DGRAM) as sender:
        sender.connect(("::1", receiver.getsockname()[1], 0x12345, 0))
        room = ctypes.create_string_buffer(28)
        length = ctypes.c_uint32(28)
        assert ctypes.CDLL(None).getpeername(sender.fileno(), room, ctypes.byref(length)) == 0
        assert unpack_sockaddr(room.raw) == sender.getpeername()
    packed = pack_sockaddr(INET6, ("fe80::1", 0x102, 0x304, 5))
    assert packed == struct.pack("=H", INET6) + bytes.fromhex("0102 00000304") + socket.inet_pton(
        INET6, "fe80::1"
    ) + struct.pack("=I", 5)
    assert unpack_sockaddr(packed) == ("fe80::1", 0x102, 0x304, 5)


def test_zones() -> None:
    """A number is the scope, and the name of an interface is its number; a scope beside it comes first."""
    plain = pack_sockaddr(INET6, ("fe80::1", 1, 0, 3))
    assert pack_sockaddr(INET6, ("fe80::1%3", 1)) == plain
    assert pack_sockaddr(INET6, ("fe80::1%lo", 1, 0, 3)) == plain
    index = socket.if_nametoindex("lo")
    for host in ("fe80::1%lo", "::1%lo"):
        assert unpack_sockaddr(pack_sockaddr(INET6, (host, 1))) == (host.partition("%")[0], 1, 0, index)
    info = socket.getaddrinfo("fe80::1%lo", 1, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    assert info[0][4] == unpack_sockaddr(pack_sockaddr(INET6, ("fe80::1%lo", 1)))
    with pytest.raises(ValueError, match="fe80"):
        pack_sockaddr(INET6, ("fe80::1%no-such-interface", 1))


@pytest.mark.parametrize("size", [1, 20, 107, 108])
def test_paths(size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Relative ones, up to the longest that fits; that one has no zero at its end."""
    old = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("s"))
    try:
        path = "p" * size
        with socket.socket(UNIX, socket.SOCK_DGRAM) as sock:
            assert kernel_bind(sock, pack_sockaddr(UNIX, path)) == 0
            assert Path(path).exists()
            assert unpack_sockaddr(kernel_name(sock)[: NAME_SIZE[UNIX]]) == path
            if size < 108:
                assert pack_sockaddr(UNIX, path) == pack_sockaddr(UNIX, path.encode()) == kernel_name(sock)
    finally:
        os.chdir(old)


@pytest.mark.parametrize("name", [b"", b"abc", b"a\0b\0", b"x" * 90, b"\xff\xfe"])
def test_abstract_names(name: bytes) -> None:
    """They have their length, and zeros like other bytes."""
    name = b"\0" + name + b"%d" % os.getpid() + b"\0" * (len(name) % 2)
    with bound(UNIX, name) as sock:
        assert pack_sockaddr(UNIX, name) == kernel_name(sock)
        assert unpack_sockaddr(kernel_name(sock)) == name == sock.getsockname()


def test_unnamed_and_autobound() -> None:
    """No name is None; an empty one asks the kernel for an abstract one, as Python's does."""
    with socket.socket(UNIX, socket.SOCK_DGRAM) as sock:
        assert unpack_sockaddr(kernel_name(sock)) is None
        assert kernel_bind(sock, pack_sockaddr(UNIX, "")) == 0
        assert unpack_sockaddr(kernel_name(sock)) == sock.getsockname()


def test_paths_that_are_no_utf8() -> None:
    """Survive, as in os.fsdecode."""
    packed = pack_sockaddr(UNIX, b"/\xff")
    assert unpack_sockaddr(packed) == os.fsdecode(b"/\xff")
    assert pack_sockaddr(UNIX, os.fsdecode(b"/\xff")) == packed


@pytest.mark.parametrize(
    ("family", "address"),
    [
        (INET, ("localhost", 1)),
        (INET, ("127.0.0.1", -1)),
        (INET, ("127.0.0.1", 1 << 16)),
        (INET, ("127.0.0.1", "1")),
        (INET, ("127.0.0.1", 1, 0)),
        (INET, ("127.0.0.1",)),
        (INET, ("127.0.0.1\0", 1)),
        (INET, ("::1", 1)),
        (INET, (None, 1)),
        (INET, 5),
        (INET, "ab"),
        (INET, None),
        (INET6, ("127.0.0.1", 1)),
        (INET6, ("::1",)),
        (INET6, ("::1", 1, -1)),
        (INET6, ("::1", 1, 0, 1 << 32)),
        (INET6, ("::1", 1, 0, 0, 0)),
        (INET6, ("::1%x", 1)),
        (INET6, ("::1%-1", 1)),
        (INET6, (b"::1", 1)),
        (INET6, 5),
        (UNIX, "p" * 109),
        (UNIX, b"\0" + b"a" * 108),
        (UNIX, "a\0b"),
        (UNIX, "\udfff\ud800"),
        (UNIX, ("a", 1)),
        (UNIX, None),
        (77, ("127.0.0.1", 1)),
    ],
)
def test_what_is_no_address(family: int, address: Any) -> None:
    """Is a ValueError that names it."""
    with pytest.raises(ValueError, match="is no address of family"):
        pack_sockaddr(family, address)


@given(st.binary(max_size=120), st.sampled_from([INET, INET6, UNIX, 0, 16, 77]))
def test_any_bytes_can_be_read(rest: bytes, family: int) -> None:
    """They are an address that packs again, or None."""
    for name in (rest, struct.pack("=H", family) + rest):
        address = unpack_sockaddr(name)
        if address is not None:
            (of,) = struct.unpack_from("=H", name)
            assert of in NAME_SIZE
            if len(name) <= NAME_SIZE[of]:
                assert unpack_sockaddr(pack_sockaddr(of, address)) == address


@pytest.mark.parametrize(("family", "size"), [(INET, 8), (INET6, 28), (UNIX, 3)])
def test_the_shortest_names(family: int, size: int) -> None:
    """One byte less is none."""
    name = struct.pack("=H", family) + b"a" * 26
    assert unpack_sockaddr(name[:size]) is not None
    assert unpack_sockaddr(name[: size - 1]) is None


def test_the_cache_decodes_once_and_is_bounded() -> None:
    """However many senders there are."""
    decoded: list[int] = []
    cache = AddressCache(lambda key: decoded.append(key) or (str(key), 1))  # type: ignore[func-returns-value]
    assert [cache[5], cache[5], cache[6]] == [("5", 1), ("5", 1), ("6", 1)]
    assert decoded == [5, 6]
    for key in range(10_000):
        assert cache[key] == (str(key), 1)
        assert len(cache) <= 4096
