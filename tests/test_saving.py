"""Saving: which members an archive of each form has, of one image and of several, whole and thin, byte for byte."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest

from minibox_store import (
    LINUX_AMD64,
    ArchiveCompression,
    ArchiveFormat,
    BlobPresent,
    BlobStarted,
    BlobStored,
    Digest,
    Event,
    InvalidArchive,
    InvalidArgument,
    Limits,
    Platform,
    PlatformChoice,
    PlatformNotFound,
    RegistryError,
    Store,
    _files,
    graph,
    parse_digests,
    render_line,
)
from minibox_store.archive import ArchiveFile, ArchiveForm
from minibox_store.codec import decode_document
from minibox_store.documents import Document
from minibox_store.errors import ContentMismatch, ImageNotFound, IncompleteImage, InvalidDocument, StoreDamaged
from minibox_store.layout import opening_images
from tests.support.archives import unpack
from tests.support.compression import grows_by_less_than
from tests.support.images import (
    OCI_LAYER,
    BuiltImage,
    Layer,
    build_image,
    build_image_over,
    build_index,
    digest_of,
    random_layer,
)
from tests.support.layouts import blob_path, read_layout_blobs, write_layout, write_named_text
from tests.support.sources import copy_into, memory_of, root_of
from tests.support.stores import open_layout
from tests.support.written_archives import FORMATS, written_members

EMPTY = Layer(content=b"", media_type=OCI_LAYER, diff_id=digest_of(b""))
SHAPES: dict[str, BuiltImage] = {
    "OCI": build_image(),
    "docker": build_image(docker=True),
    "sha512": build_image(algorithm="sha512"),
    "an empty layer": build_image([EMPTY, {"a": b"1"}]),
    "no layers": build_image([]),
    "one layer twice": build_image([{"a": b"1"}, {"b": b"1"}, {"a": b"1"}]),
    "a large layer": build_image([{"a": b"1"}, random_layer(1 << 18), {"b": b"1"}]),
}
SHARED = random_layer(1 << 16)
FIRST, SECOND = build_image([SHARED, {"a": b"1"}]), build_image([SHARED], salt="second")
SEVERAL = {"app:1": FIRST, "app:2": SECOND, "quay.io/team/app": FIRST, "docker.io/library/app:1": FIRST}
CANONICAL = {
    "app:1": "docker.io/library/app:1",
    "app:2": "docker.io/library/app:2",
    "quay.io/team/app": "quay.io/team/app:latest",
    "docker.io/library/app:1": "docker.io/library/app:1",
}
TAGS = {**{name: name for name in SEVERAL}, "quay.io/team/app": "quay.io/team/app:latest"}
AMD64, ARM64, ARM = build_image(), build_image(platform="linux/arm64"), build_image(platform="linux/arm/v7")
INDEX = build_index([AMD64, ARM64, ARM], attestations=True)
LINUX_ARM64 = Platform.parse("linux/arm64")


def store_of(folder: Path, images: dict[str, BuiltImage]) -> Store:
    write_layout(folder, images)
    return Store(folder, durability="none")


def members_in(path: Path) -> list[tuple[str, bytes]]:
    return [(member.name, content) for member, content in unpack(path.read_bytes())]


def test_the_forms_are_these() -> None:
    assert get_args(ArchiveFormat) == FORMATS


# ---- what is in it


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMATS)
def test_an_archive_of_each_form_has_its_tables_and_then_each_blob_once(
    form: ArchiveFormat, shape: str, tmp_path: Path
) -> None:
    image, name = SHAPES[shape], "quay.io/team/app:1.0"
    saved = store_of(tmp_path / "store", {name: image}).save(name, tmp_path / "a.tar", format=form)
    assert (saved.name, str(saved.digest)) == (name, image.digest)
    assert members_in(tmp_path / "a.tar") == written_members(form, {name: image}, {name: name}, {name: name})
    for member, _ in unpack((tmp_path / "a.tar").read_bytes()):
        is_folder = member.name == "blobs" or member.name.count("/") == 1
        kind, mode = (b"5", 0o755) if is_folder else (b"0", 0o644)
        assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, mode)
        assert (member.uname, member.gname, member.type) == ("", "", kind)


@pytest.mark.parametrize("form", ["oci", "docker", "both"])
def test_several_images_and_names_are_in_one_archive_and_what_they_share_is_there_once(
    form: ArchiveFormat, tmp_path: Path
) -> None:
    store = store_of(tmp_path / "store", {**SEVERAL, "other:1": build_image(salt="other")})
    saved = store.save(list(SEVERAL), tmp_path / "a.tar", format=form)
    assert [(image.name, str(image.digest)) for image in saved] == [(key, each.digest) for key, each in SEVERAL.items()]
    members = members_in(tmp_path / "a.tar")
    assert members == written_members(form, SEVERAL, CANONICAL, TAGS)
    assert len({name for name, _ in members}) == len(members)


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_saved_is_loaded_as_it_was(form: ArchiveFormat, tmp_path: Path) -> None:
    images = {"app:1": FIRST} if form == "minibox" else {"app:1": FIRST, "app:2": SECOND}
    store_of(tmp_path / "store", images).save(list(images), tmp_path / "a.tar", format=form)
    loaded = Store(tmp_path / "loaded", durability="none")
    found = loaded.load(tmp_path / "a.tar")
    assert sorted(image.name for image in found) == sorted(images)
    blobs = {digest: content for image in images.values() for digest, content in image.blobs.items()}
    if form == "docker":  # the manifests are made anew
        documents = {digest for image in images.values() for digest in image.document_digests}
        assert {key: each for key, each in blobs.items() if key not in documents}.items() <= (
            read_layout_blobs(tmp_path / "loaded").items()
        )
    else:
        assert read_layout_blobs(tmp_path / "loaded") == blobs
        assert {image.name: str(image.digest) for image in found} == {key: each.digest for key, each in images.items()}


@pytest.mark.parametrize("form", ["oci", "docker", "both"])
@pytest.mark.parametrize("compress", [None, "zstd"])
def test_the_bytes_depend_on_the_images_and_their_names_alone(
    form: ArchiveFormat, compress: ArchiveCompression | None, tmp_path: Path
) -> None:
    store_of(tmp_path / "store", SEVERAL).save(list(SEVERAL), tmp_path / "a.tar", format=form, compress=compress)
    turned = dict(reversed(SEVERAL.items()))
    other = store_of(tmp_path / "other", {"x:1": build_image(salt="x"), **turned})
    index = json.loads((tmp_path / "other" / "index.json").read_bytes())
    for number, entry in enumerate(index["manifests"]):
        entry["annotations"] |= {"made.by": str(number), "dev.minibox.store.source-reference": f"x/y:{number}"}
        entry["platform"] = {"os": "linux", "architecture": "amd64"}
    (tmp_path / "other" / "index.json").write_text(json.dumps(index))
    other.save([*turned, "app:2"], tmp_path / "b.tar", format=form, compress=compress)
    assert (tmp_path / "b.tar").read_bytes() == (tmp_path / "a.tar").read_bytes()


def test_a_large_member_begins_at_a_whole_block_and_a_small_one_costs_no_padding(tmp_path: Path) -> None:
    sizes = [512, (1 << 16) - 512, 1 << 16, (1 << 16) + 512, 1 << 18, 2048]
    contents = [bytes([number]) * size for number, size in enumerate(sizes)]
    image = build_image([Layer(content=each, media_type=OCI_LAYER, diff_id=digest_of(each)) for each in contents])
    store_of(tmp_path / "store", {"app:1": image}).save("app:1", tmp_path / "a.tar")
    content = (tmp_path / "a.tar").read_bytes()
    end = 0
    for member, data in unpack(content):
        if len(data) >= 1 << 16:
            assert member.offset_data % 4096 == 0
        else:
            assert member.offset_data == end + 512
        assert member.offset_data - end <= 4096 + 1024
        end = member.offset_data + len(data) + -len(data) % 512
    assert content[end:] == bytes(1024)


# ---- what cannot be in it


def test_minibox_holds_one_image_however_often_it_is_named(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", SEVERAL)
    with pytest.raises(InvalidArgument, match="it holds one image, and not 2"):
        store.save(["app:1", "app:2"], tmp_path / "a.tar")
    assert not (tmp_path / "a.tar").exists()
    found = store.save(["app:2", "docker.io/library/app:2"], tmp_path / "a.tar")
    assert [image.name for image in found] == ["app:2", "app:2"]


@pytest.mark.parametrize("names", [[], (), ["app:1", 5], [b"app:1"], None, 5])
def test_what_are_no_names_are_refused(names: Any, tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", SEVERAL)
    with pytest.raises(InvalidArgument, match="invalid name"):
        store.save(names, tmp_path / "a.tar", format="oci")
    assert not (tmp_path / "a.tar").exists()


class _BytesPath:
    def __fspath__(self) -> bytes:
        return b"a.tar"


def test_a_path_of_bytes_is_refused(tmp_path: Path) -> None:
    file: Any = _BytesPath()
    with pytest.raises(InvalidArgument, match="its path is no text"):
        store_of(tmp_path / "store", SEVERAL).save("app:1", file)


_NO_DIGESTS: list[dict[str, Any]] = [{"exclude": value} for value in [["x"], [[]], None, 5, "sha256"]]


@pytest.mark.parametrize("arguments", [{"format": "tar"}, {"format": None}, {"compress": "gzip"}, *_NO_DIGESTS])
def test_an_argument_that_is_none_is_refused_by_its_name(arguments: dict[str, object], tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", SEVERAL)
    with pytest.raises(InvalidArgument) as caught:
        store.save("app:1", tmp_path / "a.tar", **arguments)  # type: ignore[call-overload]  # that is what it is about
    assert caught.value.name == next(iter(arguments))
    assert not (tmp_path / "a.tar").exists()


def test_one_name_that_is_not_there_leaves_no_archive_of_the_others(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", SEVERAL)
    with pytest.raises(ImageNotFound):
        store.save(["app:1", "missing:1"], tmp_path / "a.tar", format="oci")
    blob_path(tmp_path / "store", SECOND.config_digest).unlink()
    with pytest.raises(IncompleteImage) as caught:
        store.save(["app:1", "app:2"], tmp_path / "a.tar", format="oci")
    assert (caught.value.root, caught.value.missing) == ("app:2", (SECOND.config_digest,))
    assert not (tmp_path / "a.tar").exists()


@pytest.mark.parametrize("platform", [None, "all", LINUX_AMD64])
@pytest.mark.parametrize("form", FORMATS)
def test_what_has_a_name_and_is_no_image_is_told_so_and_is_no_damage(
    form: ArchiveFormat, platform: PlatformChoice, tmp_path: Path
) -> None:
    write_layout(tmp_path / "store", {"app:1": FIRST})
    digest = write_named_text(tmp_path / "store", "about")
    store = Store(tmp_path / "store", durability="none")
    for refused in (
        lambda: store.save("about", tmp_path / "a.tar", format=form, platform=platform),
        lambda: store.open_archive("about", format=form, platform=platform).close(),
        lambda: store.push("about", "127.0.0.1:1/about:1"),
        lambda: store.unpack("about", tmp_path / "tree"),
        lambda: store.open_files("about").close(),
    ):
        with pytest.raises(InvalidDocument, match=f"{digest}.*'application/xml' is no manifest or index"):
            refused()
    assert not (tmp_path / "a.tar").exists()
    assert not store.verify()
    with pytest.raises(RegistryError):  # it is not what a pull would bring, and so the registry is asked
        store.pull("127.0.0.1:1/app:1", name="about", policy="if-missing")


@pytest.mark.parametrize("name", ["UPPER", "a/B:1", f"app@sha256:{'a' * 64}", f"app:1@sha256:{'a' * 64}", "x" * 300])
def test_a_name_that_docker_does_not_take_is_refused_or_left_to_the_other_half(name: str, tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {name: FIRST, "app:1": FIRST})
    with pytest.raises(InvalidArgument, match="is no reference with a tag"):
        store.save(name, tmp_path / "a.tar", format="docker")
    assert not (tmp_path / "a.tar").exists()
    store.save([name, "app:1"], tmp_path / "a.tar", format="both")
    members = dict(members_in(tmp_path / "a.tar"))
    assert [each["RepoTags"] for each in json.loads(members["manifest.json"])] == [["app:1"]]
    store.save(name, tmp_path / "a.tar", format="both")
    members = dict(members_in(tmp_path / "a.tar"))
    assert [each["RepoTags"] for each in json.loads(members["manifest.json"])] == [None]
    assert json.loads(members["repositories"]) == {}
    loaded = Store(tmp_path / "loaded", durability="none")
    assert [image.name for image in loaded.load(tmp_path / "a.tar")] == [name]


@pytest.mark.parametrize("form", ["docker", "both"])
def test_two_images_that_docker_would_call_the_same_are_refused(form: ArchiveFormat, tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {"app": FIRST, "app:latest": SECOND})
    with pytest.raises(InvalidArgument, match="two images would be called app:latest in it"):
        store.save(["app", "app:latest"], tmp_path / "a.tar", format=form)
    assert not (tmp_path / "a.tar").exists()
    same = store_of(tmp_path / "same", {"app": FIRST, "app:latest": FIRST})
    same.save(["app", "app:latest"], tmp_path / "a.tar", format=form)
    (entry,) = json.loads(dict(members_in(tmp_path / "a.tar"))["manifest.json"])
    assert entry["RepoTags"] == ["app:latest"]


@pytest.mark.parametrize("form", ["docker", "both"])
def test_what_is_no_image_that_runs_is_refused_where_docker_reads(form: ArchiveFormat, tmp_path: Path) -> None:
    artifact = build_image(config={})
    manifest = json.loads(artifact.blobs[artifact.digest])
    manifest["config"]["mediaType"] = "application/vnd.example+json"
    content = json.dumps(manifest).encode()
    root = {**artifact.root, "digest": digest_of(content), "size": len(content)}
    blobs = {**artifact.without(artifact.digest).blobs, root["digest"]: content}
    store = store_of(tmp_path / "store", {"app:1": BuiltImage(root=root, blobs=blobs, media_types={})})
    with pytest.raises(
        InvalidArgument, match=r"no config of an image, but one of type 'application/vnd.example\+json'"
    ):
        store.save("app:1", tmp_path / "a.tar", format=form)
    assert not (tmp_path / "a.tar").exists()
    store.save("app:1", tmp_path / "a.tar", format="oci")


# ---- platforms


@pytest.mark.parametrize("form", ["docker", "both"])
def test_an_index_is_refused_where_one_platform_fits_and_its_platforms_are_named(
    form: ArchiveFormat, tmp_path: Path
) -> None:
    store = store_of(tmp_path / "store", {"app:1": INDEX})
    with pytest.raises(InvalidArgument) as caught:
        store.save("app:1", tmp_path / "a.tar", format=form)
    assert "an index of linux/amd64, linux/arm64, linux/arm/v7, of which it holds one: say platform=" in str(
        caught.value
    )
    with pytest.raises(InvalidArgument, match="an index of linux/amd64, linux/arm64, of which"):
        store.save("app:1", tmp_path / "a.tar", format=form, platform=[LINUX_AMD64, LINUX_ARM64])
    assert not (tmp_path / "a.tar").exists()
    saved = store.save("app:1", tmp_path / "a.tar", format=form, platform=LINUX_ARM64)
    assert (str(saved.digest), saved.platform) == (ARM64.digest, LINUX_ARM64)
    expected = written_members(form, {"app:1": ARM64}, CANONICAL, TAGS)
    assert members_in(tmp_path / "a.tar") == expected


@pytest.mark.parametrize("form", ["minibox", "oci"])
def test_some_platforms_of_an_index_are_an_index_of_their_own_which_is_loaded_whole(
    form: ArchiveFormat, tmp_path: Path
) -> None:
    store = store_of(tmp_path / "store", {"app:1": INDEX})
    assert str(store.save("app:1", tmp_path / "whole.tar", format=form).digest) == INDEX.digest
    saved = store.save("app:1", tmp_path / "a.tar", format=form, platform=[LINUX_ARM64, LINUX_AMD64])
    assert [str(each) for each in saved.platforms] == ["linux/amd64", "linux/arm64"]
    (loaded,) = Store(tmp_path / "loaded", durability="none").load(tmp_path / "a.tar")
    assert (loaded.digest, loaded.platforms) == (saved.digest, saved.platforms)
    found = read_layout_blobs(tmp_path / "loaded")
    assert found.keys() - {str(saved.digest)} == {*AMD64.blobs, *ARM64.blobs}
    pulled = Store(tmp_path / "imported", durability="none")
    pulled.import_image(store, "app:1", platform=[LINUX_ARM64, LINUX_AMD64])
    assert pulled.get("app:1").digest == saved.digest


def test_a_platform_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {"app:1": INDEX})
    with pytest.raises(PlatformNotFound):
        store.save("app:1", tmp_path / "a.tar", platform=Platform.parse("linux/s390x"))
    assert not (tmp_path / "a.tar").exists()


def test_an_index_that_lacks_a_platform_is_never_written_as_if_it_were_whole(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {"app:1": INDEX})
    blob_path(tmp_path / "store", ARM64.digest).unlink()
    for form in ("minibox", "oci"):
        with pytest.raises(IncompleteImage) as caught:
            store.save("app:1", tmp_path / "a.tar", format=form)
        assert caught.value.missing == (ARM64.digest,)
        with pytest.raises(IncompleteImage):
            store.save("app:1", tmp_path / "a.tar", platform=LINUX_ARM64)
    assert not (tmp_path / "a.tar").exists()
    assert str(store.save("app:1", tmp_path / "a.tar", platform=LINUX_AMD64).digest) == AMD64.digest


# ---- thin archives


@pytest.mark.parametrize("form", FORMATS)
def test_what_the_other_side_has_is_left_out_but_no_document(form: ArchiveFormat, tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {"app:1": FIRST})
    held = [*map(Digest.parse, FIRST.blobs)]
    events: list[Event] = []
    store.save("app:1", tmp_path / "a.tar", format=form, exclude=held, on_event=events.append)
    whole = written_members(form, {"app:1": FIRST}, CANONICAL, TAGS)
    documents = {f"blobs/{digest.replace(':', '/')}" for digest in FIRST.document_digests}
    kept = [each for each in whole if not each[0].startswith("blobs/") or each[0] in documents]
    files = [each for each in members_in(tmp_path / "a.tar") if each[0] != "blobs/sha256"]
    assert files == kept
    present = {str(each.descriptor.digest) for each in events if isinstance(each, BlobPresent)}
    assert present == FIRST.blobs.keys() - set(FIRST.document_digests)
    assert render_line(events[-1], doing="save") == "[save] successfully saved app:1"


def test_a_thin_archive_travels_from_what_one_store_has_to_what_the_other_lacks(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {"app:1": FIRST, "app:2": SECOND})
    other = store_of(tmp_path / "other", {"app:1": FIRST})
    store.save("app:2", tmp_path / "a.tar", exclude=parse_digests(other.have()))
    names = [name for name, _ in members_in(tmp_path / "a.tar")]
    shared = f"blobs/sha256/{SECOND.layer_digests[0].partition(':')[2]}"
    assert shared not in names
    assert len(names) == 3
    with pytest.raises(InvalidArchive) as caught:
        other.load(tmp_path / "a.tar")
    assert caught.value.missing == (SECOND.layer_digests[0],)
    (loaded,) = other.load(tmp_path / "a.tar", complete_from_store=True)
    assert str(loaded.digest) == SECOND.digest
    assert other.verify() == ()


def test_a_blob_that_is_left_out_here_and_a_document_there_is_written(tmp_path: Path) -> None:
    image = build_image()
    target = ArchiveFile(str(tmp_path / "a.tar"), form=ArchiveForm(exclude=frozenset({Digest.parse(image.digest)})))
    copy_into(target, image, "app:1")
    assert f"blobs/sha256/{image.digest.partition(':')[2]}" in dict(members_in(tmp_path / "a.tar"))
    with suppress(IncompleteImage), target.open_writer() as writer:
        assert not writer.has_blob(root_of(image))


def test_have_lists_every_blob_there_is_and_nothing_else(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {"app:1": FIRST, "app:2": build_image(algorithm="sha512")})
    folder = tmp_path / "store" / "blobs" / "sha256"
    (folder / "stray").write_bytes(b"")
    (folder / ("a" * 64)).symlink_to("stray")
    (folder / ("b" * 64)).mkdir()
    expected = sorted({*FIRST.blobs, *build_image(algorithm="sha512").blobs})
    assert json.loads(store.have()) == expected
    assert store.have() == json.dumps(expected, separators=(",", ":")).encode()
    assert parse_digests(store.have()) == {Digest.parse(digest) for digest in expected}
    assert Store(tmp_path / "none").have() == b"[]"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b'"x"', b"[1]", b"[null]", b'[["sha256:x"]]', b'["sha256:../../etc"]', b"[] []", b"\xff", b"[" * 5000],
)
def test_a_list_of_digests_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidDocument, match="list of digests"):
        parse_digests(content)


def test_a_list_of_digests_is_read_within_a_bound() -> None:
    content = json.dumps([digest_of(b"")]).encode()
    assert len(parse_digests(content, limits=Limits(index_bytes=len(content)))) == 1
    with pytest.raises(InvalidDocument, match=f"larger than {len(content) - 1} bytes"):
        parse_digests(content, limits=Limits(index_bytes=len(content) - 1))


# ---- many names


def test_what_is_saved_under_many_names_is_noted_by_one_reading_and_one_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"app:{number}" for number in range(20)]
    store = store_of(tmp_path / "store", dict.fromkeys(names, FIRST))
    calls: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(_files, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return real(*arguments, **options)

        return call

    for each in ("read_end", "append_bytes"):
        monkeypatch.setattr(_files, each, counted(each))
    store.save(names, tmp_path / "a.tar", format="oci")
    assert calls == ["read_end", "append_bytes"]
    store.save(names, tmp_path / "a.tar", format="oci")
    assert calls == ["read_end", "append_bytes", "read_end"]


def test_what_many_names_stand_for_is_in_memory_once(tmp_path: Path) -> None:
    write_layout(tmp_path / "store", {"app:1": FIRST, "app:2": FIRST, "app:3": SECOND})
    with opening_images(open_layout(tmp_path / "store"), ["app:1", "app:2", "app:3"]) as (first, second, third):
        (document,) = FIRST.document_digests
        assert first.contents.keys() == second.contents.keys() == {Digest.parse(document)}
        assert first.contents[Digest.parse(document)] is second.contents[Digest.parse(document)]
        assert third.contents.keys().isdisjoint(first.contents)


@pytest.mark.parametrize("platform", [None, LINUX_AMD64, "all"])
def test_an_image_of_many_names_is_walked_as_often_as_one_of_a_single_name(
    platform: PlatformChoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"app:{number}" for number in range(1, 9)]
    store = store_of(tmp_path / "store", dict.fromkeys(names, INDEX))
    read: list[str] = []

    def decode(content: bytes, media_type: str, name: str, **options: Any) -> Document:
        read.append(name)
        return decode_document(content, media_type, name, **options)

    def save(names: list[str]) -> list[str]:
        read.clear()
        store.save(names, tmp_path / "a.tar", format="oci", platform=platform)
        return read.copy()

    def offer(names: list[str]) -> list[str]:
        read.clear()
        store.open_archive(names, format="oci", platform=platform).close()
        return read.copy()

    monkeypatch.setattr(graph, "decode_document", decode)
    assert save(names) == save(names[:1])
    assert offer(names) == offer(names[:1])


def test_of_each_name_what_its_own_entry_says_is_told(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {"app:1": FIRST, "app:2": FIRST})
    path = tmp_path / "store" / "index.json"
    index = json.loads(path.read_bytes())
    index["manifests"][1]["annotations"]["team"] = "second"
    path.write_text(json.dumps(index))
    saved = store.save(["app:1", "app:2"], tmp_path / "a.tar", format="oci")
    assert [each.descriptor.annotations for each in saved] == [{}, {"team": "second"}]


def test_no_more_images_are_saved_than_are_loaded_again(tmp_path: Path) -> None:
    names = [f"app:{number}" for number in range(4)]
    write_layout(tmp_path / "store", dict.fromkeys(names, FIRST))
    limits = Limits(documents=3)
    store = Store(tmp_path / "store", durability="none", limits=limits)
    with pytest.raises(InvalidArgument, match="they are 4, and an archive that is to be loaded tells of 3 images"):
        store.save(names, tmp_path / "a.tar", format="oci")
    assert not (tmp_path / "a.tar").exists()
    store.save(names[:3], tmp_path / "a.tar", format="oci")
    assert len(Store(tmp_path / "loaded", durability="none", limits=limits).load(tmp_path / "a.tar")) == 3


@pytest.mark.parametrize("form", ["minibox", "oci"])
def test_a_save_keeps_the_bytes_of_documents_and_not_their_values(form: ArchiveFormat, tmp_path: Path) -> None:
    # One character of four bytes makes each of a text take as many: 64 MiB of values in 16 of bytes.
    text = "x" * (1 << 20) + "\U0001f600"
    images = [build_image([{"a": b"1"}], salt=str(number), annotations={"long": text}) for number in range(16)]
    store = store_of(tmp_path / "store", {"app:1": build_index(images)})

    def save() -> None:
        store.save("app:1", tmp_path / "a.tar", format=form)

    assert grows_by_less_than(48 << 20, save)


# ---- what another tool has written into the store


@pytest.mark.parametrize("size_bytes", [0, 100, (1 << 16) - 1, (1 << 16) + 1])
@pytest.mark.parametrize("among_several", [False, True])
def test_a_layer_that_has_two_sizes_is_damage_and_no_shorter_member(
    size_bytes: int, among_several: bool, tmp_path: Path
) -> None:
    true = {"mediaType": OCI_LAYER, "digest": SECOND.layer_digests[0], "size": 1 << 16}
    lie = {**true, "size": size_bytes}
    diff_id = SHARED.diff_id
    image = build_image_over([lie] if among_several else [true, lie], [diff_id] * (1 if among_several else 2))
    store = store_of(tmp_path / "store", {"app:1": image, "app:2": SECOND})
    with pytest.raises(StoreDamaged) as caught:
        store.save(["app:2", "app:1"] if among_several else ["app:1"], tmp_path / "a.tar", format="oci")
    assert caught.value.path == str(blob_path(tmp_path / "store", SECOND.layer_digests[0]))
    assert not (tmp_path / "a.tar").exists()


# ---- the writer by itself


def test_a_name_stands_for_one_image_in_an_archive(tmp_path: Path) -> None:
    target = ArchiveFile(str(tmp_path / "a.tar"), form=ArchiveForm(format="oci"))

    def write() -> None:
        with target.open_writer() as writer:
            for image in (FIRST, SECOND):
                source = memory_of({"": image})
                for digest, content in source.blobs.items():
                    descriptor = root_of(image)
                    writer.write_blob(
                        type(descriptor)(
                            media_type=image.media_types[str(digest)], digest=digest, size_bytes=len(content)
                        ),
                        source,
                    )
                writer.write_name("app:1", root_of(image))

    with pytest.raises(ContentMismatch, match="image app:1 of an archive"):
        write()
    assert not (tmp_path / "a.tar").exists()


# ---- what is told


@pytest.mark.parametrize("form", FORMATS)
def test_that_a_blob_is_stored_is_told_once_and_when_the_archive_has_it(form: ArchiveFormat, tmp_path: Path) -> None:
    names = ["app:1"] if form == "minibox" else ["app:1", "app:2"]
    store = store_of(tmp_path / "store", {"app:1": FIRST, "app:2": SECOND})
    there: list[bool] = []
    told: list[Digest] = []
    moved: set[Digest] = set()

    def listen(event: Event) -> None:
        if isinstance(event, BlobStarted):
            moved.add(event.descriptor.digest)
            assert not told
        if isinstance(event, BlobStored):
            told.append(event.descriptor.digest)
            there.append((tmp_path / "a.tar").exists())

    store.save(names, tmp_path / "a.tar", format=form, on_event=listen)
    assert all(there)
    assert len(told) == len({*told})
    assert {*told} == moved
