"""The libcrypto engine: OpenSSL's EVP calls through ctypes, in the very library that Python's own ssl uses.

A record costs four calls. They have no declared argument types: what never changes is a ready-made argument, the rest
pointers whose memory is written through a view; and with OpenSSL 3 the nonce of a GCM record is set as a parameter
instead of by starting anew. A record of 1 KiB takes 0.55 of what it does with declared types and integers (CPython
3.11, OpenSSL 3.0).

Source: EVP_EncryptInit(3), EVP_aes_128_gcm(3), OSSL_PARAM(3).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from safemem.safecopy import address_of
from safemem.tls.engines.engine import Engine, Open, Opener, Seal, Sealer
from safemem.tls.errors import EngineError
from safemem.tls.keys import RecordKeys
from safemem.tls.record import HEADER, TAG

_GET_TAG = 0x10
_SET_TAG = 0x11
_MIN_VERSION = 0x1010100F  # 1.1.1
_CIPHERS = {
    "aes-128-gcm": "EVP_aes_128_gcm",
    "aes-256-gcm": "EVP_aes_256_gcm",
    "chacha20-poly1305": "EVP_chacha20_poly1305",
}


class _Param(ctypes.Structure):
    """OSSL_PARAM."""

    _fields_ = (
        ("key", ctypes.c_char_p),
        ("data_type", ctypes.c_uint),
        ("data", ctypes.c_void_p),
        ("data_size", ctypes.c_size_t),
        ("return_size", ctypes.c_size_t),
    )


_OCTET_STRING = 5
_FIXED = 4  # how many bytes of a nonce the sequence number does not reach


def _candidates() -> Iterator[str]:
    """Where libcrypto may be, the surest first: names or paths for the dynamic linker."""
    import _ssl  # its dependencies are searched too, so this is the libcrypto that Python uses

    origin = getattr(_ssl, "__file__", None)
    if origin:
        yield origin
    if sys.platform == "win32":
        yield from ("libcrypto-3", "libcrypto-3-x64", "libcrypto-1_1", "libcrypto-1_1-x64")
        return
    maps = Path("/proc/self/maps")
    if maps.exists():
        for line in maps.read_text(encoding="ascii", errors="replace").splitlines():
            path = line.partition("/")[2]
            if "libcrypto" in path:
                yield "/" + path
                break
    if sys.platform != "darwin":  # there the unversioned libcrypto ends the process that loads it
        yield from ("libcrypto.so.3", "libcrypto.so.1.1")  # ctypes.util.find_library() would start a compiler


def _load() -> ctypes.PyDLL:
    # PyDLL keeps the GIL: releasing it costs more than a small record, and no call takes more than some microseconds.
    for name in _candidates():
        try:
            lib = ctypes.PyDLL(name)
            lib.OpenSSL_version_num.restype = ctypes.c_ulong
            lib.EVP_CIPHER_CTX_new.restype = ctypes.c_void_p
        except (OSError, AttributeError):
            continue
        if lib.OpenSSL_version_num() >= _MIN_VERSION:
            return lib
    raise EngineError("no libcrypto of OpenSSL 1.1.1 or later was found beside Python's ssl")


class LibcryptoEngine(Engine):
    """An Engine by libcrypto's EVP calls."""

    name = "libcrypto"

    def __init__(self) -> None:
        """Raises EngineError if there is no libcrypto that can be used."""
        try:
            self._lib = _load()
        except ImportError:
            raise EngineError("this Python has no ssl module, so its libcrypto cannot be found") from None

    def version(self) -> str:
        self._lib.OpenSSL_version.restype = ctypes.c_char_p
        version: bytes = self._lib.OpenSSL_version(0)
        return version.decode("ascii", "replace")

    def opener(self, keys: RecordKeys, buffer: memoryview) -> Opener:
        return LibcryptoOpener(self._lib, keys, buffer)

    def sealer(self, keys: RecordKeys, buffer: memoryview) -> Sealer:
        return LibcryptoSealer(self._lib, keys, buffer)


class _Context:
    """An EVP_CIPHER_CTX with a key. It goes with the last reference to it, so that no call meets a freed one."""

    pointer = ctypes.c_void_p()

    def __init__(self, lib: ctypes.PyDLL, keys: RecordKeys, encrypt: bool) -> None:
        self._lib = lib
        self.pointer = ctypes.c_void_p(lib.EVP_CIPHER_CTX_new())
        if not self.pointer:
            raise MemoryError
        make = getattr(lib, _CIPHERS[keys.suite.cipher])
        make.restype = ctypes.c_void_p
        cipher = ctypes.c_void_p(make())
        # As an argument it is quicker than the pointer itself, of which each call would make one.
        self.argument = ctypes.c_void_p.from_param(self.pointer.value)
        if lib.EVP_CipherInit_ex(self.pointer, cipher, None, keys.key, None, int(encrypt)) != 1:
            lib.ERR_clear_error()
            raise EngineError(f"libcrypto refuses {keys.suite.name}")

    def wipe(self) -> None:
        """Forget the key: the next use fails."""
        self._lib.EVP_CIPHER_CTX_reset(self.pointer)

    def __del__(self) -> None:
        if self.pointer:  # it was made
            self._lib.EVP_CIPHER_CTX_free(self.pointer)


def _pointer() -> tuple[ctypes.c_void_p, memoryview]:
    """A pointer argument, and the view to set it by."""
    pointer = ctypes.c_void_p()
    return pointer, memoryview(pointer).cast("B").cast("P")


def _beginning(
    lib: ctypes.PyDLL, context: _Context, keys: RecordKeys, nonce: ctypes.Array[ctypes.c_char]
) -> tuple[Callable[[], int], memoryview]:
    """What begins a record, with the nonce that lies at ``nonce``, and the view to set its tag's address by."""
    ctx = context.argument
    params = (_Param * 3)(_Param(b"tag", _OCTET_STRING, None, TAG))
    tag = ctypes.c_void_p.from_buffer(params, _Param.data.offset)
    tag_at = memoryview(tag).cast("B").cast("P")
    if not hasattr(lib, "EVP_DecryptInit_ex2"):
        start, control = lib.EVP_DecryptInit_ex, lib.EVP_CIPHER_CTX_ctrl  # OpenSSL 1.1.1

        def begin() -> int:
            started: int = start(ctx, None, None, None, nonce)
            return started and int(control(ctx, _SET_TAG, TAG, tag))

        return begin, tag_at
    if keys.suite.cipher.endswith("gcm"):
        nonce.raw = keys.iv
        fixed = (_Param * 2)(_Param(b"tlsivfixed", _OCTET_STRING, ctypes.addressof(nonce), _FIXED))
        if (
            lib.EVP_DecryptInit_ex2(ctx, None, None, nonce, None) == 1
            and lib.EVP_CIPHER_CTX_set_params(ctx, fixed) == 1
        ):
            # TLS 1.2's way: four bytes of the nonce stay, the others come with each record.
            params[1] = _Param(b"tlsivinv", _OCTET_STRING, ctypes.addressof(nonce) + _FIXED, len(nonce) - _FIXED)
            return partial(lib.EVP_CIPHER_CTX_set_params, ctx, ctypes.byref(params)), tag_at
        lib.ERR_clear_error()
    return partial(lib.EVP_DecryptInit_ex2, ctx, None, None, nonce, ctypes.byref(params)), tag_at


class LibcryptoOpener(Opener):
    """An Opener by libcrypto's EVP calls."""

    def __init__(self, lib: ctypes.PyDLL, keys: RecordKeys, buffer: memoryview) -> None:
        self._context = context = _Context(lib, keys, encrypt=False)
        self._buffer = buffer
        base = address_of(buffer)
        iv = int.from_bytes(keys.iv, "big")
        ctx = context.argument
        nonce = (ctypes.c_char * len(keys.iv))()
        nonce_at = memoryview(nonce).cast("B")
        begin, tag_at = _beginning(lib, context, keys, nonce)
        body, body_at = _pointer()
        out, out_at = _pointer()
        moved, no_more = ctypes.byref(ctypes.c_int()), ctypes.byref(ctypes.c_int())
        update, final = lib.EVP_DecryptUpdate, lib.EVP_DecryptFinal_ex
        clear_errors = lib.ERR_clear_error

        def open_record(
            seq: int, header: bytes, at: int, length: int, target: int, offset: int, _keep: object = context
        ) -> bool:
            place = base + at
            nonce_at[:] = (iv ^ seq).to_bytes(12, "big")
            body_at[0] = place
            tag_at[0] = place + length - TAG
            out_at[0] = target + offset
            authentic: bool = (
                begin() == 1
                and update(ctx, None, moved, header, HEADER) == 1
                and update(ctx, out, moved, body, length - TAG) == 1
                and final(ctx, no_more, moved) == 1
            )
            if not authentic:
                clear_errors()  # or the next SSL call of this thread would take them for its own
            return authentic

        self.open: Open = open_record

    def target(self, view: memoryview) -> int:
        return address_of(view)

    def close(self) -> None:
        self._context.wipe()


class LibcryptoSealer(Sealer):
    """A Sealer by libcrypto's EVP calls."""

    def __init__(self, lib: ctypes.PyDLL, keys: RecordKeys, buffer: memoryview) -> None:
        self._context = context = _Context(lib, keys, encrypt=True)
        self._buffer = buffer
        base = address_of(buffer)
        iv = int.from_bytes(keys.iv, "big")
        ctx = context.argument
        into, into_at = _pointer()
        out, out_at = _pointer()
        rest, rest_at = _pointer()
        tag, tag_at = _pointer()
        moved = ctypes.byref(ctypes.c_int())
        begin, update, final = lib.EVP_EncryptInit_ex, lib.EVP_EncryptUpdate, lib.EVP_EncryptFinal_ex
        control = lib.EVP_CIPHER_CTX_ctrl
        clear_errors = lib.ERR_clear_error

        def seal(
            seq: int, header: bytes, at: int, n: int, tail: int, source: int, offset: int, _keep: object = context
        ) -> None:
            place = base + at
            out_at[0] = place
            into_at[0] = source + offset
            rest_at[0] = place + n
            tag_at[0] = place + n + tail
            if not (
                begin(ctx, None, None, None, (iv ^ seq).to_bytes(12, "big")) == 1
                and update(ctx, None, moved, header, HEADER) == 1
                and (not n or update(ctx, out, moved, into, n) == 1)
                and update(ctx, rest, moved, rest, tail) == 1
                and final(ctx, tag, moved) == 1
                and control(ctx, _GET_TAG, TAG, tag) == 1
            ):
                clear_errors()
                raise ValueError("the keys of this Sealer were wiped")

        self.seal: Seal = seal

    def source(self, view: memoryview) -> int:
        return address_of(view)

    def close(self) -> None:
        self._context.wipe()
