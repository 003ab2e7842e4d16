"""What is measured of this project: one call of the library in a fresh process, which imports nothing else for it.

Usage: python -m tests.benchmarks.child OPERATION ARGUMENT...
"""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast

from minibox_store import Store

if TYPE_CHECKING:
    from minibox_store import Finding, PruneReport

Durability = Literal["full", "none"]


def main(operation: str, root: str, *arguments: str) -> None:
    """Carry out one operation on the store at ``root``."""
    begin = time.perf_counter()
    store = Store(root, durability=cast(Durability, arguments[-1]))
    if operation == "pull":
        store.pull(arguments[0], name="latest")
    elif operation == "refresh":
        store.pull(arguments[0], name="latest", policy="if-newer")
    elif operation == "push":
        store.push("latest", arguments[0])
    elif operation == "save":
        store.save("latest", arguments[0])
    elif operation == "load":
        store.load(arguments[0])
    elif operation == "prune":
        _prune(store, int(arguments[0]))
    elif operation == "verify":
        _verify(store, int(arguments[0]))
    elif operation == "unpack":
        store.unpack("latest", arguments[0])
    elif operation == "look":
        _look(store)
    elif operation == "images":
        _list(store, begin, int(arguments[0]))
    else:
        raise SystemExit(f"there is no operation {operation}")


def _look(store: Store) -> None:
    begin = time.perf_counter()
    with store.open_files("latest") as image:
        image.listdir("/")
    print(time.perf_counter() - begin)


def _prune(store: Store, dead_blobs: int) -> None:
    begin = time.perf_counter()
    report = store.prune()
    seconds = time.perf_counter() - begin
    check_pruned(report, dead_blobs)
    print(seconds)


def _verify(store: Store, parallel: int) -> None:
    begin = time.perf_counter()
    findings = store.verify(parallel=parallel)
    seconds = time.perf_counter() - begin
    check_verified(findings)
    print(seconds)


def _list(store: Store, begin: float, rounds: int) -> None:
    """Print the median of the warm calls, what opening and the first call took, how many there are, the slowest."""
    import statistics  # which takes longer to import than a small call to be made

    taken = []
    for _ in range(rounds + 1):
        images = store.images()
        end = time.perf_counter()
        taken.append(end - begin)
        begin = time.perf_counter()
    print(statistics.median(taken[1:]), taken[0], len(images), max(taken[1:]))


def check_pruned(report: "PruneReport", dead_blobs: int) -> None:
    """End the process unless a collection has removed so many blobs, and had no trouble."""
    if report.blobs_removed != dead_blobs or report.errors:
        raise SystemExit(f"it removed {report.blobs_removed} blobs of {dead_blobs}: {report.errors[:1]}")


def check_verified(findings: "Sequence[Finding]") -> None:
    """End the process if a check has found damage."""
    damage = [finding for finding in findings if finding.is_damage]
    if damage:
        raise SystemExit(f"{len(damage)} blobs are damaged: {damage[0].problem}")


def check_images(found: int, expected: int) -> None:
    """End the process unless so many images are there."""
    if found != expected:
        raise SystemExit(f"it listed {found} images of {expected}")


if __name__ == "__main__":
    main(*sys.argv[1:])
