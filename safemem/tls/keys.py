"""Keys of one direction of a connection: a traffic secret, from which all later keys follow, or a key and an IV alone.

Source: RFC 8446 sections 5.3, 7.1, 7.2, 7.3; RFC 5869.
"""

from __future__ import annotations

import hmac
from typing import Literal

from attrs import field, frozen

from safemem.tls.record import MAX_SEQ

IV = 12


@frozen
class CipherSuite:
    """A TLS 1.3 cipher suite: its IANA name and number, AEAD cipher, key length in bytes, and hash."""

    name: str
    number: int
    cipher: Literal["aes-128-gcm", "aes-256-gcm", "chacha20-poly1305"]
    key_length: int
    hash: Literal["sha256", "sha384"]

    @property
    def hash_length(self) -> int:
        """The length of its traffic secrets, in bytes."""
        return 48 if self.hash == "sha384" else 32


TLS_AES_128_GCM_SHA256 = CipherSuite("TLS_AES_128_GCM_SHA256", 0x1301, "aes-128-gcm", 16, "sha256")
TLS_AES_256_GCM_SHA384 = CipherSuite("TLS_AES_256_GCM_SHA384", 0x1302, "aes-256-gcm", 32, "sha384")
TLS_CHACHA20_POLY1305_SHA256 = CipherSuite("TLS_CHACHA20_POLY1305_SHA256", 0x1303, "chacha20-poly1305", 32, "sha256")
SUITES = {suite.name: suite for suite in (TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384, TLS_CHACHA20_POLY1305_SHA256)}
"""The cipher suites by name."""


def hkdf_expand_label(suite: CipherSuite, secret: bytes, label: str, context: bytes, length: int) -> bytes:
    """HKDF-Expand-Label: ``length`` bytes derived from a secret for one purpose."""
    full = b"tls13 " + label.encode("ascii")
    info = length.to_bytes(2, "big") + bytes([len(full)]) + full + bytes([len(context)]) + context
    out = block = b""
    for counter in range(1, -(-length // suite.hash_length) + 1):
        block = hmac.digest(secret, block + info + bytes([counter]), suite.hash)
        out += block
    return out[:length]


def _check_seq(instance: object, attribute: object, seq: int) -> None:
    if not 0 <= seq <= MAX_SEQ:
        raise ValueError(f"seq must lie in 0 to 2**64 - 1, not {seq}")


@frozen
class RecordKeys:
    """A key and an IV for the records from number ``seq`` on. What comes after a key update cannot be read with it."""

    suite: CipherSuite
    key: bytes = field(repr=False, converter=bytes)
    iv: bytes = field(repr=False, converter=bytes)
    seq: int = field(default=0, validator=_check_seq)

    def __attrs_post_init__(self) -> None:
        if len(self.key) != self.suite.key_length or len(self.iv) != IV:
            raise ValueError(
                f"{self.suite.name} has a key of {self.suite.key_length} bytes and an IV of {IV}, "
                f"not {len(self.key)} and {len(self.iv)}"
            )

    def record_keys(self) -> RecordKeys:
        """Itself."""
        return self

    def next(self) -> None:
        """None: nothing follows from a key."""


@frozen
class TrafficSecret:
    """A traffic secret, for the records from number ``seq`` on and for what comes after key updates."""

    suite: CipherSuite
    secret: bytes = field(repr=False, converter=bytes)
    seq: int = field(default=0, validator=_check_seq)

    def __attrs_post_init__(self) -> None:
        if len(self.secret) != self.suite.hash_length:
            raise ValueError(f"{self.suite.name} has secrets of {self.suite.hash_length} bytes, not {len(self.secret)}")

    def record_keys(self) -> RecordKeys:
        """The key and IV of this secret (RFC 8446 section 7.3)."""
        key = hkdf_expand_label(self.suite, self.secret, "key", b"", self.suite.key_length)
        return RecordKeys(self.suite, key, hkdf_expand_label(self.suite, self.secret, "iv", b"", IV), self.seq)

    def next(self) -> TrafficSecret:
        """The secret after a key update, whose records count from 0 (RFC 8446 section 7.2)."""
        secret = hkdf_expand_label(self.suite, self.secret, "traffic upd", b"", self.suite.hash_length)
        return TrafficSecret(self.suite, secret)


Keys = TrafficSecret | RecordKeys
"""The keys of one direction."""
