"""User memory for syscall simulators, emulators and sandboxes: gVisor's contract over real, mmapped host memory.

:class:`AddressSpace` is the memory of a guest; :class:`IO` the contract it fulfils, and the functions here work on
anything that does. Start with :class:`BytesIO`, the smallest.
"""

from usermem.address_space import AddressSpace, Snapshot
from usermem.between import copy_between
from usermem.bytes_io import BytesIO, bytes_io_sequence
from usermem.cstruct import (
    copy_int8_in,
    copy_int8_out,
    copy_int16_in,
    copy_int16_out,
    copy_int32_in,
    copy_int32_out,
    copy_int64_in,
    copy_int64_out,
    copy_pointer_in,
    copy_pointer_out,
    copy_struct_from_user,
    copy_struct_in,
    copy_struct_out,
    copy_uint8_in,
    copy_uint8_out,
    copy_uint16_in,
    copy_uint16_out,
    copy_uint32_in,
    copy_uint32_out,
    copy_uint64_in,
    copy_uint64_out,
)
from usermem.ctypes_struct import copy_ctypes_in, copy_ctypes_out
from usermem.errors import (
    BusyError,
    FaultError,
    FaultReason,
    InvalidIntegerError,
    NameTooLongError,
    Signal,
    linux_result,
)
from usermem.fd import pread_fd, preadv_fd, pwrite_fd, pwritev_fd, read_fd, readv_fd, write_fd, writev_fd
from usermem.futex import FUTEX_BITSET_MATCH_ANY, Futex, FutexTable, FutexWaiter
from usermem.hexdump import hexdump
from usermem.io_sequence import IOReadWriter, IOSequence, IOSequenceReadWriter
from usermem.iovec import (
    MAX_RW_COUNT,
    UIO_MAXIOV,
    copy_in_iovecs,
    copy_in_vector,
    copy_out_iovecs,
    copy_vector_out,
    iovecs_io_sequence,
    single_io_sequence,
)
from usermem.memory_io import IO, arch_of, check_io_range, read_bytes, write_bytes
from usermem.mm.backing.mapped_object import MappedObject, WritableObject
from usermem.mm.backing.shared_memory import SharedMemory
from usermem.mm.host_limits import HostLimits, host_limits
from usermem.mm.host_runs import GuestRun
from usermem.mm.limits import Limits
from usermem.mm.listeners import ChangeKind
from usermem.mm.snapshot_file import SnapshotFileError
from usermem.mm.vma import VMA
from usermem.render import render
from usermem.resolver import ResolvedIO
from usermem.stack import Stack, build_stack
from usermem.strings import (
    copy_int32_string_in_vec,
    copy_int32_strings_in_vec,
    copy_string_in,
    copy_string_out,
    strncpy_from_user,
    strnlen_user,
)
from usermem.utf16 import copy_utf16_in, copy_utf16_out
from usermem.vec import copy_in_vec, copy_out_vec, zero_out_vec

__version__ = "0.1.0"

__all__ = [
    "FUTEX_BITSET_MATCH_ANY",
    "IO",
    "MAX_RW_COUNT",
    "UIO_MAXIOV",
    "VMA",
    "AddressSpace",
    "BusyError",
    "BytesIO",
    "ChangeKind",
    "FaultError",
    "FaultReason",
    "Futex",
    "FutexTable",
    "FutexWaiter",
    "GuestRun",
    "HostLimits",
    "IOReadWriter",
    "IOSequence",
    "IOSequenceReadWriter",
    "InvalidIntegerError",
    "Limits",
    "MappedObject",
    "NameTooLongError",
    "ResolvedIO",
    "SharedMemory",
    "Signal",
    "Snapshot",
    "SnapshotFileError",
    "Stack",
    "WritableObject",
    "arch_of",
    "build_stack",
    "bytes_io_sequence",
    "check_io_range",
    "copy_between",
    "copy_ctypes_in",
    "copy_ctypes_out",
    "copy_in_iovecs",
    "copy_in_vec",
    "copy_in_vector",
    "copy_int8_in",
    "copy_int8_out",
    "copy_int16_in",
    "copy_int16_out",
    "copy_int32_in",
    "copy_int32_out",
    "copy_int32_string_in_vec",
    "copy_int32_strings_in_vec",
    "copy_int64_in",
    "copy_int64_out",
    "copy_out_iovecs",
    "copy_out_vec",
    "copy_pointer_in",
    "copy_pointer_out",
    "copy_string_in",
    "copy_string_out",
    "copy_struct_from_user",
    "copy_struct_in",
    "copy_struct_out",
    "copy_uint8_in",
    "copy_uint8_out",
    "copy_uint16_in",
    "copy_uint16_out",
    "copy_uint32_in",
    "copy_uint32_out",
    "copy_uint64_in",
    "copy_uint64_out",
    "copy_utf16_in",
    "copy_utf16_out",
    "copy_vector_out",
    "hexdump",
    "host_limits",
    "iovecs_io_sequence",
    "linux_result",
    "pread_fd",
    "preadv_fd",
    "pwrite_fd",
    "pwritev_fd",
    "read_bytes",
    "read_fd",
    "readv_fd",
    "render",
    "single_io_sequence",
    "strncpy_from_user",
    "strnlen_user",
    "write_bytes",
    "write_fd",
    "writev_fd",
    "zero_out_vec",
]
