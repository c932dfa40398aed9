"""FunctionIO: memory behind two functions, as debuggers, other emulators and networks offer it.

``read(addr, n)`` returns the n bytes at addr, or as many of them as it can: bytes, or any buffer. ``write(addr, data)``
stores bytes and returns how many, or None for all. What is not accessible is a short result, None or nothing, or an
exception of one of the types in ``faults``; every other exception passes through. So::

    memory = gdb.selected_inferior()
    FunctionIO(memory.read_memory, memory.write_memory, faults=gdb.MemoryError)

    FunctionIO(prog.read, faults=drgn.FaultError)  # drgn: read only

    def read(addr, n):  # lldb: an SBError says that nothing was read
        return process.ReadMemory(addr, n, lldb.SBError())

    FunctionIO(read, lambda addr, data: process.WriteMemory(addr, data, lldb.SBError()))

    script = session.create_script(  # frida
        "rpc.exports = {read: (addr, n) => ptr(addr).readByteArray(n),"
        " write: (addr, data) => { ptr(addr).writeByteArray(data); }}"
    )
    script.load()
    FunctionIO(script.exports_sync.read, script.exports_sync.write, faults=frida.core.RPCException)

    def read(addr, n):  # angr: concrete memory, of a state with angr.options.STRICT_PAGE_ACCESS: else nothing faults
        return state.solver.eval(state.memory.load(addr, n), cast_to=bytes)

    FunctionIO(read, lambda addr, data: state.memory.store(addr, data), faults=angr.errors.SimMemoryError)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hostarch import AMD64, READ, WRITE, AccessType, Arch
from safemem.buffers import readable_view
from usermem.errors import FaultError, FaultReason
from usermem.memories.remote import RemoteIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class FunctionIO(RemoteIO):
    """User memory over two functions; the module says what they take and return.

    Functions may do all or nothing: where one fails, less is asked for, down to the rest of one page of ``arch``. A
    FaultError that one raises gives its reason to the fault. Permissions are the functions' own: ``ignore_permissions``
    changes nothing.
    """

    def __init__(
        self,
        read: Callable[[int, int], ReadableBuffer | None],
        write: Callable[[int, bytes], int | None] | None = None,
        *,
        faults: type[BaseException] | tuple[type[BaseException], ...] = (),
        writable: Callable[[int, int], int] | None = None,
        arch: Arch = AMD64,
    ) -> None:
        """Without ``write`` every write is a fault (permission).

        ``writable(addr, n)`` says how many of n bytes can be written, before a Reader is asked for them. Without it a
        byte of each page is read and written back, which loses what somebody else stores there at that moment.
        """
        super().__init__(arch)
        self._read = read
        self._write = write
        self._faults = faults
        self._writable = writable

    def read(self, addr: int, buffer: memoryview, *, ignore_permissions: bool = False) -> int:
        """Raises ValueError if the function returns more than it was asked for."""
        try:
            found = self._read(addr, len(buffer))
        except FaultError as fault:  # of what it moved nothing has come here
            raise FaultError(addr, READ, fault.reason) from None
        except self._faults:
            return 0
        if found is None:
            return 0
        with readable_view(found, "what read() returned") as data:
            n = len(data)
            if n > len(buffer):
                raise ValueError(f"read() returned {n} bytes for {len(buffer)}")
            buffer[:n] = data
        return n

    def write(self, addr: int, buffer: memoryview, *, ignore_permissions: bool = False) -> int:
        if self._write is None:
            raise FaultError(addr, WRITE, self.reason(addr, WRITE))
        try:
            n = self._write(addr, buffer.tobytes())
        except FaultError as fault:
            raise FaultError(addr, WRITE, fault.reason, fault.transferred) from None
        except self._faults:
            return 0
        return len(buffer) if n is None else n

    def writable(self, addr: int, length: int, *, ignore_permissions: bool = False) -> int:
        if self._write is None:
            return 0
        if self._writable is None:
            return super().writable(addr, length)
        return self._writable(addr, length)

    def reason(self, addr: int, access: AccessType, *, ignore_permissions: bool = False) -> FaultReason:
        """PERMISSION for a write to what can be read, else UNMAPPED: no more is known."""
        if not access.write:
            return FaultReason.UNMAPPED
        try:
            readable = self.read(addr, memoryview(bytearray(1)))
        except FaultError as fault:
            return fault.reason
        return FaultReason.PERMISSION if readable else FaultReason.UNMAPPED
