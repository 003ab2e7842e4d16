"""Prune, against the removal of the same files and one read of each live manifest with nothing around them."""

import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.report import Row, render_mib, render_seconds
from tests.benchmarks.scene import Place, Scene, Sizes, python_command, python_environment
from tests.benchmarks.timing import Contender, always, largest_mib, measure_in_turn, median_seconds
from tests.support.images import OCI_LAYER, BuiltImage, Layer, build_image
from tests.support.layouts import write_layout

_BAR = 3.0
_DOCUMENTS = 2  # of each image: a manifest and a config


@dataclass(frozen=True, kw_only=True)
class _Garbage:
    """A store, and the blobs that nothing in it needs, which are written anew before each run."""

    root: Path
    listed: Path
    dead: Mapping[str, bytes]

    def write(self, _: Path) -> None:
        folder = self.root / "blobs" / "sha256"
        for name, content in self.dead.items():
            (folder / name).write_bytes(content)


def measure_prune(scene: Scene) -> Iterator[Row]:
    """Yield the rows of prune. What is compared are the calls; the process around them is told beside it."""
    sizes = scene.sizes
    for place in scene.places:
        garbage = _make_store(place, sizes)
        ours = python_command("child", "prune", garbage.root, len(garbage.dead), "full")
        bare = python_command("bare", "unlink", garbage.listed, garbage.root)
        contenders = {
            "prune": Contender(command=always(ours), environment=python_environment, prepare=garbage.write),
            "bare": Contender(command=always(bare), environment=python_environment, prepare=garbage.write),
        }
        samples = measure_in_turn(contenders, scene=scene, place=place)
        prune, unlink = (statistics.median(each.told_seconds for each in samples[name]) for name in contenders)
        yield Row(
            measure=f"prune, {sizes.prune_live_blobs:,} live blobs in {sizes.prune_images:,} images, "
            f"{sizes.prune_dead_blobs:,} dead ones of {sizes.blob_bytes} bytes",
            where=f"{place.kind}, full",
            ours=render_seconds(prune),
            theirs=f"bare unlink and read {render_seconds(unlink)}",
            result=prune / unlink,
            bar=_BAR,
        )
        yield Row(
            measure="prune, the whole process",
            where=f"{place.kind}, full",
            ours=f"{render_seconds(median_seconds(samples['prune']))}, {render_mib(largest_mib(samples['prune']))}",
            theirs=f"{render_seconds(median_seconds(samples['bare']))}",
        )


def _make_store(place: Place, sizes: Sizes) -> _Garbage:
    root = place.folder / "prune"
    layers = sizes.prune_live_blobs // sizes.prune_images - _DOCUMENTS
    images = {f"app:{number}": _small_image(number, layers, sizes.blob_bytes) for number in range(sizes.prune_images)}
    write_layout(root, images)
    contents = [_content("dead", number, sizes.blob_bytes) for number in range(sizes.prune_dead_blobs)]
    dead = {hashlib.sha256(content).hexdigest(): content for content in contents}
    listed = place.folder / "prune-list"
    manifests = [image.digest.partition(":")[2] for image in images.values()]
    listed.write_text("".join([*(f"-{name}\n" for name in dead), *(f"+{name}\n" for name in manifests)]))
    return _Garbage(root=root, listed=listed, dead=dead)


def _small_image(number: int, layers: int, blob_bytes: int) -> BuiltImage:
    contents = [_content(f"layer {number}", layer, blob_bytes) for layer in range(layers)]
    # What lies in a layer is of no interest here, so it is no tar.
    return build_image(
        [
            Layer(content=each, media_type=OCI_LAYER, diff_id=f"sha256:{hashlib.sha256(each).hexdigest()}")
            for each in contents
        ],
        salt=str(number),
    )


def _content(kind: str, number: int, size_bytes: int) -> bytes:
    return json.dumps([kind, number]).encode().ljust(size_bytes, b".")
