"""What a guest's recvmsg on a socket with TLS_RX gives."""

from __future__ import annotations

import pytest

from safemem.tls import CryptoInfo, KernelTLSReader
from safemem.tls.ktls import Received
from sample_blocks import room
from tls_records import DATA, SECRET, Record, Source, sealed_all

INFO = CryptoInfo(SECRET.record_keys())
KEYS = INFO.keys
END = Received(0, 0, False)


def reader(*parts: bytes | Record | BaseException) -> KernelTLSReader:
    """A reader of the records that come together, and of other parts, one a receive."""
    records = sealed_all(*(part for part in parts if isinstance(part, Record)))
    rest = [part for part in parts if not isinstance(part, Record)]
    return KernelTLSReader(Source(*([records] if records else []), *rest), INFO)


def data(content: bytes, padding: int = 0) -> Record:
    """A record of application data."""
    return Record(DATA, content, padding)


def receive(
    kernel: KernelTLSReader, size: int = 100, has_control: bool = True, flags: int = 0
) -> tuple[bytes, int, bool]:
    """What one call gives: its bytes, their type, MSG_EOR. Nothing behind them is touched."""
    dsts = room(size // 3, size - size // 3)
    found = kernel.recvmsg(dsts, has_control, flags)
    content = dsts.tobytes()
    assert content[found.count :] == b"\xee" * (size - found.count)
    return content[: found.count], found.record_type, found.end_of_record


def fails(kernel: KernelTLSReader, code: int, times: int = 2, has_control: bool = True) -> None:
    """Each call raises this error, and counts nothing."""
    for _ in range(times):
        with pytest.raises(OSError) as caught:
            kernel.recvmsg(room(100), has_control)
        assert caught.value.errno == code
        assert not getattr(caught.value, "transferred", 0)
