"""The same command, run by the kernel and in the simulator, in equal directories."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from simulator.kernel import Kernel

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", "HOME": "/"}
LIMIT = 20.0
_WHEN = 1_600_000_000


@frozen
class Outcome:
    """What is seen of a command: the exit status as a shell has it, output, and the files there are then."""

    status: int
    stdout: bytes
    stderr: bytes
    files: dict[str, bytes]


def prepare(folder: Path) -> None:
    """Some files to work on."""
    folder.mkdir()
    (folder / "words").write_text("pear\napple\nfig\napple\nquince 7\nplum 12\n")
    (folder / "numbers").write_text("".join(f"{7 * n % 31}\t{n}\n" for n in range(31)))
    (folder / "binary").write_bytes(bytes(range(256)) * 40)
    (folder / "empty").write_bytes(b"")
    (folder / "sub").mkdir()
    (folder / "sub" / "inner.txt").write_text("inside\n")
    (folder / "link").symlink_to("words")
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (_WHEN, _WHEN), follow_symlinks=False)


def files_in(folder: Path) -> dict[str, bytes]:
    """All files: their modes, and bytes or targets."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = b"%o " % mode + content
    return found


def run_really(argv: Sequence[str], folder: Path, stdin: bytes = b"") -> Outcome:
    """By the kernel."""
    command = {"cwd": folder, "env": ENVIRONMENT, "input": stdin, "capture_output": True, "timeout": LIMIT}
    done = subprocess.run(argv, check=False, **command)  # type: ignore[call-overload]
    status = 128 - done.returncode if done.returncode < 0 else done.returncode
    return Outcome(status, done.stdout, done.stderr, files_in(folder))


def run_simulated(argv: Sequence[str], folder: Path, stdin: bytes = b"", kernel: Kernel | None = None) -> Outcome:
    """In the simulator, in this process; in ``kernel``, if it is to be one that is special."""
    kernel = kernel or Kernel(limit=LIMIT)
    with_streams = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    try:
        os.write(with_streams[0], stdin)
        os.lseek(with_streams[0], 0, os.SEEK_SET)
        process = kernel.start(argv[0], argv, ENVIRONMENT, streams=with_streams, cwd=str(folder))
        kernel.run()
        stdout, stderr = (os.pread(fd, os.fstat(fd).st_size, 0) for fd in with_streams[1:])
        return Outcome(process.exit_code, stdout, stderr, files_in(folder))
    finally:
        for fd in with_streams:
            os.close(fd)
