"""TLS records of every kind, right and wrong, and a source that gives them in pieces."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, pairwise

from safemem import Block, BlockSeq, Reader, copy_seq
from safemem.errors import would_block
from safemem.tls import SUITES, Alert, ContentType, EngineError, TLSReader, TrafficSecret, engine
from safemem.tls.keys import Keys
from safemem.tls.record import HEADER, TAG
from sample_blocks import room

SUITE = SUITES["TLS_AES_128_GCM_SHA256"]
KEYS = TrafficSecret(SUITE, bytes(range(32)))
CLOSE = bytes([1, Alert.CLOSE_NOTIFY])

Part = bytes | BaseException | None


def _usable(name: str) -> bool:
    try:
        engine(name)
    except EngineError:
        return False
    return True


ENGINES = [name for name in ("libcrypto", "cryptography") if _usable(name)]
"""The engines that this host has."""


class Sender:
    """Makes the records of one direction, one after the other."""

    def __init__(self, keys: Keys = KEYS) -> None:
        self._buffer = memoryview(bytearray(HEADER + 0xFFFF))
        self.use(keys)

    def use(self, keys: Keys) -> None:
        """Go on with other keys."""
        record_keys = keys.record_keys()
        self.keys = keys
        self._sealer = engine(ENGINES[0]).sealer(record_keys, self._buffer)
        self._seq = record_keys.seq

    def inner(self, plaintext: bytes, version: bytes = b"\x03\x03") -> bytes:
        """A record whose inner plaintext, content with type and padding, is whatever is given."""
        n = len(plaintext)
        self._buffer[:HEADER] = b"\x17" + version + (n + TAG).to_bytes(2, "big")
        self._buffer[HEADER : HEADER + n] = plaintext
        header = bytes(self._buffer[:HEADER])
        self._sealer.seal(self._seq, header, HEADER, 0, n, self._sealer.source(self._buffer), 0)
        self._seq += 1
        return bytes(self._buffer[: HEADER + n + TAG])

    def record(self, kind: int, content: bytes = b"", padding: int = 0) -> bytes:
        """A record of any type."""
        return self.inner(content + bytes([kind]) + bytes(padding))

    def data(self, content: bytes = b"", padding: int = 0) -> bytes:
        """Application data."""
        return self.record(ContentType.APPLICATION_DATA, content, padding)

    def handshake(self, content: bytes = b"", padding: int = 0) -> bytes:
        """A record with handshake messages, or a part of one."""
        return self.record(ContentType.HANDSHAKE, content, padding)

    def alert(self, number: int, level: int = 2) -> bytes:
        """An alert."""
        return self.record(ContentType.ALERT, bytes([level, number]))

    def close(self) -> bytes:
        """close_notify."""
        return self.alert(Alert.CLOSE_NOTIFY, 1)

    def key_update(self, requested: int = 0) -> bytes:
        """A key update; the next records have the keys that follow."""
        record = self.handshake(message(24, bytes([requested])))
        following = self.keys.next()
        if following is not None:
            self.use(following)
        return record


def message(kind: int, body: bytes) -> bytes:
    """A handshake message."""
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def ticket(
    label: bytes = b"ticket",
    *,
    nonce: bytes = b"\x00",
    extensions: bytes = b"",
    lifetime: int = 7200,
) -> bytes:
    """A session ticket message."""
    body = lifetime.to_bytes(4, "big") + b"\xaa\xbb\xcc\xdd" + bytes([len(nonce)]) + nonce
    body += len(label).to_bytes(2, "big") + label + len(extensions).to_bytes(2, "big") + extensions
    return message(4, body)


class Script:
    """A Reader that gives these parts, one a call, as far as they fit: None for nothing now, or an error to raise.

    Then comes its end, each time it is asked. ``room`` has the number of bytes that each call asked for.
    """

    def __init__(self, *parts: Part) -> None:
        self.parts = list(parts)
        self.room: list[int] = []

    @property
    def receives(self) -> int:
        """How often it was asked."""
        return len(self.room)

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """The next part, or what is left of it."""
        self.room.append(dsts.num_bytes)
        if not self.parts:
            return 0
        part = self.parts.pop(0)
        if part is None:
            raise would_block()
        if isinstance(part, BaseException):
            raise part
        n = copy_seq(dsts, BlockSeq.of(Block(part)))
        if n < len(part):
            self.parts.insert(0, part[n:])
        return n


def cut(wire: bytes, places: Iterable[int]) -> list[bytes]:
    """The wire in pieces, cut at these places."""
    edges = sorted({0, len(wire), *(place for place in places if 0 < place < len(wire))})
    return [wire[start:end] for start, end in pairwise(edges)]


def read(reader: Reader, *sizes: int) -> bytes:
    """What one call with blocks of these sizes gives."""
    dsts = room(*sizes)
    n = reader.read_to_blocks(dsts)
    return dsts.tobytes()[:n]


def read_all(reader: TLSReader, sizes: tuple[int, ...] = (1 << 16,)) -> tuple[bytes, OSError | None]:
    """All that comes, and the error that ends it, or None where the stream ended. It is asked again if it would block.

    Raises AssertionError if the end is not told again.
    """
    found = bytearray()
    while True:
        try:
            part = read(reader, *sizes)
        except BlockingIOError:
            continue
        except OSError as exc:
            return bytes(found), exc
        if not part:
            assert read(reader, 1) == b""
            return bytes(found), None
        found += part


def flat(parts: Iterable[Iterable[bytes]]) -> bytes:
    """All parts of all, one after the other."""
    return b"".join(chain.from_iterable(parts))
