"""Looking inside without unpacking: the first byte of a file in a large layer, and a mount beside an unpacking.

Where an index of each layer is there already, as the bars have it; what it costs to make one is shown.
"""

import random
import statistics
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from minibox_store import FileKind, Store
from tests.benchmarks.report import Row, render_mib, render_spread
from tests.benchmarks.root_filesystems import NAME, add_file, write_image
from tests.benchmarks.scene import Place, Scene, python_command, python_environment
from tests.benchmarks.timing import Contender, Sample, always, largest_mib, measure_in_turn, remove
from tests.benchmarks.unpacking import write_unpacked

_FIRST_BYTE_BAR_MS = 30.0
_MEMORY_BAR_MIB = 150.0
_MOUNT_BAR = 0.1
_LIST_BAR = 1.0
_FIRST_BYTE, _LIST = "mount to the first byte of a file", "ls -lR over the mount"
_MIB = 1024 * 1024
# Text of 64 letters, of which a compressor can spare two bits of eight at most: a large layer of not too large a tar.
_LETTERS = bytes(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/" * 4)
_COMPRESSED = 0.76
_READS = 8


def measure_inside(scene: Scene) -> Iterator[Row]:
    """Yield the rows of a large layer; where it lies is of no weight, so it is measured in one place."""
    place = scene.places[0]
    layout = place.folder / "inside"
    count = int(scene.sizes.inside_layer_bytes / _COMPRESSED / _MIB)
    write_image(layout, [partial(_add_text, count)], level=1)
    layer_mib = max(file.stat().st_size for file in (layout / "blobs/sha256").iterdir()) // _MIB
    text = f"a gzip layer of {layer_mib} MiB"
    indexed = _index(scene, place, layout)
    files = [_name(number * (count - 1) // (_READS - 1)) for number in range(_READS)]
    command = python_command("steps", "read", place.folder, layout, *files, "none")
    contenders = {"read": Contender(command=always(command), environment=python_environment)}
    samples = measure_in_turn(contenders, scene=scene, place=place)["read"]
    taken = [seconds for sample in samples for seconds in sample.told_steps.values()]
    yield Row(
        measure=f"first byte of a file in {text}, index present, from opening the image",
        where=place.kind,
        ours=f"{render_spread(taken)}, {render_mib(largest_mib(samples))}",
        theirs=f"{len(files)} files from the begin to the end of it, each in an image opened anew",
        result=max(statistics.median(sample.told_steps[file] for sample in samples) for file in files) * 1000,
        unit="ms",
        bar=_FIRST_BYTE_BAR_MS,
    )
    yield _index_row(f"the index of {text}", place, layout, indexed)
    remove(layout)


def measure_mount(scene: Scene) -> Iterator[Row]:
    """Yield the rows of a mount beside an unpacking."""
    for place in scene.places:
        layout = place.folder / "mounted"
        tree = _write_tree(layout, scene)
        indexed = _index(scene, place, layout)
        steps = _measure_steps(scene, place, layout)
        yield _step_row(f"{_FIRST_BYTE}, {tree}, index present", place, steps, _FIRST_BYTE, _MOUNT_BAR)
        yield _step_row(f"{_LIST}, {tree}, index present", place, steps, _LIST, _LIST_BAR)
        yield _index_row("the indexes of all layers", place, layout, indexed)
    yield _scattered_row(scene, scene.places[0])


def _scattered_row(scene: Scene, place: Place) -> Row:
    """Return the row of a tree that is no root filesystem, for most of its directories are all but empty.

    A listing costs something for each directory, and unpacking for each file; so this one is shown, and has no bar.
    """
    layout = place.folder / "scattered"
    tree = _write_tree(layout, scene, scattered=True)
    _index(scene, place, layout)
    steps = _measure_steps(scene, place, layout)
    return _step_row(f"ls -lR, two files to a directory: {tree}, index present", place, steps, _LIST, None)


def _write_tree(layout: Path, scene: Scene, *, scattered: bool = False) -> str:
    """Write the layout of a root filesystem, and return what the rows say of it."""
    files = scene.sizes.unpacked_files
    entries = write_unpacked(layout, scene.sizes, scattered=scattered)
    return f"{files:,} files in {entries - files:,} directories"


def _step_row(text: str, place: Place, steps: Sequence[Mapping[str, float]], step: str, bar: float | None) -> Row:
    taken = [each[step] for each in steps]
    unpacking = [each["unpack"] for each in steps]
    return Row(
        measure=text,
        where=f"{place.kind}, none",
        ours=render_spread(taken),
        theirs=f"unpacking {render_spread(unpacking)}",
        result=statistics.median(taken) / statistics.median(unpacking),
        bar=bar,
    )


def _measure_steps(scene: Scene, place: Place, layout: Path) -> list[dict[str, float]]:
    file = _file_in_the_middle(layout)

    def command(folder: Path) -> list[str]:
        return python_command("steps", "mount", folder, layout, file, "none")

    contenders = {"mount": Contender(command=command, environment=python_environment)}
    samples = measure_in_turn(contenders, scene=scene, place=place)["mount"]
    return [sample.told_steps for sample in samples]


def _index(scene: Scene, place: Place, layout: Path) -> list[Sample]:
    """Make the indexes of an image's layers, as often as a large tree is written, and leave them there."""

    def prepare(_: Path) -> None:
        remove(layout / "files")

    command = python_command("child", "look", layout, "none")
    contender = Contender(command=always(command), environment=python_environment, prepare=prepare)
    runs = min(scene.runs, scene.sizes.most_fresh_trees)
    return measure_in_turn({"index": contender}, scene=scene, place=place, runs=runs, warm_up=False)["index"]


def _index_row(text: str, place: Place, layout: Path, samples: list[Sample]) -> Row:
    kept = sum(file.stat().st_size for file in (layout / "files").rglob("*") if file.is_file())
    blobs = sum(file.stat().st_size for file in (layout / "blobs").rglob("*") if file.is_file())
    return Row(
        measure=f"{text}, made at the first look",
        where=f"{place.kind}, none",
        ours=f"{render_spread([sample.told_seconds for sample in samples])}, {render_mib(largest_mib(samples))}",
        theirs=f"{kept / _MIB:.1f} MiB are kept, {kept / blobs:.1%} of the blobs",
        result=largest_mib(samples),
        unit="MiB",
        bar=_MEMORY_BAR_MIB,
    )


def _file_in_the_middle(layout: Path) -> str:
    with Store(layout).open_files(NAME) as image:
        files = [path for path, status in image.walk() if status.kind is FileKind.FILE and status.size_bytes]
    return sorted(files)[len(files) // 2]


def _name(number: int) -> str:
    return f"text/{number:04}"


def _add_text(count: int, tar: tarfile.TarFile) -> None:
    source = random.Random(count)
    for number in range(count):
        add_file(tar, _name(number), source.randbytes(_MIB).translate(_LETTERS))
