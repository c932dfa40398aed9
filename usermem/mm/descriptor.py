"""Descriptor: an open file that is closed when the last reference to the object is gone.

Source: open(2), preadv(2).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class Descriptor:
    """An open file. No interrupt comes between the opening and the object that closes it."""

    fd: int = -1
    """The descriptor."""

    def __init__(self, path: Path, flags: int, mode: int = 0o666) -> None:
        """open(2). Raises OSError."""
        (self.fd,) = map(os.open, [path], [flags], [mode])  # see host_calls.Unmapping

    def __del__(self, ended: Callable[[], bool] = sys.is_finalizing) -> None:
        if self.fd >= 0 and not ended():
            with suppress(OSError):  # a sandbox that refuses even that
                os.close(self.fd)


def read_into(fd: int, at: int, dst: memoryview) -> int:
    """Fill dst with the bytes of a file at ``at``, and return how many there were: fewer where it ends."""
    done = 0
    while done < len(dst) and (count := os.preadv(fd, [dst[done:]], at + done)):
        done += count
    return done
