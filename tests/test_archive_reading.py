"""Loading: what save writes and what the older daemon writes, from a file, a pipe or a decompressor; nothing else."""

import bz2
import gzip
import io
import json
import os
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from minibox_store import Cancellation, Store, _moving
from minibox_store.archive import ArchiveReader
from minibox_store.errors import Cancelled, InvalidArchive, InvalidPath, InvalidReference
from minibox_store.events import BlobAdvanced, Event
from minibox_store.media_types import OCI_INDEX, OCI_MANIFEST
from tests.support.archives import (
    Members,
    blob_name,
    go_members_of,
    members_of,
    metadata,
    pack,
    piped,
    read_archive,
    special,
)
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
from tests.support.layouts import blob_path, read_layout_blobs, read_layout_names
from tests.support.loads import HELD, holds, refused, store_with_something
from tests.support.snapshots import snapshot
from tests.support.sources import read_stream
from tests.support.tars import Endless, ForwardOnly, padded, pax, raw_header

NAME = "quay.io/team/app:1.0"
IMAGE = build_image()
EMPTY = Layer(content=b"", media_type=OCI_LAYER, diff_id=digest_of(b""))
GOOD = pack(members_of(IMAGE, NAME))
TAR_FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
HEX = "0123456789abcdef" * 4


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_with_something(tmp_path / "store")


def is_loaded(store: Store, image: BuiltImage = IMAGE, name: str = NAME) -> bool:
    return holds(store, {name: image})


# ---- what is read


@pytest.mark.parametrize("tar_format", TAR_FORMATS)
@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        build_image(docker=True),
        build_image([EMPTY, {"a": b"1"}]),
        build_image([]),
        build_index([build_image(), build_image(platform="linux/arm64")], attestations=True),
        build_index([build_image(docker=True)], docker=True, nested=3),
    ],
    ids=["OCI", "docker", "an empty layer", "no layers", "index", "nested"],
)
def test_every_archive_of_the_contract_is_read_whoever_packed_it(
    image: BuiltImage, tar_format: int, store: Store
) -> None:
    (loaded,) = store.load(io.BytesIO(pack(members_of(image, NAME), tar_format=tar_format)))
    assert (loaded.name, str(loaded.digest)) == (NAME, image.digest)
    assert is_loaded(store, image)
    assert read_layout_names(Path(store.root))[NAME]["mediaType"] == image.media_type


def test_a_sha512_image_is_read(store: Store) -> None:
    image = build_image(algorithm="sha512")
    store.load(io.BytesIO(pack(members_of(image, NAME))))
    assert is_loaded(store, image)


def test_what_the_older_daemon_writes_is_read_and_its_sidecars_are_not_stored(store: Store) -> None:
    members = go_members_of(IMAGE, NAME)
    assert json.loads(members[0][1])["manifest_digest"] == IMAGE.digest.removeprefix("sha256:")
    assert sum(name.endswith(".index.json") for name, _ in members) == 2
    store.load(io.BytesIO(pack(members, tar_format=tarfile.USTAR_FORMAT)))
    assert is_loaded(store)


@pytest.mark.parametrize("order", ["reversed", "metadata last", "layers first"])
def test_members_may_come_in_any_order(order: str, store: Store) -> None:
    first, *rest = members_of(IMAGE, NAME)
    members = {
        "reversed": [*rest[::-1], first],
        "metadata last": [*rest, first],
        "layers first": [*rest[2:], first, *rest[:2]],
    }
    store.load(io.BytesIO(pack(members[order])))
    assert is_loaded(store)


@pytest.mark.parametrize("in_file", [False, True])
def test_loading_twice_leaves_what_loading_once_does(in_file: bool, store: Store, tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(GOOD)
    for _ in range(2):
        store.load(tmp_path / "image.tar" if in_file else io.BytesIO(GOOD))
        assert is_loaded(store)
    once = snapshot(Path(store.root))
    store.load(tmp_path / "image.tar")
    assert snapshot(Path(store.root)) == once


def test_a_member_that_stands_twice_is_verified_twice_and_kept_once(store: Store) -> None:
    members = members_of(IMAGE, NAME)
    store.load(io.BytesIO(pack([*members, *members[1:]])))
    assert is_loaded(store)


def test_what_no_image_of_the_archive_reaches_is_not_kept(store: Store) -> None:
    other = build_image(salt="other")
    store.load(io.BytesIO(pack([*members_of(IMAGE, NAME), *members_of(other, "other:1")[1:]])))
    assert is_loaded(store)


def test_a_leading_dot_and_slash_is_dropped_and_directories_are_passed_over(store: Store) -> None:
    folders = [special(name, tarfile.DIRTYPE) for name in ("./", "./blobs", "./blobs/sha256/", "blobs", "x/y", HEX)]
    members = [(f"./{name}", content) for name, content in members_of(IMAGE, NAME)]
    store.load(io.BytesIO(pack([*((folder, b"") for folder in folders), *members])))
    assert is_loaded(store)


@pytest.mark.parametrize(
    "name",
    [
        *("repositories", "./repositories"),
        *(f"{HEX}/VERSION", f"{HEX}/json", f"blobs/sha256/{HEX}.index.json", f"blobs/sha512/{HEX}{HEX}.index.json"),
    ],
)
def test_S15_what_other_tools_put_beside_the_blobs_is_passed_over_and_never_stored(name: str, store: Store) -> None:
    store.load(io.BytesIO(pack([(name, b"no document at all"), *members_of(IMAGE, NAME)])))
    assert is_loaded(store)


# ---- from where


def test_a_path_of_a_file_and_of_a_link_to_one_is_read(store: Store, tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(GOOD)
    (tmp_path / "link").symlink_to("image.tar")
    store.load(str(tmp_path / "image.tar"))
    assert is_loaded(store)
    store.load(tmp_path / "link")
    assert is_loaded(store)


def test_a_pipe_is_read_forward_once(store: Store) -> None:
    image = build_image([random_layer(3 << 20), {"a": b"1"}])
    with piped(pack(members_of(image, NAME))) as pipe:
        assert isinstance(pipe, io.BufferedReader)
        store.load(pipe)
        assert not pipe.closed
    assert is_loaded(store, image)


def test_an_unbuffered_pipe_is_read_too(store: Store) -> None:
    with piped(GOOD) as pipe, open(os.dup(pipe.fileno()), "rb", buffering=0) as raw:
        store.load(raw)
    assert is_loaded(store)


@pytest.mark.parametrize("most", [1, 7, 511, 513])
def test_a_stream_that_gives_a_few_bytes_at_a_time_is_read(most: int, store: Store) -> None:
    store.load(cast("BinaryIO", ForwardOnly(GOOD, most)))
    assert is_loaded(store)


@pytest.mark.parametrize("from_file", [False, True])
def test_a_gzip_file_is_read_by_its_content_and_not_by_what_lies_on_disk(
    from_file: bool, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "image.tar.gz").write_bytes(gzip.compress(GOOD))
    with gzip.open(tmp_path / "image.tar.gz" if from_file else io.BytesIO(gzip.compress(GOOD)), "rb") as file:
        store.load(cast("BinaryIO", file))
        assert not file.closed
    assert is_loaded(store)


@pytest.mark.parametrize("before", [1, 511, 512, 1000, 100_000])
@pytest.mark.parametrize("buffering", [0, -1, 64])
def test_a_file_is_read_from_where_it_stands(before: int, buffering: int, store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * before + GOOD)
    with open(tmp_path / "file", "rb", buffering=buffering) as file:
        assert len(file.read(before)) == before
        store.load(file)
        assert not file.closed
    assert is_loaded(store)


def test_a_file_that_is_open_for_writing_too_is_read(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 700 + GOOD)
    with open(tmp_path / "file", "r+b") as file:
        file.seek(700)
        store.load(cast("BinaryIO", file))
    assert is_loaded(store)


def test_the_blobs_of_a_file_are_ranges_of_it_and_those_of_a_pipe_are_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10 + GOOD)
    with open(tmp_path / "file", "rb") as file:
        file.seek(10)
        ranges = [(blob.stream, blob.descriptor) for blob in ArchiveReader(file).iter_blobs()]
        assert all(isinstance(stream, _moving.FileStream) for stream, _ in ranges)
        assert [read_stream(stream) for stream, _ in ranges] == [content for _, content in members_of(IMAGE, NAME)[1:]]
    reader = ArchiveReader(io.BytesIO(GOOD))
    contents = [read_stream(blob.stream) for blob in reader.iter_blobs()]
    assert contents == [content for _, content in members_of(IMAGE, NAME)[1:]]
    assert {str(digest) for digest in reader.members.sizes} == set(IMAGE.blobs)


@pytest.mark.parametrize("in_file", [False, True])
def test_blobs_of_several_mebibytes_are_read(in_file: bool, store: Store, tmp_path: Path) -> None:
    image = build_image([random_layer(5 << 20), random_layer((1 << 20) + 512), random_layer(2560)])
    archive = pack(members_of(image, NAME))
    (tmp_path / "image.tar").write_bytes(archive)
    store.load(tmp_path / "image.tar" if in_file else io.BytesIO(archive))
    assert is_loaded(store, image)


def put(path: Path, what: str) -> None:
    match what:
        case "a directory":
            path.mkdir()
        case "a FIFO":
            os.mkfifo(path)
        case "a socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
        case "a link to a FIFO":
            os.mkfifo(path.with_name("fifo"))
            path.symlink_to("fifo")
        case "a link to a device":
            path.symlink_to("/dev/zero")
        case "a dangling link":
            path.symlink_to("nowhere")
        case "a link to itself":
            path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ("nothing", "no such file or directory"),
        ("a directory", "it is not a regular file"),
        ("a FIFO", "it is not a regular file"),
        ("a socket", "no such device or address"),
        ("a link to a FIFO", "it is not a regular file"),
        ("a link to a device", "it is not a regular file"),
        ("a dangling link", "no such file or directory"),
        ("a link to itself", "too many levels of symbolic links"),
    ],
)
def test_a_path_that_is_no_regular_file_is_refused_at_once_and_named(
    what: str, problem: str, store: Store, tmp_path: Path
) -> None:
    put(tmp_path / "image.tar", what)
    sentence = refused(store, str(tmp_path / "image.tar"), InvalidPath)
    assert sentence == f"cannot use path {str(tmp_path / 'image.tar')!r}: {problem}"


def test_a_load_that_is_refused_before_it_begins_does_not_even_make_a_store(tmp_path: Path) -> None:
    with pytest.raises(InvalidPath):
        Store(tmp_path / "new").load(tmp_path / "missing.tar")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_archive_leaves_a_new_store_empty(tmp_path: Path) -> None:
    store = Store(tmp_path / "new", durability="none")
    with pytest.raises(InvalidArchive):
        store.load(io.BytesIO(GOOD[:5000]))
    assert store.images() == ()
    assert read_layout_blobs(tmp_path / "new") == {}
    store.load(io.BytesIO(GOOD))
    assert len(store.images()) == 1


# ---- names


def test_the_caller_may_choose_another_name_or_leave_the_image_out(store: Store) -> None:
    before = snapshot(Path(store.root))
    assert store.load(io.BytesIO(GOOD), names=lambda name: None) == ()
    assert snapshot(Path(store.root)) == before
    (loaded,) = store.load(io.BytesIO(GOOD), names=lambda name: f"mirror/{name}")
    assert loaded.name == f"mirror/{NAME}"
    assert is_loaded(store, name=f"mirror/{NAME}")


def test_S6_a_name_that_the_caller_does_not_allow_stays_what_it_was(store: Store) -> None:
    poisoned = pack(members_of(IMAGE, "held:1"))

    def refuse(name: str) -> str | None:
        return None if name.startswith("held") else name

    assert store.load(io.BytesIO(poisoned), names=refuse) == ()
    assert str(store.get("held:1").digest) == HELD.digest


def test_a_name_chosen_by_the_caller_follows_the_same_rules(store: Store) -> None:
    def load() -> None:
        store.load(io.BytesIO(GOOD), names=lambda name: "../../x")

    before = snapshot(Path(store.root))
    with pytest.raises(InvalidReference):
        load()
    assert snapshot(Path(store.root)) == before


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../x",
        "a/../b",
        "a//b",
        "/a",
        "a/",
        "./a",
        ".",
        "a b",
        "a\nb",
        "a\0b",
        "é",
        "x" * 513,
        "-a",
        "@a",
        "a\x1b[2J",
    ],
)
def test_S6_a_name_that_an_image_may_not_have_is_refused(name: str, store: Store) -> None:
    sentence = refused(store, pack(members_of(IMAGE, name)))
    assert sentence.startswith("invalid archive: invalid image reference ")


# ---- what is refused


def with_member(name: str | tarfile.TarInfo, content: bytes = b"", *, first: bool = True) -> bytes:
    members = members_of(IMAGE, NAME)
    return pack([(name, content), *members] if first else [*members, (name, content)])


ESCAPING = [
    *(
        "../x",
        "../../etc/passwd",
        "/etc/passwd",
        "blobs/../../x",
        "blobs/sha256/../../../x",
        "./../x",
        "..",
        "././meta.json",
    ),
    *(f"blobs/sha256/../{HEX}", f"/blobs/sha256/{HEX}", f"blobs//sha256/{HEX}", f"blobs/sha256//{HEX}", "//meta.json"),
    *("/meta.json", "../meta.json", "blobs/../meta.json", "./../meta.json", "meta.json/../x"),
    *(f"../blobs/sha256/{HEX}", f"x/blobs/sha256/{HEX}", f"blobs/sha256/{HEX}/x", f"blobs\\sha256\\{HEX}"),
]


@pytest.mark.parametrize("name", ESCAPING)
@pytest.mark.parametrize("first", [True, False])
def test_S15_names_in_archives_that_escape_are_refused(name: str, first: bool, store: Store, tmp_path: Path) -> None:
    around = snapshot(tmp_path)
    sentence = refused(store, with_member(name, b"content", first=first))
    assert sentence.startswith(f"invalid archive at member {name!r}: ")
    assert snapshot(tmp_path) == around


@pytest.mark.parametrize("name", ["..", "../", "../x", "/", "/etc", "a/../..", "./../x", "blobs/.."])
def test_S15_a_directory_that_escapes_is_refused_though_nothing_would_be_made_of_it(name: str, store: Store) -> None:
    sentence = refused(store, with_member(special(name, tarfile.DIRTYPE)))
    assert sentence.endswith("its name leads out of the archive")


@pytest.mark.parametrize(
    "name",
    [
        *("x", "blobs", "blobs/sha256", "META.JSON", "meta.json.txt", "etc/passwd", f"{HEX}/layer.tar2", "layer.tar"),
        *("index.json.x", f"{HEX}/VERSION/x", f"{HEX[1:]}/json", f"{HEX.upper()}/json", "blobs/sha256/x.index.json"),
        *("manifest.json\n", "a\nb", "\x1b[2J", "é", "oci-layout/x", f"Blobs/sha256/{HEX}", f"blobs/SHA256/{HEX}"),
    ],
)
def test_S15_any_other_member_is_refused_and_named(name: str, store: Store) -> None:
    sentence = refused(store, with_member(name, b"content"))
    assert sentence.startswith("invalid archive at member ")


@pytest.mark.parametrize(
    "encoded",
    [
        HEX[1:], HEX + "0", HEX.upper(), HEX[:-1] + "g", HEX[:-1] + "٣", HEX[:-1] + "\n", HEX[:-1] + " ",
        "sha256:" + HEX, HEX + HEX, "x",
    ],
)  # fmt: skip
def test_S4_a_blob_whose_name_is_no_digest_is_refused(encoded: str, store: Store) -> None:
    for algorithm in ("sha256", "md5", "sha1", "sha384"):
        sentence = refused(store, with_member(f"blobs/{algorithm}/{encoded}", b"content"))
        assert "invalid digest" in sentence or "has no such member" in sentence
    assert "invalid digest" in refused(store, with_member(f"blobs/sha512/{HEX}", b"content"))
    assert "invalid digest" in refused(store, with_member(f"blobs/md5/{HEX[:32]}", b"content"))


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, blob_name(IMAGE.digest)),
        (tarfile.LNKTYPE, blob_name(IMAGE.digest)),
        (tarfile.LNKTYPE, "/etc/passwd"),
        (tarfile.FIFOTYPE, ""),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
    ],
)
@pytest.mark.parametrize("name", ["meta.json", f"blobs/sha256/{HEX}", "index.json", "x", f"{HEX}/json"])
def test_S15_links_and_devices_are_refused_wherever_they_stand(
    name: str, kind: bytes, target: str, store: Store
) -> None:
    sentence = refused(store, with_member(special(name, kind, target), first=False))
    assert sentence == f"invalid archive at member {name!r}: an image archive holds no links and no devices"


def test_a_name_of_a_mebibyte_is_quoted_only_so_far(store: Store) -> None:
    long = raw_header(b"x", size=0)
    archive = pax([(b"path", b"x" * 900_000)]) + long + GOOD
    assert "an image archive has no such member" in refused(store, archive)


def swapped(digest: str, content: bytes) -> bytes:
    """Return the archive in which one blob has other bytes."""
    return pack([(name, content if name == blob_name(digest) else data) for name, data in members_of(IMAGE, NAME)])


LIES: dict[str, Callable[[bytes], bytes]] = {
    "short": lambda content: content[:-1],
    "empty": lambda content: b"",
    "long": lambda content: content + b"x",
    "other": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
@pytest.mark.parametrize("in_file", [False, True])
def test_S6_no_digest_check_a_blob_that_is_not_what_its_name_says_is_refused(
    part: str, lie: str, in_file: bool, store: Store, tmp_path: Path
) -> None:
    digest = {"manifest": IMAGE.digest, "config": IMAGE.config_digest, "layer": IMAGE.layer_digests[1]}[part]
    archive = swapped(digest, LIES[lie](IMAGE.blobs[digest]))
    path = tmp_path / "image.tar"
    path.write_bytes(archive)
    sentence = refused(store, str(path) if in_file else archive)
    named = f"invalid archive {str(path)!r}" if in_file else "invalid archive"
    assert sentence.startswith(f"{named}: content of {digest} does not match: expected {digest}, got sha256:")


def test_S6_a_wrong_blob_that_no_image_needs_is_refused_too(store: Store) -> None:
    sentence = refused(store, with_member(f"blobs/sha256/{HEX}", b"content", first=False))
    assert f"content of sha256:{HEX} does not match" in sentence


def test_S6_a_wrong_copy_behind_a_right_one_is_refused(store: Store) -> None:
    members = members_of(IMAGE, NAME)
    refused(store, pack([*members, (members[-1][0], b"other")]))
    assert NAME not in read_layout_names(Path(store.root))


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
@pytest.mark.parametrize("damage", ["short", "other", "a link", "a directory"])
@pytest.mark.parametrize("in_file", [False, True])
def test_S6_a_blob_of_the_store_that_is_wrong_is_set_aside_and_replaced_by_verified_bytes(
    part: str, damage: str, in_file: bool, store: Store, tmp_path: Path
) -> None:
    digest = {"manifest": IMAGE.digest, "config": IMAGE.config_digest, "layer": IMAGE.layer_digests[1]}[part]
    blob = blob_path(Path(store.root), digest)
    (tmp_path / "image.tar").write_bytes(GOOD)
    match damage:
        case "a link":
            blob.symlink_to(tmp_path / "image.tar")
        case "a directory":
            blob.mkdir()
        case _:
            blob.write_bytes(LIES[damage](IMAGE.blobs[digest]))
    store.load(tmp_path / "image.tar" if in_file else io.BytesIO(GOOD))
    assert is_loaded(store)
    assert not blob.is_symlink()
    assert blob.read_bytes() == IMAGE.blobs[digest]
    assert (tmp_path / "image.tar").read_bytes() == GOOD


def test_S6_a_good_blob_is_never_overwritten(store: Store) -> None:
    store.load(io.BytesIO(GOOD))
    inodes = {digest: blob_path(Path(store.root), digest).stat().st_ino for digest in IMAGE.blobs}
    store.load(io.BytesIO(GOOD), names=lambda name: "again:1")
    assert {digest: blob_path(Path(store.root), digest).stat().st_ino for digest in IMAGE.blobs} == inodes


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
@pytest.mark.parametrize("held", [False, True])
def test_an_incomplete_archive_is_refused_even_where_the_store_has_what_it_lacks(
    part: str, held: bool, store: Store
) -> None:
    digest = {"manifest": IMAGE.digest, "config": IMAGE.config_digest, "layer": IMAGE.layer_digests[1]}[part]
    if held:
        store.load(io.BytesIO(GOOD), names=lambda name: "whole:1")
    archive = pack([member for member in members_of(IMAGE, NAME) if member[0] != blob_name(digest)])
    what = "its manifest" if part == "manifest" else "which its manifest names"
    assert refused(store, archive) == f"invalid archive: it lacks {digest}, {what}"


def test_an_archive_of_an_index_of_which_a_manifest_or_its_layer_is_missing_is_refused(store: Store) -> None:
    index = build_index([build_image(), build_image(platform="linux/arm64")])
    for digest in set(index.blobs) - {index.digest}:
        archive = pack([member for member in members_of(index, NAME) if member[0] != blob_name(digest)])
        sentence = refused(store, archive)
        if index.media_types[digest] == OCI_MANIFEST:
            lacks = f"invalid archive: it lacks {digest}, which its manifest names; of its platforms it lacks linux/a"
            assert sentence.startswith(lacks)
        else:
            assert sentence == f"invalid archive: it lacks {digest}, which its manifest names"


METADATA: dict[str, tuple[bytes | None, str]] = {
    "none": (None, "invalid archive: it has no meta.json, no index.json and no manifest.json"),
    "no JSON": (b"x", "invalid archive at member 'meta.json': invalid meta.json: it is not JSON"),
    "nothing": (b"", "invalid archive at member 'meta.json': invalid meta.json: it is not JSON"),
    "an array": (b"[]", "invalid archive at member 'meta.json': invalid meta.json: expected an object"),
    "no name": (
        json.dumps({"manifest_digest": IMAGE.digest}).encode(),
        "invalid archive at member 'meta.json': invalid meta.json at image: a required field is missing",
    ),
    "a name that is a number": (
        json.dumps({"image": 5, "manifest_digest": IMAGE.digest}).encode(),
        "invalid archive at member 'meta.json': invalid meta.json at image: expected a string",
    ),
    "a digest that leads out": (
        metadata(NAME, "sha256:../../../../etc/passwd"),
        "invalid archive at member 'meta.json': invalid meta.json at manifest_digest: sha256 takes 64",
    ),
    "a bare digest that leads out": (
        metadata(NAME, "../../../../etc/passwd"),
        "invalid archive at member 'meta.json': invalid meta.json at manifest_digest: sha256 takes 64",
    ),
    "another algorithm": (
        metadata(NAME, "md5:" + HEX[:32]),
        "invalid archive at member 'meta.json': invalid meta.json at manifest_digest: the algorithm",
    ),
    "two names": (
        b'{"image":"a","image":"b","manifest_digest":"x"}',
        "invalid archive at member 'meta.json': invalid meta.json: it is not JSON: a key stands twice",
    ),
    "a digest that is not there": (
        metadata(NAME, f"sha256:{HEX}"),
        f"invalid archive: it lacks sha256:{HEX}, its manifest",
    ),
    "more than a mebibyte": (
        metadata(NAME, IMAGE.digest).ljust((1 << 20) + 1),
        "invalid archive at member 'meta.json': it is larger than 1048576 bytes",
    ),
    "a layer for a manifest": (
        metadata(NAME, IMAGE.layer_digests[0]),
        f"invalid archive: invalid {IMAGE.layer_digests[0]}",
    ),
    "a config for a manifest": (metadata(NAME, IMAGE.config_digest), f"invalid archive: invalid {IMAGE.config_digest}"),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_says_nothing_or_too_much_is_refused(name: str, store: Store) -> None:
    content, sentence = METADATA[name]
    _, *rest = members_of(IMAGE, NAME)
    assert refused(store, pack([*([("meta.json", content)] if content is not None else []), *rest])).startswith(
        sentence
    )


def test_S6_metadata_that_stands_twice_is_refused(store: Store) -> None:
    twice = with_member("meta.json", metadata("other:1", IMAGE.digest), first=False)
    assert refused(store, twice) == "invalid archive at member 'meta.json': it stands twice"
    dotted = with_member("./meta.json", metadata("other:1", IMAGE.digest), first=False)
    assert refused(store, dotted) == "invalid archive at member './meta.json': it stands twice"


def members_around(root: bytes, media_type: str = OCI_MANIFEST) -> Members:
    """Return an archive whose root document is these bytes."""
    blobs = [(blob_name(digest), content) for digest, content in IMAGE.blobs.items()]
    return [("meta.json", metadata(NAME, digest_of(root))), (blob_name(digest_of(root)), root), *blobs]


def changed(**fields: Any) -> bytes:
    return encode_document({**IMAGE.document(), **fields})


CONFIG = IMAGE.document()["config"]
DOCUMENTS: dict[str, tuple[bytes, str]] = {
    "both": (changed(manifests=[]), "it is both an index and a manifest"),
    "another type": (changed(mediaType=OCI_INDEX), "but has other fields"),
    "schema 1": (changed(schemaVersion=1), "Docker schema 1 manifests are not supported"),
    "a digest that leads out": (changed(config={**CONFIG, "digest": "sha256:../../x"}), "at config.digest"),
    "a negative size": (changed(config={**CONFIG, "size": -1}), "at config.size"),
    "a size that is text": (changed(config={**CONFIG, "size": str(CONFIG["size"])}), "at config.size"),
    "a size too large": (changed(config={**CONFIG, "size": CONFIG["size"] + 1}), "does not match: expected"),
    "a size too small": (changed(config={**CONFIG, "size": CONFIG["size"] - 1}), "does not match: expected"),
    "513 layers": (changed(layers=[IMAGE.document()["layers"][0]] * 513), "at layers: there are more than 512"),
    "4 MiB and more": (changed(annotations={"a": "x" * (4 << 20)}), "it is larger than 4194304 bytes"),
    "a key twice": (IMAGE.blobs[IMAGE.digest][:-1] + b',"config":{}}', "a key stands twice in one object"),
    "trailing data": (IMAGE.blobs[IMAGE.digest] + b"{}", "it is not JSON: Extra data"),
    "no JSON": (b"\x7fELF", "it is not JSON"),
    "nothing": (b"", "it is not JSON"),
}


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("below_index", [False, True])
def test_S4_S5_S7_a_document_that_breaks_a_rule_is_refused_wherever_it_stands(
    name: str, below_index: bool, store: Store
) -> None:
    content, problem = DOCUMENTS[name]
    members = members_around(content)
    if below_index:
        entry = {"mediaType": OCI_MANIFEST, "digest": digest_of(content), "size": len(content)}
        index = encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})
        members = [*members_around(index)[:2], *members[1:]]
    assert problem in refused(store, pack(members))


def test_S7_a_graph_that_is_too_deep_or_has_too_many_documents_is_refused(store: Store) -> None:
    deep = build_index([build_image()], nested=9)
    assert "nested more than 8 deep" in refused(store, pack(members_of(deep, NAME)))
    many: list[tuple[str, bytes]] = []
    entries = []
    for number in range(1025):
        content = changed(annotations={"number": str(number)})
        many.append((blob_name(digest_of(content)), content))
        entries.append({"mediaType": OCI_MANIFEST, "digest": digest_of(content), "size": len(content)})
    root = encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    assert "more than 1024 documents" in refused(store, pack([*members_around(root), *many]))


# ---- no archive at all

NONE: dict[str, bytes] = {
    "nothing": b"",
    "a byte": b"x",
    "text": b"hello\n" * 1000,
    "zeros of one block": bytes(512),
    "gzip in gzip": gzip.compress(gzip.compress(GOOD)),
    "bzip2": bz2.compress(GOOD),
    "JSON": b"{}".ljust(2048),
    "an archive and more": GOOD + b"x",
    "two archives": GOOD.rstrip(b"\0").ljust(len(GOOD) // 512 * 512, b"\0") + GOOD,
    "a wrong checksum": GOOD[:148] + b"000000\0 " + GOOD[156:],
}


@pytest.mark.parametrize("name", NONE)
@pytest.mark.parametrize("in_file", [False, True])
def test_what_is_no_archive_is_refused(name: str, in_file: bool, store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(NONE[name])
    assert refused(store, str(tmp_path / "file") if in_file else NONE[name]).startswith("invalid archive")


def test_an_archive_of_nothing_is_refused(store: Store) -> None:
    assert refused(store, pack([])) == "invalid archive: it has no meta.json, no index.json and no manifest.json"


SMALL = pack(members_of(build_image([EMPTY, {"a": b"1"}]), NAME), tar_format=tarfile.USTAR_FORMAT)
# tarfile pads an archive to 10,240 bytes; two zero blocks are its end.
SMALL_BYTES = len(SMALL.rstrip(b"\0")) // 512 * 512 + 512 + 1024


def test_an_archive_that_is_cut_off_is_refused_at_every_byte() -> None:
    for length in range(SMALL_BYTES):
        reader = ArchiveReader(io.BytesIO(SMALL[:length]))
        with pytest.raises(InvalidArchive):
            [read_stream(blob.stream) for blob in reader.iter_blobs()]
    reader = ArchiveReader(io.BytesIO(SMALL[:SMALL_BYTES]))
    assert len([read_stream(blob.stream) for blob in reader.iter_blobs()]) == 4


@pytest.mark.parametrize("kind", ["a file", "a pipe", "a stream"])
def test_an_archive_that_is_cut_off_leaves_the_store_as_it_was(kind: str, store: Store, tmp_path: Path) -> None:
    lengths = {*range(0, SMALL_BYTES, 512), *range(100, SMALL_BYTES, 700), SMALL_BYTES - 1}
    for length in sorted(lengths):
        archive = SMALL[:length]
        if kind == "a pipe":
            with piped(archive) as pipe:
                assert refused(store, pipe).startswith("invalid archive")
            continue
        (tmp_path / "file").write_bytes(archive)
        assert refused(store, str(tmp_path / "file") if kind == "a file" else archive).startswith("invalid archive")
    store.load(io.BytesIO(SMALL[:SMALL_BYTES]))
    assert len(store.images()) == 3


@pytest.mark.parametrize("damage", ["cut off", "other bytes inside", "no gzip at all", "a wrong checksum"])
def test_a_compressed_archive_that_is_damaged_is_refused_as_an_archive(damage: str, store: Store) -> None:
    packed = gzip.compress(GOOD)
    damaged = {
        "cut off": packed[: len(packed) // 2],
        "other bytes inside": packed[:100] + b"\xff" * 20 + packed[120:],
        "no gzip at all": GOOD,
        "a wrong checksum": packed[:-8] + bytes(8),
    }[damage]
    with gzip.GzipFile(fileobj=io.BytesIO(damaged)) as file:
        assert refused(store, cast("BinaryIO", file)).startswith("invalid archive")


def test_an_archive_without_an_end_is_not_read_without_one(store: Store) -> None:
    endless = Endless(GOOD.rstrip(b"\0").ljust(len(GOOD) // 512 * 512, b"\0"))
    assert "follow the end of the archive" in refused(store, cast("BinaryIO", endless))
    assert endless.given_bytes < 32 << 20


def test_a_member_that_claims_more_than_the_file_has_is_refused_before_it_is_copied(
    store: Store, tmp_path: Path
) -> None:
    claim = raw_header(f"blobs/sha256/{HEX}".encode(), size=1 << 32)
    (tmp_path / "file").write_bytes(claim + padded(b"x"))
    file = str(tmp_path / "file")
    assert refused(store, file) == (
        f"invalid archive {file!r} at member 'blobs/sha256/{HEX}': the archive ends inside the data of this member"
    )


# ---- cancelling


@pytest.mark.parametrize("in_file", [False, True])
def test_a_cancelled_load_leaves_the_store_as_it_was(in_file: bool, store: Store, tmp_path: Path) -> None:
    image = build_image([random_layer(1 << 20, salt=str(number)) for number in range(8)])
    archive = pack(members_of(image, NAME))
    (tmp_path / "image.tar").write_bytes(archive)
    before = snapshot(Path(store.root))
    cancellation = Cancellation()

    def listen(event: Event) -> None:
        if isinstance(event, BlobAdvanced):
            cancellation.cancel()

    with pytest.raises(Cancelled):
        store.load(
            tmp_path / "image.tar" if in_file else io.BytesIO(archive), on_event=listen, cancellation=cancellation
        )
    assert snapshot(Path(store.root)) == before


def test_a_load_that_was_cancelled_before_it_began_reads_nothing_of_the_archive(store: Store) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    before = snapshot(Path(store.root))
    stream = ForwardOnly(GOOD, 512)
    with pytest.raises(Cancelled):
        store.load(cast("BinaryIO", stream), cancellation=cancellation)
    assert snapshot(Path(store.root)) == before
    assert stream.given_bytes < len(GOOD)


def test_an_error_of_the_caller_while_a_load_runs_leaves_the_store_as_it_was(store: Store) -> None:
    def names(name: str) -> str | None:
        raise ValueError(name)

    before = snapshot(Path(store.root))
    with pytest.raises(ValueError, match=NAME):
        store.load(io.BytesIO(GOOD), names=names)
    assert snapshot(Path(store.root)) == before
    assert read_archive(GOOD)[0] == NAME
