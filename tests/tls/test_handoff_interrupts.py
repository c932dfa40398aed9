"""What a handshake leaves of the context, its key log and descriptors: interrupts at each point, forks, FIFOs."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import sys
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from campaign import NIGHTLY
from each_line import Event, interrupt
from safemem.tls import handoff, handshake, keylog
from tls_peers import (
    TIMEOUT,
    client_context,
    peer,
    plain_client,
    plain_server,
    server_context,
    tls_peer,
)

OFTEN = 1 << 60 if NIGHTLY else 2


def descriptors() -> Counter[Path]:
    """What is open, and how often."""
    found: Counter[Path] = Counter()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found[path.readlink()] += 1
    return found


def shake_hands(context: ssl.SSLContext, server_side: bool, event: Event) -> None:
    """A handshake in which something happens, and which may fail."""
    ours, theirs = socket.socketpair()

    def speak() -> None:
        with theirs, suppress(OSError):
            if server_side:
                plain_client().wrap_socket(theirs, server_hostname="localhost").close()
            else:
                plain_server().wrap_socket(theirs, server_side=True).close()

    thread = threading.Thread(target=speak)
    with ours:
        ours.settimeout(TIMEOUT)
        theirs.settimeout(TIMEOUT)
        thread.start()
        # An interrupt in sni_callback is told of as one that cannot be raised, and the handshake fails.
        with suppress(KeyboardInterrupt, ssl.SSLError):
            name = None if server_side else "localhost"
            event.during(lambda: handshake(ours, context, server_side=server_side, server_hostname=name).close())
    thread.join(TIMEOUT)


def choose(tls: ssl.SSLObject, name: str, context: ssl.SSLContext) -> None:
    """An sni_callback that keeps the context."""


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("server_side", [False, True])
@pytest.mark.parametrize("logs", [False, True])
def test_an_interrupt_at_each_point(
    logs: bool, server_side: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The context is as it was, and no descriptor and no lock is left."""
    monkeypatch.setattr(sys, "unraisablehook", bool)  # pytest's keeps the traceback, and all that is in it
    modules = [keylog, handoff, contextlib]
    path = str(tmp_path / "keys") if logs else None
    make = server_context if server_side else client_context

    def run(event: Event) -> None:
        context = make(keylog_filename=path)
        if server_side:
            context.sni_callback = choose
        before = descriptors()
        shake_hands(context, server_side, event)
        assert context.keylog_filename == path, event.where
        assert not server_side or context.sni_callback is choose, event.where
        assert not descriptors() - before, event.where
        assert not keylog._LOCK._is_owned(), event.where  # type: ignore[attr-defined]

    counting = Event(modules, often=OFTEN, between=True)
    run(counting)
    assert counting.lines > 50
    for at in range(1, counting.lines + 1):
        run(Event(modules, at, interrupt, OFTEN, between=True))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_in_a_step() -> None:
    """By another thread: the child's context has the key log that it had, none, and not this handshake's file."""
    ends: list[int] = []

    def fork() -> None:
        child = os.fork()
        if not child:
            os._exit(context.keylog_filename is not None or context.sni_callback is not in_a_step)
        ends.append(os.waitpid(child, 0)[1])

    thread = threading.Thread(target=fork)

    def in_a_step(tls: ssl.SSLObject, name: str, context: ssl.SSLContext) -> None:
        assert context.keylog_filename is not None
        thread.start()
        thread.join(TIMEOUT)

    context = server_context()
    context.sni_callback = in_a_step
    with peer(tls_peer(lambda tls: None, server_side=False)) as sock:
        handshake(sock, context, server_side=True).close()
    thread.join(TIMEOUT)
    assert ends == [0]


def test_a_key_log_that_is_a_fifo(tmp_path: Path) -> None:
    """Who reads it finds the lines of all handshakes, and no end between them."""
    path = tmp_path / "keys"
    os.mkfifo(path)
    got = []
    thread = threading.Thread(target=lambda: got.append(path.read_bytes()))
    thread.start()
    context = client_context(keylog_filename=str(path))
    for _ in range(3):
        with peer(tls_peer(lambda tls: None)) as sock:
            handshake(sock, context, server_hostname="localhost").close()
    context.keylog_filename = None  # type: ignore[assignment]
    thread.join(TIMEOUT)
    assert got[0].count(b"CLIENT_TRAFFIC_SECRET_0") == 3


def test_a_fifo_that_nobody_reads_any_more(tmp_path: Path) -> None:
    """The handshake does not wait for a reader: the log ends, and a warning says so."""
    path = tmp_path / "keys"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    context = client_context(keylog_filename=str(path))
    os.close(reader)
    with (
        peer(tls_peer(lambda tls: None)) as sock,
        pytest.warns(RuntimeWarning, match="key log cannot be opened"),
    ):
        handshake(sock, context, server_hostname="localhost").close()
    assert context.keylog_filename is None
