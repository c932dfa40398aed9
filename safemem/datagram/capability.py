"""Capability: whether the host does something, for all that is known, and when to ask it again.

An error that may mean "not supported" may as well mean one datagram: EPERM is what a firewall says that drops it,
EINVAL what a route or a port does, which a remote peer may have chosen. So one error says nothing.
"""

from __future__ import annotations

from typing import Final

_LONGEST: Final = 10


class Capability:
    """Given up after ``patience`` refusals in a row that another way made good; then tried again, after a pause.

    A pause is a number of uses: 8 at first, twice as many with each further refusal, 1,024 at most. Two threads that
    count at the same time may lose a count, which does no harm.
    """

    __slots__ = ("_patience", "_pause", "refusals")

    def __init__(self, patience: int = 3) -> None:
        self._patience = patience
        self.refusals: int = 0
        """How many in a row; with none it is tried, which callers that must be quick look at first."""
        self._pause = 0

    @property
    def given_up(self) -> bool:
        """Whether the next use goes another way."""
        return self._pause > 0

    def is_tried(self) -> bool:
        """Whether this use tries it. Call it once a use."""
        if not self._pause:
            return True
        self._pause -= 1
        return False

    def worked(self) -> None:
        """The host did it: earlier refusals said something else."""
        self.refusals = 0

    def refused(self) -> None:
        """The host refused it, and did the same thing another way."""
        self.refusals += 1
        if self.refusals >= self._patience:
            self._pause = 1 << min(3 + self.refusals - self._patience, _LONGEST)
