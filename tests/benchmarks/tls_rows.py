"""The rows of ``tls``: TLS 1.3 through ``AddressSpace.copy_out_from``, against ``SSLSocket.recv_into``.

The wire is on a loopback socket before the clock starts; contenders take turns, each on a connection of its own, with
AES-128-GCM (which Python cannot ask for: the benchmark runs itself again under an OPENSSL_CONF that does).
"""

from __future__ import annotations

import mmap
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import define, frozen

from hostarch import AddrRange, AddrRangeSeq, mman
from safemem import Block, BlockSeq, Reader
from safemem.tls import handshake, ssl_object_pair
from usermem import AddressSpace

_MIB = 1 << 20
_ROUND = 8 * _MIB  # more than the caches hold, as on a real connection
_ROUNDS = 11
_RCVBUFFORCE, _SNDBUFFORCE = 33, 32
_BUFFER = 32 * _MIB
_CERTIFICATE = Path(__file__).resolve().parents[2] / "usermem" / "tour" / "certificate.pem"

READERS = ("direct, libcrypto", "verified, libcrypto", "direct, cryptography", "SSLObjectReader")
_BARS = {
    16384: (0.95, 0.8, 1.2, 0.93),
    4096: (1.05, 0.95, 1.4, 1.25),
    1024: (1.1, 0.95, 1.6, 1.9),
}


@frozen
class TLSRow:
    """How many times as quick as the standard library something is, and the least it should be."""

    name: str
    us: float
    ratio: float
    bar: float


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server's, client's), over the tour's certificate."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(_CERTIFICATE)
    return server, ssl.create_default_context(cafile=_CERTIFICATE)


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.socket()
        for sock in (listener, ours):
            for option, plain in ((_RCVBUFFORCE, socket.SO_RCVBUF), (_SNDBUFFORCE, socket.SO_SNDBUF)):
                try:
                    sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
                except PermissionError:
                    sock.setsockopt(socket.SOL_SOCKET, plain, _BUFFER)
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs


class Sender:
    """A TLS server whose records wait on the socket before they are read."""

    def __init__(self, connect: Callable[[socket.socket, ssl.SSLContext], object]) -> None:
        """``connect(sock, context)`` does the client's handshake."""
        server, client = contexts()
        ours, self._sock = _tcp_pair()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = server.wrap_bio(self._incoming, self._outgoing, server_side=True)
        result: list[object] = []
        thread = threading.Thread(target=lambda: result.append(connect(ours, client)))
        thread.start()
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._sock.sendall(self._outgoing.read())
                self._incoming.write(self._sock.recv(1 << 16))
        self._sock.sendall(self._outgoing.read())
        thread.join()
        (self.connected,) = result
        self._content = bytes(16384)

    def send(self, total: int, record: int) -> None:
        """Put ``total`` bytes on the wire."""
        content = memoryview(self._content)[:record]
        for _ in range(total // record):
            self._tls.write(content)
        self._sock.sendall(self._outgoing.read())

    def drain(self) -> None:
        """Throw away what the client has sent."""
        with suppress(BlockingIOError):
            while self._sock.recv(_MIB, socket.MSG_DONTWAIT):
                pass


@define
class Contender:
    """Somebody who reads ``total`` bytes from a sender, by ``read``."""

    sender: Sender
    read: Callable[[int], None]
    best: float = float("inf")

    def turn(self, total: int, record: int) -> None:
        """Let it read once, and note the time."""
        self.sender.send(total, record)
        started = time.perf_counter()
        self.read(total)
        self.best = min(self.best, (time.perf_counter() - started) * _MIB / total)


class WaitAll:
    """A Reader that fills its blocks, as recv(2) does with MSG_WAITALL: so one call is a MiB."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """See Reader."""
        n: int = self._reader.read_at_least(dsts, dsts.num_bytes)
        return n


def ssl_socket() -> Contender:
    """The standard library, into 1 MiB of mmap."""
    memory = memoryview(mmap.mmap(-1, _MIB))
    sender = Sender(lambda sock, context: context.wrap_socket(sock, server_hostname="localhost"))
    tls = sender.connected
    assert isinstance(tls, ssl.SSLSocket)

    def read(total: int) -> None:
        done = 0
        receive = tls.recv_into
        while done < total:
            done += receive(memory[done % _MIB :])

    return Contender(sender, read)


def ours(name: str, scattered: bool = False) -> Contender:
    """One of READERS, into 1 MiB of guest memory: in one range, or in pages with holes between."""
    space = AddressSpace()
    rw, anon = mman.PROT_READ | mman.PROT_WRITE, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
    start = space.mmap(0, 2 * _MIB, rw, anon)
    space.zero_out(start, 2 * _MIB)
    ranges = [AddrRange(start, start + _MIB)]
    if scattered:
        ranges = [AddrRange(at, at + 4096) for at in range(start, start + 2 * _MIB, 8192)]
    whole = AddrRangeSeq(ranges)

    def connect(sock: socket.socket, context: ssl.SSLContext) -> Reader:
        if name == "SSLObjectReader":
            return ssl_object_pair(sock, context, server_hostname="localhost")[0]
        release, _, engine = name.partition(", ")
        hand = handshake(
            sock,
            context,
            server_hostname="localhost",
            release="direct" if release == "direct" else "verified",
            engine_name=engine,
        )
        return hand.reader

    sender = Sender(connect)
    reader = WaitAll(sender.connected)

    def read(total: int) -> None:
        for _ in range(total // _MIB):
            rest = whole
            while rest.num_bytes:
                rest = rest.drop_first(space.copy_out_from(rest, reader))

    return Contender(sender, read)


def _compare(contenders: dict[str, Contender], record: int) -> dict[str, float]:
    """The best time of each for a MiB, in turns."""
    for _ in range(_ROUNDS):
        for contender in contenders.values():
            contender.turn(_ROUND, record)
    return {name: contender.best for name, contender in contenders.items()}


def rows(only: str) -> Iterator[TLSRow]:
    """Reading at each record size, scattered against whole, and writing; those whose name contains ``only``."""
    for record, bars in _BARS.items():
        if only not in f"reading, {record}":
            continue
        contenders = {"SSLSocket": ssl_socket()} | {name: ours(name) for name in _available()}
        times = _compare(contenders, record)
        for name, bar in zip(READERS, bars, strict=True):
            if name in times:
                us = times[name] * 1e6 * record / _MIB
                yield TLSRow(f"{name}, {record}", us, times["SSLSocket"] / times[name], bar)
    for record in _BARS:
        if only not in f"scattered, {record}":
            continue
        name = "direct, libcrypto"
        times = _compare({"whole": ours(name), "scattered": ours(name, scattered=True)}, record)
        us = times["scattered"] * 1e6 * record / _MIB
        yield TLSRow(f"scattered, {record}", us, times["whole"] / times["scattered"], 0.95)
    if only in "TLSWriter, 16384":
        yield _writing()


def _available() -> list[str]:
    from safemem.tls import EngineError, engine

    try:
        engine("cryptography")
    except EngineError:
        print("the cryptography package is not there: its rows are left out", file=sys.stderr)
        return [name for name in READERS if "cryptography" not in name]
    return list(READERS)


def print_limit() -> None:
    """What OpenSSL itself says it does, if its command is there."""
    command = shutil.which("openssl")
    if command is None:
        return
    done = subprocess.run(
        [command, "speed", "-seconds", "1", "-bytes", "16384", "-evp", "aes-128-gcm"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    last = done.stdout.strip().splitlines()[-1:]
    print(f"openssl speed, 16384 bytes: {' '.join(last)}")


def receives_per_mib() -> float:
    """How many receives a TLSReader makes for 1 MiB of 16 KiB records."""
    calls = 0

    class Counting(socket.socket):
        def recv_into(self, *args: object, **kwargs: object) -> int:
            nonlocal calls
            calls += 1
            return super().recv_into(*args, **kwargs)  # type: ignore[arg-type]

    def connect(sock: socket.socket, context: ssl.SSLContext) -> Reader:
        counting = Counting(fileno=sock.detach())
        return handshake(counting, context, server_hostname="localhost").reader

    sender = Sender(connect)
    reader: Reader = sender.connected  # type: ignore[assignment]
    memory = BlockSeq.of(Block(bytearray(_MIB)))
    total = 8
    for _ in range(total):
        sender.send(_MIB, 16384)
        rest = memory
        while rest:
            rest = rest.drop_first(reader.read_to_blocks(rest))
    return calls / total


def _writing() -> TLSRow:
    """TLSWriter against SSLSocket.sendall, 1 MiB a time, to a socket with room for it."""
    content = bytes(_MIB)
    blocks = BlockSeq.of(Block(content))

    plain = Sender(lambda sock, context: context.wrap_socket(sock, server_hostname="localhost"))
    hand = Sender(lambda sock, context: handshake(sock, context, server_hostname="localhost").writer)
    best = {"SSLSocket": float("inf"), "TLSWriter": float("inf")}
    sendall = plain.connected.sendall  # type: ignore[attr-defined]
    write = hand.connected.write_from_blocks  # type: ignore[attr-defined]
    turns: list[tuple[str, Sender, Callable[[], object]]] = [
        ("SSLSocket", plain, lambda: sendall(content)),
        ("TLSWriter", hand, lambda: write(blocks)),
    ]
    for _ in range(_ROUNDS):
        for name, sender, send in turns:
            started = time.perf_counter()
            send()
            best[name] = min(best[name], time.perf_counter() - started)
            sender.drain()
    us = best["TLSWriter"] * 1e6 * 16384 / _MIB
    return TLSRow("TLSWriter, 16384", us, best["SSLSocket"] / best["TLSWriter"], 1.0)
