"""Keylog: the traffic secrets of one handshake, which the ssl module writes to ``SSLContext.keylog_filename``.

The name is pointed at a file in memory while the handshake takes a step, never while it waits for its peer. The file is
this handshake's own, and emptied after each step: no secret touches a disk, and none outlives its handshake here.

A signal handler may raise after each call. So what a step changes is put back by stores alone, before anything is
called; and descriptors belong to objects whose destructors close them.

Source: the SSLKEYLOGFILE format (RFC 9850); _ssl__SSLContext_keylog_filename_set (Modules/_ssl/debughelpers.c), which
has let go of the old file when it fails to open a new one.
"""

from __future__ import annotations

import errno
import os
import ssl
import warnings
from collections.abc import Iterable
from functools import partial
from io import FileIO
from itertools import chain, starmap
from typing import Any, ClassVar, Self

from safemem.errors import error
from safemem.fork import fork_safe_lock

# One for all contexts: a step may go from one to another (SSLContext.sni_callback). And the ssl module closes a key log
# although another thread's handshake may be writing to it.
_LOCK = fork_safe_lock()

# Not waiting for who reads a FIFO: OSError if nobody does.
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)


class Keylog:
    """Gathers what ``tls`` tells in its steps. It has a descriptor until it is closed."""

    stepping: ClassVar[Keylog | None] = None
    """Which takes a step, whichever thread's."""

    def __init__(self, tls: ssl.SSLObject) -> None:
        """Raises OSError if there is no descriptor left for the file in memory."""
        self._tls = tls
        self._told = b""
        self._files = _memory_files()
        self._name = f"/dev/fd/{self._files[-1].fileno()}"
        self._setting: _Setting | None = None
        self._chosen: _Setting | None = None

    def close(self) -> None:
        """Close the file in memory."""
        for file in self._files:
            file.close()

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

    def step(self) -> None:
        """``do_handshake()``, which raises as that does. It must not wait for its peer.

        Raises OSError if there is no descriptor left; then nothing was done.
        """
        with _LOCK:
            context = self._tls.context
            setting = _Setting(context)
            callback = setting.callback
            choose = partial(self._choose, callback)
            self._setting, self._chosen = setting, None
            Keylog.stepping = self
            try:
                self._point(context)
                if callback is not None:
                    context.sni_callback = choose
                self._tls.do_handshake()
            finally:
                # Stores alone. A key log that cannot be opened is looked for behind them.
                if callback is not None:
                    context.sni_callback = callback
                try:  # noqa: SIM105
                    context.keylog_filename = setting.name  # type: ignore[assignment]  # typeshed knows no None
                except OSError:
                    pass
                if self._chosen is not None:
                    try:  # noqa: SIM105
                        self._chosen.context.keylog_filename = self._chosen.name
                    except OSError:
                        pass
                Keylog.stepping = None
                lines = self._take()
                self._told += lines
                setting.close(b"" if self._chosen is not None else lines)
                if self._chosen is not None:
                    self._chosen.close(lines)

    @classmethod
    def undo_in_child(cls) -> None:
        """Put back, in a child that another thread has forked, what a step is in the middle of.

        The child's own handshakes would write their secrets to the step's file.
        """
        log = cls.stepping
        if log is None or _LOCK._is_owned():  # type: ignore[attr-defined]  # the step goes on here, and does it
            return
        cls.stepping = None
        for setting in filter(None, (log._setting, log._chosen)):
            if setting.callback is not None:
                setting.context.sni_callback = setting.callback
            setting.context.keylog_filename = setting.name  # type: ignore[assignment]
        log.close()

    def _choose(self, callback: Any, asked: ssl.SSLObject, name: str, context: ssl.SSLContext) -> int | None:
        """The context's ``sni_callback`` meanwhile: the context that it chooses writes to our file, too."""
        answer: int | None = callback(asked, name, context)
        if asked is self._tls and asked.context is not context:
            self._chosen = _Setting(asked.context)
            self._point(asked.context)
        return answer

    def _point(self, context: ssl.SSLContext) -> None:
        """Have the context write to our file."""
        try:
            context.keylog_filename = self._name
        except FileNotFoundError as exc:
            what = "handshake needs /dev/fd: mount /proc, or use ssl_object_pair, which needs no secrets"
            raise error(errno.ENOENT, what) from exc

    def _take(self) -> bytes:
        """What has been written to the file in memory, which is empty then."""
        file = self._files[0]
        found = b""
        while part := file.read(1 << 16):  # None of a pipe that is empty
            found += part
        if file.seekable():
            file.truncate(0)
            file.seek(0)
        return b"".join(line for line in found.splitlines(keepends=True) if not line.startswith(b"#"))


class _Setting:
    """What is put back of a context: its ``callback`` and its key log, by its ``name``, whose file is held open.

    Who reads a FIFO would take the moment in which nobody has it open for its end.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        """Raises OSError if no descriptor is left. A key log that cannot be opened has the name None."""
        self.context = context
        self.callback = context.sni_callback
        self._before = context.keylog_filename
        self._log: FileIO | None = None
        self._reason: object = None
        if self._before is not None:
            try:
                (self._log,) = _files(starmap(os.open, [(self._before, _APPEND, 0o666)]), "a")
                os.set_blocking(self._log.fileno(), True)
            except OSError as exc:
                if exc.errno in (errno.EMFILE, errno.ENFILE):
                    raise
                self._reason = str(exc)
        self.name = self._before if self._log is not None else None

    def close(self, lines: bytes) -> None:
        """Pass on lines to the key log, when the context has it back. Warns if it has not."""
        try:
            if self._log is not None and self.context.keylog_filename is not None:
                with self._log:
                    self._log.write(lines)
        except OSError as exc:
            self.context.keylog_filename = None  # type: ignore[assignment]
            self._reason = exc
        if self.context.keylog_filename != self._before:
            what = f"the context's key log cannot be opened again, and ends here: {self._reason}"
            warnings.warn(what, RuntimeWarning, stacklevel=3)


def _files(descriptors: Iterable[int], *modes: str) -> list[FileIO]:
    """Files that own these descriptors, which are made in one step with them: a handler finds none without an owner."""
    files: list[FileIO] = []
    files.extend(map(FileIO, descriptors, modes))
    return files


def _memory_files() -> list[FileIO]:
    """To read and to write a file that is on no disk: one, or the two ends of a pipe."""
    if hasattr(os, "memfd_create"):
        try:
            return _files(starmap(os.memfd_create, [("keylog",)]), "r+")
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                raise
            # a sandbox that refuses it
    files = _files(chain.from_iterable(starmap(os.pipe, [()])), "r", "w")
    os.set_blocking(files[0].fileno(), False)
    return files


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Keylog.undo_in_child)
