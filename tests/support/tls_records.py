"""Records of TLS 1.3 taken apart and put together, without the readers and writers that are tested."""

from __future__ import annotations

from attrs import frozen

from safemem import BlockSeq
from safemem.tls import SUITES, RecordKeys, TrafficSecret, engine
from safemem.tls.keys import Keys
from safemem.tls.record import HEADER, TAG

SUITE = SUITES["TLS_AES_128_GCM_SHA256"]
SECRET = TrafficSecret(SUITE, bytes(range(32)))
DATA, HANDSHAKE, ALERT = 23, 22, 21
KEY_UPDATE = bytes([24, 0, 0, 1, 0])
KEY_UPDATE_REQUESTED = bytes([24, 0, 0, 1, 1])
CLOSE_NOTIFY = bytes([1, 0])


@frozen
class Record:
    """What was in a record: its type, its content and how many zeros of padding."""

    kind: int
    content: bytes
    padding: int = 0


class Opener:
    """Opens the records of a stream as it grows; after a key update under the keys that follow."""

    def __init__(self, keys: Keys = SECRET) -> None:
        self._use(keys)
        self._at = 0
        self.records: list[Record] = []
        self.data = bytearray()

    def _use(self, keys: Keys) -> None:
        self._keys, self._current = keys, keys.record_keys()
        self._seq = self._current.seq

    def open(self, stream: bytes | bytearray) -> None:
        """Add the whole records that were not in the stream before."""
        while len(stream) >= self._at + HEADER:
            header = bytes(stream[self._at : self._at + HEADER])
            assert header[:3] == b"\x17\x03\x03"
            end = self._at + HEADER + int.from_bytes(header[3:], "big")
            if len(stream) < end:
                break
            buffer = memoryview(stream[self._at : end])
            self._at = end
            self._take(memoryview(bytearray(buffer)))

    def _take(self, buffer: memoryview) -> None:
        opener = engine().opener(self._current, buffer)
        length = len(buffer) - HEADER
        authentic = opener.open(self._seq, bytes(buffer[:HEADER]), HEADER, length, opener.target(buffer), HEADER)
        assert authentic, f"record {len(self.records)} is not authentic"
        self._seq += 1
        padded = bytes(buffer[HEADER:-TAG])
        inner = padded.rstrip(b"\0")
        self.records.append(Record(inner[-1], inner[:-1], len(padded) - len(inner)))
        if inner[-1] == DATA:
            self.data += inner[:-1]
        if inner[-1] == HANDSHAKE and inner[0] == KEY_UPDATE[0]:
            following = self._keys.next()
            assert following is not None
            self._use(following)


def opened(stream: bytes | bytearray, keys: Keys = SECRET) -> list[Record]:
    """The whole records of a ciphertext stream."""
    opener = Opener(keys)
    opener.open(stream)
    return opener.records


def data_of(stream: bytes | bytearray, keys: Keys = SECRET) -> bytes:
    """The application data in the whole records of a ciphertext stream."""
    opener = Opener(keys)
    opener.open(stream)
    return bytes(opener.data)


def sealed(record: Record, keys: RecordKeys, version: bytes = b"\x03\x03") -> bytes:
    """One record, as a peer would send it that may break any rule."""
    inner = record.content + bytes([record.kind] if record.kind else []) + bytes(record.padding)
    length = len(inner) + TAG
    buffer = memoryview(bytearray(b"\x17" + version + length.to_bytes(2, "big") + inner + bytes(TAG)))
    sealer = engine().sealer(keys, buffer)
    sealer.seal(keys.seq, bytes(buffer[:HEADER]), HEADER, 0, len(inner), sealer.source(memoryview(b"\0")), 0)
    return bytes(buffer)


def sealed_all(*records: Record, keys: Keys = SECRET) -> bytes:
    """Records that follow each other; after a key update they are under the keys that follow."""
    found = b""
    current = keys.record_keys()
    for record in records:
        found += sealed(record, current)
        current = RecordKeys(current.suite, current.key, current.iv, current.seq + 1)
        if record.kind == HANDSHAKE and record.content[:1] == KEY_UPDATE[:1]:
            following = keys.next()
            assert following is not None
            keys, current = following, following.record_keys()
    return found


class Sink:
    """A Writer that takes what the script says a call: a count, an exception to raise, None for all. Then all.

    An exception whose ``transferred`` is set takes that many bytes before it is raised.
    """

    def __init__(self, *script: int | BaseException | None) -> None:
        self.script = list(script)
        self.got = bytearray()
        self.calls: list[int] = []

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        """Take what the next entry says."""
        step = self.script.pop(0) if self.script else None
        count = srcs.num_bytes if step is None else step if isinstance(step, int) else getattr(step, "transferred", 0)
        taken = srcs.take_first(count).tobytes()
        self.got += taken
        self.calls.append(len(taken))
        if isinstance(step, BaseException):
            raise step
        return len(taken)


class Source:
    """A Reader that gives the parts one a call, cut if there is no room: bytes, or an exception to raise. Then 0."""

    def __init__(self, *parts: bytes | BaseException) -> None:
        self.parts = list(parts)
        self.calls = 0

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """Give the next part."""
        self.calls += 1
        if not self.parts:
            return 0
        part = self.parts.pop(0)
        if isinstance(part, BaseException):
            raise part
        (block,) = dsts
        n = min(len(part), len(block))
        block.view()[:n] = part[:n]
        if n < len(part):
            self.parts.insert(0, part[n:])
        return n
