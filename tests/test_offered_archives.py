"""Archives that are read and never written: byte for byte what a save writes, from any place on, and told apart."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minibox_store import (
    LINUX_AMD64,
    ArchiveFormat,
    ContentMismatch,
    Digest,
    FileRange,
    ImageNotFound,
    IncompleteImage,
    InvalidArgument,
    OfferedArchive,
    Platform,
    PlatformNotFound,
    Store,
)
from tests.support.images import build_image, build_index, random_layer
from tests.support.invariants import check_invariants
from tests.support.layouts import blob_path, write_layout
from tests.support.stores import open_store

SHARED = random_layer(1 << 17)
IMAGES = {"app:1": build_image([SHARED, {"a": b"1"}]), "team/app:2": build_image([SHARED], salt="second")}
INDEX = build_index([build_image(), build_image(platform="linux/arm64")], attestations=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store that no test changes."""
    root = tmp_path_factory.mktemp("store")
    write_layout(root, {**IMAGES, "index:1": INDEX})
    yield open_store(root)
    check_invariants(root, history_behind=True)


def all_of(archive: OfferedArchive) -> bytes:
    return archive.read(0, archive.size_bytes)


@pytest.mark.parametrize("form", get_args(ArchiveFormat))
def test_it_is_what_a_save_writes(form: ArchiveFormat, store: Store, tmp_path: Path) -> None:
    store.save("app:1", tmp_path / "app.tar", format=form)
    with store.open_archive("app:1", format=form) as archive:
        assert all_of(archive) == (tmp_path / "app.tar").read_bytes()
        assert archive.size_bytes == (tmp_path / "app.tar").stat().st_size
        with tarfile.open(tmp_path / "app.tar") as written:
            assert archive.blob_count == sum(name.count("/") == 2 for name in written.getnames())
        assert archive.images == (store.get("app:1"),)


@pytest.mark.parametrize("form", ["oci", "docker", "both"])
def test_several_images_are_in_one_archive(form: ArchiveFormat, store: Store, tmp_path: Path) -> None:
    names = ["team/app:2", "app:1", "docker.io/library/app:1"]
    saved = store.save(names, tmp_path / "all.tar", format=form)
    with store.open_archive(names, format=form) as archive:
        assert all_of(archive) == (tmp_path / "all.tar").read_bytes()
        assert archive.images == saved


def test_a_platform_and_what_is_left_out_are_chosen_as_for_a_save(store: Store, tmp_path: Path) -> None:
    left_out = [Digest.parse(digest) for digest in INDEX.blobs if digest not in INDEX.document_digests][:3]
    store.save("index:1", tmp_path / "app.tar", format="oci", platform=LINUX_AMD64, exclude=left_out)
    with store.open_archive("index:1", format="oci", platform=LINUX_AMD64, exclude=left_out) as archive:
        assert all_of(archive) == (tmp_path / "app.tar").read_bytes()
    with store.open_archive("index:1") as archive:
        store.save("index:1", tmp_path / "index.tar")
        assert all_of(archive) == (tmp_path / "index.tar").read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_part_of_it_can_be_had(data: st.DataObject, store: Store) -> None:
    with store.open_archive(["app:1", "team/app:2"], format="both") as archive:
        whole = all_of(archive)
        offset = data.draw(st.integers(0, len(whole)))
        size_bytes = data.draw(st.integers(0, len(whole) - offset) | st.just(len(whole)))
        assert archive.read(offset, size_bytes) == whole[offset : offset + size_bytes]
        sizes = [
            piece.size_bytes if isinstance(piece, FileRange) else len(piece)
            for piece in archive.pieces(offset, size_bytes)
        ]
        assert sum(sizes) == min(size_bytes, len(whole) - offset)
        assert all(sizes)


def test_what_lies_in_layers_is_told_as_a_range_of_a_file(store: Store) -> None:
    with store.open_archive("app:1") as archive:
        ranges = [piece for piece in archive.pieces() if isinstance(piece, FileRange)]
        layers = store.inspect("app:1").manifests[0].layers
        assert [each.size_bytes for each in ranges][-2:] == [each.descriptor.size_bytes for each in layers]
        other = sum(len(piece) for piece in archive.pieces() if isinstance(piece, bytes))
        assert other + sum(each.size_bytes for each in ranges) == archive.size_bytes
    for each in ranges:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(each.file_descriptor)


def test_a_place_outside_is_refused(store: Store) -> None:
    with store.open_archive("app:1") as archive:
        assert archive.read(archive.size_bytes, 10) == b""
        for offset in (-1, archive.size_bytes + 1):
            with pytest.raises(InvalidArgument, match="the archive has"):
                archive.pieces(offset)


def test_archives_have_one_identity_exactly_when_they_have_the_same_bytes(store: Store, tmp_path: Path) -> None:
    write_layout(tmp_path / "other", dict.fromkeys(["app:1", "apx:1", "other:1"], IMAGES["app:1"]))
    other = open_store(tmp_path / "other")
    wishes: list[tuple[Store, list[str], ArchiveFormat]] = [
        (store, ["app:1"], "minibox"),
        (other, ["app:1"], "minibox"),
        (other, ["other:1"], "minibox"),
        (other, ["apx:1"], "minibox"),  # of the same length in every part
        (store, ["app:1"], "oci"),
        (other, ["app:1"], "oci"),
        (store, ["app:1", "team/app:2"], "oci"),
        (store, ["team/app:2", "app:1"], "oci"),
        (store, ["app:1"], "both"),
    ]
    found = set()
    for chosen, names, form in wishes:
        with chosen.open_archive(names, format=form) as archive:
            found.add((archive.identity, all_of(archive)))
    assert len(found) == len({identity for identity, _ in found}) == len({content for _, content in found}) == 6


def test_what_cannot_be_had_is_said_before_there_is_an_archive(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound):
        store.open_archive("none:1")
    with pytest.raises(PlatformNotFound):
        store.open_archive("index:1", platform=Platform.parse("linux/s390x"))
    with pytest.raises(InvalidArgument, match="'oci' holds as many"):
        store.open_archive(["app:1", "team/app:2"])
    with pytest.raises(InvalidArgument, match="is an index of"):
        store.open_archive("index:1", format="docker")
    root = tmp_path / "damaged"
    write_layout(root, IMAGES)
    blob_path(root, IMAGES["app:1"].layer_digests[1]).unlink()
    with pytest.raises(IncompleteImage):
        open_store(root).open_archive("app:1")
    check_files_closed(root)


def check_files_closed(root: Path) -> None:
    open_files = [
        os.readlink(f"/proc/self/fd/{number}")
        for number in os.listdir("/proc/self/fd")
        if number.isdigit() and os.path.lexists(f"/proc/self/fd/{number}")
    ]
    assert [path for path in open_files if path.startswith(str(root))] == []


def test_it_is_whole_though_the_image_is_collected_meanwhile(tmp_path: Path) -> None:
    write_layout(tmp_path / "data", IMAGES)
    store = open_store(tmp_path / "data")
    with store.open_archive("app:1") as archive:
        before = all_of(archive)
        store.remove("app:1")
        assert store.prune().blobs_removed > 0
        assert all_of(archive) == before
    archive.close()
    check_invariants(tmp_path / "data")


def test_a_blob_that_became_shorter_is_no_shorter_archive(tmp_path: Path) -> None:
    write_layout(tmp_path / "data", IMAGES)
    layer = blob_path(tmp_path / "data", IMAGES["app:1"].layer_digests[0])
    with open_store(tmp_path / "data").open_archive("app:1") as archive:
        layer.chmod(0o600)
        os.truncate(layer, 100)
        with pytest.raises(ContentMismatch, match="100 bytes"):
            all_of(archive)
