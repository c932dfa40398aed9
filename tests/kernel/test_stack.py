"""build_stack, and the stack that the running kernel gives a program: the same bytes at the same addresses."""

from __future__ import annotations

import errno
import resource
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from hostarch import AMD64, I386, Arch, auxvec, mman
from kernel_messages import PAGE, needs_linux
from kernel_program import Program, exec_error, started
from usermem import AddressSpace, Stack, build_stack

pytestmark = needs_linux
SHELL = "/bin/sh"
STRING = st.binary(max_size=60).map(lambda data: data.replace(b"\0", b"\xff"))
VARIABLES = st.dictionaries(STRING.map(lambda name: b"V" + name.replace(b"=", b"_")), STRING, max_size=6)
NAMED = (auxvec.AT_EXECFN, auxvec.AT_PLATFORM, auxvec.AT_BASE_PLATFORM)


def auxv_of(program: Program, arch: Arch) -> list[tuple[int, int | bytes]]:
    """What a program was given, pointers to what lies on its stack replaced by that."""
    packed = (program.folder / "auxv").read_bytes()
    numbers = [value for (value,) in arch.pointer.iter_unpack(packed)]
    found: list[tuple[int, int | bytes]] = []
    for kind, value in zip(numbers[::2], numbers[1::2], strict=True):
        if kind == auxvec.AT_NULL:
            return found
        if kind in NAMED:
            found.append((kind, program.string(value)))
        elif kind == auxvec.AT_RANDOM:
            found.append((kind, program.read(value, 16)))
        else:
            found.append((kind, value))
    raise AssertionError("no AT_NULL")


def stack_of(program: Program) -> tuple[int, int]:
    """Where its stack's mapping begins and ends."""
    (bounds,) = [row[0] for row in program.maps() if row[-1] == "[stack]"]
    start, end = (int(bound, 16) for bound in bounds.split("-"))
    return start, end


def check(program: Program, space: AddressSpace, stack: Stack, top: int) -> None:
    """All that the kernel says of the program's stack is so of ours."""
    stat = program.stat()
    assert stack.pointer == stat[28]
    assert (stack.arg_start, stack.env_start, stack.env_start, stack.env_end) == tuple(stat[48:52])
    theirs = program.read(stack.pointer, top - stack.pointer)
    assert space.read_bytes(stack.pointer, stack.top - stack.pointer).ljust(len(theirs), b"\0") == theirs
    cmdline, environ = ((program.folder / name).read_bytes() for name in ("cmdline", "environ"))
    assert space.read_bytes(stack.arg_start, stack.env_start - stack.arg_start) == cmdline
    assert space.read_bytes(stack.env_start, stack.env_end - stack.env_start) == environ


def run(argv: list[bytes], variables: dict[bytes, bytes]) -> None:
    """Start a shell that waits, and lay out its stack."""
    argv = [argv[0] if argv else b"", b"-c", b"read x", *argv]
    with started(SHELL, argv, variables) as program:
        start, top = stack_of(program)
        with AddressSpace(evolve(AMD64, max_addr=top)) as space:
            envp = [name + b"=" + value for name, value in variables.items()]
            stack = build_stack(space, argv, envp, auxv_of(program, AMD64))
            check(program, space, stack, top)
            assert stack.top == top
            (vma,) = space.mappings()
            assert (vma.end, vma.name, vma.growsdown) == (top, "[stack]", True)
            # Where there is nothing to spare below the tables, the program has let its stack grow since.
            assert vma.start == start or start < vma.start == stack.pointer & -PAGE


@settings(max_examples=settings().max_examples // 2)
@given(argv=st.lists(STRING, max_size=6), variables=VARIABLES)
def test_any_strings(argv: list[bytes], variables: dict[bytes, bytes]) -> None:
    """Any arguments and variables."""
    run(argv, variables)


@pytest.mark.parametrize("count", [1, 1000, 20_000])
def test_many_strings(count: int) -> None:
    """Tables that are longer than what is mapped for them."""
    run([b"x"] * count, {b"V%d" % i: b"" for i in range(count)})


SOURCE = """
void _start(void) {
    for (;;) {
        int result = 29;  /* pause */
        __asm__ volatile("int $0x80" : "+a"(result));
    }
}
"""


@pytest.fixture(scope="module")
def program32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 32-bit program that waits."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler for a 32-bit program")
    folder = tmp_path_factory.mktemp("program")
    (folder / "wait.c").write_text(SOURCE)
    built = subprocess.run(
        [compiler, "-m32", "-nostdlib", "-static", "-fno-pie", "-no-pie", "-o", "wait", "wait.c"],
        cwd=folder,
        capture_output=True,
        check=False,
    )
    if built.returncode or subprocess.run([compiler, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("the C compiler makes no 32-bit programs")
    return folder / "wait"


@pytest.mark.parametrize("strings", range(5))
def test_32_bits(program32: Path, strings: int) -> None:
    """A 32-bit program. Below the end of its stack a 64-bit kernel leaves the room of a pointer of its own."""
    argv = [b"w" * i for i in range(strings + 1)]
    variables = {b"V" * (i + 1): b"x" * i for i in range(strings)}
    try:
        with started(program32, argv, variables) as program:
            start, end = stack_of(program)
            arch = evolve(I386, max_addr=end)
            with AddressSpace(arch) as space:
                flags = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
                space.mmap(start, end - start, mman.PROT_READ | mman.PROT_WRITE, flags)
                envp = [name + b"=" + value for name, value in variables.items()]
                stack = build_stack(space, argv, envp, auxv_of(program, arch), top=end - 4)
                check(program, space, stack, end)
    except OSError as exc:
        if exc.errno != errno.ENOEXEC:
            raise
        pytest.skip("this kernel runs no 32-bit programs")


def our_error(argv: list[bytes], envp: list[bytes], stack_limit: int) -> int:
    """The errno of build_stack, or 0."""
    with AddressSpace(stack_limit=stack_limit) as space:
        try:
            build_stack(space, argv, envp, [(auxvec.AT_EXECFN, b"/bin/true")])
        except OSError as exc:
            assert not space.mappings()
            return exc.errno or -1
    return 0


def of_size(size: int, word: int = struct.calcsize("P")) -> tuple[list[bytes], dict[bytes, bytes]]:
    """Arguments and one variable that take so many bytes, pointers and the file's name too."""
    left = size - len(b"/bin/true\0") - len(b"V=value\0") - word
    argv = []
    while left > 0:
        n = min(left, 100_000 if left > 110_000 else left) - word - 1
        argv.append(b"x" * n)
        left -= n + word + 1
    return argv, {b"V": b"value"}


@pytest.mark.parametrize("limit", [256 << 10, 1 << 20, 8 << 20, 20 << 20, 32 << 20])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_limits(limit: int, more: int) -> None:
    """A byte less than what the kernel takes by the stack's limit, just that, and one more."""
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    if hard != resource.RLIM_INFINITY and hard < limit:
        pytest.skip(f"the stack's limit may not be {limit}")
    argv, variables = of_size(max(min(limit // 4, 6 << 20), 131_072) + more)
    theirs = exec_error(argv, variables, limit)
    assert our_error(argv, [b"V=value"], limit) == theirs
    assert theirs == (errno.E2BIG if more > 0 else 0)


@pytest.mark.parametrize("size", [120_000, 131_000, 131_072])
def test_a_stack_that_is_too_short(size: int) -> None:
    """Strings that fit 128 KiB, and tables that do not: Linux kills the program, and we say so before."""
    argv, variables = of_size(size)
    argv += [b""] * ((131_072 - size) // 9)
    theirs = exec_error(argv, variables, 128 << 10)
    assert theirs < 0 or theirs == errno.E2BIG
    assert our_error(argv, [b"V=value"], 128 << 10) == errno.E2BIG


@pytest.mark.parametrize("length", [131_070, 131_071, 131_072])
def test_a_long_string(length: int) -> None:
    """32 pages with the NUL, as an argument and as a variable."""
    argv, value = [b"true", b"x" * length], b"x" * (length - 2)
    theirs = exec_error(argv, {}, 8 << 20)
    assert our_error(argv, [], 8 << 20) == theirs
    assert exec_error([b"true"], {b"V": value}, 8 << 20) == theirs == our_error([b"true"], [b"V=" + value], 8 << 20)
    assert theirs == (errno.E2BIG if length == 131_072 else 0)
