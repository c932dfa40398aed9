"""CryptoInfo: the bytes that a guest passes to ``setsockopt(SOL_TLS, TLS_RX or TLS_TX)``, and back.

Source: include/uapi/linux/tls.h, net/tls/tls_main.c (do_tls_setsockopt_conf); the layouts are the host byte order's.
"""

from __future__ import annotations

import errno
import struct
import sys

from attrs import frozen

from safemem.errors import error
from safemem.tls.keys import (
    TLS_AES_128_GCM_SHA256,
    TLS_AES_256_GCM_SHA384,
    TLS_CHACHA20_POLY1305_SHA256,
    CipherSuite,
    RecordKeys,
)

SOL_TLS = 282
TLS_TX = 1
TLS_RX = 2
TLS_TX_ZEROCOPY_RO = 3
TLS_RX_EXPECT_NO_PAD = 4
TLS_SET_RECORD_TYPE = 1
TLS_GET_RECORD_TYPE = 2
TLS_1_2_VERSION = 0x0303
TLS_1_3_VERSION = 0x0304


@frozen
class _Layout:
    cipher_type: int
    suite: CipherSuite
    iv: int
    salt: int

    @property
    def size(self) -> int:
        return 4 + self.iv + self.suite.key_length + self.salt + 8


_LAYOUTS = (
    _Layout(51, TLS_AES_128_GCM_SHA256, 8, 4),
    _Layout(52, TLS_AES_256_GCM_SHA384, 8, 4),
    _Layout(54, TLS_CHACHA20_POLY1305_SHA256, 12, 0),
)


@frozen
class CryptoInfo:
    """What is in a ``struct tls12_crypto_info_*`` of TLS 1.3: the keys of one direction."""

    keys: RecordKeys

    @classmethod
    def parse(cls, optval: bytes | bytearray | memoryview, byte_order: str = sys.byteorder) -> CryptoInfo:
        """Read the option's bytes.

        Raises OSError (EINVAL) where Linux does: too short, another version, an unknown cipher, a length that is not
        the cipher's. TLS 1.2, which Linux takes, is refused so too.
        """
        optval = bytes(optval)
        order = "<" if byte_order == "little" else ">"
        if len(optval) < 4:
            raise error(errno.EINVAL, f"{len(optval)} bytes hold no tls_crypto_info")
        version, cipher_type = struct.unpack_from(order + "HH", optval)
        if version != TLS_1_3_VERSION:
            raise error(errno.EINVAL, f"version {version:#06x} is not TLS 1.3")
        for layout in _LAYOUTS:
            if layout.cipher_type == cipher_type:
                break
        else:
            raise error(errno.EINVAL, f"cipher type {cipher_type} is not known")
        if len(optval) != layout.size:
            raise error(errno.EINVAL, f"{layout.suite.name} takes {layout.size} bytes, not {len(optval)}")
        iv_end = 4 + layout.iv
        key_end = iv_end + layout.suite.key_length
        iv, key, salt = optval[4:iv_end], optval[iv_end:key_end], optval[key_end : key_end + layout.salt]
        return cls(RecordKeys(layout.suite, bytes(key), bytes(salt + iv), int.from_bytes(optval[-8:], "big")))

    def pack(self, byte_order: str = sys.byteorder) -> bytes:
        """The option's bytes, as ``setsockopt`` takes them: for a real socket as well."""
        order = "<" if byte_order == "little" else ">"
        keys = self.keys
        (layout,) = (layout for layout in _LAYOUTS if layout.suite == keys.suite)
        head = struct.pack(order + "HH", TLS_1_3_VERSION, layout.cipher_type)
        salt, iv = keys.iv[: layout.salt], keys.iv[layout.salt :]
        return head + iv + keys.key + salt + keys.seq.to_bytes(8, "big")
