"""The rows of ``memories``: another process's memory against the raw system calls, and against a byte at a time."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator

from hostarch import AddrRangeSeq
from mapping_rows import MappingRow
from timing import best, loop
from usermem import copy_in_vec, copy_string_in
from usermem.memories import ProcessIO

_MIB = 1 << 20
_STRING = 300
_CHILD = f"""
import ctypes
memory = ctypes.create_string_buffer(b"x" * {_STRING} + b"\\0" + b"y" * {_MIB})
print(ctypes.addressof(memory), flush=True)
input()
"""


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _raw(name: str, pid: int, buffer: bytearray, addr: int) -> dict[str, object]:
    """The names of ``call(pid, local, 1, remote, 1, 0)``, all made before."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    local = _Iovec(ctypes.addressof(ctypes.c_char.from_buffer(buffer)), len(buffer))
    remote = _Iovec(addr, len(buffer))
    names = {"local": ctypes.byref(local), "remote": ctypes.byref(remote), "kept": (local, remote, buffer)}
    return {"call": function, "pid": pid, **names}


def rows(only: str) -> Iterator[MappingRow]:
    """The rows whose name contains ``only``."""
    with subprocess.Popen([sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        addr = int(child.stdout.readline())
        with ProcessIO(child.pid) as io:
            yield from (row for row in _rows(io, addr) if only in row.name)
        child.communicate(b"\n")


def _rows(io: ProcessIO, addr: int) -> Iterator[MappingRow]:
    buffer = bytearray(_MIB)
    call = "call(pid, local, 1, remote, 1, 0)"
    for method, name in (("copy_in", "process_vm_readv"), ("copy_out", "process_vm_writev")):
        start = addr + _STRING + 1
        runs = {
            "ours": loop(f"io.{method}(start, buffer)", {"io": io, "start": start, "buffer": buffer}),
            "raw": loop(call, _raw(name, io.pid, buffer, start)),
        }
        times = best(runs, rounds=2000, slice_s=0.0003)  # short turns: less of others in between
        yield MappingRow(f"{method} 1 MiB", f"over one raw {name}", times["ours"] / times["raw"], 1.3)

    names = {"io": io, "addr": addr, "copy_string_in": copy_string_in}
    byte_wise = "at = addr\nwhile io.read_bytes(at, 1) != b'\\0':\n    at += 1"
    raw_bytes = (
        f"while True:\n    {call}\n    remote_iovec.base += 1\n"
        "    if not buffer[0]:\n        break\nremote_iovec.base = addr"
    )
    raw = _raw("process_vm_readv", io.pid, one := bytearray(1), addr)
    kept = raw["kept"]
    assert isinstance(kept, tuple)
    runs = {
        "ours": loop("copy_string_in(io, addr, 4096)", names),
        "bytes": loop(byte_wise, names),
        "raw": loop(raw_bytes, raw | {"remote_iovec": kept[1], "buffer": one, "addr": addr}),
    }
    times = best(runs, rounds=20)
    for who, what in (("bytes", "read_bytes of one byte"), ("raw", "raw process_vm_readv of one byte")):
        ratio = times[who] / times["ours"]
        yield MappingRow(f"string of {_STRING} B, {who}", f"{what} after the other, over ours", ratio, 20, more=True)

    ars = AddrRangeSeq.from_pairs([x for i in range(16) for x in (addr + 4096 * i, 64)])
    names = {"io": io, "ars": ars, "pairs": list(ars.pairs()), "buffer": bytearray(16 * 64), "one": bytearray(64)}
    runs = {
        "ours": loop("copy_in_vec(io, ars, buffer)", names | {"copy_in_vec": copy_in_vec}),
        "each": loop("for start, _ in pairs:\n    io.copy_in(start, one)", names),
    }
    times = best(runs, rounds=40)
    yield MappingRow("16 ranges", "copy_in of each, over one call", times["each"] / times["ours"], 2.5, more=True)
