"""``usermem doctor``: which ways this host offers, which of them are used, and why."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Iterator

from safemem import HostFaultError, atomics, safecopy
from usermem.mm import host_pages
from usermem.mm.faulting import can_map
from usermem.mm.image import maps_images
from usermem.mm.memory_file import memory_file
from usermem.terminal import BOLD, GREEN, RED, paint


def doctor(*, width: int = 80, colour: bool = False) -> str:
    """The report: the name of each way, what is used, and why, in columns of whole words that fit ``width`` columns."""
    rows = [
        ("python", *_python()),
        ("atomics", *_atomics()),
        ("safecopy", *_safecopy()),
        ("files", *_files()),
        ("dirty", *host_pages.way()),
        ("snapshots", *_snapshots()),
        ("restore", *_restore()),
        *_tls(),
        ("datagrams", *_datagrams()),
        ("segments", *_segments()),
    ]
    first, second = (max(len(row[column]) for row in rows) + 2 for column in (0, 1))
    room = max(width - first - second, 20)
    lines = []
    for name, tier, why in rows:
        reasons = textwrap.wrap(why, room, break_long_words=False, break_on_hyphens=False)
        head = name.ljust(first) + tier.ljust(second)
        if colour:
            missing = tier == "none" or why.startswith("missing")
            head = paint(name.ljust(first), BOLD) + paint(tier.ljust(second), RED if missing else GREEN)
        lines += [head + reasons[0], *(" " * (first + second) + reason for reason in reasons[1:])]
    return "".join(f"{line}\n" for line in lines)


def _python() -> tuple[str, str]:
    return platform.python_version(), f"{platform.python_implementation()} on {platform.system()} {platform.machine()}"


def _atomics() -> tuple[str, str]:
    promise = (
        "against everyone" if atomics.tier() == "native" else "against each other in this process, and nothing else"
    )
    return atomics.tier(), f"atomic {promise}: {atomics.reason()}"


def _safecopy() -> tuple[str, str]:
    """Whether memory that may fault can be copied: tried on a page that cannot be there."""
    try:
        safecopy.copy_in(memoryview(bytearray(1)), 0)
    except HostFaultError:
        return "process_vm", "memory that may fault is copied by process_vm_readv and process_vm_writev"
    except OSError as exc:
        return "none", f"memory that may fault cannot be copied: {exc.strerror or os.strerror(exc.errno or 0)}"
    return "none", "process_vm_readv does not notice faults"


def _files() -> tuple[str, str]:
    """Whether files of the host's can be mapped."""
    if can_map():
        return "mmap", "mapped, and copied by safecopy, so that a file that is cut is a fault and no signal"
    return "none", "mmap of a descriptor is ENODEV: what may fault cannot be copied here"


def _snapshots() -> tuple[str, str]:
    """Whether the pages of snapshots are mapped over a guest's memory, or copied back."""
    if maps_images():
        return "mapped", "pages of snapshots are mapped copy-on-write: a restore costs the pages written since"
    missing = "has no memory files (memfd_create)"
    if memory_file() is not None:
        missing = "does not bring a mapped file's pages back (mmap with MAP_FIXED, MADV_DONTNEED)"
    return "copied", f"this host {missing}: a restore compares and copies all that is resident"


def _restore() -> tuple[str, str]:
    """How pages that were written are given up."""
    if not maps_images():
        return "none", "nothing is given up: bytes are copied back"
    if host_pages.drops_many():
        return "one call", "process_madvise gives up many ranges at once"
    return "many calls", "a madvise for each range: this host has no process_madvise for MADV_DONTNEED (Linux 6.13)"


def _segments() -> tuple[str, str]:
    """Whether the kernel joins and cuts up datagrams: asked of a socket."""
    import socket

    from safemem.datagram import DatagramSocket

    try:
        with DatagramSocket(socket.socket(type=socket.SOCK_DGRAM)) as endpoint:
            endpoint.gro = True
            gro, gso = endpoint.gro, endpoint.gso
    except OSError as exc:
        return "none", f"there are no UDP sockets: {exc}"
    found = " and ".join(name for name, here in (("GRO", gro), ("GSO", gso)) if here)
    return found or "none", "UDP_GRO joins what arrives, UDP_SEGMENT cuts up what is sent"


def _datagrams() -> tuple[str, str]:
    """How many datagrams are moved."""
    from safemem.datagram.sockets import BACKENDS, default_backend

    best = default_backend()
    others = ", ".join(BACKENDS[BACKENDS.index(best) + 1 :])
    return best, "many a call" + (f"; where the host refuses: {others}" if others else "")


def _tls() -> Iterator[tuple[str, str, str]]:
    """The AEAD engines, the one that is used first."""
    try:
        import ssl
    except ImportError:
        yield "ssl", "none", "this Python has no ssl module"
        return
    from safemem.tls import EngineError, engine
    from safemem.tls.aead import NAMES

    yield "ssl", "stdlib", ssl.OPENSSL_VERSION
    chosen = ""
    for name in NAMES:
        try:
            found = engine(name)
        except EngineError as exc:
            yield "AEAD", name, f"missing: {exc}"
        else:
            used = "used: the first that gives the known answers" if not chosen else "on demand"
            chosen = chosen or name
            yield "AEAD", name, f"{found.version()}; {used}"
    if not chosen:
        yield "AEAD", "none", "TLSReader and TLSWriter cannot be used; SSLObjectReader can"
