"""UTF-16 strings in user memory, as guests of Windows and UEFI have them: code units in the guest's byte order.

A str has them as Python does: a pair of surrogates is one character, and one that is alone stays what it is.
"""

from __future__ import annotations

from hostarch import Arch
from safemem.buffers import check_count, check_int
from usermem.errors import NameTooLongError, cut_short
from usermem.memory_io import IO, arch_of, read_bytes, write_bytes
from usermem.scan import scan

_PAGE = 4096


def copy_utf16_in(io: IO, addr: int, maxlen: int, *, ignore_permissions: bool = False) -> str:
    """The string at addr up to the first NUL code unit, which is not included but counts against ``maxlen``, in units.

    As :func:`usermem.copy_string_in`: a NUL before a fault is found, and nothing past the page of the NUL is touched.

    Raises FaultError, or NameTooLongError if there is no NUL within maxlen units; both carry the whole units so far in
    ``partial``, as a string. ValueError if maxlen < 0.
    """
    addr, left = check_int(addr, "addr"), 2 * check_count(maxlen, "maxlen")
    data = bytearray()
    fault: OSError | None = None
    size = 128
    while left and fault is None:
        start = addr + len(data)
        searched = len(data) & -2
        n = min(size, left, _PAGE - start % _PAGE)
        try:
            data += scan(addr, 2, read_bytes, io, start, n, ignore_permissions=ignore_permissions)
        except OSError as exc:
            fault = exc.with_traceback(None)
            data += getattr(exc, "partial", b"")
        end = _find_nul(data, searched)
        if end >= 0:
            return _decoded(data[:end], arch_of(io))
        left -= n
        size = min(2 * size, _PAGE)
    string = _decoded(data[: len(data) & -2], arch_of(io))
    if fault is None:
        raise NameTooLongError(string)
    cut_short(fault, string)
    fault.transferred = len(data)  # type: ignore[attr-defined]
    try:
        raise fault
    finally:
        del fault


def copy_utf16_out(io: IO, addr: int, string: str, *, ignore_permissions: bool = False) -> int:
    """Store a string and a NUL code unit at addr, and return how many bytes that are.

    Raises FaultError with the bytes before it, which are stored, in ``partial``; ValueError if a NUL is in the string.
    """
    if "\0" in string:
        raise ValueError(f"string must not contain a NUL: {string!r}")
    data = (string + "\0").encode(_codec(arch_of(io)), "surrogatepass")
    return write_bytes(io, addr, data, ignore_permissions=ignore_permissions)


def _find_nul(data: bytearray, start: int) -> int:
    """Where the first NUL code unit at or behind an even offset is; -1 if there is none."""
    end = data.find(b"\0\0", start)
    while end > 0 and end & 1:
        end = data.find(b"\0\0", end + 1)
    return end


def _decoded(data: bytearray, arch: Arch) -> str:
    return data.decode(_codec(arch), "surrogatepass")


def _codec(arch: Arch) -> str:
    return "utf-16-le" if arch.byte_order == "little" else "utf-16-be"
