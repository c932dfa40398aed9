"""keylog: the traffic secrets of handshakes, which the ssl module writes to ``SSLContext.keylog_filename``.

The name is pointed at a file in memory while handshakes are under way, so that no secret touches a disk.

Source: the SSLKEYLOGFILE format (RFC 9850).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safemem.fork import fork_safe_lock

_LOCK = fork_safe_lock()


class Keylog:
    """A file in memory that a context writes its secrets to, as long as handshakes are under way."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.users = 0
        self._context = context
        self._before = context.keylog_filename
        self._read, self._write = _memory_file()
        self._at = 0
        self._rest = ""
        self._lines: dict[str, list[str]] = {}
        self._lock = fork_safe_lock()
        context.keylog_filename = f"/dev/fd/{self._write}"

    def secrets(self, client_random: bytes) -> dict[str, bytes]:
        """The secrets of one handshake, by their labels."""
        with self._lock:  # what is there may be of other handshakes too
            self._sort()
            lines = self._lines.pop(client_random.hex(), [])
            self._pass_on(lines)
        return {label: bytes.fromhex(secret) for label, _, secret in map(str.split, lines)}

    def _sort(self) -> None:
        """Take what has come, by the client's random."""
        *whole, self._rest = (self._rest + self._new()).split("\n")
        for line in whole:
            if not line.startswith("#"):
                self._lines.setdefault([*line.split(), "", ""][1], []).append(line + "\n")

    def _pass_on(self, lines: list[str]) -> None:
        """Somebody who debugs gets what they would have got."""
        if self._before:
            with Path(self._before).open("a", encoding="ascii") as file:
                file.writelines(lines)

    def _new(self) -> str:
        """What has been written since the last call."""
        found = b""
        with suppress(BlockingIOError):
            while part := (
                os.pread(self._read, 1 << 16, self._at) if self._read == self._write else os.read(self._read, 1 << 16)
            ):
                found += part
                self._at += len(part)
        return found.decode("ascii")

    def close(self) -> None:
        """Point the context back, and pass on what nobody has asked for: of handshakes that failed, or of others."""
        self._context.keylog_filename = self._before
        with suppress(OSError):
            self._sort()
            for lines in self._lines.values():
                self._pass_on(lines)
        for fd in {self._read, self._write}:
            os.close(fd)


_keylogs: dict[int, Keylog] = {}


@contextmanager
def keylog(context: ssl.SSLContext) -> Iterator[Keylog]:
    """The context's keylog, shared by the handshakes that use it at the same time."""
    with _LOCK:
        if id(context) not in _keylogs:
            _keylogs[id(context)] = Keylog(context)
        shared = _keylogs[id(context)]
        shared.users += 1
    try:
        yield shared
    finally:
        with _LOCK:
            shared.users -= 1
            if not shared.users:
                del _keylogs[id(context)]
                shared.close()


def _memory_file() -> tuple[int, int]:
    """Descriptors to read and to write a file that is on no disk: the same one, or a pipe's."""
    if hasattr(os, "memfd_create"):
        with suppress(OSError):  # a sandbox that refuses it
            fd = os.memfd_create("keylog")
            return fd, fd
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)  # a full pipe must not stop a handshake
    return read, write
