"""Real datagram sockets on loopback for tests, in each family and by each backend."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from safemem import Block, BlockSeq
from safemem.datagram import BACKENDS, DatagramSocket
from safemem.datagram.sockets import Backend
from sample_blocks import room

_names = count()
IP_RECVERR = 11
FAMILIES = {
    "inet": socket.AF_INET,
    "inet6": socket.AF_INET6,
    "unix": socket.AF_UNIX,
}
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_family = pytest.mark.parametrize("family", FAMILIES)
Pair = tuple[DatagramSocket, DatagramSocket]


def bound(family: str, folder: Path) -> socket.socket:
    """A socket with an address; skips the test where there is no IPv6."""
    sock = socket.socket(FAMILIES[family], socket.SOCK_DGRAM)
    place: Any = {"inet": ("127.0.0.1", 0), "inet6": ("::1", 0), "unix": str(folder / f"s{next(_names)}")}[family]
    try:
        sock.bind(place)
    except OSError as exc:
        sock.close()
        if family != "inet6":
            raise
        pytest.skip(f"no {family} here: {exc}")
    return sock


@contextmanager
def pair(family: str, folder: Path, backend: Backend | str = "auto") -> Iterator[Pair]:
    """(one that receives, one that sends to it), which do not wait."""
    socks = [bound(family, folder), bound(family, folder)]
    socks[1].connect(socks[0].getsockname())
    for sock in socks:
        sock.setblocking(False)
    ends = [DatagramSocket(sock, backend=backend) for sock in socks]  # type: ignore[arg-type]
    with ends[0], ends[1]:
        yield ends[0], ends[1]


def one(data: bytes) -> BlockSeq:
    """A message in one block."""
    return BlockSeq.of(Block(data))


def rooms(*sizes: int) -> list[BlockSeq]:
    """Messages to receive into, in one block each."""
    return [room(size) for size in sizes]


def with_errors(count: int, timeout: float | None = None, size: int = 1) -> DatagramSocket:
    """A socket with so many entries in its error queue, of ``size`` bytes: nobody listened where it sent to."""
    with socket.socket(type=socket.SOCK_DGRAM) as dead:
        dead.bind(("127.0.0.1", 0))
        nobody = dead.getsockname()
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    for i in range(count):
        sock.sendto((b"%d" % i).ljust(size), nobody)
        deadline = time.monotonic() + 5
        while not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # takes the error, and leaves the entry
            assert time.monotonic() < deadline
    sock.settimeout(timeout)
    return DatagramSocket(sock)
