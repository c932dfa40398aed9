"""The choice of the AEAD engine: libcrypto, through ctypes, or the ``cryptography`` package.

An engine is chosen once: ``cryptography`` when it can be imported (it is quicker), else the libcrypto that Python's own
ssl uses. Each is tried with a known answer for each cipher, in both directions and in place, before it is first used.
"""

from __future__ import annotations

from functools import cache

from safemem.tls.engines.engine import Engine
from safemem.tls.errors import EngineError
from safemem.tls.keys import (
    TLS_AES_128_GCM_SHA256,
    TLS_AES_256_GCM_SHA384,
    TLS_CHACHA20_POLY1305_SHA256,
    CipherSuite,
    RecordKeys,
)
from safemem.tls.record import HEADER, TAG

NAMES = ("cryptography", "libcrypto")
"""The engines, in the order in which they are tried."""


def engine(name: str | None = None) -> Engine:
    """The engine of this name, or the first that can be used.

    Raises EngineError, which says why none can be and what to install; ValueError for a name that is none.
    """
    if name is not None and name not in NAMES:
        raise ValueError(f"engine must be one of {', '.join(NAMES)}, not {name!r}")
    reasons = []
    for candidate in NAMES if name is None else (name,):
        found = _tried(candidate)
        if not isinstance(found, str):
            return found
        reasons.append(f"{candidate}: {found}")
    raise EngineError(
        "; ".join(reasons) + ". Install the cryptography package (pip install cryptography), or read with "
        "SSLObjectReader, which needs no keys and no engine"
    )


@cache
def _tried(name: str) -> Engine | str:
    """The engine, or why it cannot be used: looked for once."""
    try:
        return _checked(_load(name))
    except EngineError as exc:
        return str(exc)


def _load(name: str) -> Engine:
    if name == "libcrypto":
        from safemem.tls.engines.libcrypto import LibcryptoEngine

        return LibcryptoEngine()
    from safemem.tls.engines.cryptography import CryptographyEngine

    return CryptographyEngine()


# One record for each cipher: key 00 01 02 …, IV a0 a1 a2 …, sequence number 258, content type 23; which OpenSSL and
# another implementation agree on.
_KNOWN: dict[CipherSuite, bytes] = {
    TLS_AES_128_GCM_SHA256: bytes.fromhex("170303001deaeb1393970e338ffab4be2e13747d212267cfb8fe7df1261dcd02a031"),
    TLS_AES_256_GCM_SHA384: bytes.fromhex("170303001d86464fcfbeffcb32aa1f62c4073ca83449a4deba500f6f00a82073aeb8"),
    TLS_CHACHA20_POLY1305_SHA256: bytes.fromhex("170303001da0e5dd99ea7ef8df476922c6a5b1d2288067988d6f27f1e12ae0dde299"),
}
_KNOWN_SEQ = 258
_KNOWN_CONTENT = b"known answer"


def _checked(tried: Engine) -> Engine:
    """The engine, if it gives the known answers. Raises EngineError if not."""
    content = _KNOWN_CONTENT + b"\x17"
    for suite, record in _KNOWN.items():
        keys = RecordKeys(suite, bytes(range(suite.key_length)), bytes(range(0xA0, 0xAC)))
        buffer = memoryview(bytearray(record))
        sealer = tried.sealer(keys, buffer)
        buffer[HEADER:] = bytes(len(record) - HEADER)
        buffer[-TAG - 1] = 0x17
        source = memoryview(_KNOWN_CONTENT)
        sealer.seal(_KNOWN_SEQ, record[:HEADER], HEADER, len(source), 1, sealer.source(source), 0)
        opener = tried.opener(keys, buffer)
        apart = memoryview(bytearray(len(content)))
        right = buffer == record
        for target, place in ((apart, 0), (buffer, HEADER)):
            right &= opener.open(
                _KNOWN_SEQ, record[:HEADER], HEADER, len(record) - HEADER, opener.target(target), place
            )
            right &= target[place : place + len(content)] == content
        buffer[:] = record
        buffer[-1] ^= 1
        right &= not opener.open(_KNOWN_SEQ, record[:HEADER], HEADER, len(record) - HEADER, opener.target(apart), 0)
        opener.close()
        sealer.close()
        if not right:
            raise EngineError(f"{tried.version()} gives wrong answers for {suite.name}")
    return tried
