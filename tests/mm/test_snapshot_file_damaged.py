"""A file that is damaged, truncated, foreign or newer is a clear error: nothing else is raised, nothing stays open."""

from __future__ import annotations

import errno
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from campaign import times
from snapshot_samples import DATA, EXTENTS, PAGE, SPACE, loaded, pages, problem, put_together, take_apart
from usermem.mm.saved_space import SavedExtent
from usermem.mm.snapshot_file import SnapshotFileError, load, save

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small file that is good."""
    save(tmp_path / "a", SPACE, pages())
    return tmp_path / "a"


def refused(path: Path) -> bool:
    """Whether a file is refused: as pytest.raises, in a fraction of its time."""
    try:
        load(path)
    except SnapshotFileError:
        return True
    return False


def places(size: int) -> list[int]:
    """Where the bytes of a file are; by day few of the zeros between header and data."""
    return [at for at in range(size) if not 100 <= at < DATA - 100 or not at % times(16, 1)]


def test_every_byte_counts(path: Path) -> None:
    """Whichever byte is another, in whichever bit, the file is refused."""
    save(path, SPACE, pages(EXTENTS[:1]))
    raw = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for at in places(len(raw)):
            os.pwrite(file.fileno(), bytes([raw[at] ^ 1 << at % 8]), at)
            assert refused(path), at
            os.pwrite(file.fileno(), raw[at : at + 1], at)
    with loaded(path):
        pass


def test_every_length_counts(path: Path) -> None:
    """A file that is shorter or longer by any number of bytes is refused."""
    raw = path.read_bytes()
    for length in reversed(places(len(raw))):
        os.truncate(path, length)
        assert refused(path), length
    path.write_bytes(raw + b"\0")
    assert problem(path) == "it has 1 bytes more"


def test_the_damaged_block_is_named(tmp_path: Path) -> None:
    """The error says which bytes of the file are damaged."""
    space = evolve(SPACE, memories=(3 << 20,))
    save(tmp_path / "a", space, pages([SavedExtent(0, 0, (2 << 20) + PAGE)]))
    with (tmp_path / "a").open("r+b") as file:
        file.seek(DATA + (1 << 20) + 70000)
        file.write(b"?")
    start = DATA + (1 << 20) + 65536
    assert problem(tmp_path / "a") == f"the data is damaged in the block of bytes {start} to {start + 65535}"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "the file is empty"),
        (b"\x7fELF" + bytes(100), "this is no snapshot file"),
        (b"\x89usm", "it is truncated: it ends at byte 4, before 96"),
        (b"\x89usmem\r\n\1\0\0\0", "it is truncated: it ends at byte 12, before 96"),
        (b"\x89usmem\r\n\2\0\0\0", "it has version 2 of the format, and this program reads version 1"),
        (bytes(200000), "this is no snapshot file"),
    ],
)
def test_other_files(tmp_path: Path, raw: bytes, says: str) -> None:
    """What begins otherwise is no snapshot file; a newer one is told by its version alone."""
    (tmp_path / "a").write_bytes(raw)
    assert problem(tmp_path / "a") == says


def test_versions(path: Path) -> None:
    """A version that is newer says so, also where it is whole; one that never was is damage."""
    data, tables = take_apart(path)
    put_together(path, data, tables, version=7)
    assert "version 7" in problem(path)
    put_together(path, data, tables, version=0)
    assert problem(path) == "there is no version 0 of the format"


def test_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory, a FIFO, a device, a socket, a loop of symlinks: at once, and none of them is opened."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        monkeypatch.chdir(tmp_path)  # a socket's name is short
        sock.bind("sock")
        for name in (tmp_path, tmp_path / "fifo", tmp_path / "link", tmp_path / "sock", "/dev/zero", "/dev/tty"):
            assert problem(name) == "this is no regular file"
    assert problem(tmp_path / "loop") == "its symlinks form a loop"
    if Path("/proc/self/maps").exists():
        assert problem("/proc/self/maps") == "this is no snapshot file"
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")


def test_a_fifo_that_takes_the_place_of_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the opening another may put a FIFO there: that does not wait for a writer."""
    real = os.stat

    def exchanged(name: Any) -> os.stat_result:
        status = real(name)
        path.unlink()
        os.mkfifo(path)
        return status

    monkeypatch.setattr(os, "stat", exchanged)
    with pytest.raises(SnapshotFileError, match="no regular file"):
        load(path)


@pytest.mark.parametrize("length", [0, 100, DATA, DATA + PAGE, DATA + 17 * PAGE])
def test_truncated_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """A file that somebody truncates before any of the system calls that read it, also where it ends in a hole."""
    path = tmp_path / "a"
    space = evolve(SPACE, memories=(3 << 20,))
    data = pages(
        [SavedExtent(0, 0, 3 << 20)], lambda start, end: bytes(end - start - 1) + (b"x" if start == 0 else b"\0")
    )
    save(path, space, data)
    calls, last = 0, 0

    def truncating(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == last:
                os.truncate(path, length)
            return real(*args)

        return call

    for name in ("pread", "lseek", "fstat"):
        monkeypatch.setattr(os, name, truncating(getattr(os, name)))
    with loaded(path):
        expected = calls
    for moment in range(1, expected + 1):
        last = 0
        save(path, space, data)
        calls, last = 0, moment
        assert problem(path).startswith(("it is truncated", "the file is empty", "the data is damaged"))
    assert expected > 12  # header twice, padding, six tables, the data, and the size before and after


def test_errors_of_the_host_stay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that cannot be read is an OSError, and the descriptor is closed."""

    def pread(fd: int, length: int, at: int) -> bytes:
        raise OSError(errno.EIO, "the disk")

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(OSError, match="the disk"):
        load(path)


def test_the_error_is_a_value() -> None:
    """It is a ValueError, and survives pickling."""
    error = SnapshotFileError(b"/a\n", "problem", "advice")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(error, ValueError)
    assert (copy.path, copy.problem, copy.advice, str(copy)) == (b"/a\n", "problem", "advice", str(error))
    assert str(error) == r"'/a\n': problem; advice"
