"""replacing: write a file as a whole, or not at all.

Source: rename(2), fsync(2).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from usermem.mm.descriptor import Descriptor, Path


@contextmanager
def replacing(path: Path) -> Iterator[int]:
    """Lend the descriptor of a new, empty file that takes the place of ``path`` when the ``with`` block ends.

    The file is written beside its target, as ``.usermem-*.tmp``, and reaches the disk before it is renamed. So ``path``
    is at any moment the old file or the new one, also after a kill or a power cut; after a kill the ``.tmp`` file may
    be left over. A symlink is followed. The permission bits are those of the file that is replaced, else open()'s.

    Raises OSError if the host refuses, or if ``path`` exists and is no regular file. After an error of the host's or
    of the block's the old file is in place and the new one is gone, unless only the directory could not be written to
    disk: then the new file is in place, and a power cut may bring the old one back.
    """
    target = os.path.realpath(os.fsdecode(path))
    directory = os.path.dirname(target)  # noqa: PTH120 - pathlib is slow to load
    mode = _mode(target)
    temporary = os.path.join(directory, f".usermem-{os.urandom(16).hex()}.tmp")  # noqa: PTH118
    folder = Descriptor(directory, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    file: Descriptor | None = None
    try:
        file = Descriptor(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        if mode is not None:
            os.fchmod(file.fd, mode)
        yield file.fd
        os.fsync(file.fd)
        os.replace(temporary, target)  # noqa: PTH105
        _sync_directory(folder.fd)
    except BaseException:
        with suppress(OSError):  # there is none before it was made, and once it was renamed
            os.unlink(temporary)  # noqa: PTH108
        raise
    finally:
        del file, folder  # which the traceback of an error would keep open


def _mode(target: str) -> int | None:
    """The permission bits of the file that is there; None if there is none. Raises OSError if it is no file."""
    try:
        status = os.stat(target)  # noqa: PTH116
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EEXIST, "this is no regular file, and is not replaced by one", target)
    return stat.S_IMODE(status.st_mode) & 0o777


def _sync_directory(folder: int) -> None:
    try:
        os.fsync(folder)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # a file system whose directories need none
            raise
