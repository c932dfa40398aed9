"""RecordLayer: opens the records that a Deframer holds, one key after another, and counts them.

Source: RFC 8446 sections 5.2, 5.3 and 7.2; rustls' RecordLayer.
"""

from __future__ import annotations

from typing import Any

from safemem.errors import add_transferred
from safemem.tls.deframer import BorrowedRecord, Deframer
from safemem.tls.engines.engine import Engine
from safemem.tls.errors import Alert, TLSError
from safemem.tls.keys import Keys
from safemem.tls.record import HEADER, MAX_SEQ, TAG, ContentType

_DATA = int(ContentType.APPLICATION_DATA)
_TYPE = 1  # the byte behind the content that tells its type
_OVERHEAD = _TYPE + TAG


class RecordLayer:
    """The keys of the receiving side at work on a buffer.

    ``seq`` is the number of the next record. ``whole`` is for who was interrupted: see :meth:`run`.

    It can be used without a reader: ``push`` what was received into the Deframer, ``pop`` and ``decrypt`` each record,
    then ``discard``. What a record's type means, and when keys change, is then the caller's.
    """

    whole: bool = False
    _doubtful = False  # an interrupt may have left the next record opened

    def __init__(self, engine: Engine, deframer: Deframer, keys: Keys) -> None:
        self._engine = engine
        self._deframer = deframer
        self.use(keys)

    def use(self, keys: Keys) -> None:
        """Go on with these keys."""
        record_keys = keys.record_keys()
        self._keys: Keys | None = keys
        self._opener = self._engine.opener(record_keys, self._deframer.buffer)
        self._own = self._opener.target(self._deframer.buffer)
        self.seq: int = record_keys.seq

    def update(self) -> bool:
        """Go on with the keys that follow; False if none are known."""
        following = self._keys.next() if self._keys is not None else None
        self._opener.close()
        if following is None:
            return False
        self.use(following)
        return True

    def forget(self) -> None:
        """Wipe the keys."""
        self._opener.close()
        self._keys = None

    def open(self, record: BorrowedRecord) -> bool:
        """Decrypt a record where it lies, and return whether it is authentic.

        Raises TLSError if the sequence numbers are used up.
        """
        seq = self.seq
        if seq > MAX_SEQ:
            raise _used_up()
        self.seq = seq + 1
        return self._opener.open(seq, record.header, record.at, record.length, self._own, record.at)

    def decrypt(self, record: BorrowedRecord) -> tuple[int, memoryview]:
        """Decrypt a record where it lies; returns its type and its content, without padding, as long as it is borrowed.

        Raises TLSError if it is not authentic, and then the content is zeros; if it has no type; or as :meth:`open`.
        """
        if not self.open(record):
            record.wipe()
            raise TLSError(Alert.BAD_RECORD_MAC, f"record {self.seq - 1} is not authentic")
        inner = bytes(self._deframer.buffer[record.at : record.at + record.length - TAG]).rstrip(b"\0")
        content = record.take(len(inner) - 1) if inner else None
        if content is None:
            raise TLSError(Alert.UNEXPECTED_MESSAGE, "a record without a type")
        return inner[-1], content

    # The two loops below decide the speed: between two records with equal headers one is some 0.4 us of Python. So
    # they share no helper, hold in locals what they use, and write it back however they end.

    def run(self, view: memoryview) -> tuple[int, int, bool]:
        """Open records and copy their plain data into the view, up to one that is none or does not fit as a whole.

        Returns how many bytes of the view were filled and, of the record that ended it, where its body is opened in the
        buffer (0 if none did), and whether it is authentic. Raises TLSError at a header that cannot be right, or if the
        sequence numbers are used up, and counts in it what was filled. An interrupt counts it too, and ``whole`` tells
        whether all that was opened is counted.
        """
        if self._doubtful:
            self._close_again()
        deframer, open_record, own = self._deframer, self._opener.open, self._own
        memory, buffer, end = deframer.memory, deframer.buffer, deframer.end
        start, header, n = deframer.start, deframer.header, deframer.length - _OVERHEAD
        seq, size, done = self.seq, len(view), 0
        opening, usual = False, True
        try:
            while True:
                body = start + HEADER
                if memory[start:body] != header:
                    if end < body:
                        break
                    deframer.start = start
                    deframer.read_header()
                    header, n = deframer.header, deframer.length - _OVERHEAD
                stop = body + n + _OVERHEAD
                if stop > end:
                    break
                if seq > MAX_SEQ:
                    raise _used_up()
                opening = True
                authentic = open_record(seq, header, body, n + _OVERHEAD, own, body)
                filled = done + n
                usual = authentic and n > 0 and filled <= size and buffer[body + n] == _DATA
                if usual:
                    view[done:filled] = buffer[body : body + n]
                else:
                    filled = done
                # One line: no handler finds the one without the other.
                start, seq, done = stop, seq + 1, filled; opening = False  # fmt: skip # noqa: E702
                if not usual:
                    return done, body, authentic
        except BaseException as exc:
            self._doubtful = opening
            add_transferred(exc, done)
            self.whole = usual or opening  # last: another interrupt would lose the count
            raise
        finally:
            deframer.start, self.seq = start, seq
        return done, 0, True

    def run_direct(self, view: memoryview) -> tuple[int, int, bool]:
        """The same, but decrypt plain data straight into the view. A record that is none leaves zeros there."""
        if self._doubtful:
            self._close_again()
        deframer, open_record, own = self._deframer, self._opener.open, self._own
        memory, end = deframer.memory, deframer.end
        start, header, n = deframer.start, deframer.header, deframer.length - _OVERHEAD
        seq, done, filled = self.seq, 0, 0
        size = len(view) - _TYPE  # the type byte, too, must find room; what it overwrites comes back
        target: Any = None
        before = -1
        opening, usual = False, True
        try:
            while True:
                body = start + HEADER
                if memory[start:body] != header:
                    if end < body:
                        break
                    deframer.start = start
                    deframer.read_header()
                    header, n = deframer.header, deframer.length - _OVERHEAD
                stop = body + n + _OVERHEAD
                if stop > end:
                    break
                if seq > MAX_SEQ:
                    raise _used_up()
                filled = done + n
                direct = usual = n > 0 and filled <= size
                if direct:
                    if target is None:
                        target = self._opener.target(view)
                    before = view[filled]
                    authentic = open_record(seq, header, body, n + _OVERHEAD, target, done)
                    usual = authentic and view[filled] == _DATA
                    if not usual:
                        # Nothing of it stays in user memory; and since the guest may have changed it there meanwhile,
                        # what it says is decrypted again.
                        view[done : filled + _TYPE] = bytes(n + _TYPE)
                        before = -1
                if not usual:
                    if not direct or authentic:
                        opening = True
                        authentic = open_record(seq, header, body, n + _OVERHEAD, own, body)
                    filled = done
                start, seq, done = stop, seq + 1, filled; opening = False  # fmt: skip # noqa: E702
                if not usual:
                    return done, body, authentic
        except BaseException as exc:
            self._doubtful = opening
            if done < filled <= size:  # interrupted, and nothing has been verified
                view[done : filled + _TYPE] = bytes(n + _TYPE)
                before = -1
            add_transferred(exc, done)
            self.whole = usual or opening
            raise
        finally:
            deframer.start, self.seq = start, seq
            if before >= 0:
                view[done] = before
        return done, 0, True

    def _close_again(self) -> None:
        """Make the next record what was received, which an interrupt may have left opened, or half so.

        Opening turns plain text to ciphertext as well, since the ciphers of TLS 1.3 are streams that are added.
        """
        deframer = self._deframer
        deframer.read_header()
        at = deframer.start + HEADER
        if self._opener.open(self.seq, deframer.header, at, deframer.length, self._own, at):
            self._opener.open(self.seq, deframer.header, at, deframer.length, self._own, at)
        self._doubtful = False


def _used_up() -> TLSError:
    return TLSError(Alert.INTERNAL_ERROR, "the sequence numbers are used up")
