"""KernelTLSReader: the errors of records that are wrong, as net/tls/tls_sw.c has them."""

from __future__ import annotations

import errno
import socket
import sys
from types import FrameType
from typing import Any

import pytest

from safemem import Block, BlockSeq
from safemem.tls import KernelTLSReader, ktls
from tls_kernel import INFO, KEYS, data, fails, receive
from tls_records import ALERT, CLOSE_NOTIFY, DATA, Record, Source, sealed, sealed_all

BROKEN = {
    "oversize": (b"\x17\x03\x03\x40\x12", errno.EMSGSIZE),
    "shorter than a tag": (b"\x17\x03\x03\x00\x0f" + bytes(15), errno.EBADMSG),
    "not authentic": (b"\x17\x03\x03\x00\x20" + bytes(32), errno.EBADMSG),
    "an unprotected alert": (b"\x15\x03\x03\x00\x02\x01\x00", errno.EBADMSG),
    "an unprotected change_cipher_spec": (b"\x14\x03\x03\x00\x01\x01", errno.EBADMSG),
    "an unprotected handshake record": (b"\x16\x03\x03\x00\x20" + bytes(32), errno.EBADMSG),
    "oversize and of another type": (b"\x15\x03\x03\x40\x12", errno.EMSGSIZE),
    "oversize and of another version": (b"\x17\x03\x04\x40\x12", errno.EMSGSIZE),
    "short and of another version": (b"\x17\x03\x04\x00\x0f", errno.EBADMSG),
    "another version": (sealed(data(b"x"), KEYS, version=b"\x03\x01"), errno.EINVAL),
    "another protocol": (b"HTTP/1.1 400 Bad Request", errno.EMSGSIZE),
    "without a type": (sealed(Record(0, b"", padding=3), KEYS), errno.EBADMSG),
    "without anything": (sealed(Record(0, b""), KEYS), errno.EBADMSG),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_record_that_is_wrong(case: str) -> None:
    """Its error, and that for ever, whatever comes after it."""
    wire, code = BROKEN[case]
    kernel = KernelTLSReader(Source(wire + sealed_all(data(b"good"))), INFO)
    fails(kernel, code, times=3)
    fails(kernel, code, has_control=False)
    with pytest.raises(OSError, match="set already") as caught:
        kernel.set_crypto_info(INFO)
    assert caught.value.errno == errno.EBUSY


@pytest.mark.parametrize(
    ("header", "code"),
    [(b"\x17\x03\x01\x00\x20", errno.EINVAL), (b"\x17\x03\x03\x40\x12", errno.EMSGSIZE)],
)
def test_a_wrong_header_is_told_at_once(header: bytes, code: int) -> None:
    """As soon as its five bytes are there, and behind the data before it (tls_rx_msg_size)."""
    kernel = KernelTLSReader(Source(sealed_all(data(b"ab")) + header[:4], header[4:], BlockingIOError()), INFO)
    assert receive(kernel) == (b"ab", DATA, True)
    assert not kernel.readable()
    fails(kernel, code)
    assert kernel.readable()


@pytest.mark.parametrize("outer", [0, 20, 21, 22, 99])
def test_the_type_on_the_wire_is_not_looked_at(outer: int) -> None:
    """The record is authenticated as one of application data, as tls_make_aad has it for TLS 1.3."""
    wire = sealed_all(data(b"ab"), Record(ALERT, CLOSE_NOTIFY))
    kernel = KernelTLSReader(Source(bytes([outer]) + wire[1:]), INFO)
    assert receive(kernel) == (b"ab", DATA, True)
    assert receive(kernel) == (CLOSE_NOTIFY, ALERT, True)


def test_data_before_an_error_comes_first() -> None:
    """The bytes in one call, the error in the next."""
    source = Source(sealed_all(data(b"ab"), data(b"cd")) + b"\x17\x03\x03\x00\x20" + bytes(32))
    kernel = KernelTLSReader(source, INFO)
    assert receive(kernel) == (b"abcd", DATA, True)
    fails(kernel, errno.EBADMSG)


class InterruptError(Exception):
    """What a signal handler raises."""


@pytest.mark.parametrize("flags", [0, socket.MSG_WAITALL])
def test_an_interrupt_at_any_point(flags: int) -> None:
    """Each byte is read once and in its place, or the stream ends with an error that says why."""
    contents = [b"abc", b"", b"defghij", b"klmnop"]
    wire, whole = sealed_all(*map(data, contents)), b"".join(contents)
    point, broken = 0, 0
    while True:
        kernel = KernelTLSReader(Source(wire[:50], wire[50:]), INFO)
        came, found, reason = read_interrupted(kernel, len(whole), point, flags)
        if reason is None:
            assert found == whole
        else:
            assert whole.startswith(found)
            assert "interrupted" in str(reason)
            broken += 1
        if not came:
            break
        point += 1
    assert point > 100
    assert broken < point // 2


def read_interrupted(kernel: KernelTLSReader, size: int, point: int, flags: int) -> tuple[bool, bytes, OSError | None]:
    """Read ``size`` bytes, raise before the given line of the reader, and go on.

    Returns whether it came to that, what was read, and the error that ended it.
    """
    left = point

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != ktls.__file__ or frame.f_code.co_name == "recvmsg":
            return None
        if event == "line":
            left -= 1
            if left == -1:
                raise InterruptError
        return trace

    memory = bytearray(size)
    done, reason = 0, None
    before = sys.gettrace()
    while done < size and reason is None:
        dsts = BlockSeq.of(Block(memory).drop_first(done).take_first(5))
        sys.settrace(trace)
        try:
            done += kernel.recvmsg(dsts, True, flags).count
        except InterruptError as exc:
            done += getattr(exc, "transferred", 0)
        except OSError as exc:
            reason = exc.with_traceback(None)
        finally:
            sys.settrace(before)
    return left < 0, bytes(memory[:done]), reason
