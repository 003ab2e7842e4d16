"""Loading docker's archives: config and layers stay what they are, and the manifest that is made of them is one."""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from minibox_store import InvalidArchive, Store
from minibox_store.archive import ArchiveReader
from minibox_store.media_types import OCI_LAYER_ZSTD
from tests.support.archives import blob_name, pack, special
from tests.support.compression import skippable_frame
from tests.support.images import (
    OCI_LAYER,
    BuiltImage,
    Layer,
    build_image,
    build_layer,
    digest_of,
    random_layer,
)
from tests.support.layouts import read_layout_names
from tests.support.loads import holds, load_in_a_way, refusal_of, refused, store_with_something
from tests.support.sources import read_stream
from tests.support.tool_archives import (
    DOCKER_STYLES,
    AnyMembers,
    DockerArchive,
    DockerStyle,
    docker_members,
    layers_in,
    made_image,
    plain_layers,
)

NAME = "quay.io/team/app:1.0"
IMAGE = build_image()
OTHER = build_image(salt="other")
EMPTY = Layer(content=b"", media_type=OCI_LAYER, diff_id=digest_of(b""))
HEX = "0123456789abcdef" * 4
SHARED = build_layer({"shared": b"1"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_with_something(tmp_path / "store")


IMAGES = {
    "two layers": IMAGE,
    "docker": build_image(docker=True),
    "no layers": build_image([]),
    "an empty layer": build_image([EMPTY, {"a": b"1"}]),
    "one layer twice": build_image([SHARED, {"b": b"1"}, SHARED]),
    "large layers": build_image([random_layer(3 << 20), random_layer(2560)]),
}


@pytest.mark.parametrize("style", DOCKER_STYLES)
@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("way", ["file", "pipe", "bytes"])
def test_a_docker_archive_is_read_whoever_wrote_it(
    way: str, name: str, style: DockerStyle, store: Store, tmp_path: Path
) -> None:
    image, made = IMAGES[name], made_image(IMAGES[name], style)
    archive = pack(docker_members(image, NAME, style=style))
    (loaded,) = load_in_a_way(way, archive, store, tmp_path)
    assert (loaded.name, str(loaded.digest)) == (NAME, made.digest)
    assert [str(each) for each in loaded.platforms] == ["linux/amd64"]
    assert holds(store, {NAME: made})
    assert store.verify() == ()


@pytest.mark.parametrize("order", ["reversed", "tables first", "links first"])
@pytest.mark.parametrize("style", DOCKER_STYLES)
def test_the_members_of_a_docker_archive_may_come_in_any_order(style: DockerStyle, order: str, store: Store) -> None:
    image = IMAGES["one layer twice"]
    members = docker_members(image, NAME, style=style)
    ordered: dict[str, AnyMembers] = {
        "reversed": members[::-1],
        "tables first": [*members[-2:], *members[:-2]],
        "links first": sorted(members, key=lambda member: isinstance(member[0], str)),
    }
    store.load(io.BytesIO(pack(ordered[order])))
    assert holds(store, {NAME: made_image(image, style)})


def test_the_same_members_give_the_same_manifest_under_whatever_names_they_stand(tmp_path: Path) -> None:
    image = build_image([{"a": b"1"}, {"b": b"2"}], compressed=False)
    digests = set()
    for style in DOCKER_STYLES:
        store = Store(tmp_path / style, durability="none")
        (loaded,) = store.load(io.BytesIO(pack(docker_members(image, NAME, style=style))))
        digests.add(str(loaded.digest))
    assert digests == {made_image(image, "docker").digest}


# ---- what compresses a layer


def layered(content: bytes, diff_id: str) -> BuiltImage:
    return build_image([Layer(content=content, media_type=OCI_LAYER, diff_id=diff_id)])


def test_what_compresses_a_layer_is_told_by_its_first_bytes_alone(store: Store) -> None:
    tar = plain_layers(IMAGE)[0]
    contents = {"plain": tar, "gzip": gzip.compress(tar), "zstd": zstd.compress(tar)}
    for suffix, content in contents.items():
        image = layered(content, digest_of(tar))
        for style in ("containerd", "crane"):
            name = f"a:{suffix}-{style}"
            store.load(io.BytesIO(pack(docker_members(image, name, style=style))))
            entry = read_layout_names(Path(store.root))[name]
            assert entry["digest"] == made_image(image, style).digest
    assert str(store.get("a:gzip-crane").layers) == "1"


def test_a_zstd_layer_that_begins_with_a_frame_that_means_nothing_is_taken_for_what_it_is_unpacked_as(
    store: Store, tmp_path: Path
) -> None:
    # As pzstd writes it.
    tar = plain_layers(IMAGE)[0]
    image = layered(skippable_frame(b"size") + zstd.compress(tar), digest_of(tar))
    store.load(io.BytesIO(pack(docker_members(image, NAME, style="containerd"))))
    (manifest,) = store.inspect(NAME).manifests
    assert [each.descriptor.media_type for each in manifest.layers] == [OCI_LAYER_ZSTD]
    store.unpack(NAME, tmp_path / "tree")
    assert any((tmp_path / "tree").iterdir())


@pytest.mark.parametrize("style", DOCKER_STYLES)
def test_S6_a_layer_that_is_not_compressed_is_what_the_config_says_of_it(style: DockerStyle, store: Store) -> None:
    tar = plain_layers(IMAGE)[0]
    image = layered(tar, digest_of(b"another"))
    key = docker_members(image, NAME, style=style)[0][0]
    sentence = refused(store, pack(docker_members(image, NAME, style=style)))
    assert sentence == f"invalid archive at member {str(key)!r}: it is not {digest_of(b'another')}, as its config says"


@pytest.mark.parametrize("magic", [b"BZh9", b"\xfd7zXZ\x00", b"\x28\xb5\x2f", b"\x1f", b"\x1f\x8b\x01x"])
def test_a_layer_of_another_compression_or_of_half_a_beginning_counts_as_plain(magic: bytes, store: Store) -> None:
    true = layered(magic, digest_of(magic))
    store.load(io.BytesIO(pack(docker_members(true, NAME, style="containerd"))))
    assert holds(store, {NAME: made_image(true, "containerd")})
    false = layered(magic, digest_of(b"x"))
    assert "as its config says" in refused(store, pack(docker_members(false, NAME, style="containerd")))


@pytest.mark.parametrize("is_right", [True, False])
def test_a_plain_layer_with_a_name_of_sha512_is_held_against_the_config_too(is_right: bool, store: Store) -> None:
    tar = plain_layers(IMAGE)[0]
    image = layered(tar, digest_of(tar if is_right else b"x"))
    (_, content), *rest = docker_members(image, NAME, style="containerd")
    key = blob_name(digest_of(tar, "sha512"))
    archive = pack([(key, content), *rest[:-2], table([{**entry(image, "containerd"), "Layers": [key]}])])
    if is_right:
        (loaded,) = store.load(io.BytesIO(archive))
        assert loaded.layers == 1
        assert store.verify() == ()
    else:
        assert "as its config says" in refused(store, archive)


# ---- what manifest.json says


def entry(image: BuiltImage, style: DockerStyle, *names: str) -> dict[str, Any]:
    return DockerArchive(style).add(image, *(names or (NAME,))).images[0]


def table(images: Any) -> tuple[str, bytes]:
    return "manifest.json", json.dumps(images).encode()


def with_table(images: Any, style: DockerStyle = "docker", image: BuiltImage = IMAGE) -> bytes:
    return pack([*docker_members(image, NAME, style=style)[:-2], table(images)])


CONFIG: str = entry(IMAGE, "docker")["Config"]
FIRST: str = entry(IMAGE, "docker")["Layers"][0]
LAST: str = entry(IMAGE, "docker")["Layers"][1]
SAID: dict[str, tuple[dict[str, Any], str]] = {
    "a layer less": ({"Layers": [FIRST]}, f"at member {CONFIG!r}: it is of 2 layers, and manifest.json names 1"),
    "a layer more": ({"Layers": [FIRST, LAST, LAST]}, "it is of 2 layers, and manifest.json names 3"),
    "no layers": ({"Layers": None}, "it is of 2 layers, and manifest.json names 0"),
    "layers in another order": ({"Layers": [LAST, FIRST]}, f"at member {LAST!r}: it is not sha256:"),
    "a layer that is not there": ({"Layers": [FIRST, f"{HEX}.tar"]}, f"it lacks {HEX}.tar, which manifest.json names"),
    "a blob that is not there": ({"Layers": [FIRST, f"blobs/sha256/{HEX}"]}, f"it lacks sha256:{HEX}, which"),
    "a config that is not there": ({"Config": f"{HEX}.json"}, f"it lacks sha256:{HEX}, which manifest.json names"),
    "a layer for a config": ({"Config": FIRST}, f"at member {FIRST!r}: it is no config"),
    "a table for a config": ({"Config": "manifest.json"}, "at member 'manifest.json': it is no config"),
    "a table for a layer": ({"Layers": [FIRST, "manifest.json"]}, "'manifest.json': it is no part of an image"),
    "what is passed over for a layer": ({"Layers": [FIRST, f"{HEX}/json"]}, "it is no part of an image"),
    "a config that leads out": ({"Config": "../../etc/passwd"}, "'../../etc/passwd': an image archive has no such"),
    "a layer that leads out": (
        {"Layers": [FIRST, "/etc/passwd"]},
        "'/etc/passwd': an image archive has no such member",
    ),
    "a config that is no text": ({"Config": 5}, "invalid manifest.json at [0].Config: expected a string"),
    "layers that are no array": ({"Layers": "x"}, "invalid manifest.json at [0].Layers: expected an array"),
    "tags that are no texts": ({"RepoTags": [5]}, "invalid manifest.json at [0].RepoTags[0]: expected a string"),
    "513 layers": ({"Layers": [FIRST] * 513}, "it has more than 512 layers"),
}


@pytest.mark.parametrize("name", SAID)
def test_S6_S15_a_table_that_says_something_else_than_the_config_is_refused(name: str, store: Store) -> None:
    fields, sentence = SAID[name]
    assert sentence in refused(store, with_table([{**entry(IMAGE, "docker"), **fields}]))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{}", "invalid manifest.json: expected an array, got an object"),
        (b"", "invalid manifest.json: it is not JSON"),
        (b"[5]", "invalid manifest.json at [0]: expected an object, got a number"),
        (b"[{}]", "invalid manifest.json at [0].Config: a required field is missing"),
        (b'[{"Config":"x"}]', "invalid manifest.json at [0].Layers: a required field is missing"),
        (b'[{"Config":"x","Config":"y","Layers":[]}]', "a key stands twice in one object"),
        (b"[]", "it tells of no image"),
        (b"[" * 70 + b"]" * 70, "invalid manifest.json: it is nested more than 64 levels deep"),
        (b"[" * 60_000, "invalid manifest.json: it is nested"),
        (b"[]" + b" " * (4 << 20), "it is larger than 4194304 bytes"),
    ],
)
def test_what_is_no_table_is_refused(content: bytes, sentence: str, store: Store) -> None:
    archive = pack([*docker_members(IMAGE, NAME, style="docker")[:-2], ("manifest.json", content)])
    refusal = refused(store, archive)
    assert refusal.startswith("invalid archive at member 'manifest.json': ")
    assert sentence in refusal


def test_all_that_is_missing_is_told_at_once(store: Store) -> None:
    members = [member for member in docker_members(IMAGE, NAME, style="containerd") if "blobs" not in str(member[0])]
    error = refusal_of(store, pack(members))
    assert set(getattr(error, "missing")) == {IMAGE.config_digest, *IMAGE.layer_digests}  # noqa: B009
    assert str(error) == f"invalid archive: it lacks {IMAGE.config_digest} and 2 more, which manifest.json names"


@pytest.mark.parametrize("style", ["docker", "containerd"])
def test_an_image_that_is_whole_is_chosen_beside_one_that_lacks_blobs(style: DockerStyle, store: Store) -> None:
    other = build_image([{"other": b"1"}], salt="other")
    members = DockerArchive(style).add(IMAGE, "whole:1").add(other, "thin:1").finish()
    lost = {other.config_digest.partition(":")[2], *(each.partition(":")[2] for each in other.layer_digests)}
    kept = [member for member in members if not any(each in str(member[0]) for each in lost)]
    assert len(kept) < len(members)
    archive = pack(kept)
    assert "which manifest.json names" in refused(store, archive), "all are wanted"
    with pytest.raises(InvalidArchive, match=r"which manifest\.json names") as caught:
        store.load(io.BytesIO(archive), names=lambda name: name if name == "thin:1" else None)
    assert set(caught.value.missing) & {other.config_digest, *other.layer_digests}
    assert "thin:1" not in [image.name for image in store.images()]
    store.load(io.BytesIO(archive), names=lambda name: name if name == "whole:1" else None)
    assert holds(store, {"whole:1": made_image(IMAGE, style)})


def test_S6_a_name_that_stands_twice_for_one_that_lacks_blobs_is_refused_too(store: Store) -> None:
    kept = [each for each in docker_members(IMAGE, NAME, style="docker") if not str(each[0]).endswith("layer.tar")]
    images = [entry(IMAGE, "docker", NAME, NAME)]
    lacking = [{**each, "Layers": [f"{HEX}.tar"]} for each in images]
    assert "twice" in refused(store, pack([*kept[:-2], table(lacking)]))


@pytest.mark.parametrize("config", [b"", b"[]", b"x", b'{"rootfs":{"diff_ids":["sha256:x"]}}', b'{"rootfs":5}'])
def test_a_config_that_is_none_is_refused(config: bytes, store: Store) -> None:
    name = digest_of(config).partition(":")[2] + ".json"
    archive = pack([(name, config), table([{"Config": name, "RepoTags": [NAME], "Layers": []}])])
    assert refused(store, archive).startswith("invalid archive: invalid sha256:")


def test_a_config_of_more_layers_than_may_be_is_refused_before_they_are_kept(store: Store) -> None:
    config = json.dumps({"rootfs": {"diff_ids": [digest_of(b"")] * 513}}).encode()
    name = digest_of(config).partition(":")[2] + ".json"
    archive = pack([(name, config), table([{"Config": name, "RepoTags": [NAME], "Layers": []}])])
    assert "it is of more than 512 layers" in refused(store, archive)


@pytest.mark.parametrize("name", [f"{HEX}.json", f"sha256:{HEX}", blob_name(f"sha256:{HEX}")])
def test_S4_a_config_that_is_not_what_its_name_says_is_refused(name: str, store: Store) -> None:
    archive = pack([(name, b"{}"), table([{"Config": name, "RepoTags": [NAME], "Layers": []}])])
    assert f"content of sha256:{HEX} does not match" in refused(store, archive)


@pytest.mark.parametrize("style", ["docker", "skopeo", "crane"])
def test_S6_a_docker_member_that_stands_twice_is_refused(style: DockerStyle, store: Store) -> None:
    members = docker_members(IMAGE, NAME, style=style)[:-2]
    tables = docker_members(IMAGE, NAME, style=style)[-2:]
    for member in members:
        key = member[0] if isinstance(member[0], str) else member[0].name
        if not key.endswith(("/VERSION", "/json")):
            assert "it stands twice" in refused(store, pack([*members, *tables, member]))
            assert "it stands twice" in refused(store, pack([(f"./{key}", member[1]), *members, *tables]))
        if key.endswith("layer.tar"):
            link = (special(key, tarfile.SYMTYPE, f"../{HEX}.tar"), b"")
            assert "it stands twice" in refused(store, pack([*members, *tables, link]))
            assert "it stands twice" in refused(store, pack([link, *members, *tables]))


# ---- names


@pytest.mark.parametrize("style", DOCKER_STYLES)
def test_each_of_its_tags_is_a_name(style: DockerStyle, store: Store) -> None:
    archive = DockerArchive(style).add(IMAGE, "b:1", "a:1").add(OTHER, "localhost:5000/c:2").finish()
    loaded = store.load(io.BytesIO(pack(archive)))
    assert [image.name for image in loaded] == ["b:1", "a:1", "localhost:5000/c:2"]
    made = {"b:1": made_image(IMAGE, style), "a:1": made_image(IMAGE, style)}
    assert holds(store, {**made, "localhost:5000/c:2": made_image(OTHER, style)})


@pytest.mark.parametrize("style", ["docker", "skopeo"])
def test_where_there_are_no_tags_repositories_names_an_image_by_its_last_layer(
    style: DockerStyle, store: Store
) -> None:
    archive = DockerArchive(style).add(IMAGE, "b:1", "a:1", tags=False).add(OTHER, "localhost:5000/c:2", tags=False)
    loaded = store.load(io.BytesIO(pack(archive.finish())))
    assert [image.name for image in loaded] == ["b:1", "a:1", "localhost:5000/c:2"]


def test_tags_count_before_repositories(store: Store) -> None:
    archive = DockerArchive("docker").add(IMAGE, "a:1")
    archive.repositories["other"] = {"1": archive.repositories["a"]["1"]}
    assert [image.name for image in store.load(io.BytesIO(pack(archive.finish())))] == ["a:1"]


def test_a_name_that_could_mean_two_images_is_refused(store: Store) -> None:
    one = build_image([{"a": b"1"}], salt="one")
    two = build_image([{"a": b"1"}], salt="two")
    archive = DockerArchive("skopeo").add(one, "a:1", tags=False).add(two, "b:1", tags=False)
    assert "more than one image could be 'a:1'" in refused(store, pack(archive.finish()))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[]", "invalid repositories: expected an object, got an array"),
        (b'{"a":[]}', "invalid repositories at a: expected an object, got an array"),
        (b'{"a":{"1":5}}', "invalid repositories at a:1: expected a string, got a number"),
        (b'{"a":{"b:1":"x"},"a:b":{"1":"x"}}', "invalid repositories at a:b:1: it stands twice"),
        (b'{"a":{"1":"../../x"}}', "what it gives 'a:1' is no identifier of a layer"),
    ],
)
def test_repositories_that_say_what_they_may_not_are_refused(content: bytes, sentence: str, store: Store) -> None:
    archive = DockerArchive("docker").add(IMAGE, "a:1", tags=False).finish()
    refusal = refused(store, pack([*archive[:-1], ("repositories", content)]))
    assert refusal == f"invalid archive at member 'repositories': {sentence}"


@pytest.mark.parametrize("repositories", [b"{}", None, b'{"a":{"1":"' + HEX.encode() + b'"}}'])
def test_S6_a_docker_image_without_a_name_is_asked_for_or_refused(repositories: bytes | None, store: Store) -> None:
    members = DockerArchive("docker").add(IMAGE).finish()[:-1]
    archive = pack([*members, *([] if repositories is None else [("repositories", repositories)])])
    made = made_image(IMAGE, "docker")
    assert refused(store, archive) == f"invalid archive: the image {made.digest} has no name in it, and none was given"
    store.load(io.BytesIO(archive), names=lambda name: name or NAME)
    assert holds(store, {NAME: made})


# ---- links


def linked(*links: tuple[str, bytes, str], layers: list[str]) -> bytes:
    """Return an archive of an image of one layer in which these links are, and manifest.json names ``layers``."""
    image = build_image([{"a": b"1"}])
    members = docker_members(image, NAME, style="skopeo")
    (key, content) = next((name, data) for name, data in members if str(name).endswith(".tar"))
    config = next(str(name) for name, _ in members if str(name).endswith(".json"))
    found: AnyMembers = [(f"{HEX}.tar", content), (config, image.blobs[image.config_digest])]
    found += [(special(name, kind, target), b"") for name, kind, target in links]
    assert isinstance(key, str)
    return pack([*found, table([{"Config": config, "RepoTags": [NAME], "Layers": layers}])])


A, B = "a" * 64, "b" * 64
SYM, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize(
    "links",
    [
        [(f"{A}/layer.tar", SYM, f"../{HEX}.tar")],
        [(f"{A}/layer.tar", HARD, f"{HEX}.tar")],
        [(f"{A}/layer.tar", HARD, f"./{HEX}.tar")],
        [(f"./{A}/layer.tar", SYM, f"../{HEX}.tar")],
        [(f"{A}/layer.tar", SYM, f"../{B}/layer.tar"), (f"{B}/layer.tar", SYM, f"../{HEX}.tar")],
        [(f"{A}/layer.tar", SYM, f"../{B}.tar"), (f"{B}.tar", SYM, f"{HEX}.tar")],
        [
            (f"{A}/layer.tar", SYM, f"../{0:064x}/layer.tar"),
            *((f"{n:064x}/layer.tar", HARD, f"{n + 1:064x}/layer.tar") for n in range(6)),
            (f"{6:064x}/layer.tar", SYM, f"../{HEX}.tar"),
        ],
    ],
)
def test_S16_links_between_layers_are_followed_inside_the_archive(links: Any, store: Store) -> None:
    (loaded,) = store.load(io.BytesIO(linked(*links, layers=[f"{A}/layer.tar"])))
    assert str(loaded.digest) == made_image(build_image([{"a": b"1"}]), "docker").digest
    assert store.verify() == ()


def test_S16_a_link_may_lead_to_a_blob(store: Store) -> None:
    layer = plain_layers(IMAGE)[0]
    image = build_image([Layer(content=layer, media_type=OCI_LAYER, diff_id=digest_of(layer))])
    members = docker_members(image, NAME, style="containerd")
    for kind, target in ((SYM, f"../{blob_name(digest_of(layer))}"), (HARD, blob_name(digest_of(layer)))):
        link = (special(f"{A}/layer.tar", kind, target), b"")
        said = {**entry(image, "containerd"), "Layers": [f"{A}/layer.tar"]}
        store.load(io.BytesIO(pack([*members[:-2], link, table([said])])))
        assert holds(store, {NAME: made_image(image, "docker")})


@pytest.mark.parametrize(
    ("links", "sentence"),
    [
        ([(f"{A}/layer.tar", SYM, f"../{A}/layer.tar")], "it leads over more than 8 links"),
        ([(f"{A}.tar", HARD, f"{A}.tar")], "it leads over more than 8 links"),
        (
            [(f"{A}/layer.tar", SYM, f"../{B}/layer.tar"), (f"{B}/layer.tar", SYM, f"../{A}/layer.tar")],
            "it leads over more than 8 links",
        ),
        (
            [*((f"{n:064x}/layer.tar", HARD, f"{n + 1:064x}/layer.tar") for n in range(9))],
            "it leads over more than 8 links",
        ),
        *(
            ([(f"{A}/layer.tar", kind, target)], "it links to what is no layer of the archive")
            for kind in (SYM, HARD)
            for target in (
                *("/etc/passwd", "../../etc/passwd", "../manifest.json", "manifest.json", ".", "..", "../"),
                *(f"/{HEX}.tar", f"../../{HEX}.tar", f"../x/../{HEX}.tar", f"..//{HEX}.tar", f"../{HEX}.json"),
                *(f"../{HEX}.tar.gz", f"../{HEX}.tar\n", f"../{HEX.upper()}.tar", "../blobs/sha256/x", "x" * 5000),
                *(f"../{HEX}/VERSION", f"../{HEX}/json", f"{HEX}/../{HEX}.tar", "layer.tar", f"../blobs/md5/{HEX}"),
            )
        ),
        ([(f"{A}/layer.tar", SYM, f"{HEX}.tar")], "it links to what is no layer of the archive"),
        ([(f"{A}/layer.tar", HARD, f"../{HEX}.tar")], "it links to what is no layer of the archive"),
        ([(f"{A}.tar", SYM, f"../{HEX}.tar")], "it links to what is no layer of the archive"),
        *(
            ([(name, SYM, f"../{HEX}.tar")], "an image archive holds no links and no devices")
            for name in (f"{A}.json", f"{A}/json", f"{A}/VERSION", f"{A}.tar.gz", f"sha256:{A}", "manifest.json", "x")
        ),
    ],
)
def test_S16_links_that_lead_elsewhere_or_in_a_circle_are_refused(links: Any, sentence: str, store: Store) -> None:
    assert sentence in refused(store, linked(*links, layers=[f"{HEX}.tar"]))


def test_a_link_to_nothing_is_refused_where_it_is_needed(store: Store) -> None:
    dangling = (f"{A}/layer.tar", SYM, f"../{B}.tar")
    assert f"it lacks {A}/layer.tar" in refused(store, linked(dangling, layers=[f"{A}/layer.tar"]))
    store.load(io.BytesIO(linked(dangling, layers=[f"{HEX}.tar"])))


# ---- the reader by itself


@pytest.mark.parametrize("style", DOCKER_STYLES)
def test_a_layer_of_which_the_name_promises_nothing_says_so(style: DockerStyle) -> None:
    reader = ArchiveReader(io.BytesIO(pack(docker_members(IMAGE, NAME, style=style))))
    promised = {}
    for blob in reader.iter_blobs():
        promised[digest_of(read_stream(blob.stream))] = blob.note_kept is None
    assert promised[IMAGE.config_digest]
    assert [promised[digest_of(each)] for each in layers_in(IMAGE, style)] == [style == "containerd"] * 2
