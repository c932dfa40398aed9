"""``python tests/benchmarks copy [--json FILE] [--check]``: what a copy costs, as ratios taken in one run."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

from copy_rows import rows
from timing import best


def main() -> int:
    """Measure, print a table, and return 1 if --check is given and a bar is missed."""
    parser = argparse.ArgumentParser(prog="tests/benchmarks", description=__doc__)
    parser.add_argument("suite", choices=["copy"])
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the rows as JSON")
    parser.add_argument("--check", action="store_true", help="exit 1 if a bar is missed")
    parser.add_argument("--only", metavar="TEXT", default="", help="only rows whose name contains this")
    args = parser.parse_args()
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}; best of many, in ns")
    print(f"{'row':27}{'ours':>10}{'floor':>10}{'ratio':>8}{'bar':>8}   peers (their time / ours, bar)")
    results = []
    for row in rows():
        if args.only not in row.name:
            continue
        times = best({"ours": row.ours, "floor": row.floor})
        ratio = times["ours"] / times["floor"]
        missed = ratio > row.bar
        peers = []
        for peer, bar in row.peer_bars.items():
            # Measured apart: a peer's allocations would disturb the floor's.
            pair = best({"ours": row.ours, peer: row.peers[peer]}, rounds=20)
            times[peer] = pair[peer]
            gain = pair[peer] / pair["ours"]
            missed |= gain < bar
            peers.append(f"{peer} {gain:.1f}x" + (f" (>= {bar:g})" if bar else ""))
        mark = "  MISSED" if missed else ""
        line = f"{row.name:27}{times['ours']:10.0f}{times['floor']:10.0f}{ratio:8.2f}{row.bar:8.2f}"
        print(f"{line}   {', '.join(peers)}{mark}")
        results.append(
            {"row": row.name, "ratio": ratio, "bar": row.bar, "ns": times, "peer_bars": row.peer_bars, "missed": missed}
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(args.check and any(result["missed"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
