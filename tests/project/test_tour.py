"""The tour takes any file through a guest's memory, says what it sees, and tells when memory is broken."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import usermem.tour
from hostarch import AddrRangeSeq
from safemem import Reader
from usermem import AddressSpace, Snapshot
from usermem.__main__ import main
from usermem.tour import fuzz, tour


def file_of(size: int, tmp_path: Path) -> Path:
    """A file without a pattern that a shift of pages would keep."""
    path = tmp_path / "some file.bin"
    path.write_bytes(b"".join(i.to_bytes(4, "big") for i in range(size // 4 + 1))[:size])
    return path


@pytest.mark.parametrize("size", [0, 1, 2, 3, 100, 4096, 4097, 100_000])
def test_sizes(size: int, tmp_path: Path) -> None:
    """Every byte comes out as it went in, the counts add up to the file's size, and the hole is met once."""
    said: list[str] = []
    assert tour(file_of(size, tmp_path), said.append) == 0
    text = "\n".join(said)
    counts = [int(count) for count in re.findall(r"readv returns (-?\d+)", text)]
    assert sum(count for count in counts if count > 0) == size
    assert counts.count(-14) == (1 if size else 0)
    assert text.count("[heap]") >= 1
    assert f"{size} bytes in" in text
    assert text.endswith("the same")
    if size > 2:
        assert " --" in text  # the hexdump at the fault
    hole = int(re.search(r"Nothing is mapped at (0x\w+)", text)[1], 16)  # type: ignore[index]
    mappings = re.findall(r"^(\w+)-(\w+) ", text, re.MULTILINE)
    assert mappings
    assert not any(int(start, 16) <= hole < int(end, 16) for start, end in mappings)
    assert f"Bad address: {hole:#x}" in text or not size


def test_stages_are_told(tmp_path: Path) -> None:
    """It shows the map, the fault with its address, the path, the arguments, the count under the lock, the digest."""
    said: list[str] = []
    path = file_of(5000, tmp_path)
    assert tour(path, said.append) == 0
    text = "\n".join(said)
    for part in (
        str(path),
        "[stack]",
        "unmapped",
        "SIGSEGV",
        repr(path.name.encode()),
        f"[b'cat', b'--', {path.name.encode()!r}]",
        "the count under the lock is 4000",
        "SHA-256",
    ):
        assert part in text


def test_no_system_call_signals(tmp_path: Path) -> None:
    """A call that faults is a partial count, then -EFAULT; a signal is what the guest's own store would get."""
    said: list[str] = []
    assert tour(file_of(5000, tmp_path), said.append) == 0
    text = "\n".join(said)
    assert re.search(r"readv returns 4\d{3}, a partial count", text)
    assert "readv returns -14, which is -EFAULT, and the guest gets no signal" in text
    assert re.findall(r"^.*SIG.*$", text, re.MULTILINE) == [
        "   a store by its own code there would be SIGSEGV, si_code 1"
    ]


@pytest.mark.skipif(not usermem.tour.ssl_is_there(), reason="needs ssl")
def test_the_certificate_is_valid_whatever_the_clock(tmp_path: Path) -> None:
    """By its dates, and by OpenSSL at times from 1970 to 9999, with the strict rules that newer Pythons ask for."""
    import ssl

    path = Path(usermem.tour.__file__).with_name("certificate.pem")
    (found,) = ssl.create_default_context(cafile=path).get_ca_certs()
    assert "1950" in str(found["notBefore"])
    assert "9999" in str(found["notAfter"])
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    for when in (0, 631_152_000, 4_102_444_800, 253_000_000_000):
        command = [openssl, "verify", "-x509_strict", "-attime", str(when), "-CAfile", str(path), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_default_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Without an argument it takes a source file of the running Python, and prints."""
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(str(Path(argparse.__file__)))
    assert printed.endswith("the same\n")


class LosesAByte(AddressSpace):
    """Memory that changes the last byte of what a stream wrote."""

    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        """See IO.copy_out_from."""
        try:
            return super().copy_out_from(ars, reader, ignore_permissions=ignore_permissions)
        finally:
            first = ars.head().start
            self.copy_out(first, bytes([self.read_bytes(first, 1)[0] ^ 1]))


class LosesCounts(AddressSpace):
    """Memory in which a counter does not stay what it was."""

    def copy_uint32_in(self, addr: int, ignore_permissions: bool = False) -> int:
        """One less than is there, but never negative."""
        return max(super().copy_uint32_in(addr, ignore_permissions=ignore_permissions) - 1, 0)


@pytest.mark.parametrize(("broken", "word"), [(LosesAByte, "NOT THE SAME"), (LosesCounts, "WRONG")])
def test_broken_memory_is_told(
    broken: type[AddressSpace], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte that comes out otherwise, or a count that is lost, makes the result 1 and is said."""
    monkeypatch.setattr(usermem.tour, "AddressSpace", broken)
    said: list[str] = []
    assert tour(file_of(20, tmp_path), said.append) == 1
    assert word in "\n".join(said)


def fuzzed() -> tuple[bool, str]:
    """What the last stage returns and says, without its speed."""
    said: list[str] = []
    ok = fuzz.fuzz_program(said.append)
    return ok, re.sub(r"[\d,]+ runs a second", "", "\n".join(said))


def test_the_fuzzer_finds_the_bug() -> None:
    """It finds the same each time: the fault at the heap's end, and what the run wrote in a fork."""
    ok, text = fuzzed()
    assert ok
    assert (ok, text) == fuzzed()
    count, shortest = re.search(r"(\d+) of them fault; the shortest input is ([0-9a-f ]+)", text).groups()  # type: ignore[union-attr]
    assert 1 < int(count) < 500
    data = bytes.fromhex(shortest)
    heap = bytearray(b"." * 100)
    for command, times, value in zip(data[::3], data[1::3], data[2::3], strict=False):  # the program, on a bytearray
        if command % 8 == 1 and len(heap) + 16 * times <= 4 * 4096:
            heap += bytes([value]) * 16 * times
        heap += bytes(heap) if command % 8 == 3 else b""
    assert len(heap) > 4 * 4096
    assert "in a fork: [Errno 14] Bad address: 0x10004000 (-w-, unmapped)" in text
    assert "its parent nothing" in text


class RestoresNothing(AddressSpace):
    """Memory that stays as it is."""

    def restore(self, snapshot: Snapshot, *, timeout: float | None = 0) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("name", "broken", "word"),
    [("AddressSpace", RestoresNothing, "NOT WHAT IT WAS"), ("_program", lambda memory: None, "NOT FOUND")],
)
def test_broken_snapshots_are_told(
    name: str, broken: object, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore that leaves something, or a bug that is not found, makes the tour's result 1 and is said."""
    monkeypatch.setattr(fuzz, name, broken)
    said: list[str] = []
    assert tour(file_of(20, tmp_path), said.append) == 1
    assert word in "\n".join(said)


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a file whose size is said to be 0")
def test_a_file_that_says_nothing_of_its_size() -> None:
    """Files of /proc have bytes and a size of 0; their bytes come out all the same."""
    said: list[str] = []
    assert tour(Path("/proc/version"), said.append) == 0


def run(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """``python -m usermem`` with these arguments."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "usermem", *args], capture_output=True, text=True, cwd=cwd, timeout=120
    )


def test_as_a_command(tmp_path: Path) -> None:
    """It runs on a file given by a relative path, exits with 0 and writes nothing to stderr."""
    path = file_of(9000, tmp_path)
    done = run(path.name, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{path.name}: 9000 bytes")


@pytest.mark.parametrize("name", [".", "missing", "/dev/null"])
def test_what_is_no_file(name: str, tmp_path: Path) -> None:
    """A directory, a device or nothing at all is a usage error: 2, and the name on stderr."""
    done = run(name, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"{name} is not a regular file" in done.stderr


def test_an_empty_file_as_a_command(tmp_path: Path) -> None:
    """Also that is a file."""
    assert run(file_of(0, tmp_path).name, cwd=tmp_path).returncode == 0


def test_the_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    """It tells each way that this host offers, which of them are used, and why."""
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for word in ("python", "atomics", "safecopy", "ssl", "AEAD", "used"):
        assert word in printed
    assert " ".join(printed.split()).count("; used") == 1


def test_tls_without_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard library decrypts then, and the tour says what to install."""
    import usermem.tour.tls
    from safemem.tls import EngineError

    def no_engine(*args: object, **kwargs: object) -> None:
        raise EngineError("install something")

    monkeypatch.setattr(usermem.tour.tls, "handshake", no_engine)
    said: list[str] = []
    assert tour(file_of(5000, tmp_path), said.append) == 0
    text = "\n".join(said)
    assert "install something" in text
    assert "decrypted by the standard library" in text
    assert text.index("7. readv(socket) over TLS 1.3") < text.index("install something")


def test_without_ssl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python without ssl takes the rest of the tour."""
    monkeypatch.setattr(usermem.tour, "ssl_is_there", lambda: False)
    said: list[str] = []
    assert tour(file_of(5000, tmp_path), said.append) == 0
    assert "no ssl module" in "\n".join(said)
