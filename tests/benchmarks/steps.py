"""What is measured of this project where one process does several things, each of them timed by itself.

Prints a line for each step: its name, and the seconds that it took.

Usage: python -m tests.benchmarks.steps OPERATION ARGUMENT...
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

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
    """Unpack the image of each layout, and the first one twice: what is imported for it would weigh on a small one."""
    Store(layouts[0], durability=durability).unpack("latest", folder / "first")
    for layout in layouts:
        store = Store(layout, durability=durability)
        yield layout.name, _seconds(store.unpack, "latest", folder / layout.name)


def read(layout: Path, files: Sequence[str], durability: Durability) -> _Steps:
    """Read the first byte of each file, in an image that is opened for it."""
    store = Store(layout, durability=durability)
    # What is imported at the first look is there in a program that runs, and what a store has to be told once.
    _read_first_byte(store, files[0])
    for file in files:
        yield file, _seconds(_read_first_byte, store, file)


def mount(folder: Path, layout: Path, file: str, durability: Durability) -> _Steps:
    """Mount an image and read the first byte of a file, list the whole of it, and unpack it."""
    store, where = Store(layout, durability=durability), folder / "mounted"
    where.mkdir()
    begin = time.perf_counter()
    with store.mount("latest", where):
        check_first_byte((where / file.lstrip("/")).open("rb"))
        yield "mount to the first byte of a file", time.perf_counter() - begin
        yield "ls -lR over the mount", _seconds(_list, where)
    yield "unpack", _seconds(store.unpack, "latest", folder / "tree")


def _read_first_byte(store: Store, file: str) -> None:
    with store.open_files("latest") as image:
        check_first_byte(image.open(file))


def check_first_byte(file: BinaryIO) -> None:
    """Read the first byte of a file, close it, and end the process if there is none."""
    with file:
        if len(file.read(1)) != 1:
            raise SystemExit("a file has no first byte")


def _list(folder: Path) -> None:
    subprocess.run(["ls", "-lR", folder], stdout=subprocess.DEVNULL, check=True, env={**os.environ, "LC_ALL": "C"})


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
    elif operation == "read":
        layout, *files, _ = arguments
        steps = read(Path(layout), files, durability)
    elif operation == "mount":
        layout, file, _ = arguments
        steps = mount(Path(folder), Path(layout), file, durability)
    else:
        raise SystemExit(f"there is no operation {operation}")
    for name, seconds in steps:
        print(f"{seconds}\t{name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
