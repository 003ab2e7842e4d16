"""Unpacking: a root filesystem against umoci, and images of shapes that are easily slow by how large they are.

``umoci unpack`` also hashes what it has unpacked, for its own later use; ``umoci raw unpack``, which does not, is
shown. Neither sees to it that what it wrote is on the disk, as full durability does.
"""

import os
import statistics
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.benchmarks.growth import LINEAR, growth_row
from tests.benchmarks.originals import is_installed
from tests.benchmarks.report import Row, render_mib, render_seconds, render_spread
from tests.benchmarks.root_filesystems import NAME, Adds, add_directory, add_file, write_image, write_root_filesystem
from tests.benchmarks.scene import Place, Scene, Sizes, python_command, python_environment
from tests.benchmarks.timing import (
    BenchmarkFailed,
    Contender,
    Sample,
    largest_mib,
    measure_in_turn,
    median_processor_seconds,
    median_seconds,
)
from tests.support.processes import plain_environment

_RATIO_BAR = 0.8
_MEMORY_BAR_MIB = 150.0
_MIB = 1024 * 1024
_CHAIN_DEPTH = 30
_DURABILITIES = ("full", "none")
_OPAQUE = ".wh..wh..opq"


def measure_unpack(scene: Scene) -> Iterator[Row]:
    """Yield the rows of unpacking a root filesystem."""
    sizes = scene.sizes
    text = f"unpack, {sizes.unpacked_files:,} files in {sizes.unpacked_layers} gzip layers of {_mib(scene)} MiB"
    for place in scene.places:
        layout = place.folder / "unpack"
        entries = write_unpacked(layout, sizes)
        contenders = {durability: _ours(layout, entries, durability) for durability in _DURABILITIES}
        if is_installed("umoci"):
            contenders["umoci unpack"] = _umoci(layout, entries, "unpack")
            contenders["umoci raw unpack"] = _umoci(layout, entries, "raw", "unpack")
        samples = measure_in_turn(contenders, scene=scene, place=place)
        yield from _rows(text, place, samples)


def measure_unpack_growth(scene: Scene) -> Iterator[Row]:
    """Yield a row for each shape; where the image lies is of no weight, so it is measured in one place."""
    place = scene.places[0]
    for number, shape in enumerate(_shapes(scene.sizes)):
        layouts = {count: place.folder / f"shape-{number}-{count}" for count in shape.counts}
        for count, layout in layouts.items():
            write_image(layout, shape.build(count), level=1)
        command = partial(_steps_command, list(layouts.values()))
        contenders = {"unpack": Contender(command=command, environment=python_environment)}
        runs = min(scene.runs, scene.sizes.most_fresh_trees)
        samples = measure_in_turn(contenders, scene=scene, place=place, runs=runs, warm_up=False)["unpack"]
        seconds = {
            shape.weigh(count): statistics.median(sample.told_steps[layout.name] for sample in samples)
            for count, layout in layouts.items()
        }
        per = f"time per {shape.unit} by their number"
        yield growth_row(f"unpack, {shape.text}", f"{place.kind}, none", seconds, per=per, bar=LINEAR)


def write_unpacked(layout: Path, sizes: Sizes, *, scattered: bool = False) -> int:
    """Write the root filesystem as a layout, and return how many entries it has."""
    return write_root_filesystem(
        layout,
        files=sizes.unpacked_files,
        layers=sizes.unpacked_layers,
        total_bytes=sizes.unpacked_bytes,
        with_usr=sizes.unpacked_usr,
        scattered=scattered,
    )


# ---- who is measured


def _ours(layout: Path, entries: int, durability: str) -> Contender:
    def command(folder: Path) -> list[str]:
        return python_command("child", "unpack", layout, folder / "tree", durability)

    return Contender(
        command=command, environment=python_environment, check=lambda folder: check_tree(folder / "tree", entries)
    )


def _umoci(layout: Path, entries: int, *words: str) -> Contender:
    """Return umoci, rootless where this is run by a user."""
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    below = "tree" if "raw" in words else "tree/rootfs"

    def command(folder: Path) -> list[str]:
        return ["umoci", *words, *rootless, "--image", f"{layout}:{NAME}", str(folder / "tree")]

    return Contender(
        command=command, environment=plain_environment, check=lambda folder: check_tree(folder / below, entries)
    )


def _steps_command(layouts: Sequence[Path], folder: Path) -> list[str]:
    return python_command("steps", "unpack", folder, *layouts, "none")


def check_tree(tree: Path, entries: int) -> None:
    """Raise BenchmarkFailed unless so many entries are there."""
    found = sum(len(subfolders) + len(names) for _, subfolders, names in os.walk(tree))
    if found != entries:
        raise BenchmarkFailed(f"{found} entries were unpacked, where the image has {entries}")


# ---- the rows


def _rows(text: str, place: Place, samples: Mapping[str, list[Sample]]) -> Iterator[Row]:
    umoci = samples.get("umoci unpack")
    for durability in _DURABILITIES:
        ours = samples[durability]
        yield Row(
            measure=text,
            where=f"{place.kind}, {durability}",
            ours=_spread(ours),
            theirs=f"`umoci unpack` {_spread(umoci)}" if umoci else "umoci is not installed",
            result=median_seconds(ours) / median_seconds(umoci) if umoci else None,
            bar=_RATIO_BAR,
        )
        yield Row(
            measure="unpack, peak memory",
            where=f"{place.kind}, {durability}",
            ours=render_mib(largest_mib(ours)),
            theirs=f"`umoci unpack` {render_mib(largest_mib(umoci))}" if umoci else "-",
            result=largest_mib(ours),
            unit="MiB",
            bar=_MEMORY_BAR_MIB,
        )
    processor = {name: render_seconds(median_processor_seconds(each)) for name, each in samples.items()}
    yield Row(
        measure="unpack, seconds of processor",
        where=place.kind,
        ours=", ".join(f"{durability} {processor.pop(durability)}" for durability in _DURABILITIES),
        theirs=", ".join(f"`{name}` {told}" for name, told in processor.items()) or "-",
    )
    if raw := samples.get("umoci raw unpack"):
        yield Row(
            measure="unpack, against umoci without its hashes",
            where=f"{place.kind}, full",
            ours=_spread(samples["full"]),
            theirs=f"`umoci raw unpack` {_spread(raw)}",
            result=median_seconds(samples["full"]) / median_seconds(raw),
        )


def _spread(samples: Sequence[Sample]) -> str:
    return render_spread([sample.seconds for sample in samples])


def _mib(scene: Scene) -> int:
    return scene.sizes.unpacked_bytes // _MIB


# ---- the shapes


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """An image that is made as large as is wanted.

    Attributes:
        text: What it is.
        unit: What there are so many of.
        build: Its layers, given a number.
        counts: The numbers for which it is measured.
        weigh: How many of the unit an image of a number has.
    """

    text: str
    unit: str
    build: Callable[[int], list[Adds]]
    counts: tuple[int, ...]
    weigh: Callable[[int], int] = int


def _components(depth: int) -> int:
    """Return how many components the names of a chain of directories have together: each name has all before it."""
    return depth * (depth + 1) // 2


def _shapes(sizes: Sizes) -> list[_Shape]:
    entries, chains, depths = sizes.growing_entries, sizes.growing_chains, sizes.growing_depths
    whiteouts = sizes.growing_whiteouts
    component = "component of their names"
    return [
        _Shape(text="entries in one directory", unit="entry", build=_wide, counts=entries),
        _Shape(text=f"chains of {_CHAIN_DEPTH} directories", unit="chain", build=_chains, counts=chains),
        _Shape(
            text=f"a chain of {min(depths):,} to {max(depths):,} directories",
            unit=component,
            build=_chain,
            counts=depths,
            weigh=_components,
        ),
        _Shape(text="opaque directories over full ones", unit="marker", build=_opaque, counts=whiteouts),
        _Shape(text="opaque markers of one directory", unit="marker", build=_opaque_again, counts=whiteouts),
        _Shape(
            text=f"{min(depths):,} to {max(depths):,} opaque directories in one another",
            unit=component,
            build=_opaque_chain,
            counts=depths,
            weigh=_components,
        ),
        _Shape(text="whiteouts in one directory", unit="whiteout", build=_whiteouts, counts=whiteouts),
    ]


def _wide(count: int) -> list[Adds]:
    def add(tar: tarfile.TarFile) -> None:
        for number in range(count):
            add_file(tar, f"wide/{number:06}")

    return [add]


def _chains(count: int) -> list[Adds]:
    return [partial(_add_chains, count, _CHAIN_DEPTH, "")]


def _chain(count: int) -> list[Adds]:
    return [partial(_add_chains, 1, count, "")]


def _opaque(count: int) -> list[Adds]:
    def lower(tar: tarfile.TarFile) -> None:
        for number in range(count):
            for name in ("below", "below-too", "deeper/below"):
                add_file(tar, f"{number:06}/{name}", b"lower")

    def upper(tar: tarfile.TarFile) -> None:
        for number in range(count):
            add_file(tar, f"{number:06}/{_OPAQUE}")
            add_file(tar, f"{number:06}/above", b"upper")

    return [lower, upper]


def _opaque_again(count: int) -> list[Adds]:
    def upper(tar: tarfile.TarFile) -> None:
        for number in range(count):
            add_file(tar, f"wide/{_OPAQUE}")
            add_file(tar, f"wide/above-{number:06}", b"upper")

    return [*_wide(count), upper]


def _opaque_chain(count: int) -> list[Adds]:
    return [partial(_add_chains, 1, count, "below"), partial(_add_chains, 1, count, _OPAQUE)]


def _whiteouts(count: int) -> list[Adds]:
    def upper(tar: tarfile.TarFile) -> None:
        for number in range(count):
            add_file(tar, f"wide/.wh.{number:06}")

    return [*_wide(count), upper]


def _add_chains(chains: int, depth: int, file: str, tar: tarfile.TarFile) -> None:
    """Add chains of directories, with a file in each directory where one is named."""
    for number in range(chains):
        path = f"{number:04}"
        for _ in range(depth):
            add_directory(tar, path)
            if file:
                add_file(tar, f"{path}/{file}")
            path += "/d"
