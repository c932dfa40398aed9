"""Keylog: the traffic secrets of one handshake, which the ssl module writes to ``SSLContext.keylog_filename``.

The name is pointed at a file in memory while the handshake takes a step, never while it waits for its peer. The file is
this handshake's own, and emptied after each step: no secret touches a disk, and none outlives its handshake here.

Source: the SSLKEYLOGFILE format (RFC 9850).
"""

from __future__ import annotations

import errno
import os
import ssl
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from safemem.errors import error
from safemem.fork import fork_safe_lock

# One for all contexts: a step may go from one to another (SSLContext.sni_callback). And the ssl module closes a key log
# although another thread's handshake may be writing to it.
_LOCK = fork_safe_lock()


class Keylog:
    """Gathers what ``tls`` tells in its steps. It has a descriptor until it is closed."""

    def __init__(self, tls: ssl.SSLObject) -> None:
        """Raises OSError if there is no descriptor left for the file in memory."""
        self._tls = tls
        self._told = b""
        self._read, self._write = _memory_file()

    def close(self) -> None:
        """Close the file in memory."""
        for fd in {self._read, self._write}:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def secrets(self, client_random: bytes) -> dict[str, bytes]:
        """The secrets of the handshake with this random of the client's, by their labels."""
        found = {}
        for line in self._told.decode("ascii").splitlines():
            label, random, secret = [*line.split(), "", "", ""][:3]
            if random == client_random.hex():  # others may use the context, too
                found[label] = bytes.fromhex(secret)
        return found

    @contextmanager
    def step(self) -> Iterator[None]:
        """Let the handshake go on in a ``with``: it must not wait for its peer there.

        Raises OSError if the file in memory cannot be opened once more; then nothing was done.
        """
        with _LOCK, ExitStack() as stack:
            context = self._tls.context
            self._attach(context, stack)
            callback = context.sni_callback if self._tls.server_side else None
            if callback is not None:

                def choose(asked: ssl.SSLObject, name: str, context: ssl.SSLContext) -> int | None:
                    answer = callback(asked, name, context)
                    if self._tls.context is not context:
                        self._attach(self._tls.context, stack)
                    return answer

                stack.callback(setattr, context, "sni_callback", callback)
                context.sni_callback = choose
            yield

    def _attach(self, context: ssl.SSLContext, stack: ExitStack) -> None:
        """Have the context write to our file until the stack is left."""
        stack.callback(self._detach, context, context.keylog_filename)
        try:
            context.keylog_filename = f"/dev/fd/{self._write}"
        except FileNotFoundError as exc:
            what = "handshake needs /dev/fd: mount /proc, or use ssl_object_pair, which needs no secrets"
            raise error(errno.ENOENT, what) from exc

    def _detach(self, context: ssl.SSLContext, before: str | None) -> None:
        """Point the context back, and pass on what came to the key log that it had."""
        lines = self._take()
        self._told += lines
        try:
            context.keylog_filename = before  # type: ignore[assignment]  # typeshed knows no None
            if before and lines:
                with Path(before).open("ab") as file:
                    file.write(lines)
        except OSError as exc:
            context.keylog_filename = None  # type: ignore[assignment]
            what = f"the context's key log cannot be opened again, and ends here: {exc}"
            warnings.warn(what, RuntimeWarning, stacklevel=2)

    def _take(self) -> bytes:
        """What has been written to the file in memory, which is empty then."""
        found = b""
        with suppress(BlockingIOError):
            while True:  # no condition: its jump back would have no handler (CPython 3.13)
                part = os.read(self._read, 1 << 16)
                if not part:
                    break
                found += part
        if self._read == self._write:
            os.ftruncate(self._read, 0)
            os.lseek(self._read, 0, os.SEEK_SET)
        return b"".join(line for line in found.splitlines(keepends=True) if not line.startswith(b"#"))


def _memory_file() -> tuple[int, int]:
    """Descriptors to read and to write a file that is on no disk: the same one, or a pipe's."""
    if hasattr(os, "memfd_create"):
        with suppress(OSError):  # a sandbox that refuses it
            fd = os.memfd_create("keylog")
            return fd, fd
    read, write = os.pipe()
    os.set_blocking(read, False)
    return read, write
