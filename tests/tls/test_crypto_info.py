"""CryptoInfo: what setsockopt(SOL_TLS) takes, against the structs of linux/tls.h."""

from __future__ import annotations

import ctypes
import errno
import sys
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem.tls import SUITES, CipherSuite, CryptoInfo, RecordKeys


class Info(ctypes.Structure):
    """struct tls_crypto_info."""

    _fields_ = (("version", ctypes.c_uint16), ("cipher_type", ctypes.c_uint16))


class AesGcm128(ctypes.Structure):
    """struct tls12_crypto_info_aes_gcm_128."""

    _fields_ = (
        ("info", Info),
        ("iv", ctypes.c_ubyte * 8),
        ("key", ctypes.c_ubyte * 16),
        ("salt", ctypes.c_ubyte * 4),
        ("rec_seq", ctypes.c_ubyte * 8),
    )


class AesGcm256(ctypes.Structure):
    """struct tls12_crypto_info_aes_gcm_256."""

    _fields_ = (
        ("info", Info),
        ("iv", ctypes.c_ubyte * 8),
        ("key", ctypes.c_ubyte * 32),
        ("salt", ctypes.c_ubyte * 4),
        ("rec_seq", ctypes.c_ubyte * 8),
    )


class ChaCha20Poly1305(ctypes.Structure):
    """struct tls12_crypto_info_chacha20_poly1305, whose salt is empty."""

    _fields_ = (
        ("info", Info),
        ("iv", ctypes.c_ubyte * 12),
        ("key", ctypes.c_ubyte * 32),
        ("rec_seq", ctypes.c_ubyte * 8),
    )


Struct = type[AesGcm128] | type[AesGcm256] | type[ChaCha20Poly1305]
STRUCTS: dict[str, tuple[int, Struct]] = {
    "TLS_AES_128_GCM_SHA256": (51, AesGcm128),
    "TLS_AES_256_GCM_SHA384": (52, AesGcm256),
    "TLS_CHACHA20_POLY1305_SHA256": (54, ChaCha20Poly1305),
}
every_suite = pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.cipher)
ORDERS: list[Literal["little", "big"]] = ["little", "big"]


def keys_of(suite: CipherSuite) -> RecordKeys:
    """Keys no byte of which is another's."""
    return RecordKeys(suite, bytes(range(100, 100 + suite.key_length)), bytes(range(12)), 0x0102030405060708)


@every_suite
def test_the_layout(suite: CipherSuite) -> None:
    """Each field of the struct is where C puts it: the IV's first 4 bytes are the salt of AES-GCM."""
    cipher_type, struct = STRUCTS[suite.name]
    keys = keys_of(suite)
    packed = CryptoInfo(keys).pack()
    assert len(packed) == ctypes.sizeof(struct)
    found = struct.from_buffer_copy(packed)
    assert (found.info.version, found.info.cipher_type) == (0x0304, cipher_type)
    assert bytes(getattr(found, "salt", b"")) + bytes(found.iv) == keys.iv
    assert (bytes(found.key), bytes(found.rec_seq)) == (keys.key, bytes(range(1, 9)))


@every_suite
def test_what_a_guest_passes(suite: CipherSuite) -> None:
    """The bytes of the C struct give the keys."""
    cipher_type, struct = STRUCTS[suite.name]
    guest = struct()
    guest.info.version, guest.info.cipher_type = 0x0304, cipher_type
    keys = keys_of(suite)
    salt = 12 - ctypes.sizeof(guest.iv)
    ctypes.memmove(guest.iv, keys.iv[salt:], 12 - salt)
    ctypes.memmove(guest.key, keys.key, len(keys.key))
    if isinstance(guest, AesGcm128 | AesGcm256):
        ctypes.memmove(guest.salt, keys.iv[:salt], salt)
    ctypes.memmove(guest.rec_seq, bytes(range(1, 9)), 8)
    assert CryptoInfo.parse(bytes(guest)).keys == keys


@given(st.sampled_from(list(SUITES.values())), st.data(), st.integers(0, (1 << 64) - 1), st.sampled_from(ORDERS))
def test_round_trip(suite: CipherSuite, data: st.DataObject, seq: int, byte_order: Literal["little", "big"]) -> None:
    """Whatever the keys, in both byte orders; a record's number is big-endian in both."""
    key = data.draw(st.binary(min_size=suite.key_length, max_size=suite.key_length))
    info = CryptoInfo(RecordKeys(suite, key, data.draw(st.binary(min_size=12, max_size=12)), seq))
    packed = info.pack(byte_order)
    assert CryptoInfo.parse(packed, byte_order) == info
    assert packed[:2] == (0x0304).to_bytes(2, byte_order)
    assert packed[-8:] == seq.to_bytes(8, "big")
    other: Literal["little", "big"] = "big" if byte_order == "little" else "little"
    with pytest.raises(OSError, match="version 0x0403"):
        CryptoInfo.parse(packed, other)


def test_the_hosts_byte_order_is_the_default() -> None:
    """As for the host's own setsockopt."""
    info = CryptoInfo(keys_of(SUITES["TLS_AES_128_GCM_SHA256"]))
    assert info.pack() == info.pack(sys.byteorder)
    assert CryptoInfo.parse(info.pack(sys.byteorder)) == info


def _info(version: int = 0x0304, cipher_type: int = 51, rest: int = 36) -> bytes:
    return version.to_bytes(2, "little") + cipher_type.to_bytes(2, "little") + bytes(rest)


WRONG = {
    "nothing": (b"", "0 bytes"),
    "less than the start": (b"\x04\x03\x33", "3 bytes"),
    "version 0": (_info(0), "version 0x0000"),
    "TLS 1.2": (_info(0x0303), "version 0x0303"),
    "TLS 1.4": (_info(0x0305), "version 0x0305"),
    "no cipher": (_info(cipher_type=0), "cipher type 0 "),
    "AES-CCM": (_info(cipher_type=53), "cipher type 53"),
    "SM4": (_info(cipher_type=55), "cipher type 55"),
    "the start only": (_info(rest=0), "40 bytes, not 4"),
    "AES-128, a byte short": (_info(rest=35), "40 bytes, not 39"),
    "AES-128, a byte long": (_info(rest=37), "40 bytes, not 41"),
    "AES-128 with the length of AES-256": (_info(rest=52), "40 bytes, not 56"),
    "AES-256 with the length of AES-128": (_info(cipher_type=52), "56 bytes, not 40"),
    "AES-256, a byte long": (_info(cipher_type=52, rest=53), "56 bytes, not 57"),
    "ChaCha20, a byte short": (_info(cipher_type=54, rest=51), "56 bytes, not 55"),
    "ChaCha20, a byte long": (_info(cipher_type=54, rest=53), "56 bytes, not 57"),
}


@pytest.mark.parametrize(("optval", "reason"), WRONG.values(), ids=WRONG)
def test_what_linux_refuses(optval: bytes, reason: str) -> None:
    """EINVAL, with the reason in its text."""
    with pytest.raises(OSError, match=reason) as caught:
        CryptoInfo.parse(optval, "little")
    assert caught.value.errno == errno.EINVAL


@given(st.binary(max_size=64))
def test_any_bytes(optval: bytes) -> None:
    """They are taken and given back as they were, or are EINVAL."""
    for start in (b"", _info(rest=0), _info(cipher_type=54, rest=0)):
        try:
            info = CryptoInfo.parse(start + optval, "little")
        except OSError as exc:
            assert exc.errno == errno.EINVAL
        else:
            assert info.pack("little") == start + optval


def test_keys_are_not_shown() -> None:
    """Not by repr."""
    assert "KKKK" not in repr(CryptoInfo(RecordKeys(SUITES["TLS_AES_128_GCM_SHA256"], b"K" * 16, b"I" * 12)))
