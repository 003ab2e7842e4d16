"""What is measured of this project where one process does several things, each of them timed by itself.

Prints a line for each step: its name, and the seconds that it took.

Usage: python -m tests.benchmarks.steps OPERATION ARGUMENT...
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

from minibox_store import Store
from minibox_store.layout import Layout
from minibox_store.memory import MemoryImages
from tests.benchmarks.child import Durability, check_images, check_pruned, check_verified
from tests.support.images import build_image
from tests.support.sources import memory_of

_COMMITS = 5

_Steps = Iterator[tuple[str, float]]


def change(folder: Path, layout: Path, archive: Path, names: int, durability: Durability) -> _Steps:
    """Bring one image into two empty stores, from a layout and from an archive; give it names, and take them away."""
    store = Store(folder / "imported", durability=durability)
    loaded = Store(folder / "loaded", durability=durability)
    yield "import", _seconds(store.import_image, Layout(layout), "latest")
    yield "load", _seconds(loaded.load, archive)
    further = [f"app:{number}" for number in range(names)]
    yield "tag", statistics.median(_seconds(store.tag, "latest", name) for name in further)
    yield "remove", statistics.median(_seconds(store.remove, name) for name in further)
    check_images(len(store.images()) + len(loaded.images()), 2)


def grow(root: Path, images: int, dead_blobs: int, durability: Durability) -> _Steps:
    """Do to a store, which nobody has opened before, all that may cost more the larger it is.

    Each step has a Store of its own, which knows nothing from the one before.
    """

    def opened() -> Store:
        return Store(root, durability=durability)

    yield "the first listing", _seconds(lambda: check_images(len(opened().images()), images))
    yield "listing anew", _seconds(lambda: check_images(len(opened().images()), images))
    yield "verify", _seconds(lambda: check_verified(opened().verify()))
    sources = [_one_more(number) for number in range(_COMMITS)]
    commits = [_seconds(opened().import_image, source, name) for name, source in sources]
    yield "importing one more image", statistics.median(commits)
    yield "prune", _seconds(lambda: check_pruned(opened().prune(), dead_blobs))


def unpack(folder: Path, layouts: Sequence[Path], durability: Durability) -> _Steps:
    """Unpack the image of each layout."""
    for layout in layouts:
        store = Store(layout, durability=durability)
        yield layout.name, _seconds(store.unpack, "latest", folder / layout.name)


def _one_more(number: int) -> tuple[str, MemoryImages]:
    name = f"one-more:{number}"
    return name, memory_of({name: build_image([{"number": name.encode()}], salt=name)})


def _seconds(step: Callable[..., object], *arguments: object) -> float:
    begin = time.perf_counter()
    step(*arguments)
    return time.perf_counter() - begin


def main(operation: str, folder: str, *arguments: str) -> None:
    """Carry out one operation, and print its steps."""
    durability = cast(Durability, arguments[-1])
    if operation == "change":
        layout, archive, names, _ = arguments
        steps = change(Path(folder), Path(layout), Path(archive), int(names), durability)
    elif operation == "grow":
        images, dead_blobs, _ = arguments
        steps = grow(Path(folder), int(images), int(dead_blobs), durability)
    elif operation == "unpack":
        *layouts, _ = arguments
        steps = unpack(Path(folder), [Path(layout) for layout in layouts], durability)
    else:
        raise SystemExit(f"there is no operation {operation}")
    for name, seconds in steps:
        print(f"{seconds}\t{name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
