"""The rows of ``syscall``: work of a system call's size and shape, each against a reference of its own.

``naive`` is what a user writes by hand over the same memory (``naive.py``), ``raw`` the host's own call on a bare
mapping, ``libatomic`` its function called by ctypes, ``unicorn`` the engine's call, ``before`` the tree that this work
began with, ``without`` the same call where fewer pages are cached. Other contenders are timed beside.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from syscall_guest import Names, drain, names
from syscall_row import Row, row, runs
from syscall_space_rows import before_rows, mapping_rows, tls_rows
from timing import Prepared, Run


def rows(only: str) -> Iterator[Row]:
    """Those whose name contains ``only``."""
    known = names()
    parts = (_streams, _vectors, _values, _atomics, _strings, _ranges, _messages, tls_rows, mapping_rows, before_rows)
    return (found for part in parts for found in part(known) if only in found.name)


def _streams(known: Names) -> Iterator[Row]:
    """read(2), write(2) and pread(2), by the function and by IOSequence and a Reader or Writer."""
    case = partial(row, known)
    for size, n in (("64 B", 64), ("4 KiB", 4096)):
        others = {
            "naive": f"s.copy_out(b, os_read(zero_fd, {n}))",
            "raw": f"os_readv(zero_fd, [mv[0:{n}]])",
            "unicorn": f"uc.mem_write(b, os_read(zero_fd, {n}))",
            "qiling": f"ql.mem.write(b, os_read(zero_fd, {n}))",
        }
        yield case(f"read_fd {size}", "naive", 1.6, ours=f"read_fd(s, zero_fd, b, {n})", **others)
        ours = f"single_io_sequence(s, b, {n}).copy_out_from(FDReader(zero_fd))"
        yield case(f"read {size}", "naive", 3.2, ours=ours, **others)
        others = {
            "naive": f"os_write(null_fd, s.read_bytes(b, {n}))",
            "raw": f"os_write(null_fd, mv[0:{n}])",
            "unicorn": f"os_write(null_fd, uc.mem_read(b, {n}))",
            "qiling": f"os_write(null_fd, ql.mem.read(b, {n}))",
        }
        yield case(f"write_fd {size}", "naive", 1.6, ours=f"write_fd(s, null_fd, b, {n})", **others)
        ours = f"single_io_sequence(s, b, {n}).copy_in_to(FDWriter(null_fd))"
        yield case(f"write {size}", "naive", 3.2, ours=ours, **others)
    others = {"naive": "s.copy_out(b, os_pread(fd, 4096, 8192))", "raw": "os_preadv(fd, [mv[0:4096]], 8192)"}
    yield case("pread_fd 4 KiB", "naive", 2.4, ours="pread_fd(s, fd, b, 4096, 8192)", **others)
    ours = "single_io_sequence(s, b, 4096).copy_out_from(FDReader(fd, 8192))"
    yield case("pread 4 KiB", "naive", 2.4, ours=ours, **others)


def _vectors(known: Names) -> Iterator[Row]:
    """readv(2) and writev(2), by the function and by IOSequence and a Reader or Writer."""
    case = partial(row, known)
    three = "[mv[4096:4196], mv[12192:12392], mv[0x8000:0x812c]]"
    back = "lseek(fd, 0, 0); "
    others = {
        "naive": back + "naive_readv(s, fd, iov3, 3)",
        "raw": back + f"os_readv(fd, {three})",
        "unicorn": back + "naive_readv(ucs, fd, iov3, 3)",
    }
    yield case("readv_fd of 3", "naive", 1.4, ours=back + "readv_fd(s, fd, iov3, 3)", **others)
    ours = back + "iovecs_io_sequence(s, iov3, 3).copy_out_from(FDReader(fd))"
    yield case("readv of 3", "naive", 1.4, ours=ours, **others)
    others = {
        "naive": "naive_writev(s, null_fd, iov3, 3)",
        "raw": f"os_writev(null_fd, {three})",
        "unicorn": "naive_writev(ucs, null_fd, iov3, 3)",
    }
    yield case("writev_fd of 3", "naive", 1.9, ours="writev_fd(s, null_fd, iov3, 3)", **others)
    ours = "iovecs_io_sequence(s, iov3, 3).copy_in_to(FDWriter(null_fd))"
    yield case("writev of 3", "naive", 1.9, ours=ours, **others)
    others = {
        "naive": "naive_readv(s, zero_fd, iov16, 16)",
        "raw": "os_readv(zero_fd, [mv[i:i + 4096] for i in range(0x10000, 0x30000, 0x2000)])",
        "unicorn": "naive_readv(ucs, zero_fd, iov16, 16)",
    }
    yield case("readv_fd of 16 pages", "naive", 0.8, ours="readv_fd(s, zero_fd, iov16, 16)", **others)
    ours = "iovecs_io_sequence(s, iov16, 16).copy_out_from(FDReader(zero_fd))"
    yield case("readv of 16 pages", "naive", 0.8, ours=ours, **others)


def _values(known: Names) -> Iterator[Row]:
    """Zeros, a struct, an integer, and a fault."""
    case = partial(row, known)
    yield case(
        "zero_out 64 B",
        "naive",
        1.0,
        ours="s.zero_out(at, 64)",
        naive="s.copy_out(at, bytes(64))",
        raw="mm[64:128] = bytes(64)",
    )
    yield case(
        "struct in",
        "naive",
        1.3,
        ours="copy_struct_in(s, at, qq)",
        naive="qq.unpack(s.read_bytes(at, 16))",
        raw="qq.unpack_from(mm, 64)",
        unicorn="qq.unpack(uc.mem_read(at, 16))",
    )
    yield case(
        "uint64 in",
        "naive",
        1.6,
        ours="copy_uint64_in(s, at)",
        naive="from_bytes(s.read_bytes(at, 8), 'little')",
        raw="u64.unpack_from(mm, 64)",
        unicorn="u64.unpack(uc.mem_read(at, 8))",
        qiling="ql.mem.read_ptr(at, 8)",
    )
    yield case(
        "fault to -EFAULT",
        "naive",
        10.0,
        ours="try: s.copy_out(16, b64)\nexcept OSError as e: linux_result(e)",
        naive="try: {}[1]\nexcept KeyError as e: -14",
        raw="try: raise OSError(14, 'Bad address')\nexcept OSError as e: -e.errno",
        unicorn="try: uc.mem_write(16, b64)\nexcept Exception as e: -14",
    )


def _atomics(known: Names) -> Iterator[Row]:
    """A futex word, against libatomic; the naive way is not atomic."""
    case = partial(row, known)
    yield case(
        "cas uint32",
        "libatomic",
        2.0,
        ours="s.compare_and_swap_uint32(word, 0, 0)",
        libatomic="e = c_uint32(0); atomic_cas(host, byref(e), 0, seq_cst, seq_cst); e.value",
        naive="naive_cas(s, word, 0, 0)",
    )
    yield case(
        "swap uint32",
        "libatomic",
        2.5,
        ours="s.swap_uint32(word, 0)",
        libatomic="atomic_swap(host, 0, seq_cst)",
        naive="s.read_bytes(word, 4); s.copy_out(word, (0).to_bytes(4, 'little'))",
    )
    yield case(
        "load uint32",
        "libatomic",
        3.0,
        ours="s.load_uint32(word)",
        libatomic="atomic_load(host, seq_cst)",
        naive="from_bytes(s.read_bytes(word, 4), 'little')",
    )


def _strings(known: Names) -> Iterator[Row]:
    """Strings."""
    case = partial(row, known)
    yield case(
        "argv of 5",
        "naive",
        1.3,
        ours="copy_in_vector(s, argv, 131072, 2097152)",
        naive="naive_argv(s, argv)",
        raw=r"[mm[p - b:mm.find(b'\0', p - b)] for p in q5.unpack_from(mm, 0x45000)]",
        unicorn="naive_argv(ucs, argv)",
    )
    yield case(
        "3 int32 strings",
        "naive",
        5.0,
        ours="copy_int32_strings_in_vec(s, AddrRangeSeq.from_pairs([nums, 10]), 8)",
        naive="list(map(int, s.read_bytes(nums, 10).split()))",
        raw="list(map(int, mm[0x45800:0x4580a].split()))",
    )


def _ranges(known: Names) -> Iterator[Row]:
    """Tables of ranges, a file-like view, and two guests."""
    case = partial(row, known)
    yield case(
        "copy_in_iovecs of 16",
        "naive",
        3.5,
        ours="copy_in_iovecs(s, iov16, 16)",
        naive="list(iter_unpack('<QQ', s.read_bytes(iov16, 256)))",
        raw="list(iter_unpack('<QQ', mm[0xc8000:0xc8100]))",
    )
    yield case(
        "IOReadWriter.readinto 64 B",
        "naive",
        3.0,
        ours="file.addr = file_at; file.readinto(ba64)",
        naive="ba64[:] = s.read_bytes(file_at, 64)",
        raw="ba64[:] = mm[0x7000:0x7040]",
    )
    yield case(
        "IOReadWriter.write 64 B",
        "naive",
        3.0,
        ours="file.addr = file_at; file.write(b64)",
        naive="s.copy_out(file_at, b64)",
        raw="mm[0x7000:0x7040] = b64",
    )
    yield case(
        "copy_between 4 KiB",
        "naive",
        4.0,
        ours="copy_between(other, other_page, s, page)",
        naive="other.copy_out(other_page_at, s.read_bytes(page_at, 4096))",
        raw="mv2[0x9000:0xa000] = mv[0x9000:0xa000]",
        unicorn="uc.mem_write(page_at, bytes(uc.mem_read(b, 4096)))",
    )


def _messages(known: Names) -> Iterator[Row]:
    """Datagrams of 200 bytes in two iovecs; those to be received wait on the socket before the clock starts."""
    sock, send = known["sock"], known["peer"].send

    def sent(n: int) -> None:
        drain(sock)
        for _ in range(n):
            send(bytes(200))

    def case(name: str, bar: float, prepare: Run, **statements: str) -> Row:
        return Row(name, "naive", bar, {who: Prepared(run, prepare) for who, run in runs(known, statements).items()})

    yield case(
        "recvmsg",
        4.0,
        sent,
        ours="recvmsg_into_user(s, rx, msg)",
        naive="naive_recvmsg(s, sock, msg)",
        raw="sock.recvmsg_into([mv[0:120], mv[200:280]], 0, 0)",
    )
    yield case(
        "sendmsg",
        2.6,
        lambda _: drain(sock),
        ours="sendmsg_from_user(s, tx, msg)",
        naive="naive_sendmsg(s, peer, msg)",
        raw="peer.sendmsg([mv[0:120], mv[200:280]])",
    )
