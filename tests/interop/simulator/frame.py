"""A signal handler's frame: what the kernel leaves on the stack, and takes back at rt_sigreturn.

From the frame's start up: the return address, struct ucontext, siginfo_t; and above them the FXSAVE image.

Source: Linux arch/x86/include/asm/sigframe.h, arch/x86/kernel/signal_64.c; include/uapi/asm/sigcontext.h.
"""

from __future__ import annotations

from typing import Final

from simulator import fpu
from simulator.process import Task
from simulator.siginfo import SIZE as SIGINFO
from simulator.siginfo import Siginfo
from usermem import abi, copy_struct_in, copy_struct_out

_RED_ZONE: Final = 128
_SEGMENTS: Final = 0x33 | 0x2B << 48  # user cs and ss; gs and fs are 0
_UC_FLAGS: Final = 6  # UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
_UCONTEXT: Final = "QQ QiQ 18Q QQQQQ Q 64x Q"  # flags, link; stack; registers; segments to cr2; fpstate; mask
_UCONTEXT_SIZE: Final = 304
_SIZE: Final = 8 + _UCONTEXT_SIZE + SIGINFO

SS_ONSTACK: Final = 1
SS_DISABLE: Final = 2
SS_AUTODISARM: Final = 1 << 31
SA_ONSTACK: Final = 0x0800_0000

# The flags that a handler cannot set: all but the arithmetic ones, DF, TF, RF, AC.
_FLAGS: Final = 0x50DD5


def on_altstack(task: Task, rsp: int) -> bool:
    """Whether a stack pointer is on the alternative stack: on_sig_stack()."""
    start, _, size = task.altstack
    return start < rsp <= start + size


def push(task: Task, info: Siginfo, action: abi.Sigaction, mask: int) -> None:
    """Let a task's next instruction be a handler's first. Raises FaultError if there is no stack."""
    cpu, io = task.cpu, task.memory
    general = cpu.general.read()
    rsp = general[15]
    top = rsp - _RED_ZONE
    start, _, size = task.altstack
    if action.sa_flags & SA_ONSTACK and size and not on_altstack(task, rsp):
        top = start + size
    fpstate = top - fpu.SIZE & -64
    frame = (fpstate - _SIZE & -16) - 8
    io.copy_out(fpstate, fpu.fxsave(cpu.uc))
    io.copy_out(frame + 8 + _UCONTEXT_SIZE, info.pack())
    stack = start, (0 if size else SS_DISABLE) | (SS_ONSTACK if on_altstack(task, rsp) else 0), size
    trap = (info.error, info.trap, 0, info.addr)  # err, trapno, oldmask, cr2
    copy_struct_out(io, frame + 8, _UCONTEXT, _UC_FLAGS, 0, *stack, *general, _SEGMENTS, *trap, fpstate, mask)
    copy_struct_out(io, frame, "Q", action.sa_restorer)
    _enter(task, general, frame, (info.signo, frame + 8 + _UCONTEXT_SIZE, frame + 8, action.sa_handler))


def _enter(task: Task, general: list[int], rsp: int, entry: tuple[int, int, int, int]) -> None:
    """Set the registers of a handler: rdi, rsi, rdx, and rip are the entry's."""
    rdi, rsi, rdx, rip = entry
    general[8], general[9], general[12], general[13] = rdi, rsi, rdx, 0
    general[15], general[16] = rsp, rip
    general[17] &= ~0x10500  # DF, TF, RF
    task.cpu.general.write(*general)


def pop(task: Task) -> None:
    """rt_sigreturn(2): be again what the frame says, above which the stack pointer is. Raises FaultError."""
    cpu, io = task.cpu, task.memory
    values = copy_struct_in(io, cpu.rsp, _UCONTEXT)
    general, fpstate, mask = list(values[5:23]), values[28], values[29]
    image = _image(task, fpstate) if fpstate else b""
    general[17] = general[17] & _FLAGS | 0x202
    cpu.general.write(*general)
    if image:
        fpu.fxrstor(cpu.uc, image)
    task.mask = mask


def _image(task: Task, addr: int) -> bytes:
    """An FXSAVE image in user memory. Raises FaultError."""
    image = bytearray(fpu.SIZE)
    task.memory.copy_in(addr, image)
    return bytes(image)
