"""The AEAD engines: they agree with one another and with themselves, and forget their keys."""

from __future__ import annotations

import ctypes
import gc
import ssl
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem.tls import SUITES, CipherSuite, EngineError, RecordKeys, engine
from safemem.tls.engines.libcrypto import LibcryptoEngine, LibcryptoOpener, LibcryptoSealer
from safemem.tls.record import HEADER, MAX_BODY, TAG
from tls_wire import ENGINES
from usermem.testing.operations import pattern

every_engine = pytest.mark.parametrize("name", ENGINES)
every_suite = pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.cipher)
AEADS = "cryptography.hazmat.primitives.ciphers.aead"
needs_libcrypto = pytest.mark.skipif("libcrypto" not in ENGINES, reason="this host has no libcrypto to be loaded")


def keys_of(suite: CipherSuite, seed: int = 1, seq: int = 0) -> RecordKeys:
    """Some keys."""
    return RecordKeys(suite, bytes((seed + i) & 255 for i in range(suite.key_length)), bytes(range(12)), seq)


def seal(name: str, keys: RecordKeys, seq: int, content: bytes, tail: bytes, at: int = 0, apart: bool = True) -> bytes:
    """A record, sealed from a source of its own or in place; the bytes around it must stay."""
    inner = content + tail
    end = at + HEADER + len(inner) + TAG
    buffer = memoryview(bytearray(b"\xee" * (end + 3)))
    buffer[at : at + HEADER] = b"\x17\x03\x03" + (len(inner) + TAG).to_bytes(2, "big")
    buffer[at + HEADER + len(content) : end - TAG] = tail
    source = buffer
    offset = at + HEADER
    if apart:
        source, offset = memoryview(b"#" + content), 1
    else:
        buffer[offset : offset + len(content)] = content
    sealer = engine(name).sealer(keys, buffer)
    header = bytes(buffer[at : at + HEADER])
    sealer.seal(seq, header, at + HEADER, len(content), len(tail), sealer.source(source), offset)
    assert bytes(buffer[:at]) + bytes(buffer[end:]) == b"\xee" * (at + 3)
    assert not apart or bytes(source) == b"#" + content
    return bytes(buffer[at:end])


def unseal(name: str, keys: RecordKeys, seq: int, record: bytes, at: int = 0, apart: bool = True) -> bytes | None:
    """What is in a record, or None if it is not authentic; the bytes around the target must stay."""
    buffer = memoryview(bytearray(b"\xee" * at + record + b"\xee" * 3))
    length = len(record) - HEADER
    opener = engine(name).opener(keys, buffer)
    target, offset = buffer, at + HEADER
    if apart:
        target, offset = memoryview(bytearray(b"\xdd" * (length - TAG + 5))), 2
    authentic = opener.open(seq, record[:HEADER], at + HEADER, length, opener.target(target), offset)
    around = bytes(buffer[: at + HEADER]) + bytes(buffer[at + HEADER + length :])
    assert around == b"\xee" * at + record[:HEADER] + b"\xee" * 3
    if apart:
        assert bytes(target[:2]) + bytes(target[-3:]) == b"\xdd" * 5
        assert bytes(buffer[at : at + len(record)]) == record
    return bytes(target[offset : offset + length - TAG]) if authentic else None


contents = st.one_of(st.binary(max_size=80), st.sampled_from([255, 256, 4095, 16383, 16384]).map(pattern))
seqs = st.one_of(st.integers(0, 300), st.integers(0, (1 << 64) - 1), st.just((1 << 64) - 1))


@given(
    st.sampled_from(list(SUITES.values())),
    contents,
    st.integers(0, 20).map(lambda padding: b"\x17" + bytes(padding)),
    seqs,
    st.integers(0, 40),
)
def test_engines_agree(suite: CipherSuite, content: bytes, tail: bytes, seq: int, at: int) -> None:
    """Byte for byte: sealed from a source or in place, opened apart or in place, wherever it lies."""
    keys = keys_of(suite)
    records = {seal(name, keys, seq, content, tail, at, apart) for name in ENGINES for apart in (True, False)}
    (record,) = records
    for name in ENGINES:
        for apart in (True, False):
            assert unseal(name, keys, seq, record, at, apart) == content + tail


@every_suite
def test_against_another_implementation(suite: CipherSuite) -> None:
    """Nonce and additional data are as RFC 8446 section 5.2 and 5.3 say."""
    ciphers = pytest.importorskip(
        "cryptography.hazmat.primitives.ciphers.aead", reason="needs the cryptography package"
    )
    keys = keys_of(suite)
    cipher = (ciphers.ChaCha20Poly1305 if "CHACHA" in suite.name else ciphers.AESGCM)(keys.key)
    nonce = bytes(a ^ b for a, b in zip(keys.iv, (0x1122334455667788).to_bytes(12, "big"), strict=True))
    header = b"\x17\x03\x03\x00\x16"
    expected = header + cipher.encrypt(nonce, b"hello\x17", header)
    for name in ENGINES:
        assert seal(name, keys, 0x1122334455667788, b"hello", b"\x17") == expected


@every_engine
@every_suite
def test_every_bit_counts(name: str, suite: CipherSuite) -> None:
    """A record with one bit flipped, in header, ciphertext or tag, is refused; so are other keys and numbers."""
    keys = keys_of(suite)
    record = seal(name, keys, 7, b"content", b"\x17")
    for apart in (True, False):
        for place in range(len(record) * 8):
            changed = bytearray(record)
            changed[place // 8] ^= 1 << place % 8
            assert unseal(name, keys, 7, bytes(changed), apart=apart) is None
        assert unseal(name, keys, 7, record, apart=apart) == b"content\x17"
        assert unseal(name, keys, 8, record, apart=apart) is None
        assert unseal(name, keys, 7 + (1 << 63), record, apart=apart) is None
        assert unseal(name, keys_of(suite, 2), 7, record, apart=apart) is None


@every_engine
@every_suite
def test_the_shortest_and_the_longest(name: str, suite: CipherSuite) -> None:
    """A record of its tag only, and one of the most that is allowed."""
    keys = keys_of(suite)
    for inner in (b"", b"x" * (MAX_BODY - TAG)):
        record = seal(ENGINES[0], keys, 1, b"", inner)
        assert seal(name, keys, 1, inner, b"") == record
        for apart in (True, False):
            assert unseal(name, keys, 1, record, apart=apart) == inner
            assert unseal(name, keys, 1, record[:-1] + bytes([record[-1] ^ 1]), apart=apart) is None


@every_engine
def test_it_goes_on_after_a_refusal(name: str) -> None:
    """One opener, many records: a bad one changes nothing for the next."""
    keys = keys_of(SUITES["TLS_AES_256_GCM_SHA384"])
    records = [seal(name, keys, seq, b"record %d" % seq, b"\x17") for seq in range(20)]
    length = len(records[0])
    buffer = memoryview(bytearray(b"".join(record.ljust(length + 1, b"\0") for record in records)))
    opener = engine(name).opener(keys, buffer)
    out = memoryview(bytearray(64))
    for seq, record in enumerate(records):
        place = seq * (length + 1) + HEADER
        assert not opener.open(seq + 1, record[:HEADER], place, len(record) - HEADER, opener.target(out), 0)
        assert opener.open(seq, record[:HEADER], place, len(record) - HEADER, opener.target(out), 0)
        assert bytes(out[:9]) == b"record %d" % seq if seq > 9 else bytes(out[:8]) == b"record %d" % seq


@every_engine
@every_suite
def test_closing_wipes(name: str, suite: CipherSuite) -> None:
    """Afterwards nothing is authentic and nothing is sealed, and closing again does nothing."""
    keys = keys_of(suite)
    record = seal(name, keys, 0, b"content", b"\x17")
    buffer = memoryview(bytearray(record))
    opener, sealer = engine(name).opener(keys, buffer), engine(name).sealer(keys, buffer)
    for _ in range(2):
        opener.close()
        sealer.close()
        with suppress(ValueError):
            assert not opener.open(
                0, bytes(record[:HEADER]), HEADER, len(record) - HEADER, opener.target(buffer), HEADER
            )
        with pytest.raises(ValueError, match="wiped"):
            sealer.seal(0, bytes(record[:HEADER]), HEADER, 7, 1, sealer.source(buffer), HEADER)
        assert bytes(buffer) == record


@every_engine
def test_the_call_outlives_its_opener(name: str) -> None:
    """Whoever holds on to ``open`` and ``seal`` alone uses no memory that was freed."""
    keys = keys_of(SUITES["TLS_AES_128_GCM_SHA256"])
    record = seal(name, keys, 0, b"content", b"\x17")
    buffer = memoryview(bytearray(record))
    opener, sealer = engine(name).opener(keys, buffer), engine(name).sealer(keys, buffer)
    target, source = opener.target(buffer), sealer.source(buffer)
    open_record, seal_record = opener.open, sealer.seal
    del opener, sealer
    for _ in range(3):
        assert open_record(0, record[:HEADER], HEADER, len(record) - HEADER, target, HEADER)
        assert bytes(buffer[HEADER:-TAG]) == b"content\x17"
        seal_record(0, record[:HEADER], HEADER, 7, 1, source, HEADER)
        assert bytes(buffer) == record


def _tls_still_works() -> None:
    """The stdlib's TLS fails as it should, and says nothing of what went before."""
    incoming = ssl.MemoryBIO()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(incoming, ssl.MemoryBIO(), server_hostname="a")
    for _ in range(3):
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()


@needs_libcrypto
@every_suite
def test_openssl_keeps_no_error(suite: CipherSuite) -> None:
    """Its queue of errors, which the stdlib's ssl shares in this thread, is empty after all that failed."""
    keys = keys_of(suite)
    lib = LibcryptoEngine()._lib
    lib.ERR_peek_error.restype = ctypes.c_ulong
    lib.ERR_clear_error()
    record = bytearray(seal("libcrypto", keys, 0, b"content", b"\x17"))
    record[-1] ^= 1
    buffer = memoryview(record)
    opener, sealer = engine("libcrypto").opener(keys, buffer), engine("libcrypto").sealer(keys, buffer)
    assert lib.ERR_peek_error() == 0
    for closed in (False, True):
        assert not opener.open(0, bytes(record[:HEADER]), HEADER, len(record) - HEADER, opener.target(buffer), HEADER)
        assert lib.ERR_peek_error() == 0
        if closed:
            with pytest.raises(ValueError, match="wiped"):
                sealer.seal(0, bytes(record[:HEADER]), HEADER, 7, 1, sealer.source(buffer), HEADER)
            assert lib.ERR_peek_error() == 0
        _tls_still_works()
        opener.close()
        sealer.close()


class Altered:
    """A library some functions of which are others, or are not there."""

    def __init__(self, **functions: object) -> None:
        self._lib = LibcryptoEngine()._lib
        self._functions = functions

    def __getattr__(self, name: str) -> object:
        if self._functions.get(name, self) is None:
            raise AttributeError(name)
        return self._functions.get(name) or getattr(self._lib, name)


OTHERS: dict[str, dict[str, object]] = {
    "1.1.1 has no EVP_DecryptInit_ex2: the tag is given by a call of its own": {"EVP_DecryptInit_ex2": None},
    "a nonce cannot be set as a parameter": {"EVP_CIPHER_CTX_set_params": lambda *args: 0},
}


@needs_libcrypto
@every_suite
@pytest.mark.parametrize("functions", OTHERS.values(), ids=OTHERS)
def test_other_libraries(suite: CipherSuite, functions: dict[str, object]) -> None:
    """What is missing in this one is done by other calls."""
    lib: Any = Altered(**functions)
    keys = keys_of(suite)
    record = seal(ENGINES[-1], keys, 5, b"content", b"\x17")
    buffer = memoryview(bytearray(record))
    opener = LibcryptoOpener(lib, keys, buffer)
    out = memoryview(bytearray(8))
    assert not opener.open(6, record[:HEADER], HEADER, len(record) - HEADER, opener.target(out), 0)
    assert opener.open(5, record[:HEADER], HEADER, len(record) - HEADER, opener.target(out), 0)
    assert bytes(out) == b"content\x17"
    assert opener.open(5, record[:HEADER], HEADER, len(record) - HEADER, opener.target(buffer), HEADER)
    buffer[:] = record
    opener.close()
    assert not opener.open(5, record[:HEADER], HEADER, len(record) - HEADER, opener.target(out), 0)


@needs_libcrypto
@every_suite
def test_an_openssl_that_takes_no_nonce_as_parameter(suite: CipherSuite) -> None:
    """It is told of the nonce another way, and OpenSSL keeps no error of the first."""
    real = LibcryptoEngine()._lib
    real.ERR_peek_error.restype = ctypes.c_ulong

    def refuse(context: object, params: Any) -> int:
        params[0].data_size = 1
        refused: int = real.EVP_CIPHER_CTX_set_params(context, params)
        assert real.ERR_peek_error()
        return refused

    lib: Any = Altered(EVP_CIPHER_CTX_set_params=refuse)
    keys = keys_of(suite)
    record = seal("libcrypto", keys, 5, b"content", b"\x17")
    buffer = memoryview(bytearray(record))
    opener = LibcryptoOpener(lib, keys, buffer)
    assert real.ERR_peek_error() == 0
    assert opener.open(5, record[:HEADER], HEADER, len(record) - HEADER, opener.target(buffer), HEADER)


@needs_libcrypto
@every_suite
def test_an_openssl_without_the_cipher(suite: CipherSuite) -> None:
    """As in FIPS mode: EngineError, and OpenSSL keeps no error of it."""
    real = LibcryptoEngine()._lib
    real.ERR_peek_error.restype = ctypes.c_ulong

    def refuse(context: object, cipher: object, *args: object) -> int:
        refused: int = real.EVP_CipherInit_ex(context, None, None, None, None, -1)
        assert real.ERR_peek_error()
        return refused

    lib: Any = Altered(EVP_CipherInit_ex=refuse)
    for make in (LibcryptoOpener, LibcryptoSealer):
        with pytest.raises(EngineError, match=f"refuses {suite.name}"):
            make(lib, keys_of(suite), memoryview(bytearray(64)))
        assert real.ERR_peek_error() == 0


@needs_libcrypto
def test_an_openssl_without_memory() -> None:
    """MemoryError, and nothing more."""
    lib: Any = Altered(EVP_CIPHER_CTX_new=lambda: None)
    with pytest.raises(MemoryError):
        LibcryptoOpener(lib, keys_of(SUITES["TLS_AES_128_GCM_SHA256"]), memoryview(bytearray(64)))
    gc.collect()
