"""Siginfo: a signal, and what is known of it. Source: Linux include/uapi/asm-generic/siginfo.h."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

SI_USER: Final = 0
SI_KERNEL: Final = 0x80
SI_QUEUE: Final = -1
SI_TKILL: Final = -6
CLD_EXITED: Final = 1
CLD_KILLED: Final = 2
CLD_STOPPED: Final = 5
CLD_CONTINUED: Final = 6
ILL_ILLOPN: Final = 2
SIZE: Final = 128

_FAULTS: Final = (4, 5, 7, 8, 11)


class Siginfo(NamedTuple):
    """siginfo_t: which members count follows from the signal and si_code."""

    signo: int
    code: int = SI_USER
    pid: int = 0
    uid: int = 0
    status: int = 0
    """Of SIGCHLD; of rt_sigqueueinfo the value."""
    addr: int = 0
    trap: int = 0
    """Of what an instruction did: the CPU's exception, and its error code, as a handler's ucontext has them."""
    error: int = 0

    def pack(self) -> bytes:
        """The struct."""
        if self.signo in _FAULTS and self.code > 0:
            tail = struct.pack("<Q", self.addr & (1 << 64) - 1)
        elif self.code == SI_QUEUE:
            tail = struct.pack("<iIQ", self.pid, self.uid, self.status & (1 << 64) - 1)
        else:
            tail = struct.pack("<iIi", self.pid, self.uid, self.status)
        return (struct.pack("<iii4x", self.signo, 0, self.code) + tail).ljust(SIZE, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> Siginfo:
        """Of rt_sigqueueinfo."""
        signo, code, pid, uid, value = struct.unpack_from("<i4xi4xiIQ", data)
        return cls(signo, code, pid, uid, value)
