"""Commands in the simulator, and really: the same output, exit status and files."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_messages import needs_linux

pytestmark = needs_linux
WHY = "needs Unicorn and pyelftools: pip install -e '.[interop]'"
for module in ("unicorn", "elftools"):
    pytest.importorskip(module, reason=WHY, exc_type=ImportError)
from simulated import prepare, run_really, run_simulated  # noqa: E402

BUSYBOX = shutil.which("busybox") or "/bin/busybox"
needs_busybox = pytest.mark.skipif(not Path(BUSYBOX).is_file(), reason="needs busybox: apt-get install busybox-static")

APPLETS = {
    "echo": "echo -n one 'two  three'",
    "cat": "cat words empty numbers",
    "cat of stdin": "cat",
    "cat of nothing": "cat absent words",
    "sha256sum": "sha256sum binary words",
    "md5sum": "md5sum binary",
    "sort": "sort -k1,1n numbers",
    "sort -u": "sort -u words",
    "uniq": "uniq -c words",
    "grep": "grep -n 'p[el]' words",
    "grep nothing": "grep absent words",
    "sed": "sed -e 's/apple/APPLE/' -e '/fig/d' words",
    "sed -i": "sed -i s/pear/peach/ words",
    "awk": "awk '{ s += $1; n[$1 % 3]++ } END { print s, n[0], n[1], n[2]; printf \"%.3f\\n\", s / 7 }' numbers",
    "gzip": "gzip -c binary",
    "gunzip": "sh -c 'gzip binary && gunzip binary.gz && cksum binary'",
    "bzip2": "sh -c 'bzip2 words && bunzip2 -c words.bz2'",
    "find": "find . -type f -name '*.txt'",
    "find -exec": "find sub -type f -exec cat {} ;",
    "wc": "wc words binary",
    "head": "head -n 2 words",
    "tail": "tail -c 20 numbers",
    "tr": "tr a-z A-Z",
    "cut": "cut -f 2 numbers",
    "ls -l": "ls -lan",
    "ls -R": "ls -R",
    "stat": "stat -c '%n %s %f %h %Y %F' words sub link",
    "cp": "cp -r sub copy",
    "cp -p": "cp -p words sub/words",
    "mv": "mv words sub/moved",
    "rm": "rm -r sub words",
    "ln": "sh -c 'ln words hard; ln -s words soft; readlink soft'",
    "mkdir": "mkdir -p a/b/c",
    "mkdir that is there": "mkdir sub",
    "rmdir": "rmdir sub",
    "chmod": "chmod 600 words",
    "touch": "touch -d '2020-01-02 03:04:05' words new",
    "seq": "seq 3 4 20",
    "printf": "printf '%05d|%-6s|%x\\n' 42 ab 255",
    "test": "test -d sub",
    "test not": "test words -nt sub",
    "expr": "expr 6 '*' 7",
    "env": "env",
    "env VAR": "env -i A=1 /bin/busybox env",
    "date": "date -u -d @0",
    "dd": "dd if=binary of=part bs=100 skip=3 count=5",
    "od": "od -A x -t x1z words",
    "hexdump": "hexdump -C numbers",
    "tar": "sh -c 'tar cf t.tar sub words && tar tvf t.tar && mkdir out && tar xf t.tar -C out'",
    "diff": "diff words numbers",
    "cmp": "cmp words link",
    "xargs": "xargs -n 2 echo got",
    "tee": "tee copy",
    "nl": "nl words",
    "rev": "rev words",
    "fold": "fold -w 5 numbers",
    "comm": "comm words words",
    "split": "split -l 10 numbers part.",
    "base64": "base64 binary",
    "du": "du -a sub",
    "pwd": "sh -c 'cd sub && /bin/busybox pwd | sed s,.*/,,'",
    "true": "true",
    "false": "false",
    "usage": "cut",
    "timeout": "timeout 0.2 sleep 20",
    "sleep": "sleep 0.05",
    "id": "id -u",
    "uname": "uname -srm",
    "realpath": "realpath /bin/sh /proc/self/exe",
}

SCRIPTS = {
    "pipes": "cat numbers | sort -n | uniq -c | tail -3 | wc -l",
    "loops": "for i in 1 2 3; do j=0; while [ $j -lt $i ]; do printf $i; j=$((j+1)); done; echo; done",
    "subshells": "x=1; (x=2; echo $x); echo $x; { x=3; }; echo $x",
    "substitution": 'echo "$(cat words | head -2) and $(echo $(echo deep))"',
    "background": "for i in 1 2 3; do (echo $i > out$i; exit $i) & p=$!; done; wait $p; echo $?; wait; cat out*",
    "here-document": "cat <<END | tr a-z A-Z\nfirst $((1+1))\nsecond\nEND",
    "trap": "trap 'echo got TERM' TERM; kill -TERM $$; echo after",
    "trap EXIT": "trap 'echo bye' EXIT; exit 7",
    "kill": "sleep 100 & kill $!; wait $!; echo $?",
    "kill itself": "kill -USR1 $$",
    "exit": "exit 42",
    "not found": "nosuchcommand; echo $?",
    "no right": "./words; echo $?",
    "script": "printf '#!/bin/sh\\necho script \"$@\"\\n' > s; chmod +x s; ./s 1 2",
    "scripts of scripts": (
        "printf '#!/bin/sh\\necho $#' > a; printf '#!./a x y\\n' > b; printf '#!./b' > c; printf '#!./c\\n' > d;"
        "printf '#!./d\\n' > e; printf '#!./e\\n' > f; chmod +x a b c d e f; ./e; ./f 2> /dev/null; echo $?"
    ),
    "interpreters' names": (
        "printf '#!/bin/echo\\tx\\r y  \\n' > a; printf '#!/%0300d\\n' 1 > b; printf '#!/bin/echo %0300d' 1 > c;"
        "printf '#!  \\n' > d; chmod +x a b c d; for i in a b c d; do ./$i 2> /dev/null; echo $?; done"
    ),
    "script of an interpreter": "printf '#!/bin/cat -n\\nline\\n' > s; chmod +x s; ./s",
    "recursion": "f() { [ $1 -eq 0 ] || f $(($1-1)); }; f 300; echo deep",
    "yes": "yes | head -3",
    "yes, many": "yes 12345678 | head -c 300000 | wc -c",
    "FIFO": "mkfifo f; cat f & echo through > f; wait",
    "FIFO, read first": "mkfifo f; (echo late > f) & cat f",
    "redirections": "ls absent 2>&1 >out | cat; exec 3>three; echo x >&3; exec 3>&-; cat three; echo y >> three",
    "read": 'while read a b; do echo "$b-$a"; done < numbers | head -4',
    "umask": "umask 077; echo a > a; mkdir d; umask",
    "cd": "cd sub; ls; cd ..; echo *",
    "files at once": "for i in 1 2 3 4 5; do echo $i >> log & done; wait; sort log; rm log",
    "exec": "exec echo replaced",
    "big pipe": "cat binary binary binary binary binary binary binary binary | cksum",
    "orphan": "(sleep 0.05; echo late) & echo early",
    "alarm": "(sleep 0.05; kill -USR1 $$) & trap 'echo usr1; exit 3' USR1; while :; do :; done",
    "stop and continue": "sleep 0.02 & kill -STOP $!; kill -CONT $!; wait $!; echo $?",
    "ignored SIGCHLD": "trap '' CHLD; (exit 3) & wait; echo ended",
    "stopped": "sh -c 'kill -STOP $$; exit 3' & sleep 0.1; kill -CONT $!; wait $!; echo $?",
    "memory limit": "ulimit -v 20000; dd if=/dev/zero of=big bs=50000000 count=1 2> /dev/null; echo $?",
    "lock": "flock f sh -c 'flock -n f echo no || echo taken'; flock f echo free",
    "time limit": "timeout 0.2 sh -c 'while :; do :; done'; echo $?",
    "dev fd": "echo x | cat /dev/stdin /dev/fd/0; echo e > /dev/stderr",
}

DYNAMIC = {
    "cat": "cat words -n",
    "ls -l": "ls -lan --time-style=+%s",
    "ls --color": "ls --color=always",
    "sort": "sort -n numbers",
    "sha256sum": "sha256sum binary",
    "stat": "stat -c '%n %s %a %y %F' words link sub",
    "cp": "cp -a sub copy",
    "mv": "mv -v words sub",
    "dd": "dd if=binary of=out bs=1k count=3 status=none",
    "date": "date -u -d @1000000000 +%c",
    "grep": "grep -rn inside .",
    "find": "find . -type f -size +0 -newermt 2001-01-01",
    "gzip": "gzip -9 -n -c binary",
    "tar": "tar -cvf out.tar --mtime=@0 sub",
    "diff": "diff -u words numbers",
    "xargs": "xargs -n1 echo",
    "seq": "seq -w 8 12",
    "head of absent": "head absent",
    "env": "env",
    "od": "od -c words",
    "sed": "sed -n '/apple/{p;=}' words",
    "factor": "factor 1234567890123",
    "timeout": "timeout 0.2 sleep 10",
    "tail": "tail -n 3 words numbers",
    "readlink": "readlink -f /proc/self/exe",
    "perl": "perl -e 'print join(q(,), map { $_ ** 2 } 1 .. 5); fork or exit 3; wait; print $? >> 8'",
    "perl's close-on-exec": "perl -e 'open F, q(words); system q(cat <&3 || test -e /dev/fd/3 || echo closed)'",
    "git": "git init -q --template= r",
    "awk": "awk 'BEGIN { for (i = 0; i < 5; i++) print i, sin(i), exp(i) }'",
}


def command(argv: list[str], tmp_path: Path, stdin: bytes = b"some\nlines of input\n") -> None:
    """Compare."""
    for name in ("real", "simulated"):
        prepare(tmp_path / name)
    real = run_really(argv, tmp_path / "real", stdin)
    assert run_simulated(argv, tmp_path / "simulated", stdin) == real


def split(line: str) -> list[str]:
    """A shell's words."""
    return shlex.split(line)


@needs_busybox
@pytest.mark.parametrize("name", APPLETS)
def test_busybox(name: str, tmp_path: Path) -> None:
    """An applet of the static busybox."""
    command([BUSYBOX, *split(APPLETS[name])], tmp_path)


@needs_busybox
@pytest.mark.parametrize("name", SCRIPTS)
def test_busybox_scripts(name: str, tmp_path: Path) -> None:
    """Its shell."""
    command([BUSYBOX, "sh", "-c", SCRIPTS[name]], tmp_path)


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_dynamic_scripts(name: str, shell: str, tmp_path: Path) -> None:
    """The host's shells and programs."""
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"there is no {shell}")
    command([path, "-c", SCRIPTS[name]], tmp_path)


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_programs(name: str, tmp_path: Path) -> None:
    """The host's programs."""
    program, *arguments = split(DYNAMIC[name])
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"there is no {program}")
    command([path, *arguments], tmp_path)


def test_main(tmp_path: Path) -> None:
    """``python tests/interop/simulator`` has the caller's streams, and exits as the program does."""
    command = [sys.executable, str(Path(__file__).resolve().parent / "simulator"), "--trace", "sh", "-c"]
    done = subprocess.run(
        [*command, "cat; echo e >&2; kill -9 $$"], input=b"in", cwd=tmp_path, capture_output=True, check=False
    )
    assert done.stdout == b"in"
    assert done.returncode == 128 + 9
    assert b"e\n" in done.stderr
    assert re.search(rb"\[\d+\] read\(0x0, 0x[0-9a-f]+, 0x[0-9a-f]+\) = 2\n", done.stderr)
    done = subprocess.run([*command[:2], "nosuch"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (127, b"simulator: nosuch: No such file or directory\n")
