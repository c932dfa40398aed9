"""Engine, Opener and Sealer: the contract of an AEAD engine, which encrypts and decrypts records in a buffer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from safemem.tls.keys import RecordKeys

# Many arguments, and no object that holds them: one of these calls is made for each record.
Open = Callable[[int, bytes, int, int, Any, int], bool]
Seal = Callable[[int, bytes, int, int, int, Any, int], None]


class Opener(Protocol):
    """Decrypts the records of one key, out of the buffer that it was made for."""

    open: Open
    """``open(seq, header, at, length, target, offset)``: decrypt the record whose body (with its tag) is the ``length``
    bytes at ``at`` of the buffer to ``offset`` of the target; whether it was authentic. Where it was not,
    the target holds what must not be used. The buffer itself, at the same place, may be the target."""

    def target(self, view: memoryview) -> Any:
        """What ``open`` takes for a writable view as its target. The view must stay alive meanwhile."""
        ...

    def close(self) -> None:
        """Wipe the key. Later calls of ``open`` return False or raise ValueError."""
        ...


class Sealer(Protocol):
    """Encrypts the records of one key, into the buffer that it was made for."""

    seal: Seal
    """``seal(seq, header, at, n, tail, source, offset)``: encrypt to ``at`` of the buffer ``n`` bytes from ``offset``
    of the source and then the ``tail`` bytes that are at their place in the buffer, and append the tag."""

    def source(self, view: memoryview) -> Any:
        """What ``seal`` takes for a view as its source. The view must stay alive meanwhile."""
        ...

    def close(self) -> None:
        """Wipe the key. Later calls of ``seal`` raise ValueError."""
        ...


class Engine(Protocol):
    """What does the ciphers."""

    name: str

    def version(self) -> str:
        """Which library it is, for people."""
        ...

    def opener(self, keys: RecordKeys, buffer: memoryview) -> Opener:
        """A new Opener for records in the buffer, which must be writable and stay where it is."""
        ...

    def sealer(self, keys: RecordKeys, buffer: memoryview) -> Sealer:
        """A new Sealer for records in the buffer."""
        ...
