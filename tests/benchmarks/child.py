"""What is measured of this project: one call of the library in a fresh process, which imports nothing else for it.

Usage: python -m tests.benchmarks.child OPERATION ARGUMENT...
"""

import statistics
import sys
import time
from typing import Literal, cast

from minibox_store import Store

Durability = Literal["full", "none"]


def main(operation: str, root: str, *arguments: str) -> None:
    """Carry out one operation on the store at ``root``."""
    store = Store(root, durability=cast(Durability, arguments[-1]))
    if operation == "pull":
        store.pull(arguments[0], name="latest")
    elif operation == "save":
        store.save("latest", arguments[0])
    elif operation == "load":
        store.load(arguments[0])
    elif operation == "prune":
        _prune(store, int(arguments[0]))
    elif operation == "images":
        _list(store, int(arguments[0]))
    else:
        raise SystemExit(f"there is no operation {operation}")


def _prune(store: Store, dead_blobs: int) -> None:
    begin = time.perf_counter()
    report = store.prune()
    seconds = time.perf_counter() - begin
    if report.blobs_removed != dead_blobs or report.errors:
        raise SystemExit(f"it removed {report.blobs_removed} blobs of {dead_blobs}: {report.errors[:1]}")
    print(seconds)


def _list(store: Store, rounds: int) -> None:
    """Print the median of the warm calls, and what the first one took."""
    taken = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        images = store.images()
        taken.append(time.perf_counter() - begin)
    print(statistics.median(taken[1:]), taken[0], len(images))


if __name__ == "__main__":
    main(*sys.argv[1:])
