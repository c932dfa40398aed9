"""Where Linux's structs have their fields on each machine, as its C compiler says of its kernel's headers.

``abi_figures.txt`` beside the tests of the kernel keeps what :func:`measured` found. Run as a program this prints what
the compilers that are installed find; Debian has them all (gcc-aarch64-linux-gnu and so on).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from usermem import abi
from usermem.abi import ABIStruct

FIGURES = Path(__file__).parent.parent / "kernel" / "abi_figures.txt"

COMPILERS = {
    "amd64": ["gcc", "-m64"],
    "i386": ["gcc", "-m32", "-idirafter", "/usr/include/x86_64-linux-gnu"],  # headers that serve both widths
    "arm64": ["aarch64-linux-gnu-gcc"],
    "arm": ["arm-linux-gnueabihf-gcc"],
    "riscv64": ["riscv64-linux-gnu-gcc"],
    "mips": ["mips-linux-gnu-gcc"],
    "mipsel": ["mipsel-linux-gnu-gcc"],
    "ppc64": ["powerpc64-linux-gnu-gcc"],
    "ppc64le": ["powerpc64le-linux-gnu-gcc"],
    "s390x": ["s390x-linux-gnu-gcc"],
}
STRUCTS: dict[str, ABIStruct[Any]] = {value.name: value for value in vars(abi).values() if isinstance(value, ABIStruct)}

_HEADERS = {
    "timespec": "linux/time.h",
    "timeval": "linux/time.h",
    "__kernel_timespec": "linux/time_types.h",
    "rlimit": "linux/resource.h",
    "rlimit64": "linux/resource.h",
    "new_utsname": "linux/utsname.h",
    "iovec": "linux/uio.h",
    "stat": "asm/stat.h",
    "stat64": "asm/stat.h",
    "epoll_event": "linux/eventpoll.h",
    "sigaction": "asm/signal.h",
    "sockaddr_in": "linux/in.h",
    "sockaddr_in6": "linux/in6.h",
    "sockaddr_un": "linux/un.h",
}
# Where asm/signal.h has a C library's struct instead, the kernel's own: include/linux/signal_types.h.
_OWN = """
struct sigaction {
    void (*sa_handler)(int);
    unsigned long sa_flags;
    void (*sa_restorer)(void);
    struct { unsigned long sig[2]; } sa_mask;
};
"""
_HAS_OWN = ("i386", "arm")
_MACROS = """
#define FIELD (((struct STRUCT *)0)->NAME)
#define INTEGER __typeof__(__builtin_choose_expr(__builtin_classify_type(FIELD) == 1, FIELD, 0U))
"""
_FIGURE = """__asm__ volatile ("\\n@@ {0} %0 %1 %2" :: "i"(__builtin_offsetof(struct STRUCT, {0})),
    "i"(sizeof(FIELD)), "i"((INTEGER)-1 < (INTEGER)0));"""

Field = tuple[int, int, bool]
"""Its offset, its size in bytes, and whether it is a signed number."""
Figures = tuple[int, dict[str, Field]]
"""The size of a struct, and its fields."""


def measured(machine: str, name: str) -> Figures | None:
    """What the compiler says of a struct; None without the compiler, or if the machine has no such struct."""
    command = COMPILERS[machine]
    if shutil.which(command[0]) is None:
        return None
    head = f"#include <linux/types.h>\n#include <{_HEADERS[name]}>\n"
    if name == "sigaction" and machine in _HAS_OWN:
        head = _OWN
    fields = list(STRUCTS[name].fields)
    while True:
        text = head + _MACROS.replace("STRUCT", name) + "void figures(void) {\n"
        for field in fields:
            text += f"#undef NAME\n#define NAME {field}\n" + _FIGURE.format(field).replace("STRUCT", name) + "\n"
        text += f'__asm__ volatile ("\\n@@ sizeof %0 0 0" :: "i"(sizeof(struct {name})));\n}}\n'
        options = ["-ffreestanding", "-O1", "-w", "-x", "c", "-S", "-o", "-", "-"]
        made = subprocess.run([*command, *options], input=text, capture_output=True, text=True, timeout=60, check=False)
        lacks = re.findall(r"has no member named \W(\w+)", made.stderr)
        if not lacks:
            break
        fields = [field for field in fields if field not in lacks]
    if made.returncode:
        return None
    rows = re.findall(r"^@@ (\w+) [$#]?(\d+) [$#]?(\d+) [$#]?(\d+)", made.stdout, re.MULTILINE)
    found = {field: (int(start), int(size), signed == "1") for field, start, size, signed in rows}
    return found.pop("sizeof")[0], found


def kept() -> dict[tuple[str, str], Figures]:
    """What the file has, by machine and struct: ``machine struct size field@offset+size``, s if it is signed."""
    found = {}
    for line in FIGURES.read_text().splitlines():
        machine, name, whole, *fields = line.split()
        places = [re.fullmatch(r"(\w+)@(\d+)\+(\d+)(s?)", field) for field in fields]
        found[machine, name] = int(whole), {p[1]: (int(p[2]), int(p[3]), bool(p[4])) for p in places if p}
    return found


def _line(machine: str, name: str, figures: Figures) -> str:
    size, fields = figures
    row = [f"{field}@{at}+{n}{'s' * signed}" for field, (at, n, signed) in sorted(fields.items(), key=lambda it: it[1])]
    return " ".join([machine, name, str(size), *row])


if __name__ == "__main__":
    for machine in COMPILERS:
        for name in sorted(STRUCTS):
            figures = measured(machine, name)
            if figures is not None:
                print(_line(machine, name, figures))
