"""Saving: minibox's own archive byte for byte, the same each time, at its place in one step or not at all."""

import errno
import os
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from minibox_store import Cancellation, Store, _moving
from minibox_store.archive import ArchiveFile
from minibox_store.copying import copy_image
from minibox_store.errors import (
    Cancelled,
    ContentMismatch,
    ImageNotFound,
    IncompleteImage,
    InvalidInput,
    InvalidPath,
    StoreDamaged,
    StoreFull,
)
from minibox_store.events import BlobAdvanced, Event
from minibox_store.media_types import OCI_INDEX, OCI_MANIFEST
from minibox_store.memory import MemoryImages
from minibox_store.protocols import ImageWriter
from tests.support.archives import members_of, pack, read_archive, unpack
from tests.support.images import (
    OCI_LAYER,
    BuiltImage,
    Layer,
    build_image,
    build_index,
    digest_of,
    encode_document,
    random_layer,
)
from tests.support.layouts import blob_path, write_layout
from tests.support.snapshots import snapshot
from tests.support.sources import copy_into, descriptors_of, memory_of, root_of
from tests.support.system_calls import Failing, OtherOs
from tests.support.tars import END, padded, raw_header

NAME = "quay.io/team/app:1.0"
EMPTY = Layer(content=b"", media_type=OCI_LAYER, diff_id=digest_of(b""))
SHAPES: dict[str, BuiltImage] = {
    "OCI": build_image(),
    "docker": build_image(docker=True),
    "sha512": build_image(algorithm="sha512"),
    "an empty layer": build_image([EMPTY, {"a": b"1"}]),
    "no layers": build_image([]),
    "one layer twice": build_image([{"a": b"1"}, {"b": b"1"}, {"a": b"1"}]),
    "a layer of whole blocks": build_image([random_layer(4096)]),
    "index": build_index([build_image(), build_image(platform="linux/arm64")], attestations=True),
    "nested docker list": build_index([build_image(docker=True)], docker=True, nested=2),
}


def store_of(folder: Path, images: dict[str, BuiltImage]) -> Store:
    write_layout(folder, images)
    return Store(folder, durability="none")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_of(tmp_path / "store", {NAME: SHAPES["OCI"]})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "image.tar"


# ---- what is in it


@pytest.mark.parametrize("shape", SHAPES)
def test_the_members_of_an_archive_are_the_metadata_the_manifest_the_config_and_each_layer_once(
    shape: str, tmp_path: Path, path: Path
) -> None:
    image = SHAPES[shape]
    store_of(tmp_path / "store", {NAME: image}).save(NAME, path)
    members = unpack(path.read_bytes())
    assert [(member.name, content) for member, content in members] == members_of(image, NAME)
    for member, _ in members:
        assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
        assert (member.uname, member.gname, member.type, member.devmajor) == ("", "", b"0", 0)


def test_an_archive_is_this_byte_for_byte(tmp_path: Path, path: Path) -> None:
    image = build_image([{"a": b"1"}])
    store_of(tmp_path / "store", {NAME: image}).save(NAME, path)
    parts = []
    for name, content in members_of(image, NAME):
        parts += [raw_header(name.encode(), size=len(content)), padded(content)]
    assert parts[1].startswith(b'{"image":"quay.io/team/app:1.0","manifest_digest":"sha256:')
    assert path.read_bytes() == b"".join(parts) + END


@pytest.mark.parametrize("shape", SHAPES)
def test_saving_twice_and_from_another_store_gives_the_same_bytes(shape: str, tmp_path: Path, path: Path) -> None:
    store_of(tmp_path / "store", {NAME: SHAPES[shape]}).save(NAME, path)
    once = path.read_bytes()
    store_of(tmp_path / "store", {NAME: SHAPES[shape]}).save(NAME, path)
    assert path.read_bytes() == once
    others = {f"other:{number}": build_image(salt=str(number)) for number in range(3)}
    store_of(tmp_path / "elsewhere", {**others, NAME: SHAPES[shape]}).save(NAME, path)
    assert path.read_bytes() == once


@pytest.mark.parametrize("shape", SHAPES)
def test_save_load_save_gives_the_same_bytes(shape: str, tmp_path: Path, path: Path) -> None:
    store_of(tmp_path / "store", {NAME: SHAPES[shape]}).save(NAME, path)
    loaded = Store(tmp_path / "loaded", durability="none")
    loaded.load(path)
    loaded.save(NAME, path.with_name("again.tar"))
    assert path.with_name("again.tar").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "name", ["a", "team/app", "team/app:1", "localhost:5000/team/app:1", "a/b/c/d/e/f", "[::1]:5000/a:1", "x" * 512]
)
def test_names_with_slashes_that_cannot_be_saved_or_removed_are_saved_loaded_and_removed(
    name: str, tmp_path: Path, path: Path
) -> None:
    store = store_of(tmp_path / "store", {name: build_image()})
    assert store.save(name, path).name == name
    assert read_archive(path.read_bytes())[0] == name
    loaded = Store(tmp_path / "loaded", durability="none")
    assert [image.name for image in loaded.load(path)] == [name]
    assert loaded.remove(name) == name
    assert loaded.images() == ()


def test_an_image_is_saved_under_the_name_that_it_has_however_it_is_asked_for(tmp_path: Path, path: Path) -> None:
    store = store_of(tmp_path / "store", {"alpine:3": build_image()})
    assert store.save("docker.io/library/alpine:3", path).name == "alpine:3"
    assert read_archive(path.read_bytes())[0] == "alpine:3"


def test_a_blob_that_is_a_layer_here_and_a_manifest_there_is_saved_with_all_below_it(
    tmp_path: Path, path: Path
) -> None:
    images = MemoryImages()
    inner = build_image()
    as_layer = {**inner.root, "mediaType": OCI_LAYER}
    config = images.add_blob(b"{}", "application/x")
    described = {"mediaType": "application/x", "digest": str(config.digest), "size": 2}
    manifest = encode_document(
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": [as_layer]}
    )
    outer = images.add_blob(manifest, OCI_MANIFEST)
    entries = [{"mediaType": OCI_MANIFEST, "digest": str(outer.digest), "size": outer.size_bytes}, inner.root]
    root = images.add_blob(
        encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}), OCI_INDEX
    )
    images.blobs.update(memory_of({"": inner}).blobs)
    copy_image(images, ArchiveFile(str(path)), root, [NAME])
    saved = read_archive(path.read_bytes())[2]
    assert saved == {str(digest): content for digest, content in images.blobs.items()}
    loaded = Store(tmp_path / "loaded", durability="none")
    assert [str(image.digest) for image in loaded.load(path)] == [str(root.digest)]


# ---- how its bytes move

BIG = build_image([random_layer(5 << 20, salt="first"), random_layer(2560), EMPTY, random_layer(1 << 20)])


class Short:
    """A system call of ``os`` that moves at most so many bytes, as each of them may."""

    def __init__(self, function: Any, most_bytes: int, size_argument: int) -> None:
        self._function = function
        self._most_bytes = most_bytes
        self._size_argument = size_argument
        self.calls = 0

    def __call__(self, *arguments: Any) -> int:
        self.calls += 1
        changed = list(arguments)
        changed[self._size_argument] = min(changed[self._size_argument], self._most_bytes)
        moved: int = self._function(*changed)
        return moved


def short_write(descriptor: int, data: Any) -> int:
    return os.write(descriptor, memoryview(data)[:100_003])


KERNELS: dict[str, dict[str, Any]] = {
    "copy_file_range, in short pieces": {"copy_file_range": Short(os.copy_file_range, 65_537, 2)},
    "sendfile": {"copy_file_range": Failing(errno.EXDEV)},
    "sendfile, in short pieces": {
        "copy_file_range": Failing(errno.ENOSYS),
        "sendfile": Short(os.sendfile, 65_537, 3),
    },
    "a loop": {"copy_file_range": Failing(errno.EOPNOTSUPP), "sendfile": Failing(errno.EINVAL)},
    "a loop of short writes": {
        "copy_file_range": Failing(errno.EINVAL),
        "sendfile": Failing(errno.ENOSYS),
        "write": short_write,
    },
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_bytes_are_the_same_however_they_move(
    kernel: str, tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(tmp_path / "store", {NAME: BIG})
    store.save(NAME, path)
    monkeypatch.setattr(_moving, "os", OtherOs(**KERNELS[kernel]))
    store.save(NAME, path.with_name("again.tar"))
    assert path.with_name("again.tar").read_bytes() == path.read_bytes()
    loaded = Store(tmp_path / "loaded", durability="none")
    loaded.load(path)
    assert snapshot(tmp_path / "loaded" / "blobs").keys() == snapshot(tmp_path / "store" / "blobs").keys()
    calls = [call for call in KERNELS[kernel].values() if not callable(getattr(call, "__code__", None))]
    assert all(call.calls for call in calls if isinstance(call, Failing | Short))
    for digest, content in BIG.blobs.items():
        assert blob_path(tmp_path / "loaded", digest).read_bytes() == content


@pytest.mark.parametrize("call", ["copy_file_range", "sendfile", "write"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_archive_and_nothing_else(
    call: str, number: int, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"old")
    failing = {call: Failing(number)}
    if call == "sendfile":
        failing["copy_file_range"] = Failing(errno.EXDEV)
    monkeypatch.setattr(_moving, "os", OtherOs(**failing))
    with pytest.raises(StoreFull) as caught:
        store.save(NAME, path)
    assert str(caught.value) == f"no space left for {path}"
    assert snapshot(path.parent) == {"image.tar": (path.stat().st_mode, b"old")}


def test_a_blob_that_becomes_shorter_while_it_is_saved_leaves_nothing(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_moving, "os", OtherOs(copy_file_range=lambda *_: 0))
    with pytest.raises(ContentMismatch) as caught:
        store.save(NAME, path)
    assert caught.value.what.startswith("sha256:")
    assert caught.value.actual == "fewer: where they came from became shorter meanwhile"
    assert list(path.parent.iterdir()) == []


# ---- where it goes


def test_an_archive_is_created_as_the_umask_says(store: Store, path: Path) -> None:
    before = os.umask(0o027)
    try:
        store.save(NAME, path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_is_replaced_in_one_step_and_who_has_it_open_keeps_the_old_one(store: Store, path: Path) -> None:
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        store.save(NAME, path)
        assert reader.read() == b"old"
    assert read_archive(path.read_bytes())[0] == NAME
    assert [each.name for each in path.parent.iterdir()] == ["image.tar"]


def test_a_path_may_be_relative_to_an_open_directory(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path.parent / "sub").mkdir()
    monkeypatch.chdir("/")
    opened = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        store.save(NAME, "image.tar", dir_fd=opened)
        store.save(NAME, "sub/image.tar", dir_fd=opened)
        with pytest.raises(InvalidPath, match="no such file or directory"):
            store.save(NAME, "missing/image.tar", dir_fd=opened)
        with pytest.raises(InvalidPath, match="cannot use path 'sub': it is not a regular file"):
            store.save(NAME, "sub", dir_fd=opened)
    finally:
        os.close(opened)
    found = sorted(each.relative_to(path.parent).as_posix() for each in path.parent.rglob("*"))
    assert found == ["image.tar", "sub", "sub/image.tar"]


def test_a_directory_that_was_moved_is_written_in_where_it_is_now(store: Store, path: Path) -> None:
    opened = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    moved = path.parent.rename(path.parent.with_name("moved"))
    try:
        store.save(NAME, "image.tar", dir_fd=opened)
    finally:
        os.close(opened)
    assert [each.name for each in moved.iterdir()] == ["image.tar"]
    assert not path.parent.exists()


def in_the_way(path: Path, what: str) -> None:
    match what:
        case "a directory":
            path.mkdir()
        case "a link to a file":
            path.with_name("target").write_bytes(b"kept")
            path.symlink_to("target")
        case "a dangling link":
            path.symlink_to("nowhere")
        case "a FIFO":
            os.mkfifo(path)
        case "a socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))


@pytest.mark.parametrize("what", ["a directory", "a link to a file", "a dangling link", "a FIFO", "a socket"])
def test_nothing_but_a_regular_file_is_replaced(what: str, store: Store, path: Path) -> None:
    in_the_way(path, what)
    before = snapshot(path.parent)
    with pytest.raises(InvalidPath) as caught:
        store.save(NAME, path)
    assert str(caught.value) == f"cannot use path {str(path)!r}: it is not a regular file"
    assert snapshot(path.parent) == before


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("missing/image.tar", "no such file or directory"),
        ("file/image.tar", "not a directory"),
        ("x" * 300, "file name too long"),
        ("new/", "no such file or directory"),
        ("", "it is not a regular file"),
    ],
)
def test_a_place_where_no_file_can_be_is_named(place: str, problem: str, store: Store, path: Path) -> None:
    (path.parent / "file").write_bytes(b"")
    before = snapshot(path.parent)
    where = f"{path.parent}/{place}"
    with pytest.raises(InvalidPath) as caught:
        store.save(NAME, where)
    assert (caught.value.path, caught.value.problem) == (where, problem)
    assert snapshot(path.parent) == before


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "a\0"])
def test_a_path_that_no_system_takes_is_refused_as_input(name: str, store: Store, path: Path) -> None:
    with pytest.raises(InvalidInput):
        store.save(NAME, f"{path.parent}/{name}")
    with pytest.raises(InvalidInput):
        store.load(f"{path.parent}/{name}")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "\U0001f600" * 63], ids=["1 byte", "2 bytes", "4 bytes"])
def test_a_file_may_have_the_longest_name_that_its_system_takes(name: str, store: Store, path: Path) -> None:
    path.with_name(name).touch()
    store.save(NAME, path.with_name(name))
    assert [each.name for each in path.parent.iterdir()] == [name]
    assert read_archive(path.with_name(name).read_bytes())[0] == NAME


# ---- what cannot be saved


def test_an_image_that_is_not_there_makes_no_file(store: Store, path: Path) -> None:
    path.write_bytes(b"old")
    with pytest.raises(ImageNotFound):
        store.save("missing:1", path)
    with pytest.raises(ImageNotFound):
        store.save("missing:1", path.with_name("new.tar"))
    assert [(each.name, each.read_bytes()) for each in path.parent.iterdir()] == [("image.tar", b"old")]


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
def test_an_incomplete_image_makes_no_file_and_what_is_missing_is_named(part: str, tmp_path: Path, path: Path) -> None:
    image = build_image()
    digest = {"manifest": image.digest, "config": image.config_digest, "layer": image.layer_digests[1]}[part]
    store = store_of(tmp_path / "store", {NAME: image})
    blob_path(tmp_path / "store", digest).unlink()
    with pytest.raises(IncompleteImage) as caught:
        store.save(NAME, path)
    assert str(caught.value) == f"image {NAME} is incomplete: {digest} is missing"
    assert list(path.parent.iterdir()) == []


# That a layer has other bytes of its size is for a check to find, and for whoever loads it.
@pytest.mark.parametrize(
    ("part", "damage"),
    [
        *[(part, damage) for part in ("manifest", "layer") for damage in ("another size", "a link", "a directory")],
        ("manifest", "other bytes"),
    ],
)
def test_a_damaged_image_makes_no_file_and_the_damage_is_named(
    part: str, damage: str, tmp_path: Path, path: Path
) -> None:
    image = build_image()
    store = store_of(tmp_path / "store", {NAME: image})
    blob = blob_path(tmp_path / "store", image.digest if part == "manifest" else image.layer_digests[0])
    content = blob.read_bytes()
    blob.unlink()
    match damage:
        case "another size":
            blob.write_bytes(content + b"x")
        case "a link":
            blob.symlink_to("/etc/hostname")
        case "a directory":
            blob.mkdir()
        case "other bytes":
            blob.write_bytes(bytes(len(content)))
    with pytest.raises(StoreDamaged) as caught:
        store.save(NAME, path)
    assert caught.value.path == str(blob)
    assert list(path.parent.iterdir()) == []


def test_a_cancelled_save_leaves_the_old_file(tmp_path: Path, path: Path) -> None:
    store = store_of(tmp_path / "store", {NAME: BIG})
    path.write_bytes(b"old")
    cancellation = Cancellation()

    def listen(event: Event) -> None:
        if isinstance(event, BlobAdvanced):
            cancellation.cancel()

    with pytest.raises(Cancelled):
        store.save(NAME, path, on_event=listen, cancellation=cancellation)
    assert [(each.name, each.read_bytes()) for each in path.parent.iterdir()] == [("image.tar", b"old")]


def test_several_saves_to_one_path_leave_one_whole_archive(tmp_path: Path, path: Path) -> None:
    images = {f"app:{number}": build_image([random_layer(1 << 20, salt=str(number))]) for number in range(4)}
    store = store_of(tmp_path / "store", images)
    threads = [threading.Thread(target=store.save, args=(name, path)) for name in images]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    name, digest, blobs = read_archive(path.read_bytes())
    assert digest == images[name].digest
    assert blobs == images[name].blobs
    assert [each.name for each in path.parent.iterdir()] == ["image.tar"]


def test_saving_needs_no_right_to_write_in_the_store(store: Store, path: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path / "store")
    store.save(NAME, path)
    assert snapshot(tmp_path / "store") == before


# ---- the writer by itself


def test_an_archive_holds_one_image(path: Path) -> None:
    first, second = build_image(salt="first"), build_image(salt="second")

    def write() -> None:
        with ArchiveFile(str(path)).open_writer() as writer:
            for image in (first, second):
                write_blobs(writer, image)
                writer.write_name(NAME, root_of(image))

    with pytest.raises(ContentMismatch, match="one image"):
        write()
    assert not path.exists()


def write_blobs(writer: ImageWriter, image: BuiltImage) -> None:
    source = memory_of({"": image})
    for descriptor in descriptors_of(image):
        writer.write_blob(descriptor, source)


def test_an_archive_without_a_name_or_with_a_part_missing_is_not_written(path: Path) -> None:
    image = build_image()

    def write(*, named: bool) -> None:
        with ArchiveFile(str(path)).open_writer() as writer:
            write_blobs(writer, image.without(image.layer_digests[0]) if named else image)
            if named:
                writer.write_name(NAME, root_of(image))

    with pytest.raises(IncompleteImage):
        write(named=False)
    with pytest.raises(IncompleteImage) as caught:
        write(named=True)
    assert caught.value.missing == (image.layer_digests[0],)
    assert list(path.parent.iterdir()) == []


def test_what_nothing_in_the_image_names_is_not_in_the_archive(path: Path) -> None:
    image, other = build_image(), build_image(salt="other")
    with ArchiveFile(str(path)).open_writer() as writer:
        write_blobs(writer, other)
        write_blobs(writer, image)
        writer.write_name(NAME, root_of(image))
    assert read_archive(path.read_bytes())[2] == image.blobs


def test_an_archive_from_memory_is_the_one_from_a_store(store: Store, path: Path) -> None:
    store.save(NAME, path)
    copy_into(ArchiveFile(str(path.with_name("memory.tar"))), SHAPES["OCI"], NAME)
    assert path.with_name("memory.tar").read_bytes() == path.read_bytes()
    assert unpack(path.read_bytes())[0][1] == unpack(pack(members_of(SHAPES["OCI"], NAME)))[0][1]
