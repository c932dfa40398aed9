"""CPU: a Unicorn engine that runs one task in an address space's own memory."""

from __future__ import annotations

import mmap
import resource
from enum import Enum
from typing import Any, Final

import unicorn
from unicorn import x86_const as x86

from hostarch import EXECUTE, WRITE
from simulator.siginfo import ILL_ILLOPN, SI_KERNEL, Siginfo
from usermem import AddressSpace, ChangeKind
from usermem.unicorn import RegisterBatch, share

# struct sigcontext_64's order, from its first word on
GENERAL: Final = [
    *(getattr(x86, f"UC_X86_REG_R{n}") for n in range(8, 16)),
    x86.UC_X86_REG_RDI,
    x86.UC_X86_REG_RSI,
    x86.UC_X86_REG_RBP,
    x86.UC_X86_REG_RBX,
    x86.UC_X86_REG_RDX,
    x86.UC_X86_REG_RAX,
    x86.UC_X86_REG_RCX,
    x86.UC_X86_REG_RSP,
    x86.UC_X86_REG_RIP,
    x86.UC_X86_REG_EFLAGS,
]
_ARGUMENTS: Final = [getattr(x86, f"UC_X86_REG_{name}") for name in ("RAX", "RDI", "RSI", "RDX", "R10", "R8", "R9")]
_NOWHERE: Final = 1 << 63  # no canonical address: the program never gets to the end that emu_start is told
_unicorn: Any = unicorn  # which has no types
_CODE_BUFFER: Final = 32 << 20  # for translated code, in bytes; Unicorn's own would reserve 1 GiB a task
_ROOM: Final = 2 * _CODE_BUFFER
"""The host memory that an engine may need, in bytes."""
_SLICE: Final = 1_000_000  # instructions, or 9 ms
_TRAPS: Final = {0: (8, 1), 1: (5, 2), 3: (5, SI_KERNEL), 4: (11, SI_KERNEL), 16: (8, 3), 19: (8, 3)}
"""Interrupts, as signals and si_codes: arch/x86/kernel/traps.c."""
_UD, _GP, _PF = 6, 13, 14
_USER, _WRITE, _FETCH = 4, 2, 16
"""A page fault's error code, without what says whether a page was there."""
_CANONICAL: Final = 1 << 47


class Stop(Enum):
    """Why a CPU stopped."""

    SYSTEM_CALL = 1
    TRAP = 2
    SLICE = 3


class CPU:
    """The registers of a task, and the engine that changes them."""

    def __init__(self, space: AddressSpace, like: CPU | None = None) -> None:
        """Registers are zero, or those of another CPU. Raises MemoryError if the host has too little room."""
        _check_room()
        self._limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
        if self._limited and space.on_change is None:
            space.on_change = lambda start, end, kind: _check_room() if kind is ChangeKind.MAP else None
        self.uc = _unicorn.Uc(_unicorn.UC_ARCH_X86, _unicorn.UC_MODE_64)
        self.uc.ctl_set_tcg_buffer_size(_CODE_BUFFER)
        self.shared = share(self.uc, space, copy_files=True)
        if like is not None:
            self.uc.context_restore(like.uc.context_save())
        self.arguments = RegisterBatch(self.uc, _ARGUMENTS)
        self.general = RegisterBatch(self.uc, GENERAL)
        self._result = RegisterBatch(self.uc, [x86.UC_X86_REG_RAX])
        self._pointers = RegisterBatch(self.uc, [x86.UC_X86_REG_RIP, x86.UC_X86_REG_RSP])
        self._stop = Stop.SYSTEM_CALL
        self._counts = False
        self.trap = Siginfo(0)
        """After Stop.TRAP: the signal."""
        self._hooks = [
            self.uc.hook_add(_unicorn.UC_HOOK_INSN, self._on_system_call, None, 1, 0, x86.UC_X86_INS_SYSCALL),
            self.uc.hook_add(_unicorn.UC_HOOK_INTR, self._on_interrupt),
        ]

    def close(self) -> None:
        """Let the space and the engine go."""
        self.shared.close()
        for hook in self._hooks:
            self.uc.hook_del(hook)
        self._hooks.clear()

    def run(self, *, preempt: bool) -> Stop:
        """Run until a system call, a trap, or :meth:`stop`; the program counter is behind a system call then.

        With ``preempt`` not for more than a slice. Unicorn counts instructions then, and is eleven times as slow: so
        an engine counts only if it must, and goes on counting as long as it uses up no slice, since to change that is
        to translate all code anew. (``timeout``, as emu_stop from another thread, leaves a wrong program counter where
        blocks are chained, and starts a host thread each time.)
        """
        if preempt != self._counts and (preempt or self._stop is Stop.SLICE):
            self.uc.ctl_flush_tb()
            self._counts = preempt
        while True:
            self._stop = Stop.SLICE
            try:
                if self._limited:
                    _check_room()
                self.uc.emu_start(self.rip, _NOWHERE, count=_SLICE if self._counts else 0)
                if self._stop is Stop.SLICE and self.rip == _NOWHERE:  # it jumped there
                    self._trap(Siginfo(11, SI_KERNEL, trap=_GP))
                return self._stop
            except MemoryError:  # pagefault_out_of_memory()
                self._trap(Siginfo(9, SI_KERNEL))
                return self._stop
            except _unicorn.UcError as error:
                fault = self._fault()
                if fault is not None:
                    self._trap(fault)
                    return self._stop
                if error.errno == _unicorn.UC_ERR_INSN_INVALID:
                    self._trap(Siginfo(4, ILL_ILLOPN, addr=self.rip, trap=_UD))
                    return self._stop
                # else the access was made good, and goes on

    def stop(self) -> None:
        """End :meth:`run`, from any thread; the registers are of no use any more."""
        self.uc.emu_stop()

    def _fault(self) -> Siginfo | None:
        try:
            fault = self.shared.take_fault()
        except ValueError:  # memory that no engine can have
            return Siginfo(7, SI_KERNEL)
        except MemoryError:  # the host has none left: pagefault_out_of_memory()
            return Siginfo(9, SI_KERNEL)
        if fault is None:
            return None
        if _CANONICAL <= fault.address < (1 << 64) - _CANONICAL:
            return Siginfo(11, SI_KERNEL, trap=_GP)
        error = _USER | (_WRITE if fault.access & WRITE else 0) | (_FETCH if fault.access & EXECUTE else 0)
        return Siginfo(fault.signo, fault.si_code, addr=fault.address, trap=_PF, error=error)

    def _trap(self, info: Siginfo) -> None:
        self._stop, self.trap = Stop.TRAP, info

    def _on_system_call(self, uc: Any, data: object) -> None:
        self._stop = Stop.SYSTEM_CALL
        uc.emu_stop()

    def _on_interrupt(self, uc: Any, number: int, data: object) -> None:
        signo, code = _TRAPS.get(number, (11, SI_KERNEL))
        self._trap(Siginfo(signo, code, addr=self.rip if signo == 8 else 0, trap=number))
        uc.emu_stop()

    @property
    def rip(self) -> int:
        """The program counter."""
        return self._pointers.read()[0]

    @property
    def rsp(self) -> int:
        """The stack pointer."""
        return self._pointers.read()[1]

    def jump(self, rip: int, rsp: int) -> None:
        """Set the program counter and the stack pointer."""
        self._pointers.write(rip, rsp)

    def set_result(self, value: int) -> None:
        """What the system call returns."""
        self._result.write(value)

    @property
    def fs_base(self) -> int:
        """Where thread-local storage is."""
        return int(self.uc.reg_read(x86.UC_X86_REG_FS_BASE))

    @fs_base.setter
    def fs_base(self, value: int) -> None:
        """Set it."""
        self.uc.reg_write(x86.UC_X86_REG_FS_BASE, value)

    @property
    def gs_base(self) -> int:
        """The base of the other segment."""
        return int(self.uc.reg_read(x86.UC_X86_REG_GS_BASE))

    @gs_base.setter
    def gs_base(self, value: int) -> None:
        """Set it."""
        self.uc.reg_write(x86.UC_X86_REG_GS_BASE, value)


def _check_room() -> None:
    """Raise MemoryError if the host has too little left for an engine: Unicorn ends the process where malloc fails."""
    try:
        mmap.mmap(-1, _ROOM, flags=mmap.MAP_PRIVATE, prot=0).close()
    except OSError:
        raise MemoryError("the host has no room for an engine") from None
