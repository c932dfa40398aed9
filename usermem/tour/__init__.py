"""The tour: a file's way through a guest's memory, as a syscall simulator would take it."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from usermem.address_space import AddressSpace
from usermem.render import render
from usermem.terminal import Progress
from usermem.tour.fuzz import fuzz_program
from usermem.tour.guest import Say, build_guest
from usermem.tour.memory import count_under_lock, read_argv, read_file, read_path, write_to_pipe


def tour(file: Path, say: Say = print) -> int:
    """Take the file through every stage, and return 0 if its bytes came out as they went in, else 1."""
    data, expected = _read(file)
    with AddressSpace() as space:
        guest = build_guest(space, len(data))
        say(f"{file}: {guest.size} bytes, SHA-256 {expected[:16]}…")
        say(f"\n1. The guest. Nothing is mapped at {guest.hole:#x}.\n")
        say(render(space))
        read_file(guest, file, say)
        read_path(guest, file, say)
        read_argv(guest, file, say)
        counted = count_under_lock(guest, say)
        digests = [write_to_pipe(guest, say)]
        say(f"   SHA-256 of what came out: {digests[0][:16]}…")
        if ssl_is_there():
            from usermem.tour.tls import read_over_tls

            digests.append(read_over_tls(space, guest.buffers, data, say))
            say(f"   SHA-256 of what came in: {digests[1][:16]}…")
        else:
            say("\n7. This Python has no ssl module, so nothing is read over TLS.")
        from usermem.tour.udp import receive_datagrams

        arrived = receive_datagrams(space, data, say)
    restored = fuzz_program(say)
    same = set(digests) == {expected}
    say(f"\nAfter {len(digests)} ways the bytes are {'the same' if same else 'NOT THE SAME'}")
    return 0 if same and counted and arrived and restored else 1


def _read(file: Path) -> tuple[bytes, str]:
    """The file's bytes and their SHA-256. What is read counts: files of /proc have a size of 0."""
    digest, pieces = hashlib.sha256(), []
    with file.open("rb") as source, Progress("read", file.stat().st_size) as show:
        while piece := source.read(1 << 20):
            digest.update(piece)
            pieces.append(piece)
            show(source.tell())
    return b"".join(pieces), digest.hexdigest()


def ssl_is_there() -> bool:
    """Whether this Python was built with ssl."""
    return importlib.util.find_spec("_ssl") is not None
