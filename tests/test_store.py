"""The store as a program sees it: names, images, files and their modes, and every way it says no."""

import errno
import io
import json
import os
import pickle
import resource
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minibox_store import (
    LINUX_AMD64,
    BlobNotFound,
    ContentMismatch,
    Digest,
    ImageNotFound,
    IncompleteImage,
    InvalidArchive,
    InvalidArgument,
    InvalidDocument,
    InvalidInput,
    InvalidPath,
    InvalidReference,
    Limits,
    Platform,
    PlatformNotFound,
    Store,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from tests.support.archives import members_of, pack, read_archive
from tests.support.failing_system import failing_system
from tests.support.forks import run_as_user, run_forked
from tests.support.images import BuiltImage, build_image, build_index, digest_of, encode_document, random_layer
from tests.support.invariants import check_invariants, held_locks, open_files, read_index, read_names, stored
from tests.support.layouts import write_layout
from tests.support.os_proxy import Call, replaced_os
from tests.support.snapshots import snapshot
from tests.support.sources import (
    LackingSource,
    MovingImages,
    descriptor_of,
    image_of,
    memory_of,
    read_all,
    read_stream,
    root_document,
    root_of,
)
from tests.support.stores import blob, layer_of, mounted, open_store, put, put_dead, remount, require_root, rot

IMAGE = build_image(salt="image")
OTHER = build_image(salt="other")
MULTI = build_index([build_image(salt="m"), build_image(salt="m", platform="linux/arm64/v8")], attestations=True)
NAMES = [
    "app",
    "app:1",
    "team/sub/app:1.0",
    "registry.example.org:5000/team/app:1",
    "[::1]:5000/a/b@sha256:" + "0" * 64,
    "UPPER/Case:Tag",
    "odd!name$with&signs",
]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a store. Whatever a test does, it leaves no open file and no lock behind."""
    folder = tmp_path / "store"
    yield folder
    assert open_files(folder) == []
    assert held_locks(folder) == []


def rewrite(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change index.json as another tool does: in place."""
    index = read_index(root)
    change(index)
    (root / "index.json").write_text(json.dumps(index))


def image_bytes(image: BuiltImage) -> int:
    """Return what counts as the size of an image of one platform: manifest, config and layers, by their descriptors."""
    manifest = image.document()
    return sum(each["size"] for each in [image.root, manifest["config"], *manifest["layers"]])


# The face


def test_what_is_imported_is_listed_found_and_whole(root: Path) -> None:
    store = open_store(root)
    imported = store.import_image(memory_of({"app:1": IMAGE}), "app:1")
    assert store.images() == (imported,)
    assert store.get("app:1") == imported
    assert (imported.name, str(imported.digest), imported.size_bytes) == ("app:1", IMAGE.digest, image_bytes(IMAGE))
    assert (str(imported.platform), imported.created, imported.layers) == ("linux/amd64", "2024-01-01T00:00:00Z", 2)
    assert not imported.damaged
    assert stored(root) == set(IMAGE.blobs)
    check_invariants(root)


def test_a_manifest_is_sized_by_its_descriptors_though_a_layer_stands_in_it_twice(root: Path) -> None:
    layer = random_layer(4096)
    image = build_image([layer, layer])
    put(root, image, "twice:1")
    listed = open_store(root).get("twice:1")
    assert listed.size_bytes == image_bytes(image)
    assert listed.layers == 2
    assert len(stored(root)) == 3


def test_an_index_is_sized_by_every_document_and_each_distinct_blob_once(root: Path) -> None:
    shared = random_layer(4096, salt="shared")
    halves = [
        build_image([shared, random_layer(4096, salt=platform)], platform=platform)
        for platform in ("linux/amd64", "linux/arm64/v8")
    ]
    index = build_index(halves, attestations=True, nested=1)
    put(root, index, "multi:1")
    listed = open_store(root).get("multi:1")
    assert listed.size_bytes == index.size_bytes
    assert [str(each) for each in listed.platforms] == ["linux/amd64", "linux/arm64/v8"]
    assert (listed.platform, listed.created) == (None, None)
    layers = {digest for digest, kind in index.media_types.items() if "layer" in kind or "in-toto" in kind}
    assert listed.layers == len(layers)
    assert listed.descriptor.media_type == index.media_type


def test_one_platform_of_an_index_is_kept_and_another_is_refused_with_what_is_on_offer(root: Path) -> None:
    store = open_store(root)
    source = memory_of({"multi:1": MULTI})
    arm = store.import_image(source, "multi:1", as_name="arm:1", platform=Platform.parse("linux/arm64"))
    assert str(arm.digest) == build_image(salt="m", platform="linux/arm64/v8").digest
    assert stored(root) == set(build_image(salt="m", platform="linux/arm64/v8").blobs)
    before = snapshot(root)
    with pytest.raises(PlatformNotFound, match=r"linux/amd64, linux/arm64/v8"):
        store.import_image(source, "multi:1", platform=Platform.parse("linux/s390x"))
    assert snapshot(root) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_kept_as_given_and_can_be_tagged_saved_loaded_and_removed(root: Path, name: str) -> None:
    store = open_store(root)
    put(root, IMAGE, name)
    assert read_names(root) == {name: IMAGE.digest}
    assert [image.name for image in store.images()] == [name]
    assert store.save(name, root.parent / "a.tar").name == name
    assert store.tag(name, "second:1").digest == store.get(name).digest
    assert store.remove(name) == name
    assert read_names(root) == {"second:1": IMAGE.digest}
    assert [image.name for image in store.load(root.parent / "a.tar")] == [name]
    assert store.get(name).digest == store.get("second:1").digest
    check_invariants(root)


@pytest.mark.parametrize(
    ("stands", "asked"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/library/alpine:3", "alpine:3"),
        ("docker.io/org/app", "org/app:latest"),
        ("localhost:5000/app:latest", "localhost:5000/app"),
    ],
)
def test_a_single_name_that_spells_the_same_reference_is_meant(root: Path, stands: str, asked: str) -> None:
    put(root, IMAGE, stands)
    store = open_store(root)
    assert store.get(asked).name == stands
    assert store.save(asked, root.parent / "a.tar").name == stands
    assert store.tag(asked, "new:1").name == "new:1"
    assert store.remove(asked) == stands
    assert list(read_names(root)) == ["new:1"]


def test_the_very_name_wins_and_of_two_alike_none_is_meant(root: Path) -> None:
    store = open_store(root)
    put(root, IMAGE, "alpine")
    put(root, OTHER, "docker.io/library/alpine")
    assert str(store.get("alpine").digest) == IMAGE.digest
    assert str(store.get("docker.io/library/alpine").digest) == OTHER.digest
    with pytest.raises(ImageNotFound, match="'alpine:latest'"):
        store.remove("alpine:latest")
    assert store.remove("alpine") == "alpine"
    assert store.get("alpine:latest").name == "docker.io/library/alpine"


def test_a_tag_replaces_what_the_new_name_stood_for_and_nothing_else(root: Path) -> None:
    store = open_store(root)
    put(root, IMAGE, "one:1", "keep:1")
    put(root, OTHER, "two:1")
    assert str(store.tag("two:1", "one:1").digest) == OTHER.digest
    assert read_names(root) == {"one:1": OTHER.digest, "keep:1": IMAGE.digest, "two:1": OTHER.digest}
    index = (root / "index.json").read_bytes()
    assert store.tag("one:1", "one:1").name == "one:1"
    assert (root / "index.json").read_bytes() == index
    with pytest.raises(ImageNotFound, match="missing:1"):
        store.tag("missing:1", "new:1")
    with pytest.raises(InvalidReference, match="visible"):
        store.tag("one:1", "with space")
    assert (root / "index.json").read_bytes() == index


def test_removing_a_name_leaves_the_blobs_and_a_prune_takes_them(root: Path) -> None:
    store = open_store(root)
    put(root, IMAGE, "one:1", "two:1")
    store.remove("one:1")
    assert store.prune().removed == ()
    store.remove("two:1")
    assert stored(root) == set(IMAGE.blobs)
    with pytest.raises(ImageNotFound, match="two:1"):
        store.remove("two:1")
    report = store.prune()
    assert (report.blobs_removed, report.bytes_freed) == (len(IMAGE.blobs), IMAGE.size_bytes)
    assert stored(root) == set()
    assert store.images() == ()


def test_untagging_takes_away_one_name_and_tells_which_the_image_still_has(root: Path) -> None:
    store = open_store(root)
    put(root, IMAGE, "two:1", "three:1", "one:1")
    put(root, OTHER, "other:1")
    assert store.untag("two:1") == ("one:1", "three:1")
    assert store.untag("one:1") == ("three:1",)
    assert store.prune().removed == ()
    assert store.untag("three:1") == ()
    assert store.prune().blobs_removed == len(IMAGE.blobs)
    assert read_names(root) == {"other:1": OTHER.digest}


def test_untagging_takes_no_other_spelling_for_the_name_as_removing_does(root: Path) -> None:
    store = open_store(root)
    put(root, IMAGE, "alpine:latest")
    for spelling in ("alpine", "docker.io/library/alpine", "", "b\nad"):
        index = (root / "index.json").read_bytes()
        with pytest.raises(ImageNotFound):
            store.untag(spelling)
        assert (root / "index.json").read_bytes() == index
    put(root, IMAGE, "alpine", "docker.io/library/alpine:latest")
    assert store.untag("alpine") == ("alpine:latest", "docker.io/library/alpine:latest")
    assert store.untag("docker.io/library/alpine:latest") == ("alpine:latest",)
    assert store.remove("alpine") == "alpine:latest"


def test_a_name_that_a_foreign_tool_wrote_twice_is_untagged_as_a_whole_and_stood_for_the_first(root: Path) -> None:
    put(root, IMAGE, "twice:1", "kept:1")
    put(root, OTHER, "other:1")

    def write_twice(index: dict[str, Any]) -> None:
        second = json.loads(json.dumps(index["manifests"][-1]))
        second["annotations"] = dict(index["manifests"][0]["annotations"])
        index["manifests"].append(second)

    rewrite(root, write_twice)
    assert open_store(root).untag("twice:1") == ("kept:1",)
    assert read_names(root) == {"kept:1": IMAGE.digest, "other:1": OTHER.digest}


def test_untagging_in_no_store_makes_none(root: Path) -> None:
    with pytest.raises(ImageNotFound, match="app:1"):
        open_store(root).untag("app:1")
    assert not root.exists()


@pytest.mark.parametrize("image", [IMAGE, MULTI, build_image(docker=True), build_image(algorithm="sha512")])
def test_what_is_saved_and_loaded_elsewhere_is_the_same_and_saved_again_gives_equal_bytes(
    root: Path, image: BuiltImage
) -> None:
    put(root, image, "a/b:1")
    open_store(root).save("a/b:1", root.parent / "1.tar")
    name, digest, blobs = read_archive((root.parent / "1.tar").read_bytes())
    assert (name, digest, blobs) == ("a/b:1", image.digest, image.blobs)
    second = root.parent / "second"
    (loaded,) = open_store(second).load(root.parent / "1.tar")
    assert loaded == open_store(root).get("a/b:1")
    open_store(second).save("a/b:1", root.parent / "2.tar")
    assert (root.parent / "1.tar").read_bytes() == (root.parent / "2.tar").read_bytes()
    before = snapshot(second)
    assert open_store(second).load(root.parent / "2.tar") == (loaded,)
    assert snapshot(second) == before
    check_invariants(second)


def test_a_load_takes_the_name_that_the_caller_gives_or_leaves_the_image_out(root: Path) -> None:
    archive = root.parent / "a.tar"
    archive.write_bytes(pack(members_of(IMAGE, "evil:1")))
    put(root, OTHER, "evil:1")
    store = open_store(root)
    assert store.load(archive, names=lambda name: None) == ()
    assert stored(root) == set(OTHER.blobs)
    (loaded,) = store.load(archive, names=lambda name: f"quarantined/{name}")
    assert loaded.name == "quarantined/evil:1"
    assert read_names(root) == {"evil:1": OTHER.digest, "quarantined/evil:1": IMAGE.digest}
    with pytest.raises(InvalidReference):
        store.load(archive, names=lambda name: "../" + name)


def test_a_blob_is_found_by_the_graph_of_its_image_and_by_no_other(root: Path) -> None:
    put(root, MULTI, "multi:1")
    put(root, OTHER, "other:1")
    store = open_store(root)
    for digest, content in MULTI.blobs.items():
        descriptor = store.find_blob("multi:1", Digest.parse(digest))
        assert (descriptor.media_type, descriptor.size_bytes) == (MULTI.media_types[digest], len(content))
        assert read_all(store, descriptor) == content
    with pytest.raises(BlobNotFound, match=OTHER.digest):
        store.find_blob("multi:1", Digest.parse(OTHER.digest))
    with pytest.raises(ImageNotFound, match="missing:1"):
        store.find_blob("missing:1", Digest.parse(OTHER.digest))


def test_a_blob_is_read_from_any_offset_and_its_stream_may_be_closed_twice(root: Path) -> None:
    put(root, IMAGE, "app:1")
    store = open_store(root)
    descriptor = layer_of(IMAGE)
    content = IMAGE.blobs[str(descriptor.digest)]
    for offset in (0, 1, len(content) - 1, len(content)):
        stream = store.open_blob(descriptor, offset)
        assert read_stream(stream, step_bytes=7) == content[offset:]
        stream.close()
        stream.close()
    with pytest.raises(BlobNotFound, match=OTHER.digest):
        store.open_blob(root_of(OTHER))


def test_a_file_in_the_place_of_the_store_is_told_and_left_alone(root: Path) -> None:
    root.write_bytes(b"precious")
    store = open_store(root)
    for action in (
        store.images,
        store.prune,
        lambda: store.prune(dry_run=True),
        lambda: store.remove("app:1"),
        lambda: store.import_image(memory_of({"app:1": IMAGE}), "app:1"),
    ):
        with pytest.raises(StoreError, match=str(root)):
            action()
    assert root.read_bytes() == b"precious"


def test_a_store_may_be_reached_by_a_link(root: Path) -> None:
    (root.parent / "real").mkdir()
    root.symlink_to("real")
    put(root, IMAGE, "app:1")
    put(root, OTHER, "dead:1")
    open_store(root).remove("dead:1")
    assert open_store(root).prune().blobs_removed == len(OTHER.blobs)
    check_invariants(root.parent / "real")
    assert root.is_symlink()


def test_reading_a_store_that_is_not_there_makes_none(root: Path) -> None:
    store = open_store(root)
    assert store.images() == ()
    assert store.info().hard_links is None
    assert store.prune().removed == ()
    assert store.prune(dry_run=True).removed == ()
    for action in (
        lambda: store.get("app:1"),
        lambda: store.remove("app:1"),
        lambda: store.tag("app:1", "app:2"),
        lambda: store.save("app:1", root.parent / "a.tar"),
        lambda: store.find_blob("app:1", Digest.parse(IMAGE.digest)),
    ):
        with pytest.raises(ImageNotFound, match="app:1"):
            action()
    assert list(root.parent.iterdir()) == []


def test_the_store_says_where_it_lies_and_what_it_can(root: Path) -> None:
    put(root, IMAGE, "app:1")
    info = Store(root).info()
    assert (info.root, info.durable, info.hard_links) == (str(root), True, True)
    assert not open_store(root).info().durable
    relative = Store(os.path.relpath(root))
    assert relative.root == str(root)
    check_invariants(root)


# index.json belongs to others too


def changes(root: Path) -> dict[str, Callable[[Store], object]]:
    """Return every way to change a store that holds ``app:1`` and ``two:1``."""
    (root.parent / "a.tar").write_bytes(pack(members_of(build_image(salt="loaded"), "loaded:1")))
    imported = memory_of({"imported:1": build_image(salt="imported")})
    return {
        "tag": lambda store: store.tag("app:1", "new:1"),
        "tag over": lambda store: store.tag("app:1", "two:1"),
        "remove": lambda store: store.remove("two:1"),
        "untag": lambda store: store.untag("two:1"),
        "import": lambda store: store.import_image(imported, "imported:1"),
        "import over": lambda store: store.import_image(imported, "imported:1", as_name="two:1"),
        "load": lambda store: store.load(root.parent / "a.tar"),
        "prune": lambda store: store.prune(),
    }


@pytest.mark.parametrize("verb", ["tag", "tag over", "remove", "untag", "import", "import over", "load", "prune"])
def test_entries_without_a_name_and_whatever_else_is_unknown_survive_every_change(root: Path, verb: str) -> None:
    put(root, IMAGE, "app:1")
    put(root, OTHER, "two:1")
    unnamed = build_image(salt="unnamed")
    write_layout(root.parent / "more", {"x": unnamed, "y": MULTI})
    for digest, content in {**unnamed.blobs, **MULTI.blobs}.items():
        blob(root, digest).write_bytes(content)
    unknown = {
        "mediaType": "application/vnd.example.thing",
        "digest": "sha256:" + "5" * 64,
        "size": 7,
        "data": "eA==",
        "annotations": {"a": "b"},
        "x-future": [1, 2.5, None, {"é": "\u2028"}],
    }
    foreign = [{**unnamed.root, "x-more": {"deep": [True]}}, {**MULTI.root, "artifactType": "x/y"}, unknown]

    def change(index: dict[str, Any]) -> None:
        first, second = index["manifests"]
        index.update({"annotations": {"k": "v"}, "x-top": {"n": 1e3}, "artifactType": "a/b"})
        index["manifests"] = [foreign[0], {**first, "x-own": "kept"}, foreign[1], second, foreign[2]]

    rewrite(root, change)
    before = read_index(root)
    changes(root)[verb](open_store(root))
    after = read_index(root)
    assert {key: value for key, value in after.items() if key != "manifests"} == {
        key: value for key, value in before.items() if key != "manifests"
    }
    assert [entry for entry in after["manifests"] if entry in before["manifests"]] == [
        entry for entry in before["manifests"] if entry["digest"] != OTHER.digest or entry in after["manifests"]
    ]
    assert all(entry in after["manifests"] for entry in [*foreign, before["manifests"][1]])
    assert stored(root) >= {*unnamed.blobs, *MULTI.blobs}


def test_a_name_that_a_foreign_tool_wrote_twice_stands_for_the_first_and_goes_as_a_whole(root: Path) -> None:
    put(root, IMAGE, "app:1")
    put(root, OTHER, "two:1")
    rewrite(root, lambda index: index["manifests"].append({**index["manifests"][0], **root_json(OTHER)}))
    store = open_store(root)
    assert [(image.name, str(image.digest)) for image in store.images()] == [
        ("app:1", IMAGE.digest),
        ("two:1", OTHER.digest),
    ]
    store.tag("two:1", "app:1")
    assert read_names(root) == {"app:1": OTHER.digest, "two:1": OTHER.digest}


def root_json(image: BuiltImage) -> dict[str, Any]:
    """Return digest and size of a root."""
    return {"digest": image.digest, "size": image.root["size"]}


def test_a_foreign_name_that_no_image_may_have_here_can_still_be_saved_and_removed(root: Path) -> None:
    put(root, IMAGE, "app:1")
    odd = "../évil name\n"
    rewrite(root, lambda index: index["manifests"][0]["annotations"].update({"org.opencontainers.image.ref.name": odd}))
    store = open_store(root)
    assert [image.name for image in store.images()] == [odd]
    assert store.tag(odd, "good:1").name == "good:1"
    assert store.remove(odd) == odd
    assert list(read_names(root)) == ["good:1"]


# A listing is read once


def test_the_listing_is_the_very_same_tuple_while_nothing_has_changed(root: Path) -> None:
    put(root, IMAGE, "app:1")
    put(root, MULTI, "multi:1")
    store = open_store(root)
    first = store.images()
    assert store.images() is first
    store.get("app:1")
    store.save("app:1", root.parent / "a.tar")
    store.load(root.parent / "a.tar")
    store.tag("app:1", "app:1")
    store.prune()
    assert store.images() is first


def test_the_listing_sees_what_another_store_object_does(root: Path) -> None:
    put(root, IMAGE, "app:1")
    store = open_store(root)
    assert [image.name for image in store.images()] == ["app:1"]
    put(root, OTHER, "other:1")
    assert [image.name for image in store.images()] == ["app:1", "other:1"]
    open_store(root).remove("app:1")
    assert [image.name for image in store.images()] == ["other:1"]


def test_the_listing_sees_index_json_rewritten_in_place_with_its_size_and_its_time(root: Path) -> None:
    put(root, IMAGE, "app:1")
    put(root, OTHER, "two:2")
    store = open_store(root)
    first = store.images()
    path = root / "index.json"
    status = path.stat()
    content = path.read_bytes().replace(b"app:1", b"app:2")
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_ino) == (status.st_size, status.st_ino)
    assert [image.name for image in store.images()] == ["app:2", "two:2"]
    path.write_bytes(content.replace(b"app:2", b"app:1"))
    assert store.images() == first


@pytest.mark.parametrize("harm", ["gone", "truncated", "other bytes", "a link", "a folder", "no JSON"])
def test_the_listing_sees_a_manifest_that_is_harmed_and_one_that_is_whole_again(root: Path, harm: str) -> None:
    put(root, IMAGE, "app:1")
    put(root, OTHER, "two:1")
    store = open_store(root)
    whole = store.images()
    manifest = blob(root, IMAGE.digest)
    content = manifest.read_bytes()
    manifest.unlink()
    if harm == "truncated":
        manifest.write_bytes(content[:10])
    elif harm == "other bytes":
        manifest.write_bytes(content)
        rot(manifest)
    elif harm == "a link":
        (root.parent / "elsewhere").write_bytes(content)
        manifest.symlink_to(root.parent / "elsewhere")
    elif harm == "a folder":
        manifest.mkdir()
    elif harm == "no JSON":
        manifest.write_bytes(bytes(len(content)))
    damaged = store.images()
    assert [(image.name, image.damaged) for image in damaged] == [("app:1", True), ("two:1", False)]
    assert str(damaged[0].digest) == IMAGE.digest
    assert store.images() is damaged
    assert store.get("app:1").damaged
    if harm == "a folder":
        manifest.rmdir()
    elif harm != "gone":
        manifest.unlink()
    manifest.write_bytes(content)
    assert store.images() == whole


def test_the_listing_sees_a_manifest_below_an_index_that_is_harmed(root: Path) -> None:
    put(root, MULTI, "multi:1")
    store = open_store(root)
    assert [image.damaged for image in store.images()] == [False]
    child = blob(root, build_image(salt="m").digest)
    content = child.read_bytes()
    child.unlink()
    child.write_bytes(content[:10])
    assert [image.damaged for image in store.images()] == [True]
    child.write_bytes(content)
    assert [image.damaged for image in store.images()] == [False]


def test_an_image_that_goes_while_the_store_is_listed_is_not_called_damaged(root: Path) -> None:
    put(root, IMAGE, "app:1")
    put(root, OTHER, "two:1")
    with replaced_os() as system:

        def remove() -> None:
            open_store(root).remove("app:1")
            open_store(root).prune()

        system.before("open", remove, path=IMAGE.digest.removeprefix("sha256:"))
        images = open_store(root).images()
    assert [(image.name, image.damaged) for image in images if image.damaged] == []


def test_an_image_whose_config_is_gone_is_listed_with_what_is_known(root: Path) -> None:
    put(root, IMAGE, "app:1")
    blob(root, IMAGE.config_digest).unlink()
    (image,) = open_store(root).images()
    assert (image.created, image.platform, image.layers) == (None, None, 2)
    assert image.size_bytes == image_bytes(IMAGE)


# S19: modes


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277, 0o777])
def test_S19_modes_do_not_depend_on_the_umask(root: Path, umask: int) -> None:
    def work() -> None:
        os.umask(umask)
        store = open_store(root)
        store.import_image(memory_of({"app:1": IMAGE}), "app:1")
        with replaced_os() as system:
            system.before("replace", remember, path="/ingest/")
            store.import_image(memory_of({"two:1": OTHER}), "two:1")
        store.prune()

    def remember() -> None:
        modes = [path.stat().st_mode & 0o7777 for path in root.glob("ingest/partial/*")]
        if any(mode not in (0o600, 0o444) for mode in modes):
            raise AssertionError(f"unfinished bytes have the modes {modes}")

    assert run_forked(work) == 0
    modes = {path.relative_to(root).as_posix(): path.lstat().st_mode & 0o7777 for path in [root, *root.rglob("*")]}
    assert modes["."] == modes["ingest"] == modes["ingest/partial"] == 0o700
    assert modes["blobs"] == modes["blobs/sha256"] == 0o755
    assert modes["index.json"] == modes["oci-layout"] == 0o644
    assert {modes[f"blobs/sha256/{path.name}"] for path in (root / "blobs" / "sha256").iterdir()} == {0o444}
    assert {modes[f"ingest/{name}"] for name in ("store.lock", "store.turn", "prune.lock")} == {0o600}


def test_S19_a_root_that_is_there_keeps_its_mode(root: Path) -> None:
    root.mkdir(mode=0o750)
    put(root, IMAGE, "app:1")
    assert root.stat().st_mode & 0o7777 == 0o750


def test_S19_the_store_of_another_user_is_read_and_never_changed(root: Path) -> None:
    require_root()
    put(root, IMAGE, "app:1")
    (root.parent / "a.tar").write_bytes(pack(members_of(OTHER, "b:1")))
    os.chown(root, 12345, 12345)
    before = snapshot(root)
    store = open_store(root)
    assert store.get("app:1").name == "app:1"
    store.save("app:1", root.parent / "out.tar")
    for action in (
        lambda: store.remove("app:1"),
        lambda: store.tag("app:1", "b:1"),
        lambda: store.load(root.parent / "a.tar"),
        lambda: store.import_image(memory_of({"b:1": OTHER}), "b:1"),
        store.prune,
    ):
        with pytest.raises(StoreUnavailable, match=f"{root}.*another user"):
            action()
    assert snapshot(root) == before


# S17: what lies in blobs/ and is no blob


def plant(path: Path, kind: str, content: bytes) -> None:
    """Put something that is no blob where a blob belongs."""
    if path.exists():
        path.unlink()
    if kind == "link":
        path.with_suffix(".target").write_bytes(content)
        path.symlink_to(path.with_suffix(".target"))
    elif kind == "dangling link":
        path.symlink_to("/nowhere")
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            here = os.open(path.parent, os.O_RDONLY)
            try:
                listener.bind(f"/proc/self/fd/{here}/{path.name}")
            finally:
                os.close(here)
    elif kind == "short":
        path.write_bytes(content[:-1])
    else:
        path.write_bytes(content + b"x")


PLANTED = ["link", "dangling link", "FIFO", "folder", "socket", "short", "long"]


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("victim", ["layer", "manifest"])
def test_S17_what_is_no_blob_is_never_read_as_one(root: Path, kind: str, victim: str) -> None:
    put(root, IMAGE, "app:1")
    descriptor = layer_of(IMAGE) if victim == "layer" else root_of(IMAGE)
    digest = str(descriptor.digest)
    plant(blob(root, digest), kind, IMAGE.blobs[digest])
    store = open_store(root)
    with pytest.raises(StoreDamaged, match=descriptor.digest.hex):
        store.open_blob(descriptor)
    with pytest.raises(StoreDamaged, match=descriptor.digest.hex):
        store.save("app:1", root.parent / "a.tar")
    assert [path.name for path in root.parent.iterdir()] == ["store"]


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("verb", ["import", "load"])
def test_S17_what_is_no_blob_is_set_aside_and_replaced_by_verified_bytes(root: Path, kind: str, verb: str) -> None:
    put(root, IMAGE, "app:1")
    before = (root / "index.json").read_bytes()
    (root.parent / "a.tar").write_bytes(pack(members_of(IMAGE, "app:1")))
    for digest in (IMAGE.layer_digests[0], IMAGE.digest):
        plant(blob(root, digest), kind, IMAGE.blobs[digest])
    store = open_store(root)
    if verb == "load":
        store.load(root.parent / "a.tar")
    else:
        store.import_image(memory_of({"app:1": IMAGE}), "app:1")
    for extra in root.glob("blobs/sha256/*.target"):
        extra.unlink()
    check_invariants(root)
    assert (root / "index.json").read_bytes() == before
    assert len(list((root / "quarantine").iterdir())) == 2


@pytest.mark.parametrize(
    ("verb", "victim"), [("load", "layer"), ("load", "config"), ("load", "manifest"), ("import", "manifest")]
)
def test_S6_a_blob_of_wrong_content_is_set_aside_when_its_verified_bytes_come(
    root: Path, verb: str, victim: str
) -> None:
    put(root, IMAGE, "app:1")
    (root.parent / "a.tar").write_bytes(pack(members_of(IMAGE, "app:1")))
    digest = {"layer": IMAGE.layer_digests[0], "config": IMAGE.config_digest, "manifest": IMAGE.digest}[victim]
    rot(blob(root, digest))
    wrong = blob(root, digest).read_bytes()
    store = open_store(root)
    if verb == "load":
        store.load(root.parent / "a.tar")
    else:
        store.import_image(memory_of({"app:1": IMAGE}), "app:1")
    check_invariants(root)
    assert [path.read_bytes() for path in (root / "quarantine").iterdir()] == [wrong]


def test_S6_a_good_blob_is_never_overwritten(root: Path) -> None:
    put(root, IMAGE, "app:1")
    inodes = {digest: blob(root, digest).stat().st_ino for digest in IMAGE.blobs}
    (root.parent / "a.tar").write_bytes(pack(members_of(IMAGE, "app:2")))
    open_store(root).load(root.parent / "a.tar")
    put(root, IMAGE, "app:3")
    assert {digest: blob(root, digest).stat().st_ino for digest in IMAGE.blobs} == inodes
    assert not (root / "quarantine").exists()


def test_S5_a_document_of_another_kind_than_its_descriptor_says_is_refused(root: Path) -> None:
    lie = descriptor_of({**MULTI.root, "mediaType": IMAGE.media_type})
    source = MovingImages(memory_of({"x": MULTI}), [lie])
    with pytest.raises(InvalidInput, match=MULTI.digest):
        open_store(root).import_image(source, "app:1")
    assert open_store(root).images() == ()
    assert stored(root) == set()


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (0, -1)])
def test_S26_a_manifest_that_gives_one_blob_two_sizes_is_refused(root: Path, sizes: tuple[int, int]) -> None:
    document = IMAGE.document()
    (layer, *_) = document["layers"]
    document["layers"] = [{**layer, "size": layer["size"] + more} for more in sizes]
    content = encode_document(document)
    liar = image_of({**IMAGE.blobs, digest_of(content): content}, root_document(content, IMAGE.media_type))
    with pytest.raises((ContentMismatch, InvalidInput), match=r"sha256:"):
        open_store(root).import_image(memory_of({"liar:1": liar}), "liar:1")
    (root.parent / "a.tar").write_bytes(pack(members_of(liar_types(liar), "liar:1")))
    with pytest.raises(InvalidArchive):
        open_store(root).load(root.parent / "a.tar")
    assert read_names(root) == {}
    check_invariants(root)


def liar_types(image: BuiltImage) -> BuiltImage:
    """Return the image with the types of its blobs."""
    return replace(image, media_types={**IMAGE.media_types, image.digest: IMAGE.media_type})


@pytest.mark.parametrize("size", [-1, 2**53, True, 1.0, "1", None, 1e400])
def test_S26_an_entry_with_an_impossible_size_stops_everything(root: Path, size: object) -> None:
    put(root, IMAGE, "app:1")
    put(root, OTHER, "dead:1")
    open_store(root).remove("dead:1")
    rewrite(root, lambda index: index["manifests"].append({**IMAGE.root, "size": size}))
    store = open_store(root)
    before = snapshot(root)
    for action in (store.images, store.prune, lambda: store.tag("app:1", "app:2"), lambda: store.remove("app:1")):
        with pytest.raises(StoreDamaged, match=r"index\.json"):
            action()
    assert snapshot(root) == before


# Every way to say no


def failures(root: Path) -> dict[str, Callable[[Store], object]]:
    """Return calls that must fail, on a store with ``app:1`` and, incomplete, ``half:1``."""
    (root.parent / "bad.tar").write_bytes(b"no archive at all")
    (root.parent / "lacking.tar").write_bytes(pack(members_of(IMAGE, "x:1")[:-1]))
    part = build_image(salt="part")
    lacking = LackingSource(memory_of({"x:1": part}), [layer_of(part, 1).digest])
    corrupted = memory_of({"x:1": OTHER.corrupted(OTHER.layer_digests[1])})
    return {
        "get": lambda store: store.get("mis\nsing:1"),
        "get nothing": lambda store: store.get(""),
        "tag": lambda store: store.tag("missing:1", "new:1"),
        "bad tag": lambda store: store.tag("app:1", "b\nad"),
        "long tag": lambda store: store.tag("app:1", "x" * 513),
        "remove": lambda store: store.remove("missing:1"),
        "untag": lambda store: store.untag("missing:1"),
        "save": lambda store: store.save("missing:1", root.parent / "out.tar"),
        "save to no folder": lambda store: store.save("app:1", root.parent / "no" / "folder" / "out.tar"),
        "save over a folder": lambda store: store.save("app:1", root.parent),
        "save to a device": lambda store: store.save("app:1", "/dev/null"),
        "save to a NUL": lambda store: store.save("app:1", "/tmp/a\0b"),
        "save to a long name": lambda store: store.save("app:1", root.parent / ("x" * 300)),
        "save an incomplete one": lambda store: store.save("half:1", root.parent / "out.tar"),
        "load nothing": lambda store: store.load(root.parent / "missing.tar"),
        "load a folder": lambda store: store.load(root.parent),
        "load a NUL": lambda store: store.load("/tmp/a\0b"),
        "load no archive": lambda store: store.load(root.parent / "bad.tar"),
        "load half an archive": lambda store: store.load(root.parent / "lacking.tar"),
        "import nothing": lambda store: store.import_image(memory_of({}), "x:1"),
        "import a bad name": lambda store: store.import_image(memory_of({"x:1": OTHER}), "x:1", as_name="a//b"),
        "import a lie": lambda store: store.import_image(corrupted, "x:1"),
        "import a part": lambda store: store.import_image(MovingImages(lacking, [root_of(part)]), "x:1"),
        "import no platform": lambda store: store.import_image(
            memory_of({"x:1": MULTI}), "x:1", platform=Platform.parse("plan9/mips")
        ),
        "find": lambda store: store.find_blob("app:1", Digest.parse(OTHER.digest)),
        "open": lambda store: store.open_blob(layer_of(OTHER)),
    }


WAYS_TO_FAIL = [
    *("get", "get nothing", "tag", "bad tag", "long tag", "remove", "untag", "save", "save to no folder"),
    *(
        "save over a folder",
        "save to a device",
        "save to a NUL",
        "save to a long name",
        "save an incomplete one",
        "load nothing",
    ),
    *("load a folder", "load a NUL", "load no archive", "load half an archive", "import nothing", "import a bad name"),
    *("import a lie", "import a part", "import no platform", "find", "open"),
]


@pytest.mark.parametrize("way", WAYS_TO_FAIL)
def test_every_refusal_is_a_store_error_of_one_line_that_pickles_and_nothing_is_lost(root: Path, way: str) -> None:
    put(root, IMAGE, "app:1")
    half = build_image(salt="half")
    put(root, half, "half:1")
    blob(root, half.layer_digests[0]).unlink()
    names, index = read_names(root), (root / "index.json").read_bytes()
    fail = failures(root)[way]
    with pytest.raises(StoreError) as caught:
        fail(open_store(root))
    sentence = str(caught.value)
    assert sentence
    assert sentence.isprintable()
    assert "Traceback" not in sentence
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), sentence)
    assert (read_names(root), (root / "index.json").read_bytes()) == (names, index)
    assert not (root.parent / "out.tar").exists()
    assert stored(root) >= set(IMAGE.blobs)
    assert not list(root.parent.glob(".*.tmp"))
    open_store(root, lock_timeout_seconds=0.0).tag("app:1", "after:1")  # else a lock was left behind


def test_each_failure_has_the_class_by_which_a_caller_can_act(root: Path) -> None:
    put(root, IMAGE, "app:1")
    half = build_image(salt="half")
    put(root, half, "half:1")
    blob(root, half.layer_digests[0]).unlink()
    ways = failures(root)
    expected: dict[str, type[StoreError]] = {
        "get": ImageNotFound,
        "bad tag": InvalidReference,
        "save to no folder": InvalidPath,
        "save over a folder": InvalidPath,
        "save an incomplete one": IncompleteImage,
        "load nothing": InvalidPath,
        "load a folder": InvalidPath,
        "load no archive": InvalidArchive,
        "load half an archive": InvalidArchive,
        "import nothing": ImageNotFound,
        "import a lie": ContentMismatch,
        "import a part": BlobNotFound,
        "import no platform": PlatformNotFound,
        "find": BlobNotFound,
    }
    for way, kind in expected.items():
        with pytest.raises(kind):
            ways[way](open_store(root))
    with pytest.raises(IncompleteImage, match=half.layer_digests[0]) as caught:
        ways["save an incomplete one"](open_store(root))
    assert caught.value.root == "half:1"


def test_a_failed_save_leaves_the_old_file_and_no_other(root: Path) -> None:
    put(root, IMAGE, "app:1")
    path = root.parent / "a.tar"
    path.write_bytes(b"the old one")
    blob(root, IMAGE.layer_digests[1]).unlink()
    with pytest.raises(IncompleteImage):
        open_store(root).save("app:1", path)
    assert path.read_bytes() == b"the old one"
    assert sorted(each.name for each in root.parent.iterdir()) == ["a.tar", "store"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"schemaVersion":2}', b'{"schemaVersion":1,"manifests":[]}', b"\xff", b"[" * 100_000],
)
def test_an_index_that_cannot_be_read_is_an_error_and_never_empty(root: Path, content: bytes) -> None:
    put(root, IMAGE, "app:1")
    warm = open_store(root)
    warm.images()
    (root / "index.json").write_bytes(content)
    (root.parent / "a.tar").write_bytes(pack(members_of(OTHER, "b:1")))
    before = snapshot(root)
    for store in (warm, open_store(root)):
        for action in (
            store.images,
            store.prune,
            lambda store=store: store.prune(dry_run=True),
            lambda store=store: store.get("app:1"),
            lambda store=store: store.tag("app:1", "b:1"),
            lambda store=store: store.remove("app:1"),
            lambda store=store: store.load(root.parent / "a.tar"),
            lambda store=store: store.import_image(memory_of({"b:1": OTHER}), "b:1"),
        ):
            with pytest.raises(StoreDamaged, match=r"index\.json"):
                action()
    assert snapshot(root) == before


def test_an_index_that_would_grow_past_its_bound_is_refused_before_it_is_replaced(root: Path) -> None:
    put(root, IMAGE, "app:1")
    size_bytes = (root / "index.json").stat().st_size
    store = Store(root, durability="none", limits=Limits(index_bytes=size_bytes + 100))
    before = snapshot(root)
    with pytest.raises(StoreUnavailable, match="larger than"):
        store.tag("app:1", "second:1")
    assert snapshot(root) == before
    with pytest.raises(StoreDamaged, match="larger than"):
        Store(root, limits=Limits(index_bytes=size_bytes - 1)).images()
    assert store.remove("app:1") == "app:1"


def test_reading_the_index_takes_no_more_memory_than_there_is_to_read(root: Path) -> None:
    put(root, IMAGE, "app:1")
    store = open_store(root)
    store.images()

    def read_in_little_memory() -> None:
        used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        most_bytes = used_bytes + (64 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
        assert [image.name for image in store.images()] == ["app:1"]

    assert run_forked(read_in_little_memory) == 0


def test_a_layout_of_an_unknown_version_is_left_alone(root: Path) -> None:
    put(root, IMAGE, "app:1")
    (root / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    before = snapshot(root)
    with pytest.raises(StoreDamaged, match="oci-layout"):
        open_store(root).remove("app:1")
    with pytest.raises(StoreDamaged, match="oci-layout"):
        open_store(root).prune()
    assert snapshot(root) == before


def test_want_of_file_descriptors_is_not_called_damage(root: Path) -> None:
    put(root, IMAGE, "app:1")
    with replaced_os() as system:
        system.fail("open", errno.EMFILE, path="index.json")
        with pytest.raises(StoreUnavailable, match="open files"):
            open_store(root).images()


@pytest.mark.parametrize(
    ("part", "name", "skip", "work"),
    [
        ("index.json", "fstat", 1, Store.prune),
        (IMAGE.digest, "pread", 0, Store.prune),
        (IMAGE.config_digest, "preadv", 0, lambda store: store.inspect("app:1")),
        (IMAGE.config_digest, "preadv", 0, lambda store: store.save("app:1", io.BytesIO())),
        ("blobs/sha256", "scandir", 0, Store.prune),
    ],
)
def test_what_the_system_says_of_an_open_file_is_told_with_its_path(
    root: Path, part: str, name: str, skip: int, work: Callable[[Store], object]
) -> None:
    put(root, IMAGE, "app:1")
    path = os.fspath(blob(root, part) if ":" in part else root / part)
    before = snapshot(root / "blobs")

    def is_met(call: Call) -> bool:
        return call.name == name and call.paths[:1] == (path,) and isinstance(call.arguments[0], int)

    with failing_system() as system:
        system.fail_from(is_met, errno.ESTALE, skip=skip, times=1 << 60)
        with pytest.raises(StoreUnavailable, match=f"^cannot use {path}: {os.strerror(errno.ESTALE)}$"):
            work(open_store(root))
    assert snapshot(root / "blobs") == before


@pytest.mark.parametrize("part", ["blobs", "blobs/sha256", "ingest"])
def test_a_link_in_the_place_of_a_folder_of_the_store_is_refused_in_a_clear_sentence(root: Path, part: str) -> None:
    put(root, IMAGE, "app:1")
    (root / part).rename(root / "elsewhere")
    (root / part).symlink_to(root / "elsewhere")
    with pytest.raises(StoreUnavailable, match=f"{root / part}: it is a link, or no folder"):
        open_store(root).tag("app:1", "app:2")


def test_a_folder_that_takes_no_blob_is_named_and_nothing_has_changed() -> None:
    require_root()

    def work(folder: Path) -> None:
        put(folder / "store", IMAGE, "app:1")
        blobs, before = folder / "store" / "blobs", snapshot(folder / "store")
        (blobs / "sha256").chmod(0o555)
        with pytest.raises(StoreUnavailable, match=f"Permission denied, on the way to {blobs}/sha256/"):
            put(folder / "store", build_image(salt="new"), "new:1")
        (blobs / "sha256").chmod(0o755)
        open_store(folder / "store").prune()
        assert snapshot(folder / "store") == before

    assert run_as_user(work) == 0


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO])
@pytest.mark.parametrize("action", ["load", "save"])
def test_what_is_no_fault_of_a_path_is_not_said_to_be_one(root: Path, action: str, number: int) -> None:
    put(root, IMAGE, "app:1")
    archive = root.parent / "archives" / "app.tar"
    archive.parent.mkdir()
    store = open_store(root)
    store.save("app:1", archive)
    with replaced_os() as system:
        system.fail("open", number, path="/archives")
        with pytest.raises(StoreUnavailable, match=f"{archive}: {os.strerror(number).lower()}"):
            store.load(archive) if action == "load" else store.save("app:1", archive)


@pytest.mark.parametrize("closed", ["store", "folder"])
def test_a_process_that_may_not_enter_the_store_is_told_so(closed: str) -> None:
    require_root()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755 if closed == "store" else 0o700)
        put(folder / "store", IMAGE, "app:1")
        before = snapshot(folder)

        def ask() -> None:
            os.setuid(65534)
            store = open_store(folder / "store")
            for action in (store.images, lambda: store.get("app:1"), lambda: store.remove("app:1"), store.prune):
                with pytest.raises(StoreError, match=r"[Pp]ermission|another user"):
                    action()

        assert run_forked(ask) == 0
        assert snapshot(folder) == before


# Disks


def fill(path: Path) -> None:
    """Write to a file until its disk is full."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert os.statvfs(path.parent).f_bavail == 0


def test_a_full_disk_is_said_so_loses_nothing_and_can_be_pruned(tmp_path: Path) -> None:
    big = build_image([random_layer(3 << 20, salt="big")])
    archive = tmp_path / "big.tar"
    archive.write_bytes(pack(members_of(big, "big:1")))
    with mounted(tmp_path / "disk", "size=2m") as disk:
        root = disk / "store"
        put(root, IMAGE, "app:1")
        store = Store(root)
        before = snapshot(root)
        weighed = r"not enough space for .*/store: [0-9]+ bytes are needed, and [0-9]+ are free"
        with pytest.raises(StoreFull, match=weighed):
            store.load(archive)
        assert snapshot(root) == before
        with pytest.raises(StoreFull, match=weighed):
            store.import_image(memory_of({"big:1": big}), "big:1")
        check_invariants(root)
        fits = build_image([random_layer(1 << 20)])
        with replaced_os() as system:
            system.before("write", lambda: fill(disk / "filler"), path="/ingest/partial/")
            with pytest.raises(StoreFull, match="no space left for"):
                store.import_image(memory_of({"fits:1": fits}), "fits:1")
        assert (disk / "filler").stat().st_size > 1 << 20, "somebody else took the room once it had been weighed"
        (disk / "filler").unlink()
        check_invariants(root)
        assert not list((root / "ingest" / "partial").iterdir()), "a full disk needs the room"
        fill(disk / "filler")
        with pytest.raises(StoreFull):
            store.tag("app:1", "x" * 500)
        with pytest.raises(StoreFull):
            store.save("app:1", disk / "out.tar")
        assert not (disk / "out.tar").exists()
        check_invariants(root)
        assert read_names(root) == {"app:1": IMAGE.digest}
        assert store.prune().errors == ()
        assert store.get("app:1").damaged is False
        (disk / "filler").unlink()
        store.tag("app:1", "after:1")
        check_invariants(root)


def test_a_full_disk_gets_room_by_removing_and_pruning(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=2m") as disk:
        root = disk / "store"
        put(root, IMAGE, "app:1")
        put(root, build_image([random_layer(1 << 20)]), "old:1")
        store = Store(root)
        store.remove("old:1")
        fill(disk / "filler")
        report = store.prune()
        assert (report.errors, report.blobs_removed) == ((), 3)
        assert stored(root) == set(IMAGE.blobs)
        check_invariants(root)


def test_a_disk_without_inodes_is_a_full_disk(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=4m", "nr_inodes=28") as disk:
        root = disk / "store"
        put(root, IMAGE, "app:1")
        with pytest.raises(StoreFull):
            Store(root).import_image(
                memory_of({"many:1": build_image([random_layer(2048, salt=str(n)) for n in range(20)])}), "many:1"
            )
        check_invariants(root)
        assert read_names(root) == {"app:1": IMAGE.digest}


def test_a_store_on_a_read_only_disk_is_read_in_every_way_and_changed_in_none(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=4m") as disk:
        root = disk / "store"
        put(root, IMAGE, "app:1")
        put(root, OTHER, "dead:1")
        open_store(root).remove("dead:1")
        (root / "ingest" / "partial" / f"sha256-{'0' * 64}").write_bytes(b"half")
        remount(disk, "ro")
        before = snapshot(root)
        store = Store(root)
        assert [image.name for image in store.images()] == ["app:1"]
        assert read_all(store, layer_of(IMAGE)) == IMAGE.blobs[IMAGE.layer_digests[0]]
        assert store.find_blob("app:1", Digest.parse(IMAGE.config_digest)).media_type
        assert store.save("app:1", tmp_path / "a.tar").name == "app:1"
        plan = store.prune(dry_run=True)
        assert (plan.blobs_removed, plan.errors) == (len(OTHER.blobs), ())
        for action in (
            store.prune,
            lambda: store.remove("app:1"),
            lambda: store.tag("app:1", "b:1"),
            lambda: store.load(tmp_path / "a.tar"),
            lambda: store.import_image(memory_of({"b:1": OTHER}), "b:1"),
        ):
            with pytest.raises(StoreUnavailable, match=r"[Rr]ead-only"):
                action()
        assert snapshot(root) == before
        assert store.info().root == str(root)


def test_an_image_is_imported_with_the_platform_that_was_asked_for_and_its_config_agrees(root: Path) -> None:
    store = open_store(root)
    image = store.import_image(memory_of({"multi:1": MULTI}), "multi:1", platform=LINUX_AMD64)
    assert image.platform == LINUX_AMD64
    assert str(image.digest) == build_image(salt="m").digest
    assert store.get("multi:1") == image


# Durability


def synced(root: Path, action: Callable[[], object]) -> list[str]:
    """Return the paths that were synced while something was done, those of unfinished files by their folder."""
    with replaced_os() as system:
        action()
        return [call.paths[0] for call in system.calls if call.name == "fsync"]


def test_a_new_store_survives_a_loss_of_power_with_the_folder_that_holds_it(root: Path) -> None:
    folder = root.parent / "new" / "folder" / "store"
    paths = synced(folder, lambda: Store(folder).import_image(memory_of({"app:1": IMAGE}), "app:1"))
    assert str(folder) in paths
    assert str(folder / "blobs" / "sha256") in paths
    assert str(folder.parent) in paths, "a folder whose name is not on disk is lost with all that it holds"
    assert str(root.parent) in paths


def test_a_durable_change_syncs_the_file_then_its_folder_and_the_name_last(root: Path) -> None:
    put(root, OTHER, "other:1")
    with replaced_os() as system:
        Store(root).import_image(memory_of({"app:1": IMAGE}), "app:1")
        calls = [(call.name, call.paths) for call in system.calls if call.name in ("fsync", "link", "replace")]
    named = next(i for i, (name, paths) in enumerate(calls) if name == "replace" and paths[1] == f"{root}/index.json")
    for digest in IMAGE.blobs:
        encoded = digest.removeprefix("sha256:")
        place = f"{root}/blobs/sha256/{encoded}"
        placed = next(i for i, (name, paths) in enumerate(calls) if name == "link" and paths[1] == place)
        written = next(i for i, (name, paths) in enumerate(calls) if name == "fsync" and encoded in paths[0])
        folder = next(i for i, (name, paths) in enumerate(calls) if i > placed and paths[0] == f"{root}/blobs/sha256")
        assert written < placed < folder < named
    assert ("fsync", (str(root),)) in calls[named:]


def test_without_durability_nothing_is_synced(root: Path) -> None:
    (root.parent / "a.tar").write_bytes(pack(members_of(IMAGE, "app:1")))

    def work() -> None:
        store = open_store(root)
        store.load(root.parent / "a.tar")
        store.tag("app:1", "b:1")
        store.save("b:1", root.parent / "b.tar")
        store.remove("b:1")
        store.prune()

    assert synced(root, work) == []


def test_a_store_is_a_source_that_another_one_imports_from(root: Path) -> None:
    other = root.parent / "layout"
    write_layout(other, {"app:1": IMAGE, "multi:1": MULTI})
    source = open_store(other)
    assert sorted(source.iter_names()) == ["app:1", "multi:1"]
    for name in source.iter_names():
        open_store(root).import_image(source, name)
    assert read_names(root) == {"app:1": IMAGE.digest, "multi:1": MULTI.digest}
    check_invariants(root)
    with pytest.raises(ImageNotFound, match="nothing:1"):
        open_store(root).import_image(source, "nothing:1")


@pytest.mark.parametrize("offset", [-1, 1 << 40])
def test_a_blob_is_opened_within_its_bounds_alone(root: Path, offset: int) -> None:
    put(root, IMAGE, "app:1")
    for descriptor in (root_of(IMAGE), layer_of(IMAGE)):
        with pytest.raises(InvalidArgument, match="invalid offset"):
            open_store(root).open_blob(descriptor, offset)


def test_a_folder_that_none_can_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("", "a\0b", "\ud800"):
        with pytest.raises(InvalidPath):
            Store(wrong)
    with pytest.raises(InvalidArgument, match="root"):
        Store(b"bytes")  # type: ignore[arg-type]  # what it is called with is what is tried
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(InvalidPath, match="no such file"):
        Store("relative")


@pytest.mark.parametrize("seconds", [float("nan"), -1.0])
def test_a_wait_that_would_have_no_end_is_refused(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(InvalidArgument, match="lock_timeout_seconds"):
        Store(tmp_path, lock_timeout_seconds=seconds)
    with pytest.raises(InvalidArgument, match="settle_seconds"):
        Store(tmp_path, settle_seconds=seconds)


# ---- limits


def test_a_store_keeps_to_limits_that_are_wider_than_the_usual_ones(tmp_path: Path) -> None:
    many = {f"{number}": "" for number in range(70_000)}
    image = build_image(annotations={"long": "x" * (5 << 20), **many}, config={"history": [{}] * 5000})
    wide = Limits(document_bytes=16 << 20, document_values=1 << 20, history=5000)
    store = Store(tmp_path / "store", durability="none", limits=wide)
    store.import_image(memory_of({"app:1": image}), "app:1")
    assert not store.images()[0].damaged
    assert len(store.inspect("app:1").document.annotations["long"]) == 5 << 20
    assert len(store.history("app:1", platform=LINUX_AMD64)) == 5002
    assert store.verify() == ()
    store.save("app:1", tmp_path / "app.tar")
    other = Store(tmp_path / "other", durability="none", limits=wide)
    assert other.load(tmp_path / "app.tar") == store.images()


def test_a_store_keeps_to_limits_that_are_narrower_than_the_usual_ones(tmp_path: Path) -> None:
    image = build_image(config={"history": [{}] * 6})
    put(tmp_path / "store", image, "app:1")
    store = Store(tmp_path / "store", durability="none", limits=Limits(history=5))
    with pytest.raises(InvalidDocument, match="there are more than 5 steps"):
        store.history("app:1")


def test_what_a_store_has_beyond_its_limits_stops_a_prune_until_it_is_removed_or_they_are_wider(tmp_path: Path) -> None:
    big, dead = build_image(annotations={f"{number}": "" for number in range(100)}), build_image([{"a": b"1"}])
    put(tmp_path, big, "big:1")
    put_dead(tmp_path, dead)
    store = Store(tmp_path, durability="none", limits=Limits(document_values=100), settle_seconds=0.0)
    with pytest.raises(StoreDamaged, match=rf"{big.digest[7:]}: .* more than 100 values \(Limits\.document_values\)"):
        store.prune()
    assert [each.kept_aside for each in store.repair().unmended] == [None]
    assert stored(tmp_path) == {*big.blobs, *dead.blobs}
    open_store(tmp_path).prune()
    assert stored(tmp_path) == set(big.blobs)
    store.remove("big:1")
    store.prune()
    assert stored(tmp_path) == set()
