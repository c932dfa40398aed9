"""The errors of a transfer: OSErrors that carry a count, read well, and survive pickling and copying."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import signal

import pytest

from safemem import AlignmentError, EndOfBlockSeqError, HostFaultError, TransferError
from safemem.errors import add_transferred, short_count, would_block


def errors() -> list[TransferError]:
    """One of each, with and without a count."""
    return [
        TransferError(errno.EIO, "broken"),
        TransferError(errno.EIO, "broken", 7),
        HostFaultError(0x1000),
        HostFaultError(0x1000, signal.SIGBUS, 7),
        AlignmentError(0x1003, 4),
        EndOfBlockSeqError(),
        EndOfBlockSeqError(7),
    ]


every_error = pytest.mark.parametrize("error", errors(), ids=repr)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@every_error
def test_pickles(error: TransferError, protocol: int) -> None:
    """A pickled error comes back with its type, text, errno and all that it carries."""
    add_transferred(error, 2)
    error.add_note("seen by a debugger")
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is type(error)
    assert (str(back), back.errno, back.strerror, back.args) == (str(error), error.errno, error.strerror, error.args)
    assert vars(back) == vars(error)
    assert back.transferred == error.transferred


@every_error
def test_copies(error: TransferError) -> None:
    """So does a copied one."""
    for back in (copy.copy(error), copy.deepcopy(error)):
        assert type(back) is type(error) and str(back) == str(error) and vars(back) == vars(error)


@pytest.mark.parametrize(
    ("error", "number", "text"),
    [
        (TransferError(errno.EIO, "broken"), errno.EIO, "[Errno 5] broken"),
        (TransferError(errno.EIO, "broken", 7), errno.EIO, "[Errno 5] broken (7 bytes transferred)"),
        (HostFaultError(0x1000), errno.EFAULT, "[Errno 14] Bad address: host address 0x1000"),
        (
            HostFaultError(0x1000, signal.SIGBUS, 3),
            errno.EFAULT,
            "[Errno 14] Bad address: host address 0x1000 (3 bytes transferred)",
        ),
        (AlignmentError(0x1003, 4), errno.EFAULT, "[Errno 14] host address 0x1003 is not a multiple of 4"),
        (EndOfBlockSeqError(2), errno.ENOSPC, "[Errno 28] write beyond the end of the blocks (2 bytes transferred)"),
    ],
    ids=repr,
)
def test_errno_and_text(error: TransferError, number: int, text: str) -> None:
    """An error is an OSError with its errno, and its text has the count when there is one."""
    assert isinstance(error, OSError)
    assert error.errno == number
    assert str(error) == text
    assert error.strerror is not None and error.strerror in text
    assert error.filename is None


def test_what_they_carry() -> None:
    """A fault has its address and signal, a misaligned access its address and the size it needed."""
    fault = HostFaultError(0x1000, int(signal.SIGBUS), 3)
    assert (fault.address, fault.signo, fault.transferred) == (0x1000, signal.SIGBUS, 3)
    assert isinstance(fault.signo, signal.Signals)
    assert HostFaultError(0).signo is signal.SIGSEGV
    misaligned = AlignmentError(0x1003, 4)
    assert (misaligned.address, misaligned.alignment, misaligned.transferred) == (0x1003, 4, 0)
    assert EndOfBlockSeqError().transferred == 0 == TransferError(errno.EIO, "").transferred


@pytest.mark.parametrize("kind", [HostFaultError, AlignmentError, EndOfBlockSeqError])
def test_kinds(kind: type[TransferError]) -> None:
    """Every error of a transfer is a TransferError; nothing makes them of other classes of OSError."""
    assert issubclass(kind, TransferError) and issubclass(kind, OSError)
    assert not issubclass(kind, (BlockingIOError, ConnectionError, TimeoutError))


@pytest.mark.parametrize("error", [TransferError(errno.EIO, "", 3), KeyError("x"), KeyboardInterrupt()], ids=repr)
def test_add_transferred(error: BaseException) -> None:
    """Counts add up layer by layer on any exception; a count of nothing leaves no mark."""
    had = getattr(error, "transferred", 0)
    before = dict(vars(error))
    add_transferred(error, 0)
    assert vars(error) == before
    add_transferred(error, 4)
    add_transferred(error, 1)
    assert getattr(error, "transferred", 0) == had + 5


@pytest.mark.parametrize("error", [TransferError(errno.EIO, "", 3), KeyError("x"), would_block()], ids=repr)
def test_short_count_raises_the_same(error: BaseException) -> None:
    """Without progress, and for all but would-block with it, the same object is raised, with the count added."""
    done = 0 if isinstance(error, BlockingIOError) else 4
    had = getattr(error, "transferred", 0)
    with pytest.raises(type(error)) as caught:
        short_count(error, done)
    assert caught.value is error
    assert getattr(error, "transferred", 0) == had + done


def test_short_count_of_would_block() -> None:
    """Would-block after progress is a short count: the loop's own and what the error itself carries."""
    assert short_count(would_block(), 4) == 4
    inner = would_block()
    add_transferred(inner, 3)
    assert short_count(inner, 4) == 7
    alone = would_block()
    add_transferred(alone, 3)
    assert short_count(alone, 0) == 3


def test_would_block() -> None:
    """would_block makes the error that the operating system makes of EAGAIN, a new one each time."""
    error = would_block()
    assert type(error) is type(OSError(errno.EAGAIN, "")) is BlockingIOError
    assert (error.errno, error.strerror) == (errno.EAGAIN, os.strerror(errno.EAGAIN))
    assert would_block() is not error
