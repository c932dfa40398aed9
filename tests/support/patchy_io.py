"""PatchyIO: user memory in pieces at any addresses, up to the very top, with holes between them."""

from __future__ import annotations

from collections.abc import Mapping

from hostarch import AMD64, AccessType, Arch
from safemem import Block
from usermem import FaultError, FaultReason, ResolvedIO


class PatchyIO(ResolvedIO):
    """What ``{address: buffer}`` says, and nothing else. A piece may be a Block that really faults when touched.

    Unlike an AddressSpace it has no user space to leave: a piece may end at 2**64.
    """

    def __init__(self, pieces: Mapping[int, Block | bytes | bytearray], arch: Arch = AMD64) -> None:
        self.arch = arch
        self._pieces = {addr: piece if isinstance(piece, Block) else Block(piece) for addr, piece in pieces.items()}

    def resolve(
        self, addr: int, length: int, access: AccessType, *, ignore_permissions: bool = False
    ) -> tuple[list[Block], FaultError | None]:
        """See ResolvedIO.resolve."""
        found: list[Block] = []
        end = addr + length
        while addr < end:
            for start, block in self._pieces.items():
                if start <= addr < start + len(block):
                    break
            else:
                return found, FaultError(addr, access, FaultReason.UNMAPPED)
            if access.write and block.readonly:
                return found, FaultError(addr, access, FaultReason.PERMISSION)
            found.append(block.drop_first(addr - start).take_first(end - addr))
            addr += len(found[-1])
        return found, None
