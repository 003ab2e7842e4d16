"""Laws of the forms of archives: what is saved in any of them is loaded as it was, from a file and from a pipe."""

import json
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from minibox_store import Store
from tests.properties.test_archive_properties import NAMES, images
from tests.support.archives import piped
from tests.support.compressions import layer_in
from tests.support.images import BuiltImage, build_image
from tests.support.invariants import check_invariants
from tests.support.layouts import blob_path, read_layout_blobs, read_layout_names, write_layout
from tests.support.stores import open_store

Format = Literal["minibox", "oci", "docker", "both"]
Compression = Literal["zstd"] | None

# Those of several images in which nothing is lost.
KEEPING: list[Format] = ["oci", "both", "oci"]
FORMATS = st.sampled_from(["minibox", "oci", "docker", "both"])
COMPRESSIONS: st.SearchStrategy[Compression] = st.sampled_from([None, "zstd"])
TAGS = st.from_regex(r"(localhost:5000/|example\.org/)?[a-z]{1,4}(/[a-z]{1,3})?:[a-z0-9]{1,4}", fullmatch=True)


@st.composite
def tagged(draw: st.DrawFn) -> Mapping[str, BuiltImage]:
    """One to three names, as Docker has them, of images of one platform that may share layers, or be the same."""

    def image() -> BuiltImage:
        tars = draw(st.lists(st.sampled_from([b"", b"tar" * 30, bytes(80_000), bytes(range(256)) * 400]), max_size=3))
        forms = st.sampled_from(["plain", "gzip", "zstd, one frame", "gzip, many members"])
        return build_image(
            [layer_in(draw(forms), tar) for tar in tars], docker=draw(st.booleans()), salt=draw(st.sampled_from("ab"))
        )

    return {name: image() for name in draw(st.lists(TAGS, min_size=1, max_size=3, unique=True))}


@settings(max_examples=60)
@given(images=tagged(), archive_format=FORMATS, compress=COMPRESSIONS, data=st.data())
def test_what_is_saved_in_any_form_is_loaded_as_it_was(
    images: Mapping[str, BuiltImage], archive_format: Format, compress: Compression, data: st.DataObject
) -> None:
    if archive_format == "minibox":
        images = dict(list(images.items())[:1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_layout(folder / "source", images)
        order = data.draw(st.permutations(sorted(images)))
        for way in ("file", "pipe"):
            archive = saved(open_store(folder / "source"), order, archive_format, compress, by_pipe=way == "pipe")
            assert archive == saved(open_store(folder / "source"), sorted(images), archive_format, compress)
            loaded = load(folder / way, archive, by_pipe=way == "pipe")
            if archive_format == "docker":
                check_what_docker_keeps(folder / way, images)
            else:
                check_all(folder / way, images)
            assert saved(loaded, sorted(images), archive_format, compress) == archive


@settings(max_examples=30)
@given(image=images(), name=NAMES, compress=COMPRESSIONS, by_pipe=st.booleans())
def test_an_image_of_any_platforms_and_any_name_is_loaded_from_an_oci_archive(
    image: BuiltImage, name: str, compress: Compression, by_pipe: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_layout(Path(folder) / "source", {name: image})
        archive = saved(open_store(Path(folder) / "source"), [name], "oci", compress)
        load(Path(folder) / "loaded", archive, by_pipe=by_pipe)
        check_all(Path(folder) / "loaded", {name: image})


@settings(max_examples=30)
@given(images=tagged(), data=st.data())
def test_what_went_through_one_form_after_another_is_the_same(
    images: Mapping[str, BuiltImage], data: st.DataObject
) -> None:
    forms = data.draw(st.permutations(KEEPING))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_layout(folder / "0", images)
        store = open_store(folder / "0")
        for number, archive_format in enumerate(forms, 1):
            store = load(folder / str(number), saved(store, sorted(images), archive_format, None))
            check_all(folder / str(number), images)


def saved(
    store: Store, names: list[str], archive_format: Format, compress: Compression, *, by_pipe: bool = False
) -> bytes:
    """Return the archive of some images, written to a file or to a pipe."""
    with tempfile.TemporaryDirectory() as folder:
        if not by_pipe:
            store.save(names, Path(folder) / "archive", format=archive_format, compress=compress)
            return (Path(folder) / "archive").read_bytes()
    reading, writing = os.pipe()
    with open(reading, "rb") as source:
        received: list[bytes] = []
        thread = threading.Thread(target=lambda: received.append(source.read()))
        thread.start()
        try:
            with open(writing, "wb") as pipe:
                store.save(names, pipe, format=archive_format, compress=compress)
        finally:
            thread.join(30)
    return received[0]


def load(root: Path, archive: bytes, *, by_pipe: bool = False) -> Store:
    """Load an archive into a new store, from a file or from a pipe."""
    store = open_store(root)
    if by_pipe:
        with piped(archive) as pipe:
            store.load(pipe)
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(archive)
            file.flush()
            store.load(file.name)
    check_invariants(root)
    return store


def check_all(root: Path, images: Mapping[str, BuiltImage]) -> None:
    """Check that a store has these images, each with every byte."""
    found = {name: entry["digest"] for name, entry in read_layout_names(root).items()}
    assert found == {name: image.digest for name, image in images.items()}
    blobs = {digest: blob for image in images.values() for digest, blob in image.blobs.items()}
    assert read_layout_blobs(root) == blobs


def check_what_docker_keeps(root: Path, images: Mapping[str, BuiltImage]) -> None:
    """Check that a store has the configs and layers of these images, under manifests that were made of them."""
    roots = {name: entry["digest"] for name, entry in read_layout_names(root).items()}
    made = {name: json.loads(blob_path(root, digest).read_bytes()) for name, digest in roots.items()}
    assert sorted(made) == sorted(images)
    for name, image in images.items():
        assert made[name]["config"]["digest"] == image.config_digest
        assert [layer["digest"] for layer in made[name]["layers"]] == image.layer_digests
    kept = {digest: blob for digest, blob in read_layout_blobs(root).items() if digest not in roots.values()}
    assert kept == {
        digest: image.blobs[digest]
        for image in images.values()
        for digest in (image.config_digest, *image.layer_digests)
    }
