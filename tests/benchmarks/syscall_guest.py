"""The guest of ``syscall``: an address space of a MiB, and all that the statements of its rows name.

A name means the same in each statement: ``s`` is the guest's memory, which begins at ``b``; ``mm`` and ``mv`` are a
mapping of the host's with the same content; ``uc`` and ``ql`` are an engine and an emulator with the same content.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
import tempfile
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import naive
import peers
import safemem
import usermem
from hostarch import AddrRangeSeq, mman
from safemem.datagram import DatagramSocket
from usermem import AddressSpace, messages

SIZE = 1 << 20
RW = mman.PROT_READ | mman.PROT_WRITE
ANON = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
_ARGS = (b"ls", b"-l", b"--color=auto", b"/usr/share/doc", b"-h")
_SEQ_CST = 5

Names = dict[str, Any]


def names() -> Names:
    """Everything, by name; an engine, an emulator or a libatomic that is not there is left out."""
    space = AddressSpace()
    b = space.mmap(0, SIZE, RW, ANON)
    space.zero_out(b, SIZE)
    found: Names = {"s": space, "b": b, "RW": RW, "R": mman.PROT_READ, "ANON": ANON, "AddrRangeSeq": AddrRangeSeq}
    for module in (safemem, usermem, messages):
        found |= {name: getattr(module, name) for name in module.__all__}
    found |= {name: value for name, value in vars(naive).items() if name.startswith("naive_")}
    found |= _values(space, b) | _tables(space, b) | _strings(space, b) | _messages(space, b) | _other()
    return found | _descriptors() | _atomics() | _content(b, space.read_bytes(b, SIZE))


def _values(space: AddressSpace, b: int) -> Names:
    return {
        "at": b + 64,
        "word": b + 0x6000,
        "b64": bytes(range(64)),
        "ba64": bytearray(64),
        "qq": struct.Struct("<qq"),
        "u64": struct.Struct("<Q"),
        "from_bytes": int.from_bytes,
        "iter_unpack": struct.iter_unpack,
        "file": usermem.IOReadWriter(space, b + 0x7000),
        "file_at": b + 0x7000,
    }


def _tables(space: AddressSpace, b: int) -> Names:
    """``iov3``: 600 bytes in three ranges, one of them over a page's edge. ``iov16``: every second of 32 pages."""
    iov3, iov16 = b + 0x40100, b + 0xC8000
    space.copy_out(iov3, struct.pack("<6Q", b + 4096, 100, b + 12192, 200, b + 0x8000, 300))
    space.copy_out(iov16, b"".join(struct.pack("<2Q", b + 0x10000 + 0x2000 * i, 4096) for i in range(16)))
    return {"iov3": iov3, "iov16": iov16, "page": AddrRangeSeq.from_pairs([b + 0x9000, 4096]), "page_at": b + 0x9000}


def _strings(space: AddressSpace, b: int) -> Names:
    argv, at, nums = b + 0x45000, b + 0x45100, b + 0x45800
    pointers = []
    for arg in _ARGS:
        pointers.append(at)
        at += space.copy_out(at, arg + b"\0")
    space.copy_out(argv, struct.pack("<6Q", *pointers, 0))
    space.copy_out(nums, b"12 -7 400\n")
    return {"argv": argv, "nums": nums, "q5": struct.Struct("<5Q")}


def _messages(space: AddressSpace, b: int) -> Names:
    """``msg``, a struct msghdr with two iovecs of 200 bytes together; a UDP socket ``sock`` and its ``peer``."""
    msg, iov = b + 0x4A100, b + 0x4A000
    space.copy_out(iov, struct.pack("<4Q", b + 0x4B000, 120, b + 0x4C000, 80))
    space.copy_out(msg, struct.pack("<Qi4xQQQQi4x", 0, 0, iov, 2, 0, 0, 0))
    sock, peer = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    sock.bind(("127.0.0.1", 0))
    peer.connect(sock.getsockname())
    return {"msg": msg, "sock": sock, "peer": peer, "rx": DatagramSocket(sock), "tx": DatagramSocket(peer)}


def drain(sock: socket.socket) -> None:
    """Throw away what waits on a socket."""
    with suppress(BlockingIOError):
        while True:
            sock.recv(65536, socket.MSG_DONTWAIT)


def _other() -> Names:
    """Another guest, ``other``, whose memory begins at ``ob``."""
    other = AddressSpace()
    ob = other.mmap(0, SIZE, RW, ANON)
    other.zero_out(ob, SIZE)
    return {"other": other, "other_page": AddrRangeSeq.from_pairs([ob + 0x9000, 4096]), "other_page_at": ob + 0x9000}


def _descriptors() -> Names:
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    file.write(bytes(range(256)) * (SIZE // 256))
    calls = {f"os_{name}": getattr(os, name) for name in ("read", "write", "pread", "readv", "writev", "preadv")}
    zero, null = os.open("/dev/zero", os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)
    return {"zero_fd": zero, "null_fd": null, "opened": file, "fd": file.fileno(), "lseek": os.lseek, **calls}


def _atomics() -> Names:
    """libatomic itself, as one calls it by ctypes, on the word at ``host``; nothing where it is not there."""
    try:
        library = ctypes.PyDLL("libatomic.so.1")
    except OSError:
        return {}
    pointer, uint, order = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int
    cas, swap = library["__atomic_compare_exchange_4"], library["__atomic_exchange_4"]
    load = library["__atomic_load_4"]
    cas.restype, cas.argtypes = ctypes.c_bool, (pointer, pointer, uint, order, order)
    swap.restype, swap.argtypes = uint, (pointer, uint, order)
    load.restype, load.argtypes = uint, (pointer, order)
    word = uint(0)
    calls: Names = {"atomic_cas": cas, "atomic_swap": swap, "atomic_load": load, "seq_cst": _SEQ_CST}
    return calls | {"host_word": word, "host": ctypes.addressof(word), "c_uint32": uint, "byref": ctypes.byref}


def _content(b: int, data: bytes) -> Names:
    """The same content outside the guest: in the host's memory, in Unicorn and in Qiling."""
    mm = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mm[:] = data
    found: Names = {"mm": mm, "mv": memoryview(mm), "mv2": memoryview(mmap.mmap(-1, SIZE)), "mmap": mmap.mmap}
    uc, ql = peers.unicorn(b, data), peers.qiling(b, data)
    if uc is not None:
        found |= {"uc": uc, "ucs": SimpleNamespace(read_bytes=uc.mem_read, copy_out=uc.mem_write)}
    return found if ql is None else found | {"ql": ql}
