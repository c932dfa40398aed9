"""Pins: the host memory behind user addresses, for a caller to keep; where it can be written, its blocks say so.

A pin is an object that all blocks, views and arrays made from one call keep alive, and that the map knows by a weak
reference. As long as there is one, somebody may write at any time without a call of ours.
"""

from __future__ import annotations

from hostarch import WRITE, AccessType, AddrRangeSeq
from safemem import Block, BlockSeq
from safemem.block import Piece
from usermem.mm.host_mapping import Held
from usermem.mm.host_run import kept_view
from usermem.mm.mapped_io import MappedIO


def blocks(io: MappedIO, ars: AddrRangeSeq, access: AccessType, *, ignore_permissions: bool) -> BlockSeq:
    """See AddressSpace.blocks."""
    found, fault = io._resolve_seq(ars, access, ignore_permissions)
    if fault is not None:
        try:
            raise fault
        finally:
            del fault
    if not access & WRITE or not found:
        return found
    pin = Held()
    io._map.pins.add(pin)  # before this call ends, which counts as an access itself
    return BlockSeq.unchecked([_pinned(piece, pin) for piece in found.pieces()], found.num_bytes)


def _pinned(piece: Piece, pin: Held) -> Piece:
    """The same memory, which keeps the pin alive as well. (1.3 us; 30 us for the first of its length.)"""
    if isinstance(piece, Block):
        if piece.need_safecopy:
            return Block.from_address(piece.address, len(piece), Held(piece._owner, pin))
        piece = piece.view()
    return kept_view(piece, 0, len(piece), pin)
