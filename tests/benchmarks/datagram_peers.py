"""What receives datagrams beside us: asyncio's DatagramProtocol, and a recvmmsg loop in C where there is a compiler."""

from __future__ import annotations

import asyncio
import ctypes
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SOURCE = r"""
#define _GNU_SOURCE
#include <sys/socket.h>
#include <string.h>
static char memory[64][2048];
int receive(int fd, int count) {
    struct mmsghdr headers[64];
    struct iovec iovecs[64];
    char names[64][16];
    int done = 0;
    while (done < count) {
        memset(headers, 0, sizeof headers);
        for (int i = 0; i < 64; i++) {
            iovecs[i] = (struct iovec){memory[i], sizeof memory[i]};
            headers[i].msg_hdr.msg_iov = &iovecs[i];
            headers[i].msg_hdr.msg_iovlen = 1;
            headers[i].msg_hdr.msg_name = names[i];
            headers[i].msg_hdr.msg_namelen = sizeof names[i];
        }
        int n = recvmmsg(fd, headers, 64, MSG_DONTWAIT, 0);
        if (n < 0) return -1;
        done += n;
    }
    return done;
}
"""


def asyncio_loop(receiver: socket.socket, count: int) -> Callable[[], None]:
    """What has an event loop call ``datagram_received`` ``count`` times for a socket."""

    class Counter(asyncio.DatagramProtocol):
        left = 0

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.left -= 1
            if not self.left:
                loop.stop()

    loop = asyncio.new_event_loop()
    receiver.setblocking(False)
    _, counter = loop.run_until_complete(loop.create_datagram_endpoint(Counter, sock=receiver))

    def receive() -> None:
        counter.left = count
        loop.run_forever()

    return receive


def c_loop(receiver: socket.socket, count: int) -> Callable[[], None] | None:
    """A loop of recvmmsg in C, 64 a call with names; None without a compiler, or where it cannot compile this."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "loop.c", Path(folder) / "loop.so"
        source.write_text(_SOURCE)
        command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        function = ctypes.CDLL(str(library)).receive

    def receive() -> None:
        if function(receiver.fileno(), count) != count:
            raise OSError("the loop in C has lost some")

    return receive
