"""A campaign over a cluster of dask.distributed: workers load one snapshot, and seeds are mapped over them.

In ``tests/interop``: ``python -m campaigns.on_dask SEEDS [SCHEDULER]``. Without a scheduler's address it starts two
processes on this machine.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from dask.distributed import Client, LocalCluster, as_completed
from hypothesis import Phase, given, seed, settings
from hypothesis.errors import HypothesisDeprecationWarning

from campaigns import sample
from usermem import Snapshot
from usermem.testing.edges import Edges
from usermem.testing.operations import Operation
from usermem.testing.progress import Progress, Tally


@cache
def load(path: Path) -> Snapshot:
    return Snapshot.load(path)  # once a worker; on many machines it is a path that all of them see


def work(number: int, path: Path) -> tuple[Tally, list[Operation]]:
    """What a seed gave: the tally, and the operations of the shortest example that failed."""
    tally, edges = Tally(), Edges(sample)
    ran: list[Operation] = []

    @seed(number)
    @settings(max_examples=200, deadline=None, database=None, phases=[Phase.generate, Phase.shrink])
    @given(sample.OPERATIONS)
    def example(operations: list[Operation]) -> None:
        ran[:] = operations
        with tally.example(edges):
            sample.check(load(path), operations)

    warnings.simplefilter("ignore", HypothesisDeprecationWarning)  # dask's threads use the same random numbers
    try:
        example()
    except AssertionError:
        return tally, ran  # hypothesis runs the shortest one last
    return tally, []


def main(seeds: int, *scheduler: str) -> None:
    with tempfile.TemporaryDirectory() as folder, sample.begin() as guest, Progress("campaign") as progress:
        guest.save(path := Path(folder) / "guest")
        here = {"n_workers": 2, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
        with ExitStack() as opened:
            address = scheduler or (opened.enter_context(LocalCluster(**here)),)
            client = opened.enter_context(Client(*address))
            for future in as_completed(client.map(work, range(seeds), path=path, pure=False)):
                if future.status == "error":  # such as KilledWorker, where a seed ends each worker that runs it
                    print(future.key, repr(future.exception()), flush=True)
                    continue
                tally, failed = future.result()
                progress.add(tally)
                if failed:
                    print(failed, flush=True)


if __name__ == "__main__":
    from campaigns import on_dask  # by its name, so that workers import it too

    on_dask.main(int(sys.argv[1]), *sys.argv[2:])
