"""What goes wrong under the supervisor: bad pointers, signals, processes that end, rights that are refused."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pytest

from supervised import MAIN, ROOT, alone, has_ended, limited, nothing_left, passing, python, supervised
from supervisor import SIGNATURES, Answer, Call, Parameter, Signature, Supervisor
from supervisor.policies import host_named, random_from
from usermem import IO
from usermem.memories import ProcessIO

__all__ = ["nothing_left"]
pytestmark = pytest.mark.usefixtures("nothing_left")
SOURCE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

static void show(const char *what, long result) {
    printf("%s: %ld %s\n", what, result > 2 && result < 9 ? 3 : result, result < 0 ? strerror(errno) : "");
}
#define TRY(...) show(#__VA_ARGS__, (errno = 0, __VA_ARGS__))
#define SYS(...) TRY(syscall(SYS_ ## __VA_ARGS__))

int main(void) {
    char *page = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *end = page + 4096;
    char *only_read = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *bad = (char *)16;
    munmap(end, 4096);
    char *none = (char *)~0xfffUL;
    int tcp = socket(AF_INET, SOCK_STREAM, 0), udp = socket(AF_INET, SOCK_DGRAM, 0);
    memset(page, 'x', 4096);
    SYS(openat, AT_FDCWD, bad, O_RDONLY);
    SYS(openat, AT_FDCWD, none, O_RDONLY);
    SYS(openat, AT_FDCWD, end - 7, O_RDONLY);
    SYS(openat, AT_FDCWD, page, O_RDONLY);
    SYS(openat, AT_FDCWD, "", O_RDONLY);
    SYS(openat, 99, "x", O_RDONLY);
    memcpy(end - 10, "/dev/null", 10);
    SYS(openat, AT_FDCWD, end - 10, O_RDONLY);
    SYS(open, end - 10, O_RDONLY);
    unsigned long how[8] = {0};
    SYS(openat2, AT_FDCWD, "/dev/null", how, 24);
    SYS(openat2, AT_FDCWD, "/dev/null", how, 64);
    SYS(openat2, AT_FDCWD, "/dev/null", how, 8);
    SYS(openat2, AT_FDCWD, "/dev/null", how, 5000);
    SYS(openat2, AT_FDCWD, "/dev/null", end - 10, 24);
    how[5] = 1;
    SYS(openat2, AT_FDCWD, "/dev/null", how, 64);
    TRY(uname((void *)bad));
    TRY(uname((void *)only_read));
    TRY(uname((void *)(end - 100)));
    TRY(uname((void *)page));
    SYS(getrandom, bad, 16, 0);
    SYS(getrandom, end - 10, 32, 0);
    SYS(getrandom, end - 10, 10, 0);
    SYS(getrandom, only_read, 10, 0);
    SYS(getrandom, page, 0, 0);
    SYS(getrandom, page, 8, 64);
    SYS(getrandom, page, 8, 6);
    struct sockaddr_in to = {AF_INET, htons(9), {htonl(0x7f000001)}};
    memcpy(end - 8, &to, 8);
    TRY(connect(tcp, (void *)bad, 16));
    TRY(connect(tcp, (void *)(end - 8), 16));
    TRY(connect(tcp, (void *)(end - 8), 8));
    TRY(connect(tcp, (void *)bad, -1));
    TRY(sendto(udp, bad, 4, 0, (void *)&to, 16));
    TRY(sendto(udp, "four", 4, 0, (void *)(end - 8), 16));
    TRY(sendto(udp, "four", 4, 0, (void *)&to, 16));
    struct iovec parts[2] = {{"one", 3}, {end - 1, 2}};
    struct msghdr message = {&to, 16, parts, 1};
    TRY(sendmsg(udp, &message, 0));
    message.msg_iovlen = 2;
    TRY(sendmsg(udp, &message, 0));
    message.msg_iov = (void *)(end - 16);
    TRY(sendmsg(udp, &message, 0));
    message.msg_iovlen = 5000;
    TRY(sendmsg(udp, &message, 0));
    TRY(sendmsg(udp, (void *)bad, 0));
    TRY(sendmmsg(udp, (void *)bad, 1, 0));
    char *argv[2] = {bad, 0};
    TRY(execve(bad, argv, 0));
    TRY(execve("/bin/true", argv, 0));
    TRY(execve("/bin/true", (char **)(end - 8), 0));
    fflush(stdout);
    return 0;
}
"""


@pytest.fixture(scope="module")
def bad_pointers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A program that passes bad pointers, and prints what its calls return."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler: apt-get install gcc")
    folder = tmp_path_factory.mktemp("supervisor")
    (folder / "bad.c").write_text(SOURCE)
    command = [compiler, "-w", "-o", str(folder / "bad"), str(folder / "bad.c")]
    subprocess.run(command, check=True, timeout=60)
    return str(folder / "bad")


def test_bad_pointers(bad_pointers: str) -> None:
    """A call whose arguments cannot be read fails as the kernel's; what a handler writes counts as the kernel's."""
    expected = alone([bad_pointers])
    assert (expected.status, expected.stdout.count(b"\n")) == (0, 41)
    assert supervised([bad_pointers], passing()) == expected
    answered = passing() | {"uname": host_named("nowhere"), "getrandom": random_from(1)}
    assert supervised([bad_pointers], answered) == expected
    assert b"getrandom, end - 10, 32, 0): 10 \n" in expected.stdout


def test_bad_pointers_in_the_log(bad_pointers: str) -> None:
    """Without a handler the kernel sees them itself; the log shows the addresses."""
    log: list[str] = []
    assert supervised([bad_pointers], dict.fromkeys(passing()), log=log) == alone([bad_pointers])
    assert any("openat(AT_FDCWD, 0x10, O_RDONLY" in line for line in log)
    assert any("execve('/bin/true', 0x" in line for line in log)


def test_killed_while_it_waits() -> None:
    """The call is gone: the log says so, and the program's status is the signal's."""

    def kill(call: Call, addr: int) -> Answer:
        os.kill(call.tid, signal.SIGKILL)
        assert has_ended(call.tid)
        return host_named("nowhere")(call, addr)

    log: list[str] = []
    assert supervised(["uname", "-n"], {"uname": kill}, log=log).status == -signal.SIGKILL
    assert log[-1].endswith("= ? (interrupted, or its thread has ended)")


def test_killed_while_its_memory_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read may be another process's by then: no handler sees it."""

    def read(memory: IO, _: Sequence[int]) -> int:
        assert isinstance(memory, ProcessIO)
        os.kill(memory.pid, signal.SIGKILL)
        assert has_ended(memory.pid)
        return 0

    monkeypatch.setitem(SIGNATURES, "uname", Signature(63, (Parameter(read),)))
    log: list[str] = []
    assert supervised(["uname"], {"uname": lambda *_: pytest.fail("asked")}, log=log).status == -signal.SIGKILL
    assert "uname() = ? (interrupted" in log[-1]


INTERRUPTED = """
import os, signal, sys
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
signal.siginterrupt(signal.SIGUSR1, sys.argv[1] == "True")
try:
    print(os.uname().nodename, seen)
except OSError as error:
    print(error.errno, seen)
"""


@pytest.mark.parametrize(
    ("wait_killable", "restart", "printed", "gone"),
    [(True, False, "nowhere [1]", 0), (False, True, "nowhere [1]", 1), (False, False, "4 [1]", 1)],
)
def test_a_signal(wait_killable: bool, restart: bool, printed: str, gone: int) -> None:
    """It waits for the answer, or interrupts the call: that fails with EINTR, or is made and notified again."""
    answer = host_named("nowhere")
    calls = []

    def uname(call: Call, addr: int) -> Answer:
        calls.append(call.tid)
        if len(calls) == 1:
            os.kill(call.tid, signal.SIGUSR1)
            time.sleep(0.2)
        return answer(call, addr)

    log: list[str] = []
    script = python(INTERRUPTED, str(not restart))
    done = supervised(script, {"uname": uname}, log=log, wait_killable=wait_killable)
    if wait_killable and len(calls) == 2:
        pytest.skip("needs SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, of Linux 5.19")
    assert done.stdout.decode().strip() == printed
    assert sum("= ?" in line for line in log) == gone
    assert len(calls) == 1 + (gone and restart)


def test_the_listener_ends_first() -> None:
    """ENOSYS for the call that waits, and for those that follow."""
    script = python("""
import os
for _ in range(2):
    try:
        os.uname()
    except OSError as error:
        print(error.errno)
""")
    with limited(), tempfile.TemporaryFile() as out, Supervisor(script, {"uname": None}, stdout=out) as supervisor:
        poll = select.poll()
        poll.register(supervisor.listener.fd, select.POLLIN)
        poll.poll()
        supervisor.listener.close()
        supervisor.launcher.wait()
        out.seek(0)
        assert out.read().split() == [b"38", b"38"]


FAMILY = """
sleep 50 & echo $!
(setsid sleep 50 & echo $!)
echo $$
uname
sleep 50
"""


def pids(out: BinaryIO, count: int) -> list[int]:
    """The numbers that the family has printed."""
    while True:
        out.seek(0)
        found = [int(word) for word in out.read().split() if word.isdigit()]
        if len(found) == count:
            return found
        time.sleep(0.01)


def test_an_error_in_a_handler() -> None:
    """It comes out of run(), and the program is killed with all that came of it, orphans too."""

    def wrong(call: Call, addr: int) -> Answer:
        raise ZeroDivisionError

    with limited(), tempfile.TemporaryFile() as out:
        supervisor = Supervisor(["sh", "-c", FAMILY], {"uname": wrong}, stdout=out)
        with pytest.raises(ZeroDivisionError), supervisor:
            supervisor.run()
        assert all(has_ended(pid) for pid in pids(out, 3))


def test_a_killed_supervisor() -> None:
    """Nothing of the program is left either."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with limited(), tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        command = [sys.executable, str(MAIN), "sh", "-c", FAMILY]
        with subprocess.Popen(command, stdout=out, stderr=log, env=environment) as process:
            family = pids(out, 3)
            process.kill()
        assert all(has_ended(pid) for pid in family)


def test_a_killed_launcher() -> None:
    """ChildProcessError, and the listener is closed."""
    with limited(), Supervisor(["sleep", "50"], {"uname": None}, stdout=subprocess.DEVNULL) as supervisor:
        (program,) = (
            Path(f"/proc/{supervisor.launcher.pid}/task/{supervisor.launcher.pid}/children").read_text().split()
        )
        supervisor.launcher.kill()
        with pytest.raises(ChildProcessError):
            supervisor.run()
        os.kill(int(program), signal.SIGKILL)


def test_a_program_that_kills_the_launcher() -> None:
    """What has made a call is killed when the supervisor is left."""
    script = "kill -9 $PPID; kill -STOP $$"
    with limited(), tempfile.TemporaryFile() as out:
        supervisor = Supervisor(["sh", "-c", f"echo $$; {script}"], {"execve": None}, stdout=out)
        with supervisor, pytest.raises(ChildProcessError):
            supervisor.run()
        assert all(has_ended(pid) for pid in pids(out, 1))


def test_a_program_that_stops_the_launcher() -> None:
    """It goes on when the program has ended, and when the supervisor is left."""
    with limited(), Supervisor(["sh", "-c", "kill -STOP $PPID; exit 3"], {"uname": None}) as supervisor:
        assert supervisor.run() == 3
    second = Supervisor(["sh", "-c", "kill -STOP $PPID; uname; sleep 50"], {"uname": _interrupt})
    with limited(), second, pytest.raises(KeyboardInterrupt):
        second.run()


def _interrupt(call: Call, addr: int) -> int:
    raise KeyboardInterrupt


def test_no_right_to_read() -> None:
    """A call that cannot be judged fails with EPERM, and the log says which right is missing."""
    script = f"""
import runpy, sys
sys.path[:0] = {[str(ROOT), str(ROOT / "tests" / "support")]}
import seccomp
seccomp.refuse("process_vm_readv")
sys.argv = ["supervisor", "--deny", "/nowhere", {sys.executable!r}, "-ISc", "import os"]
runpy.run_path({str(MAIN)!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 127
    assert "openat(AT_FDCWD, 0x" in done.stderr
    assert "= -1 EPERM (Operation not permitted: process_vm_readv needs the right to ptrace process" in done.stderr


def test_a_program_that_cannot_start() -> None:
    """As a shell: 127 for none, 126 for one that is no program."""
    assert supervised(["/nowhere"], {}).status == 127
    done = supervised(["/etc/passwd"], {})
    assert (done.status, done.stderr) == (126, b"/etc/passwd: Permission denied\n")
