"""What handshakes do to the context and its key log: virtual hosts, host names, handshakes that fail or never end."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from campaign import times
from safemem import Block, BlockSeq
from safemem.tls import TLSError, handshake, ssl_object_pair
from tls_peers import TIMEOUT, client_context, peer, plain_client, plain_server, server_context, tls_peer


def logs() -> dict[int, bytes]:
    """The files in memory that key logs are in, by their descriptors, and what they hold."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if "keylog" in str(path.readlink()):
                found[int(path.name)] = os.pread(int(path.name), 1 << 20, 0)
    return found


def descriptors() -> int:
    """How many are open that nothing forgotten holds."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def serve(context: ssl.SSLContext) -> None:
    """One handshake as a server."""
    with peer(tls_peer(lambda tls: None, server_side=False)) as sock:
        handshake(sock, context, server_side=True).close()


@contextmanager
def stalled(context: ssl.SSLContext) -> Iterator[None]:
    """A handshake whose peer says nothing until the end."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        with suppress(OSError):
            handshake(ours, context, server_side=True)

    with ours, theirs:
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            theirs.shutdown(socket.SHUT_RDWR)
            thread.join(TIMEOUT)
            assert not thread.is_alive()


def test_secrets_do_not_outlive_their_handshake() -> None:
    """While a peer stalls another handshake over the context, theirs are in no file, and nothing grows."""
    context = server_context()
    with stalled(context):
        for _ in range(5):
            serve(context)
            assert context.keylog_filename is None
            assert set(logs().values()) <= {b""}
        with pytest.raises(ssl.SSLError), peer(lambda sock: sock.sendall(b"GET / HTTP/1.1\r\n\r\n")) as sock:
            handshake(sock, context, server_side=True)
        assert set(logs().values()) <= {b""}
        assert len(logs()) <= 1
    assert not logs()


@pytest.mark.parametrize("do", ["handshake", "ssl_object_pair"])
def test_a_virtual_host(do: str, tmp_path: Path) -> None:
    """A server whose callback chooses another context by the name: its key log is the one that is told."""
    chosen = server_context(keylog_filename=str(tmp_path / "keys"))
    first = server_context()
    asked = []

    def choose(tls: ssl.SSLObject, name: str, context: ssl.SSLContext) -> None:
        asked.append((name, context))
        tls.context = chosen

    first.sni_callback = choose
    with peer(tls_peer(lambda tls: None, server_side=False)) as sock:
        if do == "handshake":
            handshake(sock, first, server_side=True).close()
        else:
            ssl_object_pair(sock, first, server_side=True)
    assert asked == [("localhost", first)]
    assert first.sni_callback is choose
    assert first.keylog_filename is None
    assert chosen.keylog_filename == str(tmp_path / "keys")
    assert (tmp_path / "keys").read_text().count("TRAFFIC_SECRET_0") == 2


def test_a_callback_that_refuses_the_name() -> None:
    """The alert is the callback's, and the context as it was."""
    context = server_context()

    def refuse(tls: ssl.SSLObject, name: str, context: ssl.SSLContext) -> int:
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    context.sni_callback = refuse
    with pytest.raises(ssl.SSLError), peer(tls_peer(lambda tls: None, server_side=False)) as sock:
        handshake(sock, context, server_side=True)
    assert context.sni_callback is refuse
    assert context.keylog_filename is None


def test_a_key_log_that_cannot_be_opened_again(tmp_path: Path) -> None:
    """The connection works as it would have without us; the log ends, and a warning says so."""
    path = tmp_path / "gone" / "keys"
    path.parent.mkdir()
    context = client_context(keylog_filename=str(path))
    shutil.rmtree(path.parent)
    with (
        peer(tls_peer(lambda tls: None)) as sock,
        pytest.warns(RuntimeWarning, match="key log cannot be opened"),
    ):
        handshake(sock, context, server_hostname="localhost").close()
    assert not logs()


@pytest.mark.parametrize("free", [0, 1])
def test_no_descriptor_left(free: int) -> None:
    """EMFILE each time, before a byte is sent, and what was free is free again."""
    ours, theirs = socket.socketpair()
    context = client_context()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ours, theirs:
        taken = [os.dup(ours.fileno()) for _ in range(free)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max([*taken, theirs.fileno()]) + 1, limit[1]))
        try:
            with ExitStack() as stack:
                with suppress(OSError):
                    while True:
                        stack.callback(os.close, os.dup(ours.fileno()))
                for fd in taken:
                    os.close(fd)
                for _ in range(5):
                    with pytest.raises(OSError, match="Too many open files"):
                        handshake(ours, context, server_hostname="localhost")
                for _ in range(free):
                    stack.callback(os.close, os.dup(ours.fileno()))
                with pytest.raises(OSError, match="Too many open files"):
                    os.dup(ours.fileno())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


def test_no_place_to_open_it() -> None:
    """Without /dev/fd the error says what is missing, and nothing stays open."""
    before = descriptors()
    ours, theirs = socket.socketpair()

    class Refusing(ssl.SSLContext):
        @property
        def keylog_filename(self) -> Any:
            return None

        @keylog_filename.setter
        def keylog_filename(self, name: Any) -> None:
            if name is not None:
                raise FileNotFoundError(2, "No such file or directory", name)

    context = Refusing(ssl.PROTOCOL_TLS_CLIENT)
    with ours, theirs, pytest.raises(FileNotFoundError, match="mount /proc"):
        handshake(ours, context, server_hostname="localhost")
    assert descriptors() == before


@pytest.mark.parametrize("do", [handshake, ssl_object_pair])
def test_a_host_name_that_is_missing(do: Callable[..., object]) -> None:
    """A context that checks names is not used without one."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for name in (None, ""):
            with pytest.raises(ValueError, match="server_hostname is missing"):
                do(ours, plain_client(), server_hostname=name)
    context = client_context(check_hostname=False)
    with peer(tls_peer(lambda tls: None)) as sock:
        do(sock, context)


@pytest.mark.parametrize("option", [{"release": "never"}, {"buffer_size": 9}, {"engine_name": "none"}])
def test_an_option_that_cannot_be(option: dict[str, Any]) -> None:
    """It is told before a byte is sent."""
    ours, theirs = socket.socketpair()
    ours.settimeout(1)
    with ours, theirs:
        with pytest.raises(ValueError, match="must be"):
            handshake(ours, client_context(), server_hostname="localhost", **option)
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


@pytest.mark.parametrize("do", [handshake, ssl_object_pair])
def test_a_client_that_is_gone_before_its_tickets(do: Callable[..., object]) -> None:
    """The handshake was whole: that the peer has gone is an error of what comes next."""
    gone = threading.Event()

    class Late(socket.socket):
        def send(self, data: Any, flags: int = 0) -> int:
            self._wait_for_the_last()
            return super().send(data, flags)

        def sendall(self, data: Any, flags: int = 0) -> None:
            self._wait_for_the_last()
            super().sendall(data, flags)

        sends = 0

        def _wait_for_the_last(self) -> None:
            self.sends += 1
            if self.sends == 2:
                assert gone.wait(TIMEOUT)

    def speak(sock: socket.socket) -> None:
        plain_client().wrap_socket(sock, server_hostname="localhost").close()
        gone.set()

    with peer(speak) as sock, Late(fileno=sock.detach()) as late:
        late.settimeout(TIMEOUT)
        do(late, plain_server(), server_side=True)


def failures(server_side: bool) -> dict[str, Callable[[socket.socket], object]]:
    """Peers of a handshake that fails, whoever is the server."""
    hello = (
        b"\x16\x03\x01\x00\x60\x02" if not server_side else b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40)
    )
    old = server_context(maximum_version=ssl.TLSVersion.TLSv1_2)
    old_client = client_context(maximum_version=ssl.TLSVersion.TLSv1_2)
    distrusting = ssl.create_default_context()

    def meet(context: ssl.SSLContext) -> Callable[[socket.socket], object]:
        return lambda sock: context.wrap_socket(
            sock, server_side=context is old, server_hostname=None if context is old else "localhost"
        ).close()

    return {
        "nothing": lambda sock: None,
        "no TLS": lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        "junk": lambda sock: sock.sendall(b"\x16\x03\x03\x00\x04junk"),
        "half": lambda sock: sock.sendall(hello),
        "an old version": meet(old_client if server_side else old),
        "distrust": meet(distrusting) if server_side else lambda sock: sock.sendall(b"\x15\x03\x03\x00\x02\x02\x30"),
    }


@pytest.mark.parametrize("server_side", [False, True])
@pytest.mark.parametrize("kind", failures(False))
def test_many_handshakes_that_fail(kind: str, server_side: bool) -> None:
    """No descriptor, no secret and no setting of the context is left, whatever the peer does."""
    context = server_context() if server_side else client_context()
    name = None if server_side else "localhost"
    fail = failures(server_side)[kind]
    before = descriptors()
    for _ in range(times(5, 1000)):
        ours, theirs = socket.socketpair()

        def speak(end: socket.socket = theirs) -> None:
            with end, suppress(OSError):
                fail(end)

        with ours:
            ours.settimeout(TIMEOUT)
            theirs.settimeout(TIMEOUT)
            thread = threading.Thread(target=speak)
            thread.start()
            with pytest.raises((OSError, TLSError)):
                handshake(ours, context, server_side=server_side, server_hostname=name).reader.read_to_blocks(
                    BlockSeq.of(Block(bytearray(1)))
                )
        thread.join(TIMEOUT)
    assert descriptors() == before
    assert not logs()
    assert context.keylog_filename is None
