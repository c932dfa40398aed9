"""What lies behind mappings: one class for each kind, which answers for itself."""

from __future__ import annotations

from usermem.mm.backing.backing import Backing
from usermem.mm.backing.mapped_object import MappedObject
from usermem.mm.backing.object_pages import pages_of
from usermem.mm.backing.private_object import PrivateObject


def object_backing(mapped: MappedObject | Backing, shared: bool) -> Backing:
    """What a mapping of an object of the simulator's shows: the pages that all share, or pages of its own.

    Raises TypeError if it is none.
    """
    if isinstance(mapped, Backing):
        return mapped if shared else mapped.private()
    for method in ("size", "read_at"):
        if not callable(getattr(mapped, method, None)):
            raise TypeError(f"mapped must be None or an object with size() and read_at(): {mapped!r} has no {method}()")
    return pages_of(mapped) if shared else PrivateObject(mapped)
