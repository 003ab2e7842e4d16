"""The defects of the daemon whose contract this one keeps: each has a test here by its name, and is not here again."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from minibox_store import (
    LINUX_AMD64,
    ContentMismatch,
    IncompleteImage,
    InvalidArchive,
    PlatformNotFound,
    Reference,
    Store,
    StoreDamaged,
    StoreError,
)
from tests.support.daemon import running_daemon
from tests.support.images import BuiltImage, build_image, build_index
from tests.support.layouts import blob_path, write_layout
from tests.support.scripted_registry import Answer, ScriptedRegistry, blob_target, serve_image

NAME = "team/app:1"


def write_archive(path: Path, image: BuiltImage, extra: dict[str, bytes] | None = None) -> None:
    """Write what the older daemon writes: the manifest's digest has no algorithm, and sidecars stand beside layers."""
    metadata = {"image": NAME, "manifest_digest": image.digest.removeprefix("sha256:")}
    members = {"meta.json": json.dumps(metadata).encode()}
    for digest in (image.digest, image.config_digest, *image.layer_digests):
        members[f"blobs/sha256/{digest.removeprefix('sha256:')}"] = image.blobs[digest]
    for digest in image.layer_digests:
        members[f"blobs/sha256/{digest.removeprefix('sha256:')}.index.json"] = b"{}"
    with tarfile.open(path, "w") as tar:
        for name, content in {**members, **(extra or {})}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def files_below(root: Path) -> dict[str, bytes]:
    """Return every file of a store but its locks, with its content."""
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.endswith((".lock", ".turn"))}


def test_no_digest_check_when_pulling(tmp_path: Path) -> None:
    image = build_image()
    layer = image.layer_digests[0]
    wrong = bytes(len(image.blobs[layer]))
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", image)
        registry.allow("GET", blob_target("team/app", layer), Answer(body=wrong))
        with pytest.raises(ContentMismatch, match=layer):
            Store(tmp_path).pull(registry.reference("team/app", "1"))
    assert Store(tmp_path).images() == ()
    assert not (tmp_path / "blobs" / "sha256" / layer.removeprefix("sha256:")).exists()


def test_no_digest_check_when_loading(tmp_path: Path) -> None:
    image = build_image()
    write_archive(tmp_path / "a.tar", image.corrupted(image.layer_digests[1]))
    store = Store(tmp_path / "store")
    with pytest.raises(InvalidArchive, match=image.layer_digests[1]):
        store.load(tmp_path / "a.tar")
    assert store.images() == ()
    assert not any((tmp_path / "store" / "blobs" / "sha256").iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "../escaped",
        "/tmp/escaped",
        "blobs/sha256/../../escaped",
        "blobs/sha256/" + "../" * 8 + "escaped",
        "./../escaped",
    ],
)
def test_names_in_archives_that_escape(tmp_path: Path, name: str) -> None:
    write_archive(tmp_path / "a.tar", build_image(), {name: b"out"})
    store = Store(tmp_path / "outer" / "store")
    with pytest.raises(InvalidArchive, match="escaped"):
        store.load(tmp_path / "a.tar")
    assert not [path for path in tmp_path.rglob("*") if path.name == "escaped"]
    assert not any((tmp_path / "outer" / "store" / "blobs" / "sha256").iterdir())


def test_first_colon_reference_parsing(tmp_path: Path) -> None:
    reference = Reference.parse("localhost:5000/team/app:1")
    assert (reference.domain, reference.repository, reference.tag) == ("localhost:5000", "team/app", "1")
    assert Reference.parse("localhost:5000/app").tag == "latest"


def test_silent_first_platform(tmp_path: Path) -> None:
    others = build_index([build_image(platform="linux/arm64"), build_image(platform="linux/s390x")])
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", others)
        with pytest.raises(PlatformNotFound, match=r"linux/arm64, linux/s390x") as caught:
            Store(tmp_path).pull(registry.reference("team/app", "1"))
    assert caught.value.wanted == str(LINUX_AMD64)
    assert Store(tmp_path).images() == ()


def test_index_overwritten_in_place(tmp_path: Path) -> None:
    write_layout(tmp_path / "store", {NAME: build_image()})
    store = Store(tmp_path / "store")
    index = tmp_path / "store" / "index.json"
    with index.open("rb") as opened:
        before = opened.read()
        store.tag(NAME, "second:1")
        opened.seek(0)
        assert opened.read() == before, "who reads the old file goes on reading the old file, whole"
        assert os.fstat(opened.fileno()).st_ino != index.stat().st_ino
    assert not list((tmp_path / "store").glob("index.json.*"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schemaVersion":2}', b"\xff\xfe", None])
def test_an_unreadable_index_taken_as_empty(tmp_path: Path, content: bytes | None) -> None:
    image = build_image()
    write_layout(tmp_path / "store", {NAME: image})
    write_archive(tmp_path / "a.tar", build_image(salt="another"))
    index = tmp_path / "store" / "index.json"
    index.unlink()
    if content is not None:
        index.write_bytes(content)
    before = files_below(tmp_path / "store")
    store = Store(tmp_path / "store")
    for action in (
        store.images,
        store.prune,
        lambda: store.load(tmp_path / "a.tar"),
        lambda: store.tag(NAME, "second:1"),
        lambda: store.remove(NAME),
    ):
        with pytest.raises(StoreDamaged, match=r"index\.json"):
            action()
    assert files_below(tmp_path / "store") == before


@pytest.mark.parametrize("harm", ["truncated", "other bytes", "gone", "no permission to be a file"])
def test_sweep_after_an_unreadable_manifest(tmp_path: Path, harm: str) -> None:
    image = build_image()
    write_layout(tmp_path / "store", {NAME: image, "whole:1": build_image(salt="whole")})
    dead = b"nothing needs this"
    blob_path(tmp_path / "store", f"sha256:{hashlib.sha256(dead).hexdigest()}").write_bytes(dead)
    manifest = blob_path(tmp_path / "store", image.digest)
    manifest.chmod(0o600)
    content = manifest.read_bytes()
    manifest.unlink()
    if harm == "truncated":
        manifest.write_bytes(content[:-1])
    elif harm == "other bytes":
        manifest.write_bytes(content[:-1] + b" ")
    elif harm != "gone":
        manifest.mkdir()
    before = files_below(tmp_path / "store")
    with pytest.raises((StoreDamaged, IncompleteImage), match=image.digest.removeprefix("sha256:")):
        Store(tmp_path / "store").prune()
    assert files_below(tmp_path / "store") == before


def test_null_for_an_empty_list(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "daemon") as daemon:
        assert daemon.get("/images").body == b"[]"


def test_names_with_slashes_that_cannot_be_saved_or_removed(tmp_path: Path) -> None:
    name = "registry.example.org:5000/team/sub/app:1"
    write_layout(tmp_path / "root", {name: build_image()})
    environment = {"MINIBOX_ARCHIVE_PREFIXES": str(tmp_path)}
    with running_daemon(tmp_path / "daemon", data_root=tmp_path / "root", environment=environment) as daemon:
        saved = daemon.request("POST", "/images/save", {"image": name, "path": str(tmp_path / "a.tar")})
        assert (saved.status, saved.text) == (200, f"Saved image {name} to {tmp_path / 'a.tar'}\n")
        removed = daemon.post("/images/remove", image=name)
        assert (removed.status, removed.text) == (200, f"Image {name} removed\n")
        loaded = daemon.request("POST", "/images/load", {"path": str(tmp_path / "a.tar")})
        assert (loaded.status, loaded.text) == (200, f"Loaded image {name} from {tmp_path / 'a.tar'}\n")
        assert [image["name"] for image in daemon.get("/images").json()] == [name]


def test_the_sidecars_of_live_layers_swept(tmp_path: Path) -> None:
    image = build_image()
    write_layout(tmp_path / "store", {NAME: image})
    live = blob_path(tmp_path / "store", image.layer_digests[0])
    live.with_name(live.name + ".index.json").write_bytes(b"{}")
    dead = live.with_name("ab" * 32 + ".index.json")
    dead.write_bytes(b"{}")
    report = Store(tmp_path / "store").prune()
    assert live.with_name(live.name + ".index.json").exists()
    assert not dead.exists()
    assert report.blobs_removed == 0


def test_what_the_older_daemon_saved_is_loaded(tmp_path: Path) -> None:
    image = build_image()
    write_archive(tmp_path / "a.tar", image)
    (loaded,) = Store(tmp_path / "store").load(tmp_path / "a.tar")
    assert (loaded.name, str(loaded.digest)) == (NAME, image.digest)
    assert not list((tmp_path / "store").rglob("*.index.json"))


def test_every_refusal_is_one_sentence_on_one_line(tmp_path: Path) -> None:
    hostile = "a\n[pull] Done"
    with pytest.raises(StoreError) as caught:
        Store(tmp_path).get(hostile)
    assert "\n" not in str(caught.value)
