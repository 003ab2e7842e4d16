"""Whose the bytes of a store are: what of very many blobs it takes to know, and what no guess at them may pass over."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minibox_store.errors import IncompleteImage, StoreDamaged
from minibox_store.layout_index import NAME_ANNOTATION, REFERRER_ANNOTATION
from tests.benchmarks.small_blobs import make_small_blobs
from tests.support.images import DOCKER_MANIFEST, BuiltImage, build_image, build_index, build_layer
from tests.support.layouts import blob_path, write_layout
from tests.support.os_proxy import replaced_os
from tests.support.stores import open_store, put

LAYERS = 500
IMAGES = 60
# Of each blob; and what is the same however many there are: one document, and what was asked for.
MOST_BYTES = 240
FIXED_BYTES = 2 << 20

WEIGH = """
import sys
from minibox_store import Store

usage = Store(sys.argv[1]).usage(most_blobs=100)
print(usage.blob_count)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def weighed(root: Path) -> tuple[int, int]:
    """Return how many blobs a process of its own counted, and the most memory that it had, in bytes."""
    command = [sys.executable, "-c", WEIGH, str(root)]
    folder = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    count, peak = map(int, done.stdout.split())
    return count, peak * 1024


def test_very_many_layers_take_little_memory(tmp_path: Path) -> None:
    peaks = []
    for images in (1, IMAGES):
        blobs = make_small_blobs(images=images, live_blobs=images * (LAYERS + 2), dead_blobs=0, blob_bytes=64)
        blobs.write(tmp_path / str(images))
        count, peak = weighed(tmp_path / str(images))
        assert count == len(blobs.live)
        peaks.append(peak)
    more = (IMAGES - 1) * LAYERS
    assert peaks[1] - peaks[0] <= MOST_BYTES * more + FIXED_BYTES, f"{(peaks[1] - peaks[0]) / more:.0f} bytes for each"


def test_the_first_names_of_all_images_that_share_a_layer_are_told(tmp_path: Path) -> None:
    layer = build_layer({"shared": b"shared" * 1000}, compressed=False)
    names = [f"image:{number * 7 % 120:04}" for number in range(120)]
    write_layout(tmp_path, {name: build_image([layer], salt=name) for name in names})
    [largest] = open_store(tmp_path).usage(most_blobs=1).blobs
    assert (str(largest.digest), largest.role, largest.needed_by) == (layer.diff_id, "layer", 120)
    assert largest.names == tuple(f"image:{number:04}" for number in range(100))


def write_entries(root: Path, image: BuiltImage, *roots: dict[str, object]) -> None:
    """Write a layout whose index.json has entries that say of an image what they like."""
    write_layout(root, {"app:1": image})
    index = json.loads((root / "index.json").read_bytes())
    index["manifests"] += roots
    (root / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("lie", [{"size": 5}, {"mediaType": DOCKER_MANIFEST}], ids=["its size", "its type"])
def test_a_document_that_was_read_is_read_again_where_something_else_is_said_of_it(
    tmp_path: Path, lie: dict[str, object]
) -> None:
    image = build_image([{"a": b"1"}])
    write_entries(tmp_path, image, {**image.root, **lie})
    with pytest.raises(StoreDamaged, match=image.digest.removeprefix("sha256:")):
        open_store(tmp_path).usage()


def test_a_manifest_that_may_be_absent_below_an_index_may_not_be_so_where_an_entry_names_it(tmp_path: Path) -> None:
    image = build_image([{"a": b"1"}])
    index = build_index([image, build_image(platform="linux/arm64")])
    write_entries(tmp_path, index)
    blob_path(tmp_path, image.digest).unlink()
    usage = open_store(tmp_path).usage(most_blobs=1000)
    assert [each.size_bytes for each in usage.images] == [index.size_bytes - image.size_bytes]
    assert image.digest not in {str(each.digest) for each in usage.blobs}
    write_entries(tmp_path, index, image.root)
    blob_path(tmp_path, image.digest).unlink()
    with pytest.raises(IncompleteImage, match=image.digest):
        open_store(tmp_path).usage()


def test_an_image_that_comes_once_the_files_were_listed_is_told_and_weighs_nothing(tmp_path: Path) -> None:
    image, other = build_image([{"a": b"1"}]), build_image([{"b": b"2"}], salt="other")
    put(tmp_path, image, "image:1")
    with replaced_os() as system:
        system.before("open", lambda: put(tmp_path, other, "other:1"), path="index.json")
        usage = open_store(tmp_path).usage(most_blobs=1000)
    assert [(each.name, each.size_bytes) for each in usage.images] == [("image:1", image.size_bytes), ("other:1", 0)]
    assert (usage.total_bytes, usage.blob_count) == (image.size_bytes, len(image.blobs))
    assert (usage.reclaimable_bytes, len(usage.blobs)) == (0, len(image.blobs))


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("name", [None, "signature:1"])
def test_a_missing_referrer_is_named_itself_whatever_else_there_is(
    tmp_path: Path, others: int, name: str | None
) -> None:
    image, signature = build_image([{"a": b"1"}]), build_image([{"b": b"2"}], salt="signature")
    annotations = {REFERRER_ANNOTATION: "true", **({} if name is None else {NAME_ANNOTATION: name})}
    write_entries(tmp_path, image, {**signature.root, "annotations": annotations})
    index = json.loads((tmp_path / "index.json").read_bytes())
    index["manifests"] = index["manifests"][1 - others :]
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(IncompleteImage) as caught:
        open_store(tmp_path).usage()
    assert (caught.value.root, caught.value.missing) == (name or signature.digest, (signature.digest,))
