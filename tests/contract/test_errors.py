"""The errors of user memory: what they say, that they survive pickling and copying, and what a system call returns."""

from __future__ import annotations

import copy
import errno
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from attrs import frozen

from hostarch import NO_ACCESS, READ, READ_WRITE, WRITE, AddrRange, AddrRangeSeq, mman
from patchy_io import PatchyIO
from safemem import EndOfBlockSeqError, FromIOReader, HostFaultError, TransferError
from scripted_files import GivesParts
from usermem import (
    AddressSpace,
    BytesIO,
    FaultError,
    FaultReason,
    InvalidIntegerError,
    IOReadWriter,
    NameTooLongError,
    bytes_io_sequence,
    check_io_range,
    copy_in_iovecs,
    copy_in_vec,
    copy_in_vector,
    copy_int32_strings_in_vec,
    copy_out_vec,
    copy_string_in,
    copy_uint32_in,
    linux_result,
    single_io_sequence,
)
from usermem.testing.faulty_memory import Fault, FaultyMemory

PAGE = 4096
FLAGS = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
RW = mman.PROT_READ | mman.PROT_WRITE

# From the kernel's include/uapi/asm-generic/siginfo.h.
SEGV_MAPERR, SEGV_ACCERR, BUS_ADRALN, BUS_ADRERR = 1, 2, 1, 2


def test_fields() -> None:
    """A FaultError is an OSError with EFAULT that knows where, how and why, and how far the call got."""
    fault = FaultError(0x1234, READ, FaultReason.UNMAPPED, 5)
    assert isinstance(fault, TransferError)
    assert isinstance(fault, OSError)
    assert (fault.errno, fault.address, fault.access, fault.reason) == (errno.EFAULT, 0x1234, READ, "unmapped")
    assert (fault.transferred, fault.partial) == (5, None)
    assert FaultError(0, WRITE, FaultReason.INJECTED).transferred == 0


def test_text() -> None:
    """The text is the errno's, with the address in hex, the access, the reason, and the count if there is one."""
    assert str(FaultError(0x1234, READ, FaultReason.UNMAPPED)) == "[Errno 14] Bad address: 0x1234 (r--, unmapped)"
    text = str(FaultError(1 << 64, READ_WRITE, FaultReason.PERMISSION, 7))
    assert text.startswith("[Errno 14] Bad address: 0x10000000000000000 (rw-, permission)")
    assert "7 bytes" in text
    assert "-0x5" in str(FaultError(-5, READ, FaultReason.UNMAPPED))
    assert str(NameTooLongError(b"abc")) == "[Errno 36] File name too long"
    assert "at byte 3" in str(InvalidIntegerError(3, [1]))


@pytest.mark.parametrize(
    ("reason", "signo", "si_code"),
    [
        (FaultReason.UNMAPPED, signal.SIGSEGV, SEGV_MAPERR),
        (FaultReason.PERMISSION, signal.SIGSEGV, SEGV_ACCERR),
        (FaultReason.GUARD, signal.SIGSEGV, SEGV_MAPERR),
        (FaultReason.BEYOND_FILE, signal.SIGBUS, BUS_ADRERR),
        (FaultReason.UNALIGNED, signal.SIGBUS, BUS_ADRALN),
        (FaultReason.OUTSIDE_RANGE, signal.SIGSEGV, SEGV_MAPERR),
        (FaultReason.INJECTED, signal.SIGSEGV, SEGV_MAPERR),
        (FaultReason.NO_MEMORY, signal.SIGBUS, BUS_ADRERR),
    ],
)
def test_signals(reason: FaultReason, signo: int, si_code: int) -> None:
    """Each reason has the signal and si_code that Linux delivers for it."""
    fault = FaultError(0, READ, reason)
    assert (fault.signo, fault.si_code) == (signo, si_code)


def test_every_reason_has_a_row_above() -> None:
    """No reason is left out of the table."""
    rows = next(mark.args[1] for mark in test_signals.pytestmark)  # type: ignore[attr-defined]
    assert {row[0] for row in rows} == set(FaultReason)


# A process that touches one byte and exits with 16 * signal + si_code, as its handler was told.
_TOUCH = """
import ctypes, mmap, os, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
class Action(ctypes.Structure):
    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_ubyte * 128), ("flags", ctypes.c_int)]
def handle(signo, info, context):
    os._exit(16 * signo + ctypes.c_int.from_address(info + 8).value)
handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(handle)
libc = ctypes.CDLL(None)
action = Action(ctypes.cast(handler, ctypes.c_void_p).value, (ctypes.c_ubyte * 128)(), 4)
pad = ctypes.create_string_buffer(256)
ctypes.memmove(pad, ctypes.byref(action), ctypes.sizeof(action))
for signo in (7, 11):
    assert libc.sigaction(signo, pad, None) == 0
fd = os.memfd_create("x")
os.ftruncate(fd, 8192)
kind = sys.argv[1]
area = mmap.mmap(fd, 8192) if kind == "beyond-file" else mmap.mmap(-1, 8192)
address = ctypes.addressof(ctypes.c_char.from_buffer(area)) + 4096
if kind == "beyond-file":
    os.ftruncate(fd, 4096)
elif kind == "permission":
    assert libc.mprotect(ctypes.c_void_p(address), 4096, 0) == 0
else:
    assert libc.munmap(ctypes.c_void_p(address), 4096) == 0
ctypes.string_at(address, 1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's siginfo_t")
@pytest.mark.parametrize("reason", [FaultReason.UNMAPPED, FaultReason.PERMISSION, FaultReason.BEYOND_FILE])
def test_signals_are_the_kernels(reason: FaultReason) -> None:
    """What the running kernel tells a process that touches such memory itself."""
    status = subprocess.run([sys.executable, "-c", _TOUCH, reason.value], check=False, timeout=60).returncode
    fault = FaultError(0, READ, reason)
    assert divmod(status, 16) == (fault.signo, fault.si_code)


def _ars(start: int, end: int) -> AddrRangeSeq:
    return AddrRangeSeq([AddrRange(start, end)])


@frozen
class _File:
    """A file of so many bytes, to be mapped."""

    length: int

    def size(self) -> int:
        return self.length

    def read_at(self, offset: int, dst: memoryview) -> int:
        return max(0, min(len(dst), self.length - offset))


@pytest.fixture
def space() -> AddressSpace:
    """0x10000: two pages; 0x20000: one that may only be read; 0x30000: two of a file that has one."""
    made = AddressSpace()
    made.mmap(0x10000, 2 * PAGE, RW, FLAGS)
    made.copy_out(0x11FFC, b"12 x")
    made.mmap(0x20000, PAGE, mman.PROT_READ, FLAGS)
    made.map_object(0x30000, 2 * PAGE, RW, FLAGS, _File(PAGE))
    return made


# call, address, access, reason, transferred
REAL: list[Any] = [
    pytest.param(lambda s: s.copy_in(0x11FFC, bytearray(9)), 0x12000, READ, "unmapped", 4, id="copy_in"),
    pytest.param(lambda s: s.copy_in(0, bytearray(1)), 0, READ, "unmapped", 0, id="NULL"),
    pytest.param(lambda s: s.copy_out(0x20005, b"x"), 0x20005, WRITE, "permission", 0, id="read-only"),
    pytest.param(lambda s: s.zero_out(0x30FFE, 9), 0x31000, WRITE, "beyond-file", 2, id="beyond a file"),
    pytest.param(lambda s: s.read_bytes(0x11FFE, 3), 0x12000, READ, "unmapped", 2, id="read_bytes"),
    pytest.param(lambda s: s.load_uint32(0x10002), 0x10002, READ, "unaligned", 0, id="unaligned load"),
    pytest.param(lambda s: s.swap_uint32(0x20000, 1), 0x20000, READ_WRITE, "permission", 0, id="swap"),
    pytest.param(
        lambda s: s.compare_and_swap_uint32(0x12000, 0, 1), 0x12000, READ_WRITE, "unmapped", 0, id="compare and swap"
    ),
    pytest.param(lambda s: BytesIO(b"123456").load_uint32(4), 4, READ, "unmapped", 0, id="half a word"),
    pytest.param(lambda s: s.copy_in(-1, bytearray(1)), -1, READ, "outside-range", 0, id="negative"),
    pytest.param(lambda s: s.copy_out(1 << 70, b"x"), 1 << 70, WRITE, "outside-range", 0, id="huge"),
    pytest.param(lambda s: s.copy_out(1 << 63, b""), 1 << 63, WRITE, "outside-range", 0, id="nothing, outside"),
    pytest.param(
        lambda s: s.copy_out_from(_ars(0x11FFE, 0x12005), FromIOReader(GivesParts(b"abcdefg"))),
        0x12000,
        WRITE,
        "unmapped",
        2,
        id="copy_out_from",
    ),
    pytest.param(
        lambda s: copy_in_vec(s, _ars(0x11FFE, 0x12005), bytearray(9)), 0x12000, READ, "unmapped", 2, id="vec"
    ),
    pytest.param(lambda s: copy_out_vec(s, _ars(0x20001, 0x20002), b"xx"), 0x20001, WRITE, "permission", 0, id="out"),
    pytest.param(lambda s: copy_string_in(s, 0x11FFC, 9), 0x12000, READ, "unmapped", 4, id="string"),
    pytest.param(lambda s: copy_uint32_in(s, 0x11FFD), 0x12000, READ, "unmapped", 3, id="uint32"),
    pytest.param(lambda s: copy_in_iovecs(s, 0x11FF8, 1), 0x12000, READ, "unmapped", 8, id="iovecs"),
    pytest.param(lambda s: copy_in_iovecs(s, 1 << 64, 1), 1 << 64, READ, "outside-range", 0, id="iovecs, outside"),
    pytest.param(lambda s: copy_in_vector(s, 0x12000, 9, 9), 0x12000, READ, "unmapped", 0, id="argv"),
    pytest.param(
        lambda s: copy_int32_strings_in_vec(s, _ars(0x11FFC, 0x12008), 1), 0x12000, READ, "unmapped", 3, id="int32"
    ),
    pytest.param(lambda s: check_io_range(-1, 0), -1, NO_ACCESS, "outside-range", 0, id="check_io_range"),
    pytest.param(lambda s: single_io_sequence(s, 0, -1), 0, NO_ACCESS, "outside-range", 0, id="single"),
    pytest.param(lambda s: IOReadWriter(s, 1 << 64).read(1), 1 << 64, READ, "outside-range", 0, id="file"),
]


@pytest.mark.parametrize(("call", "address", "access", "reason", "transferred"), REAL)
class TestRealFaults:
    """Faults as they come from the functions themselves."""

    def test_what_they_say(
        self,
        space: AddressSpace,
        call: Callable[[AddressSpace], object],
        address: int,
        access: object,
        reason: str,
        transferred: int,
    ) -> None:
        """The fields, and a text that says the same as the fields do."""
        with pytest.raises(FaultError) as caught:
            call(space)
        fault = caught.value
        assert (fault.address, fault.access, fault.reason) == (address, access, reason)
        assert fault.transferred == transferred
        assert f"{address:#x} ({access}, {reason})" in str(fault)

    def test_pickling_and_copying(
        self,
        space: AddressSpace,
        call: Callable[[AddressSpace], object],
        address: int,
        access: object,
        reason: str,
        transferred: int,
    ) -> None:
        """What comes out is what went in, to the letter."""
        with pytest.raises(FaultError) as caught:
            call(space)
        same(caught.value)


def same(error: OSError) -> None:
    """Assert that every copy of the error equals it: class, text, args and attributes."""
    error.add_note("a note")
    copies = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    for other in (*copies, copy.copy(error), copy.deepcopy(error)):
        assert other is not error
        assert type(other) is type(error)
        assert (str(other), repr(other), other.args) == (str(error), repr(error), error.args)
        assert (other.errno, other.strerror) == (error.errno, error.strerror)
        assert vars(other) == vars(error)
        assert linux_result(other) == linux_result(error)


def _with_partial(partial: object) -> FaultError:
    fault = FaultError(7, READ, FaultReason.INJECTED, 3)
    fault.partial = partial
    return fault


@pytest.mark.parametrize(
    "error",
    [
        _with_partial(b"abc"),
        _with_partial([b"a", b"b"]),
        _with_partial((3, [1, 2])),
        _with_partial(_ars(1, 5)),
        NameTooLongError(b"name"),
        NameTooLongError([b"a"]),
        NameTooLongError(),
        InvalidIntegerError(5, [1, -2]),
    ],
    ids=repr,
)
def test_copies_of_made_errors(error: OSError) -> None:
    """With whatever part of a result they carry."""
    same(error)


@pytest.mark.parametrize("fault", ["segv", "bus"])
def test_a_fault_of_the_host_keeps_its_signal(fault: Fault) -> None:
    """Guest memory over host memory that faults: the signal the guest would have got is the one the host has."""
    memory = FaultyMemory(fault)
    io = PatchyIO({0x1000: memory.block(8, 4)})
    with pytest.raises(FaultError) as caught:
        io.copy_in(0x1000, bytearray(8))
    assert (caught.value.address, caught.value.transferred) == (0x1004, 4)
    assert caught.value.signo == int({"segv": signal.SIGSEGV, "bus": signal.SIGBUS}[fault])


class _WithCount(Exception):
    """No OSError, but bytes moved before it."""

    transferred = 6


def _moved(error: BaseException, n: int) -> BaseException:
    error.transferred = n  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        pytest.param(0, 0, id="0"),
        pytest.param(17, 17, id="a count"),
        pytest.param(FaultError(1, READ, FaultReason.UNMAPPED), -14, id="EFAULT"),
        pytest.param(FaultError(1, READ, FaultReason.UNMAPPED, 9), 9, id="a count before EFAULT"),
        pytest.param(_with_partial(b"abc"), -14, id="half a path is no count"),
        pytest.param(_with_partial(b""), -14, id="no path is no count"),
        pytest.param(_with_partial([]), -14, id="nor is an empty vector"),
        pytest.param(_with_partial((0, [])), -14, id="nor are no numbers"),
        pytest.param(NameTooLongError(b"abc"), -36, id="ENAMETOOLONG"),
        pytest.param(InvalidIntegerError(3, [5]), -22, id="EINVAL"),
        pytest.param(HostFaultError(0x1000, signal.SIGBUS, 4), 4, id="a fault of the host, after 4"),
        pytest.param(HostFaultError(0x1000), -14, id="a fault of the host"),
        pytest.param(EndOfBlockSeqError(), -28, id="ENOSPC"),
        pytest.param(EndOfBlockSeqError(2), 2, id="a count before ENOSPC"),
        pytest.param(OSError(errno.EPIPE, "broken"), -32, id="any OSError"),
        pytest.param(FileNotFoundError(2, "no"), -2, id="its subclasses"),
        pytest.param(_moved(OSError(errno.EIO, "disk"), 5), 5, id="an error of a Reader's own, after 5"),
        pytest.param(BlockingIOError(errno.EAGAIN, "later"), -11, id="EAGAIN"),
        pytest.param(BlockingIOError(), -11, id="without its errno"),
        pytest.param(_moved(BlockingIOError(), 5), 5, id="would block after 5"),
        pytest.param(_WithCount(), 6, id="bytes moved are bytes moved"),
    ],
)
def test_linux_result(outcome: int | BaseException, result: int) -> None:
    """The count if anything moved, else minus the errno."""
    assert linux_result(outcome) == result


@pytest.mark.parametrize("outcome", [ValueError("x"), OSError("no errno"), OSError(0, "success"), KeyboardInterrupt()])
def test_no_result(outcome: BaseException) -> None:
    """What is no OSError with an errno is a bug and no result: TypeError, caused by it."""
    with pytest.raises(TypeError) as caught:
        linux_result(outcome)
    assert caught.value.__cause__ is outcome


@pytest.mark.parametrize("outcome", [None, "text", b"", 1.5, [], object(), FaultError])
def test_what_is_no_outcome(outcome: Any) -> None:
    """Neither an int nor an error is the caller's mistake, and said so."""
    with pytest.raises(TypeError, match="outcome must be an int, not"):
        linux_result(outcome)


def test_write_past_a_sequence_is_enospc() -> None:
    """The error of a full sequence has the errno a system call would return."""
    with pytest.raises(OSError) as caught:
        bytes_io_sequence(bytearray()).writer().write(b"x")
    assert linux_result(caught.value) == -errno.ENOSPC
