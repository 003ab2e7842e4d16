"""Loading OCI archives and those of several forms at once: which images there are, and what they are called."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from minibox_store import Limits, Policy, Store
from minibox_store.errors import InvalidReference, PolicyRefused
from tests.support.archive_forms import MARKER
from tests.support.archives import blob_name, members_of, metadata, pack, special
from tests.support.images import DOCUMENT_TYPES, OCI_LAYER, build_artifact, build_image, build_index, digest_of
from tests.support.layouts import read_layout_names
from tests.support.loads import HELD, holds, load_in_a_way, refused, store_with_something
from tests.support.tool_archives import (
    AnyMembers,
    DockerArchive,
    docker_members,
    entry_of,
    index_json,
    made_image,
    named_oci_members,
    oci_members,
)

NAME = "quay.io/team/app:1.0"
IMAGE = build_image()
OTHER = build_image(salt="other")
INDEX = build_index([build_image(), build_image(platform="linux/arm64")], attestations=True)
HEX = "0123456789abcdef" * 4


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_with_something(tmp_path / "store")


# ---- OCI archives


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        build_image(docker=True),
        build_image([]),
        build_image(algorithm="sha512"),
        INDEX,
        build_index([build_image(docker=True)], docker=True, nested=3),
        build_artifact(None),
    ],
    ids=["OCI", "docker", "no layers", "sha512", "index", "nested", "artifact"],
)
@pytest.mark.parametrize("way", ["file", "pipe", "bytes"])
def test_an_oci_archive_is_read(way: str, image: Any, store: Store, tmp_path: Path) -> None:
    archive = pack(named_oci_members({NAME: image}))
    (loaded,) = load_in_a_way(way, archive, store, tmp_path)
    assert (loaded.name, str(loaded.digest)) == (NAME, image.digest)
    assert holds(store, {NAME: image})
    assert read_layout_names(Path(store.root))[NAME]["mediaType"] == image.media_type


@pytest.mark.parametrize("order", ["as packed", "reversed", "tables first", "sorted"])
def test_the_members_of_an_oci_archive_may_come_in_any_order(order: str, store: Store) -> None:
    members = named_oci_members({NAME: INDEX})
    ordered = {
        "as packed": members,
        "reversed": members[::-1],
        "tables first": [*members[-2:], *members[:-2]],
        "sorted": sorted(members, key=lambda member: str(member[0])),
    }
    store.load(io.BytesIO(pack(ordered[order])))
    assert holds(store, {NAME: INDEX})


def test_what_an_entry_says_besides_is_not_believed(store: Store) -> None:
    said = {
        **entry_of(IMAGE, NAME),
        "platform": {"os": "windows", "architecture": "mips"},
        "artifactType": "application/x",
        "urls": ["http://127.0.0.1/"],
    }
    said["annotations"]["vnd.docker.reference.type"] = "attestation-manifest"
    said["annotations"]["dev.minibox.store.source-reference"] = "docker.io/library/busybox:1"
    (loaded,) = store.load(io.BytesIO(pack(oci_members([said], IMAGE))))
    assert [str(each) for each in loaded.platforms] == ["linux/amd64"]
    entry = read_layout_names(Path(store.root))[NAME]
    assert entry.keys() == {"mediaType", "digest", "size", "annotations"}
    assert entry["annotations"].keys() == {"org.opencontainers.image.ref.name"}


@pytest.mark.parametrize(
    ("ref_name", "containerd", "name"),
    [
        ("a:1", None, "a:1"),
        ("1", None, "1"),
        ("1", "docker.io/library/a:1", "docker.io/library/a:1"),
        ("latest", "quay.io/a/b:latest", "quay.io/a/b:latest"),
        (None, "quay.io/a/b:1", "quay.io/a/b:1"),
        ("", "quay.io/a/b:1", "quay.io/a/b:1"),
        ("a:1", "docker.io/library/a:1", "a:1"),
        ("docker.io/library/a", "docker.io/library/a:latest", "docker.io/library/a"),
        ("a:1", "a:2", "a:2"),
        ("Not/A/Reference", "a:2", "a:2"),
    ],
)
def test_the_full_name_counts_where_the_other_is_a_mere_tag(
    ref_name: str | None, containerd: str | None, name: str, store: Store
) -> None:
    said = {} if containerd is None else {"containerd": containerd}
    store.load(io.BytesIO(pack(oci_members([entry_of(IMAGE, ref_name, **said)], IMAGE))))
    assert holds(store, {name: IMAGE})


# ---- several images


@pytest.mark.parametrize("in_file", [False, True])
def test_all_images_of_an_archive_come_in_in_its_order(in_file: bool, store: Store, tmp_path: Path) -> None:
    images = {"z:1": IMAGE, "a:1": OTHER, "m:1": INDEX, "b:1": IMAGE}
    archive = pack(named_oci_members(images))
    (tmp_path / "a.tar").write_bytes(archive)
    loaded = store.load(tmp_path / "a.tar" if in_file else io.BytesIO(archive))
    assert [(each.name, str(each.digest)) for each in loaded] == [(name, each.digest) for name, each in images.items()]
    assert holds(store, images)
    assert store.verify() == ()


def test_a_choice_of_images_is_made_by_names(store: Store) -> None:
    archive = pack(named_oci_members({"a:1": IMAGE, "b:1": OTHER, "c:1": INDEX}))
    asked = []

    def choose(name: str) -> str | None:
        asked.append(name)
        return {"a:1": None, "b:1": "mirror/b:1", "c:1": None}[name]

    (loaded,) = store.load(io.BytesIO(archive), names=choose)
    assert asked == ["a:1", "b:1", "c:1"]
    assert loaded.name == "mirror/b:1"
    assert holds(store, {"mirror/b:1": OTHER})


def test_of_an_image_that_is_left_out_nothing_need_be_there(store: Store) -> None:
    broken = IMAGE.without(*IMAGE.layer_digests)
    archive = pack(oci_members([entry_of(IMAGE, "a:1"), entry_of(OTHER, "b:1")], broken, OTHER))
    assert "which its manifest names" in refused(store, archive)
    store.load(io.BytesIO(archive), names=lambda name: name if name == "b:1" else None)
    assert holds(store, {"b:1": OTHER})


@pytest.mark.parametrize("what", ["missing layer", "wrong size", "bad name", "bad type", "no document"])
@pytest.mark.parametrize("in_file", [False, True])
def test_where_one_image_cannot_come_in_none_does(what: str, in_file: bool, store: Store, tmp_path: Path) -> None:
    good, bad = [entry_of(IMAGE, "a:1")], entry_of(OTHER, "b:1")
    other = OTHER
    match what:
        case "missing layer":
            other = OTHER.without(OTHER.layer_digests[-1])
        case "wrong size":
            bad["size"] += 1
        case "bad name":
            bad["annotations"]["org.opencontainers.image.ref.name"] = "../b"
        case "bad type":
            bad["mediaType"] = OCI_LAYER
        case "no document":
            bad = {**bad, "digest": OTHER.layer_digests[0], "size": len(OTHER.blobs[OTHER.layer_digests[0]])}
    archive = pack(oci_members([*good, bad], IMAGE, other))
    (tmp_path / "a.tar").write_bytes(archive)
    assert refused(store, str(tmp_path / "a.tar") if in_file else archive)


def test_a_policy_that_refuses_one_image_lets_none_in(store: Store) -> None:
    def verify(offer: Any) -> bool:
        return bool(offer.name != "c:1")

    names = {"a:1": IMAGE, "b:1": OTHER, "c:1": INDEX}
    assert refused(store, pack(named_oci_members(names)), PolicyRefused, checked_by=Policy(verify=verify))
    docker = DockerArchive("docker").add(IMAGE, "a:1").add(OTHER, "c:1").finish()
    assert refused(store, pack(docker), PolicyRefused, checked_by=Policy(verify=verify))


def test_S6_one_name_for_two_images_or_twice_for_one_is_refused(store: Store) -> None:
    sentence = f"invalid archive: two different images in it would be called {NAME}"
    twice = oci_members([entry_of(IMAGE, NAME), entry_of(OTHER, NAME)], IMAGE, OTHER)
    assert refused(store, pack(twice)) == sentence
    docker = DockerArchive("docker").add(IMAGE, "a:1", NAME).add(OTHER, NAME).finish()
    assert refused(store, pack(docker)) == sentence
    both = oci_members([entry_of(IMAGE, "a:1"), entry_of(OTHER, "b:1")], IMAGE, OTHER)
    assert refused(store, pack(both), names=lambda _: NAME) == sentence
    again = refused(store, pack(oci_members([entry_of(IMAGE, NAME), entry_of(IMAGE, NAME)], IMAGE)))
    assert again == f"invalid archive at member 'index.json': it names {NAME!r} twice"
    again = refused(store, pack(docker_members(IMAGE, NAME, NAME, style="docker")))
    assert again == f"invalid archive at member 'manifest.json': it names {NAME!r} twice"


def test_an_image_that_stands_twice_without_a_name_is_one(store: Store) -> None:
    archive = pack(oci_members([entry_of(IMAGE), entry_of(IMAGE)], IMAGE))
    assert len(store.load(io.BytesIO(archive), names=lambda _: NAME)) == 1
    assert holds(store, {NAME: IMAGE})


def test_S6_an_image_without_a_name_is_asked_for_or_refused(store: Store) -> None:
    archive = pack(oci_members([entry_of(IMAGE), entry_of(OTHER, "b:1")], IMAGE, OTHER))
    problem = f"invalid archive: the image {IMAGE.digest} has no name in it, and none was given"
    assert refused(store, archive) == problem
    assert refused(store, archive, InvalidReference, names=lambda name: name).startswith("invalid image reference ''")
    store.load(io.BytesIO(archive), names=lambda name: name or "given:1")
    assert holds(store, {"given:1": IMAGE, "b:1": OTHER})


@pytest.mark.parametrize("name", ["../x", "/a", "a b", "a\nb", "é", "x" * 513, "-a", "a\x1b[2J", "<none>:<none>"])
@pytest.mark.parametrize("form", ["OCI", "containerd", "docker", "repositories"])
def test_S6_a_name_that_an_image_may_not_have_is_refused_in_every_form(form: str, name: str, store: Store) -> None:
    members: dict[str, AnyMembers] = {
        "OCI": named_oci_members({name: IMAGE}),
        "containerd": oci_members([entry_of(IMAGE, "1", containerd=name)], IMAGE),
        "docker": docker_members(IMAGE, name, style="docker"),
        "repositories": DockerArchive("docker").add(IMAGE, f"{name}:1", tags=False).finish(),
    }
    assert refused(store, pack(members[form])).startswith("invalid archive: invalid image reference ")


def test_an_archive_of_more_images_than_may_be_is_refused(store: Store) -> None:
    images = {f"a:{number}": build_image([{"a": b"1"}], salt=str(number)) for number in range(5)}
    store = Store(store.root, durability="none", limits=Limits(documents=4))
    archive = pack(named_oci_members(images))
    assert refused(store, archive) == "invalid archive at member 'index.json': it tells of more than 4 images"
    tags = pack(DockerArchive("docker").add(IMAGE, *images).finish())
    assert refused(store, tags) == "invalid archive at member 'manifest.json': it tells of more than 4 images"
    many = [build_index([build_image(salt=str(number)), build_image(salt=f"x{number}")]) for number in range(2)]
    together = pack(named_oci_members({f"i:{number}": each for number, each in enumerate(many)}))
    assert refused(store, together) == "invalid archive: its images have more than 4 documents together"
    assert len(store.load(io.BytesIO(pack(named_oci_members(dict(list(images.items())[:4])))))) == 4


def test_images_that_share_manifests_are_refused_when_there_is_too_much_to_decode(store: Store) -> None:
    shared = build_image([{"a": b"1"}])
    indexes = {f"i:{number}": build_index([shared, build_image(salt=str(number))]) for number in range(4)}
    size_bytes = sum(
        len(each.blobs[digest])
        for each in indexes.values()
        for digest, media_type in each.media_types.items()
        if media_type in DOCUMENT_TYPES
    )
    archive = pack(named_oci_members(indexes))
    narrow = Store(store.root, durability="none", limits=Limits(archive_document_bytes=size_bytes - 1))
    sentence = f"invalid archive: its images have documents of more than {size_bytes - 1} bytes together"
    assert refused(narrow, archive) == sentence
    wide = Store(store.root, durability="none", limits=Limits(archive_document_bytes=size_bytes))
    assert len(wide.load(io.BytesIO(archive))) == 4


# ---- tables of contents


def both_members(*, meta: bool = False) -> AnyMembers:
    """An archive that is an OCI layout and docker's at once, as docker writes since version 25."""
    docker = DockerArchive("containerd").add(IMAGE, NAME).finish()
    found = dict(oci_members([entry_of(IMAGE, "1.0", containerd=NAME)], IMAGE)) | dict(docker)
    return [*([("meta.json", metadata(NAME, IMAGE.digest))] if meta else []), *found.items()]


@pytest.mark.parametrize("meta", [False, True])
def test_an_archive_of_several_forms_is_read_by_the_first_of_its_tables(meta: bool, store: Store) -> None:
    store.load(io.BytesIO(pack(both_members(meta=meta))))
    assert holds(store, {NAME: IMAGE})


def replaced(members: AnyMembers, **contents: bytes) -> AnyMembers:
    """Return members some of which, by what their names begin with, have another content."""
    return [(name, contents.get(str(name).partition(".")[0], content)) for name, content in members]


def test_S6_tables_that_tell_of_different_images_are_refused(store: Store) -> None:
    more = [(blob_name(digest), content) for digest, content in OTHER.blobs.items()]
    docker = json.dumps(DockerArchive("containerd").add(OTHER, NAME).images).encode()
    sentence = refused(store, pack([*replaced(both_members(), manifest=docker), *more]))
    assert sentence == (
        "invalid archive at member 'manifest.json': index.json and manifest.json tell of different images: "
        f"{OTHER.config_digest}"
    )
    index = index_json([entry_of(OTHER, NAME)])
    sentence = refused(store, pack([*replaced(both_members(meta=True), index=index), *more]))
    assert "meta.json and index.json tell of different images" in sentence
    both = index_json([entry_of(IMAGE, NAME), entry_of(OTHER, NAME)])
    assert "tell of different images" in refused(store, pack([*replaced(both_members(meta=True), index=both), *more]))
    empty = replaced(both_members(), index=index_json([]))
    assert refused(store, pack(empty)) == "invalid archive at member 'index.json': it tells of no image"


def test_a_further_table_may_speak_of_a_part_of_an_index(store: Store) -> None:
    (amd64, arm64) = (build_image(), build_image(platform="linux/arm64"))
    docker = DockerArchive("containerd").add(arm64, "arm:1").add(amd64, "amd:1").finish()
    members = dict(oci_members([entry_of(INDEX, NAME)], INDEX)) | dict(docker)
    store.load(io.BytesIO(pack(list(members.items()))))
    assert holds(store, {NAME: INDEX})
    parts = {**members, "index.json": index_json([entry_of(amd64, "x"), entry_of(INDEX, "y")])}
    parts = {"meta.json": metadata(NAME, INDEX.digest), **parts}
    store.load(io.BytesIO(pack(list(parts.items()))))
    assert holds(store, {NAME: INDEX})


CONTROLS: dict[str, tuple[dict[str, bytes | None], str]] = {
    "no table": ({"index.json": None}, "it has no meta.json, no index.json and no manifest.json"),
    "no marker": ({"oci-layout": None}, "at member 'index.json': there is no oci-layout beside it"),
    "a marker of another version": (
        {"oci-layout": b'{"imageLayoutVersion":"2.0.0"}'},
        "at member 'oci-layout': invalid oci-layout at imageLayoutVersion: version '2.0.0' is not supported",
    ),
    "a marker that is none": ({"oci-layout": b"[]"}, "at member 'oci-layout': invalid oci-layout"),
    "an index that is none": ({"index.json": b"{}"}, "at member 'index.json': invalid index.json"),
    "an index that is a manifest too": (
        {"index.json": b'{"schemaVersion":2,"manifests":[],"layers":[]}'},
        "at member 'index.json': invalid index.json: it is both an index and a manifest",
    ),
    "an index with a key twice": (
        {"index.json": b'{"schemaVersion":2,"manifests":[],"manifests":[]}'},
        "at member 'index.json': invalid index.json: it is not JSON: a key stands twice",
    ),
    "an entry that leads out": (
        {"index.json": index_json([{**entry_of(IMAGE, NAME), "digest": "sha256:../../x"}])},
        "at member 'index.json': invalid index.json at manifests[0].digest",
    ),
    "an entry of a config": (
        {"index.json": index_json([{**entry_of(IMAGE, NAME), "mediaType": "application/x"}])},
        f"at member 'index.json': {IMAGE.digest} in it is of type 'application/x': no manifest or index",
    ),
    "an entry of another type": (
        {"index.json": index_json([{**entry_of(IMAGE, NAME), "mediaType": INDEX.media_type}])},
        f"invalid {IMAGE.digest} at mediaType",
    ),
    "no images": ({"index.json": index_json([])}, "at member 'index.json': it tells of no image"),
    "too large": ({"index.json": b" " * ((4 << 20) + 1)}, "at member 'index.json': it is larger than 4194304 bytes"),
    "a table that is no document": ({"manifest.json": b"no document at all"}, "at member 'manifest.json'"),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_table_that_is_none_is_refused(name: str, store: Store) -> None:
    changes, sentence = CONTROLS[name]
    members: dict[Any, bytes | None] = {**dict(named_oci_members({NAME: IMAGE})), **changes}
    assert sentence in refused(store, pack([(key, each) for key, each in members.items() if each is not None]))


@pytest.mark.parametrize("control", ["oci-layout", "index.json", "manifest.json", "repositories", "meta.json"])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_S6_a_control_member_that_stands_twice_is_refused(prefix: str, control: str, store: Store) -> None:
    members = both_members(meta=True)
    content = dict(members)[control]
    twice = refused(store, pack([*members, (prefix + control, content)]))
    assert twice == f"invalid archive at member {prefix + control!r}: it stands twice"
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        link = special(prefix + control, kind, "index.json")
        assert "no links and no devices" in refused(store, pack([(link, b""), *members[1:]]))


def test_a_minibox_archive_with_a_marker_is_read(store: Store) -> None:
    store.load(io.BytesIO(pack([("oci-layout", MARKER), *members_of(IMAGE, NAME)])))
    assert holds(store, {NAME: IMAGE})


@pytest.mark.parametrize("in_file", [False, True])
def test_loading_several_images_twice_leaves_what_loading_once_does(
    in_file: bool, store: Store, tmp_path: Path
) -> None:
    docker = DockerArchive("skopeo").add(IMAGE, "a:1", "a:2").add(OTHER, "b:1").finish()
    (tmp_path / "a.tar").write_bytes(pack(docker))
    made = {"a:1": made_image(IMAGE, "skopeo"), "a:2": made_image(IMAGE, "skopeo"), "b:1": made_image(OTHER, "skopeo")}
    for _ in range(2):
        with open(tmp_path / "a.tar", "rb") as file:
            store.load(file if in_file else io.BytesIO(file.read()))
        assert holds(store, made)


def test_an_image_that_the_store_has_under_the_name_is_replaced_in_the_same_step(store: Store) -> None:
    store.load(io.BytesIO(pack(named_oci_members({"held:1": IMAGE, "new:1": OTHER}))))
    named = {name: entry["digest"] for name, entry in read_layout_names(Path(store.root)).items()}
    assert named == {"held:1": IMAGE.digest, "held:2": HELD.digest, "new:1": OTHER.digest}


def test_S5_an_entry_whose_document_is_both_is_refused(store: Store) -> None:
    document = json.dumps({**IMAGE.document(), "manifests": []}).encode()
    root = {**entry_of(IMAGE, NAME), "digest": digest_of(document), "size": len(document)}
    members = [*oci_members([root], IMAGE), (blob_name(digest_of(document)), document)]
    assert "both an index and a manifest" in refused(store, pack(members))
