"""AccessType: which of read, write and execute.

Source: gVisor pkg/hostarch/access_type.go.
"""

from __future__ import annotations

from typing import Self

from hostarch import mman
from hostarch.integers import check_int


class AccessType(int):
    """A set of rights: an int whose bits are mmap(2)'s PROT_READ, PROT_WRITE and PROT_EXEC.

    ``AccessType(mman.PROT_READ | mman.PROT_WRITE) == READ_WRITE``. A subclass of int and not an IntFlag, whose
    operators cost forty times as much; hot code works with the int.
    """

    __slots__ = ()

    def __new__(cls, prot: int = 0) -> Self:
        """Raises ValueError if prot has bits beyond read, write and execute."""
        prot = check_int(prot, "prot")
        if prot & ~7:
            raise ValueError(f"prot {prot:#x} has bits other than PROT_READ, PROT_WRITE and PROT_EXEC")
        return super().__new__(cls, prot)

    @property
    def read(self) -> bool:
        """Whether reading is in the set."""
        return bool(self & mman.PROT_READ)

    @property
    def write(self) -> bool:
        """Whether writing is in the set."""
        return bool(self & mman.PROT_WRITE)

    @property
    def execute(self) -> bool:
        """Whether executing is in the set."""
        return bool(self & mman.PROT_EXEC)

    def any(self) -> bool:
        """Whether the set is not empty."""
        return self != 0

    def prot(self) -> int:
        """The set as the prot argument of mmap(2), a plain int."""
        return int(self)

    def superset_of(self, other: int) -> bool:
        """Whether every right in other is in this set."""
        return not check_int(other, "other") & ~self

    def intersect(self, other: int) -> AccessType:
        """The rights in both sets."""
        return AccessType(self & check_int(other, "other"))

    def union(self, other: int) -> AccessType:
        """The rights in either set."""
        return AccessType(self | check_int(other, "other"))

    def effective(self) -> AccessType:
        """The set as the hardware grants it: what can be written or executed can be read."""
        return AccessType(self | mman.PROT_READ) if self & (mman.PROT_WRITE | mman.PROT_EXEC) else self

    def __str__(self) -> str:
        return ("r" if self.read else "-") + ("w" if self.write else "-") + ("x" if self.execute else "-")

    def __repr__(self) -> str:
        return f"<AccessType {self}>"


NO_ACCESS = AccessType(mman.PROT_NONE)
READ = AccessType(mman.PROT_READ)
WRITE = AccessType(mman.PROT_WRITE)
EXECUTE = AccessType(mman.PROT_EXEC)
READ_WRITE = AccessType(mman.PROT_READ | mman.PROT_WRITE)
READ_EXECUTE = AccessType(mman.PROT_READ | mman.PROT_EXEC)
ANY_ACCESS = AccessType(mman.PROT_READ | mman.PROT_WRITE | mman.PROT_EXEC)
