"""Work of many kinds on a host that refuses a system call: ``python refused_calls.py before|after``.

For each system call a child is forked that has it refused, before this package is imported (EPERM) or when all is in
use (ENOSYS); then it works. A line of JSON tells how that went: what was raised that is no OSError with an errno, wrong
bytes, what came out of destructors, descriptors that were left open, and which steps ended with an OSError.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import IO as File
from typing import Any

import seccomp

PAGE = 4096
RW, SHARED, PRIVATE, ANONYMOUS = 3, 1, 2, 0x20
DONTNEED, REMOVE, POPULATE_READ, POPULATE_WRITE = 4, 9, 22, 23

Step = tuple[str, Callable[[], None]]


def check(found: object, expected: object) -> None:
    """Raise AssertionError if they differ."""
    if found != expected:
        raise AssertionError(f"{found!r} is not {expected!r}")


def memory_steps(space: Any) -> Iterator[Step]:
    """Anonymous memory, private and shared: it begins as zeros, and is zero again when it was given up."""

    def anonymous(flags: int, advice: int) -> None:
        for _ in range(3):
            at = space.mmap(0, 32 * PAGE, RW, flags | ANONYMOUS)
            check(space.read_bytes(at, 32 * PAGE), bytes(32 * PAGE))
            space.copy_out(at, b"secret" * PAGE)
            check(space.copy_in(at, bytearray(6)), 6)
            check(len(space.mincore(at, 32 * PAGE)), 32)
            try:
                space.madvise(at, PAGE, advice)
                check(space.read_bytes(at, 6), bytes(6))
                space.madvise(at, 2 * PAGE, POPULATE_WRITE)
            finally:
                check(space.read_bytes(at + 6 * 1024, 6), b"secret")
                space.munmap(at, 32 * PAGE)
                gc.collect()

    yield "private", lambda: anonymous(PRIVATE, DONTNEED)
    yield "shared", lambda: anonymous(SHARED, REMOVE)

    def own_pages() -> None:
        from usermem import SharedMemory

        memory = SharedMemory(2 * PAGE)
        shared = space.map_object(0, 2 * PAGE, RW, SHARED, memory)
        space.copy_out(shared, b"shared")
        at = space.map_object(0, 2 * PAGE, RW, PRIVATE, memory)
        space.copy_out(at, b"own")
        space.madvise(at, PAGE, DONTNEED)
        check(space.read_bytes(at, 6), b"shared")

    yield "own pages", own_pages


def file_steps(space: Any, file: File[bytes]) -> Iterator[Step]:
    """A file: what it holds is shown, written, and back after MADV_DONTNEED; beyond its end there is a fault."""
    from usermem import FaultError

    def mapped(flags: int) -> None:
        at = space.mmap(0, 3 * PAGE, RW, flags, file.fileno(), 0)
        check(space.read_bytes(at, 4), b"file")
        space.copy_out(at + 10, b"written")
        check(len(space.mincore(at, 3 * PAGE)), 3)
        try:
            space.read_bytes(at + 2 * PAGE - 2, 4)
        except FaultError as fault:
            check((fault.transferred, fault.reason.name), (2, "BEYOND_FILE"))
        if flags == SHARED:
            space.msync(at, PAGE, 4)
            space.madvise(at, PAGE, REMOVE)
        else:
            space.madvise(at, PAGE, DONTNEED)
            check(space.read_bytes(at + 12, 3), b"...")
        space.madvise(at, PAGE, POPULATE_READ)

    yield "private file", lambda: mapped(PRIVATE)

    def shared() -> None:
        try:
            mapped(SHARED)
        finally:
            os.pwrite(file.fileno(), b"file".ljust(2 * PAGE, b"."), 0)

    yield "file", shared

    def sealed() -> None:
        import fcntl

        fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, PAGE)
            at = space.mmap(0, PAGE, RW, SHARED, fd, 0)
            fcntl.fcntl(fd, 1033, 16)  # F_ADD_SEALS, F_SEAL_FUTURE_WRITE
            space.copy_out(at, b"written")
            check((space.read_bytes(at, 7), os.pread(fd, 7, 0)), (b"written", b"written"))
            space.munmap(at, PAGE)
        finally:
            os.close(fd)

    yield "sealed file", sealed


def stream_steps(space: Any) -> Iterator[Step]:
    """Descriptors and datagrams: no byte is lost that could be read."""
    from hostarch import AddrRange, AddrRangeSeq
    from safemem import FDReader, FDWriter

    at = space.mmap(0, PAGE, RW, PRIVATE | ANONYMOUS)
    ranges = AddrRangeSeq.of(AddrRange(at, at + 9))

    def pipe() -> None:
        ends = os.pipe()
        try:
            space.copy_out(at, b"some data")
            check(space.copy_in_to(ranges, FDWriter(ends[1])), 9)
            check(space.copy_out_from(ranges, FDReader(ends[0])), 9)
            check(space.read_bytes(at, 9), b"some data")
        finally:
            for fd in ends:
                os.close(fd)

    yield "pipe", pipe

    def datagrams() -> None:
        import socket

        from safemem import Block, BlockSeq
        from safemem.datagram import DatagramSocket, MessageBatch

        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            with DatagramSocket(pair[0]) as there, DatagramSocket(pair[1]) as here:
                memory = [bytearray(4) for _ in range(8)]
                out = MessageBatch([BlockSeq.of(Block(b"m%d" % i)) for i in range(8)], family=here.family)
                arriving = MessageBatch([BlockSeq.of(Block(each)) for each in memory], family=here.family)
                check(there.sendmmsg(out), 8)
                got: list[bytes] = []
                while len(got) < 8:
                    n = here.recvmmsg(arriving)
                    got += [bytes(each[:2]) for each in memory[:n]]
                check(got, [b"m%d" % i for i in range(8)])
        finally:
            for sock in pair:
                sock.close()

    yield "datagrams", datagrams


class Object:
    """A simulator's file of zeros."""

    def size(self) -> int:
        return 1 << 20

    def read_at(self, offset: int, dst: memoryview) -> int:
        return 0

    def write_at(self, offset: int, src: memoryview) -> None:
        check((offset, bytes(src[:5])), (0, b"write"))


def work(file: File[bytes], wrong: list[str]) -> list[str]:
    """Do all of it in one space, and return which steps ended with an OSError that has an errno; all else is wrong."""
    from usermem import AddressSpace

    gc.freeze()  # what was imported is nothing that the collector, which is called often, need look at
    space, failed = AddressSpace(), []

    def written_object() -> None:
        at = space.map_object(0, PAGE, RW, SHARED, Object())
        space.copy_out(at, b"write")
        check(space.mincore(at, PAGE), b"\1")

    for name, step in (
        *memory_steps(space),
        *file_steps(space, file),
        *stream_steps(space),
        ("object", written_object),
    ):
        try:
            step()
        except OSError as exc:
            failed.append(name)
            if not exc.errno:
                wrong.append(traceback.format_exc())
        except Exception:
            wrong.append(traceback.format_exc())
    space._check()
    space.close()
    gc.collect()
    return failed


def descriptors() -> list[str] | None:
    """The descriptors that are open; None if the host does not tell."""
    try:
        return sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - one call
    except OSError:
        return None


def trial(name: str, code: int, when: str, file: File[bytes]) -> dict[str, object]:
    """What went wrong in this process with a call refused."""
    wrong: list[str] = []
    if when == "after":
        work(file, wrong)
        assert not wrong, wrong
    sys.unraisablehook = lambda hook: wrong.append(f"in a destructor: {hook.exc_value!r} {hook.object!r}")
    before = descriptors()
    seccomp.refuse(name, code=code)
    if when == "before":
        work(file, wrong)  # some that is made once, and kept
        before = descriptors()
    failed = [*work(file, wrong), *work(file, wrong)]
    after = descriptors()
    # A file that waits for others to unlock it, and a memory file, are kept.
    if name != "close" and after is not None and before is not None and len(after) > len(before) + 2:
        wrong.append(f"descriptors {before} became {after}")
    return {"call": name, "wrong": wrong, "failed": sorted(set(failed))}


def main(when: str, calls: list[str]) -> None:
    """Print a line for each call."""
    if when == "after":
        import safemem.datagram  # noqa: F401
        import usermem  # noqa: F401
    code = errno.EPERM if when == "before" else errno.ENOSYS
    for name in calls:
        with tempfile.TemporaryFile(buffering=0) as file, tempfile.TemporaryFile("w+") as report:
            file.write(b"file".ljust(2 * PAGE, b"."))
            child = os.fork()
            if not child:
                try:
                    found = json.dumps(trial(name, code, when, file))
                except BaseException:
                    found = json.dumps({"call": name, "wrong": [traceback.format_exc()], "failed": []})
                try:
                    report.write(found)
                    report.flush()
                finally:
                    os._exit(0)
            _, status = os.waitpid(child, 0)
            report.seek(0)
            wrong = [f"no report, status {status}"]
            print(report.read() or json.dumps({"call": name, "wrong": wrong, "failed": []}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
