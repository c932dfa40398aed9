"""The reference model in the place of this library's memories, so that recorded requests can be replayed on it.

It shares no code with them: a rule may ask it what must come out, and never looks at our answer.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Final, Self

from hostarch import AccessType, Arch, mman
from safemem import Block
from usermem import FaultError, FaultReason, MappedObject
from usermem.testing import ModelBytes, ModelMemory

_PAGE: Final = 4096
_GUARD: Final = 256 * _PAGE  # stack_guard_gap
_STACK_LIMIT: Final = 8 << 20  # RLIMIT_STACK


class WrittenThrough(dict[int, int]):
    """A model's bytes, which are kept in a buffer too."""

    def __init__(self, buffer: bytearray) -> None:
        super().__init__(enumerate(buffer))
        self.buffer = buffer

    def __setitem__(self, addr: int, value: int) -> None:
        super().__setitem__(addr, value)
        self.buffer[addr] = value

    def update(self, values: Any) -> None:
        for addr, value in dict(values).items():
            self[addr] = value


class ModelBuffer(ModelBytes):
    """ModelBytes in the place of BytesIO."""

    def __init__(self, buffer: bytearray) -> None:
        super().__init__(bytes(buffer))
        self.bytes = WrittenThrough(buffer)


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class ModelSpace(ModelMemory):
    """ModelMemory in the place of AddressSpace: the calls that the replay makes, with the checks of their arguments."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def map_object(
        self, addr: int, length: int, prot: int, flags: int, mapped: MappedObject | None, offset: int, max_prot: int
    ) -> int:
        self.map(addr, -(-length // 4096) * 4096, prot, max_prot, None if mapped is None else mapped.size())
        if mapped is not None:
            data = bytearray(mapped.size())
            mapped.read_at(0, memoryview(data))
            self.bytes.update({addr + i: value for i, value in enumerate(data) if value})
        return addr

    def munmap(self, addr: int, length: int) -> int:
        end = -(-(addr + length) // 4096) * 4096
        if addr % 4096 or length <= 0 or end > self.arch.max_addr:
            raise _error(errno.EINVAL)
        self.unmap(addr, end - addr)
        return 0

    def mprotect(self, addr: int, length: int, prot: int) -> int:
        if addr % 4096:
            raise _error(errno.EINVAL)
        if addr + length > 1 << 64:
            raise _error(errno.ENOMEM)
        self.protect(addr, length, prot)
        return 0

    def range_fault(self, addr: int, length: int, access: AccessType) -> FaultError | None:
        leaves = self.leaves_user_space(self.plain(addr), length)
        return FaultError(addr, access, FaultReason.OUTSIDE_RANGE) if leaves else None

    def resolve(
        self, addr: int, length: int, access: AccessType, *, ignore_permissions: bool = False
    ) -> tuple[list[Block], FaultError | None]:
        n, reason = self.reach(addr, length, access, ignore_permissions=ignore_permissions)
        return [Block(bytes(n))], None if reason is None else FaultError(addr + n, access, reason)


class GrowingSpace(ModelSpace):
    """ModelSpace whose MAP_GROWSDOWN mappings grow as Linux's do: expand_downwards and acct_stack_growth, mm/mmap.c."""

    def __init__(self, arch: Arch) -> None:
        super().__init__(arch)
        self._growing: set[int] = set()

    def map_object(
        self, addr: int, length: int, prot: int, flags: int, mapped: MappedObject | None, offset: int, max_prot: int
    ) -> int:
        super().map_object(addr, length, prot, flags, mapped, offset, max_prot)
        if flags & mman.MAP_GROWSDOWN:
            self._growing.update(range(addr, addr + length, _PAGE))
        return addr

    def unmap(self, addr: int, length: int) -> None:
        super().unmap(addr, length)
        self._growing.intersection_update(self._pages)

    def reason(self, addr: int, access: AccessType, *, ignore_permissions: bool = False) -> FaultReason | None:
        page = self._page_of(addr)
        if page not in self._pages:
            self._grow(page)
        return super().reason(addr, access, ignore_permissions=ignore_permissions)

    def _grow(self, page: int) -> None:
        """Let the mapping above an unmapped page grow down to it if it may, whatever the access and its rights."""
        above = min((at for at in self._pages if at > page), default=0)
        if above not in self._growing or page < self.arch.min_addr:
            return
        end = above  # of the mapping; Linux leaves two that met by growing two, with an end each
        while end in self._growing and self._pages[end] == self._pages[above]:
            end += _PAGE
        if end - page > _STACK_LIMIT:
            return
        # Only what grows down itself, or cannot be accessed, may be nearer than the guard.
        below = max((at for at in self._pages if at < page), default=0)
        accessible = self._pages.get(below, (0,))[0] != 0
        if accessible and below not in self._growing and page - (below + _PAGE) < _GUARD:
            return
        new = range(page, above, _PAGE)
        self._pages.update(dict.fromkeys(new, self._pages[above]))
        self._growing.update(new)
