"""Real programs under the supervisor: as without one where it passes calls on, and as the policy says where it acts."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from supervised import MAIN, ROOT, alone, nothing_left, passing, python, supervised
from supervisor import supervisor
from supervisor.policies import Files, Network, host_named, random_from
from usermem.memories import ProcessIO

__all__ = ["nothing_left"]
pytestmark = pytest.mark.usefixtures("nothing_left")
THREADS = """
import os, threading
def calls():
    for _ in range(20):
        os.uname(), os.getrandom(8), os.close(os.open("/dev/null", 0))
threads = [threading.Thread(target=calls) for _ in range(4)]
[thread.start() for thread in threads]
children = []
for _ in range(2):
    children.append(os.fork())
    if not children[-1]:
        os.execv("/bin/sh", ["sh", "-c", "uname -s; exit 5"])
[thread.join() for thread in threads]
print(sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""
COMMANDS = {
    "cat": ["cat", "/etc/passwd"],
    "cat, two of them missing": ["cat", "/nowhere", "/etc/passwd", "/etc/passwd/x"],
    "pipes": ["sh", "-c", "cat /etc/passwd | tr a-z A-Z | sort | head -3; exit 7"],
    "uname": ["uname", "-a"],
    "environment": ["env"],
    "descriptors": ["ls", "/proc/self/fd"],
    "signals": ["grep", "^Sig[BIC]", "/proc/self/status"],
    "killed": ["sh", "-c", "kill -TERM $$"],
    "background": ["sh", "-c", "(sleep 0.1; echo late) & echo early; wait"],
    "left behind": ["sh", "-c", "(sleep 0.1; echo late) & exit 4"],
    "threads and forks": python(THREADS),
    "an interpreter": python("import json, socket; print(json.dumps([1]))"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_passed_on(name: str) -> None:
    """Output and status are those without a supervisor, of the program and of all that it starts."""
    argv, log = COMMANDS[name], list[str]()
    env = {"PATH": os.environ["PATH"], "ODD": "a=b"}  # no locale: Python would set one in its own
    assert supervised(argv, passing(), env=env, log=log) == alone(argv, env=env)
    assert any(f"execve('{shutil.which(argv[0])}', {[*map(str, argv)]}) = continued" in line for line in log)


def test_one_memory_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads, told by their own numbers, share their process's ProcessIO; each is closed when its process ends."""
    opened: list[ProcessIO] = []

    def open_(pid: int) -> ProcessIO:
        assert all(memory._pidfd < 0 for memory in opened[1:])  # of the child before, which has ended
        opened.append(ProcessIO(pid))
        return opened[-1]

    monkeypatch.setattr(supervisor, "ProcessIO", open_)
    script = THREADS.replace("range(2)", "()") + 2 * "os.spawnv(os.P_WAIT, '/bin/uname', ['uname'])\n"
    log: list[str] = []
    assert supervised(python(script), {"uname": None}, log=log).status == 0
    pids = [memory.pid for memory in opened]
    assert len(set(pids)) == len(pids) == 3
    assert all(memory._pidfd < 0 for memory in opened)
    assert len({line.split("]")[0] for line in log}) == 6  # four threads, two children
    assert len(log) == 82


def test_a_number_that_another_process_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is forgotten, and the arguments are read in the right one."""

    def open_(pid: int) -> ProcessIO:
        monkeypatch.undo()
        with subprocess.Popen(["true"]) as other:
            return ProcessIO(other.pid)

    monkeypatch.setattr(supervisor, "ProcessIO", open_)
    log: list[str] = []
    assert supervised(["true"], passing(), log=log).status == 0
    assert "['true']) = continued" in log[0]


def test_files_refused(tmp_path: Path) -> None:
    """Wherever the path comes from: absolute, relative, by a directory's descriptor, by a link."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (tmp_path / "link").symlink_to(secret)
    (tmp_path / "open").write_text("open")
    inner = tmp_path / "folder" / "inner"
    inner.parent.mkdir()
    inner.write_text("secret too")
    script = """
import os, sys
here = os.open("folder", os.O_PATH)
names = ("secret", None), (sys.argv[1], None), ("link", None), ("inner", here), ("../open", here), ("open", 99)
for name, folder in names:
    try:
        print(os.read(os.open(name, os.O_RDONLY, dir_fd=folder), 100))
    except OSError as error:
        print(error.errno)
"""
    log: list[str] = []
    done = supervised(python(script, str(secret)), Files([str(secret), str(inner)]).handlers(), cwd=tmp_path, log=log)
    assert done.stdout.decode().split() == ["13", "13", "13", "13", "b'open'", "9"]
    assert any(line.endswith("'secret', O_RDONLY|O_CLOEXEC, 0o0) = -1 EACCES (Permission denied)") for line in log)


def test_files_replaced(tmp_path: Path) -> None:
    """The program has the other file's descriptor, close-on-exec as it asked, and can write to it."""
    (tmp_path / "other").write_text("other")
    handlers = Files(replace={"/etc/passwd": f"{tmp_path}/other", "/nowhere/new": f"{tmp_path}/new"}).handlers()
    assert supervised(["cat", "/etc/passwd"], handlers).stdout == b"other"
    done = supervised(["sh", "-c", "umask 0; echo new > /nowhere/new; cat < /nowhere/new"], handlers)
    assert (done.stdout, (tmp_path / "new").read_text()) == (b"new\n", "new\n")
    script = """
import fcntl, os
print(fcntl.fcntl(os.open("/etc/passwd", 0), fcntl.F_GETFD))
libc = __import__("ctypes").CDLL(None)
print(fcntl.fcntl(libc.open(b"/etc/passwd", 0), fcntl.F_GETFD))
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
for path in "/etc/passwd", "/nowhere/new/x":
    try:
        os.open(path, 0)
    except OSError as error:
        print(error.errno)
"""
    assert supervised(python(script), handlers).stdout.split() == [b"1", b"0", b"24", b"24"]
    (tmp_path / "other").unlink()
    assert b"No such file" in supervised(["cat", "/etc/passwd"], handlers).stderr


def test_uname_and_getrandom() -> None:
    """The answers are written into the program's memory."""
    handlers = {"uname": host_named("nowhere"), "getrandom": random_from(7)}
    script = "import os; print(*os.uname(), sep='\\n'); print(os.getrandom(20)); print(len(os.getrandom(1 << 20)))"
    log: list[str] = []
    done = supervised(python(script), handlers, log=log)
    host = os.uname()
    *names, drawn, length = done.stdout.decode().splitlines()
    assert names == [host.sysname, "nowhere", host.release, host.version, host.machine]
    sizes = [int(line.split(", ")[1]) for line in log if "getrandom" in line]  # the interpreter's own come first
    stream = random.Random(7)
    assert eval(drawn) == [stream.randbytes(size) for size in sizes[:-1]][-1]
    assert int(length) == 1 << 16
    assert done == supervised(python(script), handlers | {"getrandom": random_from(7)})


def test_addresses_refused(tmp_path: Path) -> None:
    """connect, sendto, sendmsg and sendmmsg are judged by the address that the program passed."""
    script = """
import ctypes, socket, sys
port, other, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
def attempt(call, *args):
    try:
        print("ok", call(*args) is None)
    except OSError as error:
        print(error.errno)
for family, address in (socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET, ("127.0.0.1", other)), \\
    (socket.AF_INET6, ("::1", port)), (socket.AF_UNIX, path), (socket.AF_UNIX, "\\0" + path):
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        attempt(one.connect, address)
        attempt(one.sendto, b"x", address)
        attempt(one.sendmsg, [b"x", b"yz"], [], 0, address)
"""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        port, other, path = one.getsockname()[1], two.getsockname()[1], str(tmp_path / "socket")
        handlers = Network([f"127.0.0.1:{port}", "[[]::1]:*", "unix:*"]).handlers()
        log: list[str] = []
        done = supervised(python(script, str(port), str(other), path), handlers, log=log)
    lines = done.stdout.decode().splitlines()
    assert lines[:3] == ["13"] * 3
    assert lines[3:6] == ["ok True", "ok False", "ok False"]
    assert lines[6:] == ["13"] * 9
    text = "\n".join(log)
    for shown in (f"127.0.0.1:{port}, 16) = -1 EACCES", f"[::1]:{port}, 28)", f"unix:{path}, ", f"unix:@{path}, "):
        assert shown in text
    assert f"('127.0.0.1:{other}', 3), 0x0) = continued" in text


def test_command_line(tmp_path: Path) -> None:
    """``python tests/interop/supervisor``: policies, the log in a file, the program's status, clear errors."""
    log = tmp_path / "log"
    options = ["--log", str(log), "--hostname", "nowhere", "--deny", "/etc/pass*", "--replace", "/etc/group=/dev/null"]

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(MAIN), *options, *argv]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=30, env=environment)

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = run("sh", "-c", "uname -n; cat /etc/passwd; cat /etc/group; kill -9 $$")
    assert (done.returncode, done.stdout) == (137, "nowhere\n")
    assert "Permission denied" in done.stderr
    assert "'/etc/passwd', O_RDONLY, 0o0) = -1 EACCES (Permission denied)" in log.read_text()
    done = run("no such program")
    assert (done.returncode, done.stderr) == (127, "no such program: No such file or directory\n")
    done = run(sys.executable, str(MAIN), "true")  # a process has one listener
    assert (done.returncode, done.stderr) == (125, "supervisor: seccomp user notification: Device or resource busy\n")
