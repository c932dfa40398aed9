"""Listener: what a space tells an engine, and after it whoever was told before."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from usermem.address_space import AddressSpace


class Listener:
    """A space's listener, in the place of the one before, which it calls afterwards whatever comes of its own act.

    Not the space's before :meth:`join`.
    """

    def __init__(self, space: AddressSpace, name: str, act: Callable[..., object]) -> None:
        """``name`` is the space's attribute: ``on_change`` or ``on_code_write``."""
        self._space = space
        self._name = name
        self._act = act
        self._previous: Any = getattr(space, name)

    def __call__(self, *told: Any) -> None:
        try:
            self._act(*told)
        finally:
            if self._previous is not None:
                self._previous(*told)

    def join(self) -> None:
        """Be told from now on."""
        setattr(self._space, self._name, self)

    def leave(self) -> None:
        """Be told no more, unless a listener that is none of these came after this one, and calls it."""
        later = getattr(self._space, self._name)
        if later is self:
            setattr(self._space, self._name, self._previous)
            return
        while isinstance(later, Listener):
            if later._previous is self:
                later._previous = self._previous
                return
            later = later._previous
