"""``python tests/benchmarks SUITE [--only TEXT] [--json FILE] [--check]``: what things cost, as ratios in one run.

``copy``: each copy against a raw slice. ``walk``: long sequences against short ones. ``tls``: against Python's ssl.
``datagram``: against a loop of socket calls. ``mapping``: many mappings against few. ``syscall``: whole system calls
against what one writes by hand. ``snapshot``: snapshots, restores and forks against copies. ``memories``: another
process's memory against the raw system calls. ``unicorn``: an engine that shares a space against its own calls.
``observe``: accesses through observers against those by the memory itself.
``simulator``: the simulator's system calls against the same over uc.mem_read and uc.mem_write.
``all``: each suite in a process of its own, and at the end a table: which rows reach their bars, and the time it took.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import copy_rows
import walk_rows
from timing import best

_CONFIG = "OPENSSL_CONF"


def main() -> int:
    """Measure, print a table, and return 1 if --check is given and a bar is missed."""
    parser = argparse.ArgumentParser(
        prog="tests/benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", choices=[*_SUITES, "all"])
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the rows as JSON")
    parser.add_argument("--check", action="store_true", help="exit 1 if a bar is missed")
    parser.add_argument("--only", metavar="TEXT", default="", help="only rows whose name contains this")
    args = parser.parse_args()
    if args.suite == "all":
        return _all(args)
    if args.suite == "tls" and _CONFIG not in os.environ:
        return _with_aes_128()
    print(f"{_build()}, {platform.machine()}; best of many, in ns")
    results = list(_SUITES[args.suite](args.only))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    missed = [str(result["row"]) for result in results if result["missed"]]
    print(
        f"{len(results) - len(missed)} of {len(results)} rows reach their bar"
        + "".join(f"\n  not: {m}" for m in missed)
    )
    return int(args.check and bool(missed))


def _all(args: argparse.Namespace) -> int:
    """Run every suite, print the table, and return 1 if a suite fails, or if --check is given and a bar is missed."""
    table, everything, failed = [], [], False
    for suite in _SUITES:
        print(f"\n{suite}", flush=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.json"
            command = [sys.executable, str(Path(__file__).parent), suite, "--only", args.only, "--json", str(file)]
            status = subprocess.run(command, check=False).returncode
            rows = json.loads(file.read_text()) if not status else []
        failed |= bool(status)
        everything += [{"suite": suite} | row for row in rows]
        missed = [row["row"] for row in rows if row["missed"]]
        reached = "failed" if status else f"{len(rows) - len(missed)} of {len(rows)}"
        table.append(f"{suite:12}{reached:>12}{time.monotonic() - started:8.0f}   {'; '.join(missed)}".rstrip())
    if args.json:
        args.json.write_text(json.dumps(everything, indent=1) + "\n")
    print("\n".join(["", f"{'suite':12}{'reached':>12}{'seconds':>8}   missed", *table]))
    return int(failed or (args.check and any(row["missed"] for row in everything)))


def _build() -> str:
    """The build of Python, on which bars depend: its version, compiler, and optimisations."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    switches = {"PGO": "--enable-optimizations", "LTO": "--with-lto"}
    flags = ", ".join(name if switch in arguments else f"no {name}" for name, switch in switches.items())
    version = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{version} ({platform.python_compiler()}, {flags})"


def _copy(only: str) -> Iterator[dict[str, Any]]:
    print(f"{'row':27}{'ours':>10}{'floor':>10}{'ratio':>8}{'bar':>8}   peers (their time / ours, bar)")
    for row in copy_rows.rows():
        if only not in row.name:
            continue
        times = best({"ours": row.ours, "floor": row.floor})
        ratio = times["ours"] / times["floor"]
        missed = ratio > row.bar
        gains = {}
        for peer, bar in row.peer_bars.items():
            # Measured apart: a peer's allocations would disturb the floor's.
            pair = best({"ours": row.ours, peer: row.peers[peer]}, rounds=20)
            times[peer] = pair[peer]
            gains[peer] = pair[peer] / pair["ours"]
            missed |= gains[peer] < bar
        peers = [
            f"{p} {g:.1f}x" + (f" (>= {row.peer_bars[p]:g})" if row.peer_bars[p] else "") for p, g in gains.items()
        ]
        line = f"{row.name:27}{times['ours']:10.0f}{times['floor']:10.0f}{ratio:8.2f}{row.bar:8.2f}"
        print(f"{line}   {', '.join(peers)}{'  MISSED' if missed else ''}")
        yield {
            "row": row.name,
            "ratio": ratio,
            "bar": row.bar,
            "ns": times,
            "gains": gains,
            "peer_bars": row.peer_bars,
            "missed": missed,
        }


def _walk(only: str) -> Iterator[dict[str, Any]]:
    print(f"{'row':16}{'ranges':>10}{'per range':>12}{'ratio':>8}{'bar':>8}")
    for row in walk_rows.rows():
        if only not in row.name:
            continue
        missed = row.ratio > row.bar
        print(f"{row.name:16}{row.size:10}{row.ns:12.0f}{row.ratio:8.2f}{row.bar:8.2f}{'  MISSED' if missed else ''}")
        yield {"row": f"{row.name} {row.size}", "ns": row.ns, "ratio": row.ratio, "bar": row.bar, "missed": missed}


def _with_aes_128() -> int:
    """Run again where OpenSSL is told to agree on AES-128-GCM."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "openssl.cnf"
        config.write_text(
            "openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\nCiphersuites = TLS_AES_128_GCM_SHA256\n"
        )
        return subprocess.run(
            [sys.executable, *sys.argv], env=os.environ | {_CONFIG: str(config)}, check=False
        ).returncode


def _tls(only: str) -> Iterator[dict[str, Any]]:
    import ssl

    import tls_rows

    print(f"{ssl.OPENSSL_VERSION}; best of many, per record\n{'row':30}{'us':>8}{'ratio':>8}{'bar':>8}")
    for row in tls_rows.rows(only):
        missed = row.ratio < row.bar
        print(f"{row.name:30}{row.us:8.2f}{row.ratio:8.2f}{row.bar:8.2f}{'  MISSED' if missed else ''}")
        yield {"row": row.name, "us": row.us, "ratio": row.ratio, "bar": row.bar, "missed": missed}
    if not only:
        receives = tls_rows.receives_per_mib()
        yield {"row": "receives per MiB", "ratio": receives, "bar": 5, "missed": receives > 5}
        print(f"receives per MiB: {receives:.1f} (at most 5)")
        tls_rows.print_limit()


def _datagram(only: str) -> Iterator[dict[str, Any]]:
    import datagram_rows

    print(f"CPU time of a datagram; ratio to a recvfrom_into or sendto loop\n{'row':40}{'ns':>8}{'ratio':>8}{'bar':>8}")
    for row in datagram_rows.rows(only):
        missed = row.ratio < row.bar
        print(f"{row.name:40}{row.ns:8.0f}{row.ratio:8.2f}{row.bar:8.2f}{'  MISSED' if missed else ''}")
        yield {"row": row.name, "ns": row.ns, "ratio": row.ratio, "bar": row.bar, "missed": missed}


def _mapping(only: str) -> Iterator[dict[str, Any]]:
    import mapping_rows

    return _ratios(mapping_rows.rows(only))


def _snapshot(only: str) -> Iterator[dict[str, Any]]:
    import snapshot_rows

    return _ratios(snapshot_rows.rows(only))


def _memories(only: str) -> Iterator[dict[str, Any]]:
    import memory_rows

    return _ratios(memory_rows.rows(only))


def _unicorn(only: str) -> Iterator[dict[str, Any]]:
    import unicorn_rows

    return _ratios(unicorn_rows.rows(only))


def _observe(only: str) -> Iterator[dict[str, Any]]:
    import observe_rows

    print(
        f"what an access through an observer takes longer than by the memory\n{'row':32}{'us':>8}{'bar':>8}{'ratio':>8}"
    )
    for row in observe_rows.rows(only):
        print(f"{row.name:32}{row.us:8.2f}{row.bar:8.2f}{row.ratio:8.2f}{'  MISSED' if row.missed else ''}")
        yield {"row": row.name, "us": row.us, "bar": row.bar, "ratio": row.ratio, "missed": row.missed}


def _ratios(rows: Iterator[Any]) -> Iterator[dict[str, Any]]:
    print(f"{'row':32}{'ratio':>10}{'bar':>8}")
    for row in rows:
        bar = f"{'>=' if row.more else '<='}{row.bar:g}"
        print(f"{row.name:32}{row.ratio:10.2f}{bar:>8}{'  MISSED' if row.missed else ''}   {row.what}")
        yield {"row": row.name, "ratio": row.ratio, "bar": row.bar, "missed": row.missed}


def _simulator(only: str) -> Iterator[dict[str, Any]]:
    import simulator_rows

    print(f"{'row':34}{'ours':>8}{'theirs':>8}{'theirs / ours':>15}{'bar':>6}")
    for row in simulator_rows.rows(only):
        times = best(row.runs, rounds=60)
        ratio = times["theirs"] / times["ours"]
        missed = ratio < row.bar
        line = f"{row.name:34}{times['ours']:8.0f}{times['theirs']:8.0f}{ratio:15.2f}{'>=':>3}{row.bar:3g}"
        print(f"{line}{'  MISSED' if missed else ''}")
        yield {"row": row.name, "ratio": ratio, "bar": row.bar, "ns": times, "missed": missed}


def _syscall(only: str) -> Iterator[dict[str, Any]]:
    import syscall_rows

    print(f"{'row':30}{'ours':>8}{'reference':>17}{'ratio':>8}{'bar':>6}   beside")
    for row in syscall_rows.rows(only):
        if row.against not in row.runs:
            print(f"{row.name:30} left out: {row.against} is not there")
            continue
        times = best(row.runs, rounds=60)
        ratio = times["ours"] / times[row.against]
        missed = ratio > row.bar
        beside = ", ".join(f"{who} {ns:.0f}" for who, ns in times.items() if who not in ("ours", row.against))
        line = f"{row.name:30}{times['ours']:8.0f}{row.against:>10}{times[row.against]:7.0f}{ratio:8.2f}{row.bar:6.2f}"
        print(f"{line}   {beside}{'  MISSED' if missed else ''}")
        found = {"row": row.name, "against": row.against, "ratio": ratio, "bar": row.bar, "ns": times, "missed": missed}
        yield found | {"python": _build()}


_SUITES = {
    "copy": _copy,
    "walk": _walk,
    "tls": _tls,
    "datagram": _datagram,
    "mapping": _mapping,
    "syscall": _syscall,
    "snapshot": _snapshot,
    "memories": _memories,
    "unicorn": _unicorn,
    "observe": _observe,
    "simulator": _simulator,
}

if __name__ == "__main__":
    sys.exit(main())
