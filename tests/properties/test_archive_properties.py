"""Laws of archives: what is saved is loaded, byte for byte, and whatever is refused leaves nothing behind."""

import io
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minibox_store import Store
from minibox_store.archive import ArchiveReader
from minibox_store.digest import Digest
from minibox_store.errors import InvalidArchive
from tests.support.archives import members_of, pack, read_archive, unpack
from tests.support.images import (
    DOCKER_LAYER,
    OCI_LAYER,
    BuiltImage,
    Layer,
    build_image,
    build_index,
    digest_of,
)
from tests.support.layouts import read_layout_blobs, read_layout_names, write_layout
from tests.support.snapshots import snapshot
from tests.support.sources import read_stream

CONTENTS = st.binary(max_size=1500) | st.sampled_from([b"", b"\0" * 512, b"\0" * 1024, bytes(range(256)) * 40])
_SEGMENT = st.text("abcXYZ019._-:@+~!", min_size=1, max_size=8).filter(lambda text: text not in (".", ".."))
NAMES = st.lists(_SEGMENT, min_size=1, max_size=4).map("/".join).filter(
    lambda name: name[0].isalnum()
) | st.sampled_from(["alpine", "localhost:5000/team/app:1", "[::1]:80/a", "x" * 512, "a/b/c:1@sha256:" + "a" * 64])


@st.composite
def images(draw: st.DrawFn) -> BuiltImage:
    """Images of one platform and indexes of several, with layers of any bytes, some of them shared."""

    def layer(docker: bool) -> Layer:
        content = draw(CONTENTS)
        return Layer(content=content, media_type=DOCKER_LAYER if docker else OCI_LAYER, diff_id=digest_of(content))

    def image(number: int) -> BuiltImage:
        docker = draw(st.booleans())
        return build_image(
            [layer(docker) for _ in range(draw(st.integers(0, 3)))],
            platform=draw(st.sampled_from(["linux/amd64", "linux/arm64", "linux/arm/v7"])),
            docker=docker,
            salt=draw(st.text(max_size=3)),
            algorithm=draw(st.sampled_from(["sha256", "sha256", "sha512"])),
            annotations=draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2)),
        )

    count = draw(st.integers(0, 3))
    if count == 0:
        return image(0)
    return build_index(
        [image(number) for number in range(count)],
        attestations=draw(st.booleans()),
        docker=draw(st.booleans()),
        nested=draw(st.integers(0, 2)),
    )


@settings(max_examples=40)
@given(image=images(), name=NAMES)
def test_an_image_that_is_saved_loaded_and_saved_again_is_the_same_byte_for_byte(image: BuiltImage, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_layout(root / "store", {name: image})
        Store(root / "store", durability="none").save(name, root / "image.tar")
        saved = (root / "image.tar").read_bytes()
        assert [(member.name, content) for member, content in unpack(saved)] == members_of(image, name)

        loaded = Store(root / "loaded", durability="none")
        (found,) = loaded.load(root / "image.tar")
        assert (found.name, str(found.digest)) == (name, image.digest)
        assert {key: entry["digest"] for key, entry in read_layout_names(root / "loaded").items()} == {
            name: image.digest
        }
        assert read_layout_blobs(root / "loaded") == image.blobs

        loaded.save(name, root / "again.tar")
        assert (root / "again.tar").read_bytes() == saved
        assert read_archive(saved) == (name, image.digest, image.blobs)


@settings(max_examples=30)
@given(image=images(), name=NAMES, data=st.data())
def test_an_archive_is_loaded_whoever_packed_it_in_whatever_order(
    image: BuiltImage, name: str, data: st.DataObject
) -> None:
    members = data.draw(st.permutations(members_of(image, name)))
    tar_format = data.draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    if any(len(member) > 100 for member, _ in members):
        tar_format = tarfile.PAX_FORMAT  # the name of a sha512 fits into no other
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store", durability="none")
        store.load(io.BytesIO(pack(members, tar_format=tar_format)))
        assert read_layout_blobs(Path(folder) / "store") == image.blobs
        assert [found.name for found in store.images()] == [name]


@settings(max_examples=60)
@given(
    image=images(),
    lost=st.integers(0, 1000),
    change=st.sampled_from(["without it", "shorter", "longer", "other"]),
    in_file=st.booleans(),
)
@example(image=build_image([]), lost=0, change="without it", in_file=False)
def test_an_archive_with_one_blob_wrong_or_missing_leaves_a_store_as_it_was(
    image: BuiltImage, lost: int, change: str, in_file: bool
) -> None:
    digests = sorted(image.blobs)
    digest = digests[lost % len(digests)]
    content = image.blobs[digest]
    changed: dict[str, Any] = {
        "without it": None,
        "shorter": content[:-1] if content else None,
        "longer": content + b"\0",
        "other": content[:-1] + bytes([content[-1] ^ 1]) if content else b"\0",
    }
    members = [
        (name, changed[change] if name == f"blobs/{digest.replace(':', '/')}" else data)
        for name, data in members_of(image, "app:1")
    ]
    archive = pack([(name, data) for name, data in members if data is not None])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_layout(root / "store", {"held:1": build_image(salt="held")})
        store = Store(root / "store", durability="none")
        store.tag("held:1", "held:2")
        before = snapshot(root / "store")
        (root / "image.tar").write_bytes(archive)
        with pytest.raises(InvalidArchive, match=digest):
            store.load(root / "image.tar" if in_file else io.BytesIO(archive))
        assert snapshot(root / "store") == before


@settings(max_examples=200)
@given(
    image=images(),
    positions=st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=8)), max_size=4),
    cut=st.none() | st.integers(0, 1 << 16),
)
def test_any_bytes_are_read_as_the_image_that_they_name_or_refused(
    image: BuiltImage, positions: list[tuple[int, bytes]], cut: int | None
) -> None:
    archive = bytearray(pack(members_of(image, "app:1")))
    for position, damage in positions:
        at = position % len(archive)
        archive[at : at + len(damage)] = damage
    if cut is not None:
        del archive[cut % len(archive) :]
    outcome = read(bytes(archive))
    if isinstance(outcome, InvalidArchive):
        assert str(outcome).isprintable()
        assert len(str(outcome)) < 1000
        return
    sizes, found = outcome
    assert {each: len(content) for each, content in found.items()} == sizes


def read(archive: bytes) -> tuple[dict[Digest, int], dict[Digest, bytes]] | InvalidArchive:
    """Return what an archive holds, or the refusal; any other error passes, and fails the test."""
    reader = ArchiveReader(io.BytesIO(archive))
    try:
        found = {blob.descriptor.digest: read_stream(blob.stream) for blob in reader.iter_blobs()}
        return reader.members.sizes, found
    except InvalidArchive as error:
        return error


@given(content=st.binary(max_size=2000))
def test_reading_an_archive_is_total_on_any_bytes(content: bytes) -> None:
    outcome = read(content)
    assert isinstance(outcome, InvalidArchive)
    assert len(str(outcome)) < 1000
