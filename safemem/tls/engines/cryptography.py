"""The cryptography engine: the AEADs of the ``cryptography`` package, as far as they write into buffers."""

from __future__ import annotations

from typing import Any

from safemem.tls.engines.engine import Engine, Open, Opener, Seal, Sealer
from safemem.tls.errors import EngineError
from safemem.tls.keys import RecordKeys
from safemem.tls.record import TAG


class CryptographyEngine(Engine):
    """An Engine by the cryptography package."""

    name = "cryptography"

    def __init__(self) -> None:
        """Raises EngineError if the package is not there, or too old."""
        try:
            import cryptography
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers import aead
        except ImportError:
            raise EngineError("the cryptography package is not installed") from None
        if not hasattr(aead.AESGCM, "decrypt_into"):
            raise EngineError(f"cryptography {cryptography.__version__} cannot decrypt into a buffer: install a newer")
        self._aead: Any = aead
        self._invalid: type[Exception] = InvalidTag
        self._version = str(cryptography.__version__)

    def version(self) -> str:
        return f"cryptography {self._version}"

    def _cipher(self, keys: RecordKeys) -> Any:
        chacha = keys.suite.cipher == "chacha20-poly1305"
        return (self._aead.ChaCha20Poly1305 if chacha else self._aead.AESGCM)(keys.key)

    def opener(self, keys: RecordKeys, buffer: memoryview) -> Opener:
        return CryptographyOpener(self._cipher(keys), self._invalid, keys, buffer)

    def sealer(self, keys: RecordKeys, buffer: memoryview) -> Sealer:
        return CryptographySealer(self._cipher(keys), keys, buffer)


class CryptographyOpener(Opener):
    """An Opener by the cryptography package."""

    def __init__(self, cipher: Any, invalid: type[Exception], keys: RecordKeys, buffer: memoryview) -> None:
        decrypt_into = cipher.decrypt_into
        iv = int.from_bytes(keys.iv, "big")

        def open_record(seq: int, header: bytes, at: int, length: int, target: memoryview, offset: int) -> bool:
            try:
                decrypt_into(
                    (iv ^ seq).to_bytes(12, "big"),
                    buffer[at : at + length],
                    header,
                    target[offset : offset + length - TAG],
                )
            except invalid:
                return False
            return True

        self.open: Open = open_record

    def target(self, view: memoryview) -> memoryview:
        return view

    def close(self) -> None:
        """Refuse later calls. The key itself is the package's, and goes with it."""
        self.open = _closed


class CryptographySealer(Sealer):
    """A Sealer by the cryptography package."""

    def __init__(self, cipher: Any, keys: RecordKeys, buffer: memoryview) -> None:
        encrypt_into = cipher.encrypt_into
        iv = int.from_bytes(keys.iv, "big")

        def seal(seq: int, header: bytes, at: int, n: int, tail: int, source: memoryview, offset: int) -> None:
            end = at + n + tail
            if offset != at or source is not buffer:
                buffer[at : at + n] = source[offset : offset + n]  # one call takes one piece, and works in place
            encrypt_into((iv ^ seq).to_bytes(12, "big"), buffer[at:end], header, buffer[at : end + TAG])

        self.seal: Seal = seal

    def source(self, view: memoryview) -> memoryview:
        return view

    def close(self) -> None:
        self.seal = _closed


def _closed(*args: object) -> Any:
    raise ValueError("the keys were wiped")
