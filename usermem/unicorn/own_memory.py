"""UnicornIO: user memory over the memory that a Unicorn engine has of its own."""

from __future__ import annotations

from typing import Final

from hostarch import AMD64, READ, READ_WRITE, WRITE, AccessType, Arch, mman
from safemem.buffers import check_int
from safemem.fork import fork_safe_lock
from usermem.errors import FaultError, FaultReason
from usermem.memories.mapping import MappedRange, find
from usermem.memories.remote import RemoteIO
from usermem.memory_io import checked_start
from usermem.unicorn.engine import Engine

_IMPLY_READ: Final = mman.PROT_WRITE | mman.PROT_EXEC


class UnicornIO(RemoteIO):
    """The whole contract over an engine's own memory, for who cannot use an AddressSpace (Qiling: ``ql.uc``).

    Rights are those of ``mem_regions()``; ``ignore_permissions`` ignores them, as ``mem_read`` and ``mem_write`` do.
    The atomic calls are atomic against the guest, which is stopped while a hook runs, and against each other.
    """

    def __init__(self, uc: Engine, *, arch: Arch = AMD64) -> None:
        super().__init__(arch)
        self._uc = uc
        self._lock = fork_safe_lock()

    def read(self, addr: int, buffer: memoryview, *, ignore_permissions: bool = False) -> int:
        n = self._reach(addr, len(buffer), READ, ignore_permissions)
        if n:
            buffer[:n] = self._uc.mem_read(addr, n)
        return n

    def write(self, addr: int, buffer: memoryview, *, ignore_permissions: bool = False) -> int:
        n = self._reach(addr, len(buffer), WRITE, ignore_permissions)
        if n:
            self._store(addr, buffer[:n].tobytes())
        return n

    def _store(self, addr: int, data: bytes) -> None:
        """Write, and have the engine translate anew what it knows of code there: ``mem_write`` alone does not."""
        self._uc.mem_write(addr, data)
        end = addr + len(data)
        for start, last, prot in self._uc.mem_regions():
            if prot & mman.PROT_EXEC and start < end and addr <= last:
                self._uc.ctl_remove_cache(max(start, addr), min(last + 1, end))

    def writable(self, addr: int, length: int, *, ignore_permissions: bool = False) -> int:
        return self._reach(addr, length, WRITE, ignore_permissions)

    def reason(self, addr: int, access: AccessType, *, ignore_permissions: bool = False) -> FaultReason:
        return FaultReason.UNMAPPED if find(self._ranges(), addr) < 0 else FaultReason.PERMISSION

    def _ranges(self) -> list[MappedRange]:
        return [MappedRange(start, last + 1, prot) for start, last, prot in sorted(self._uc.mem_regions())]

    def _reach(self, addr: int, length: int, access: AccessType, ignore_permissions: bool) -> int:
        """How many of the bytes from addr on can be accessed."""
        at, end = addr, addr + length
        for start, last, prot in sorted(self._uc.mem_regions()):
            if last < at:
                continue
            rights = prot | mman.PROT_READ if prot & _IMPLY_READ else prot
            if start > at or (access & ~rights and not ignore_permissions):
                break
            at = min(last + 1, end)
            if at == end:
                break
        return at - addr

    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        return self._exchange(addr, None, new, ignore_permissions)

    def compare_and_swap_uint32(self, addr: int, old: int, new: int, *, ignore_permissions: bool = False) -> int:
        return self._exchange(addr, _checked(old, "old"), new, ignore_permissions)

    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        return self._word(addr, READ, ignore_permissions)[1]

    def _exchange(self, addr: int, old: int | None, new: int, ignore_permissions: bool) -> int:
        """Store ``new`` if the word is ``old``, or in any case if that is None. Returns what was there."""
        data = _checked(new, "new").to_bytes(4, self.arch.byte_order)
        with self._lock:
            start, found = self._word(addr, READ_WRITE, ignore_permissions)
            if old is None or found == old:
                self._store(start, data)
            return found

    def _word(self, addr: int, access: AccessType, ignore_permissions: bool) -> tuple[int, int]:
        """An address without its tag, and the word there."""
        addr = check_int(addr, "addr")
        if addr % 4:
            raise FaultError(addr, access, FaultReason.UNALIGNED)
        start = checked_start(addr, 4, self.arch, access)
        if not self._reach(start, 4, access, ignore_permissions):
            raise FaultError(addr, access, self.reason(start, access))
        return start, int.from_bytes(self._uc.mem_read(start, 4), self.arch.byte_order)


def _checked(value: int, name: str) -> int:
    value = check_int(value, name)
    if not 0 <= value < 1 << 32:
        raise ValueError(f"{name} must fit in 32 bits: {value}")
    return value
