"""Saving a snapshot file is all or nothing: after a kill, a full disk, or whatever else ends it."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from campaign import times
from snapshot_samples import EXTENTS, PAGE, SPACE, loaded, loaded_pages, names, page_bytes, pages
from usermem.mm.saved_space import PRIVATE, SavedExtent
from usermem.mm.snapshot_file import save

OTHER = evolve(SPACE, brk=0x10456, memories=(1 << 20,))
MUCH = [*EXTENTS[:2], SavedExtent(0, 0, 1 << 20)]
CALLS = ("ftruncate", "pwrite", "lseek", "pread", "fsync", "replace")

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork(2)")


def in_a_child(work: Callable[[], object]) -> int:
    """The process that does this work and exits: with 0, or 1 if it raised."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def on_calls(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], object]) -> None:
    """Call ``act`` with its number before each system call of a save."""
    count = 0

    def before(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal count
            count += 1
            act(count)
            return real(*args)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, before(getattr(os, name)))


def one_of_both(path: Path) -> bool:
    """Whether the new file is there, whole; if not, the old one is."""
    with loaded(path) as found:
        assert found.saved in (SPACE, OTHER)
        return found.saved == OTHER


def kill_at(step: int, count: int) -> None:
    """Kill this process at one step."""
    if count == step:
        os.kill(os.getpid(), signal.SIGKILL)


@forks
def test_killed_before_any_system_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that is killed at any step leaves the old file, and from the renaming on the new one."""
    path = tmp_path / "a"
    seen = []
    for step in range(1, 200):
        save(path, SPACE, pages())
        with monkeypatch.context() as patch:
            on_calls(patch, partial(kill_at, step))
            child = in_a_child(lambda: save(path, OTHER, pages(MUCH)))
        _, status = os.waitpid(child, 0)
        seen.append(one_of_both(path))
        if os.waitstatus_to_exitcode(status) == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(seen) > 10
    assert seen == sorted(seen)  # old, then new
    assert seen[-2:] == [True, True]  # before the directory's fsync, and at the end


@forks
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """A process that saves one file after another is killed many times: what is there is whole."""
    path = tmp_path / "a"
    save(path, SPACE, pages())

    def work() -> None:
        while True:
            save(path, OTHER, pages(MUCH))
            save(path, SPACE, pages())

    seen = set()
    for _ in range(40):
        child = in_a_child(work)
        time.sleep(random.uniform(0.001, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen.add(one_of_both(path))
    assert {each.suffix for each in tmp_path.iterdir()} <= {"", ".tmp"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT][: times(1, 3)])
def test_refused_at_any_system_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A host that refuses any step of a save: OSError, the old file is there and nothing else; or there is none."""
    path = tmp_path / "a"
    before = os.dup(0)
    os.close(before)

    calls = 0

    def refuse(count: int) -> None:
        nonlocal calls
        calls = count
        if count == step:
            raise OSError(number, os.strerror(number))

    for old in (False, True):
        outcomes = []
        for step in range(1, 200):
            path.unlink(missing_ok=True)
            if old:
                save(path, SPACE, pages())
            with monkeypatch.context() as patch:
                on_calls(patch, refuse)
                try:
                    save(path, OTHER, pages(MUCH))
                except OSError as exc:
                    assert exc.errno == number
            if calls < step:
                break
            assert names(tmp_path) in ([], ["a"])
            outcomes.append(one_of_both(path) if path.exists() else None)
        assert len(outcomes) > 10
        assert outcomes[0] is (False if old else None)
        assert outcomes[-2:] == [outcomes[0], True]  # the renaming, and the directory's fsync
    after = os.dup(0)
    os.close(after)
    assert after == before


def test_the_bytes_are_on_the_disk_before_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut there is the old file or the new one: the file is synced, renamed, and then its directory."""
    seen = []

    def noted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            is_directory = name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)
            seen.append("directory" if is_directory else name)
            return real(*args)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    save(tmp_path / "a", SPACE, pages())
    assert seen[-4:] == ["pwrite", "fsync", "replace", "directory"]


@forks
@pytest.mark.parametrize("limit", [0, 100, 65536, 100000, 1 << 20, (1 << 20) + 77900])
def test_the_disk_is_full(tmp_path: Path, limit: int) -> None:
    """A file that may not become so long is the kernel's OSError; nothing is left."""
    path = tmp_path / "a"
    save(path, SPACE, pages())

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as caught:
            save(path, OTHER, pages(MUCH))
        assert caught.value.errno == errno.EFBIG
        assert names(tmp_path) == ["a"]
        assert not one_of_both(path)

    assert os.waitpid(in_a_child(work), 0)[1] == 0


def test_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that writes and reads less than it is asked to is asked again."""
    pwrite, pread = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:1000], at))
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, 999), at))
    save(tmp_path / "a", OTHER, pages(EXTENTS))
    assert one_of_both(tmp_path / "a")


def test_where_no_file_can_be(tmp_path: Path) -> None:
    """No directory, a file in its place, a loop of symlinks, a directory or a FIFO at the path: OSError, all stays."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_bytes(b"old")
    before = names(tmp_path)
    for name, number in [
        ("none/a", errno.ENOENT),
        ("file/a", errno.ENOTDIR),
        ("loop", errno.ELOOP),
        ("loop/a", errno.ELOOP),
        ("", errno.EEXIST),
        ("fifo", errno.EEXIST),
        ("n" * 300, errno.ENAMETOOLONG),
        ("link", errno.EEXIST),
    ]:
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            save(tmp_path / name, SPACE, pages())
        assert caught.value.errno == number, name
    assert names(tmp_path) == before
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """The kernel's EACCES, and nothing changes."""
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            save(tmp_path / "a", SPACE, pages())
        assert not names(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_symlink_is_followed(tmp_path: Path) -> None:
    """As open() does: the link stays, what it points to is replaced, or made."""
    (tmp_path / "far").mkdir()
    link = tmp_path / "link"
    link.symlink_to("far/a")
    for space in (SPACE, OTHER):
        save(link, space, pages())
        assert link.is_symlink()
        with loaded(tmp_path / "far" / "a") as found:
            assert found.saved == space
    assert names(tmp_path / "far") == ["a"]


def test_who_has_the_old_file_keeps_it(tmp_path: Path) -> None:
    """A file that is loaded, or mapped, stays whole when it is saved anew, or saved out of itself."""
    path = tmp_path / "a"
    save(path, SPACE, pages())
    with loaded(path) as old:
        save(path, OTHER, loaded_pages(old))
        for each in old.extents:
            assert os.pread(old.file.fd, each.end - each.start, each.offset) == page_bytes(each.start, each.end)
    with loaded(path) as new:
        assert new.saved == OTHER
        assert os.pread(new.file.fd, PAGE, new.extents[0].offset) == page_bytes(EXTENTS[0].start, EXTENTS[0].end)


def test_sources_that_fail(tmp_path: Path) -> None:
    """An exception of a source passes; too few or too many bytes are a ValueError; nothing is left."""

    class OwnError(BaseException):
        pass

    def raising(start: int, end: int) -> bytes:
        raise OwnError

    with pytest.raises(OwnError):
        save(tmp_path / "a", SPACE, pages(source=raising))
    for extra in (-1, 1, PAGE):
        with pytest.raises(ValueError, match="the source of"):
            save(tmp_path / "a", SPACE, pages(source=lambda start, end, extra=extra: bytes(end - start + extra)))  # type: ignore[misc]
    with pytest.raises(TypeError):
        save(tmp_path / "a", SPACE, pages(source=lambda start, end: "text"))  # type: ignore[arg-type, return-value]
    assert not names(tmp_path)


def test_values_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be loaded is not saved: extents that overlap, or lie where nothing private is mapped."""
    one = SavedExtent(PRIVATE, 0x10000, 0x12000)
    for extents in (
        [one, one],
        [SavedExtent(PRIVATE, 0x14000, 0x15000)],
        [SavedExtent(3, 0, PAGE)],
        [SavedExtent(0, 1, PAGE)],
    ):
        with pytest.raises(ValueError, match="extent"):
            save(tmp_path / "a", SPACE, pages(extents))
    with pytest.raises(ValueError, match="above"):
        save(tmp_path / "a", evolve(SPACE, arch=evolve(SPACE.arch, min_addr=-1)), pages())
    monkeypatch.setattr("usermem.mm.snapshot_file._LONGEST_TABLES", 1000)
    with pytest.raises(ValueError, match="more mappings"):
        save(tmp_path / "a", SPACE, pages())
    assert not names(tmp_path)
