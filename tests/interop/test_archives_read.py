"""Archives of skopeo, podman, Docker, containerd and umoci are loaded, with every digest that they keep."""

import gzip
import json
from pathlib import Path

import pytest

from minibox_store import InvalidArchive, Platform, Store
from tests.support.archives import piped
from tests.support.foreign_archives import (
    APP,
    ARM64,
    IMAGE,
    INDEX,
    KINDS,
    Foreign,
    write_archive,
    write_nameless_archive,
    write_sparse_archive,
)
from tests.support.images import digest_of
from tests.support.invariants import check_invariants
from tests.support.layouts import blob_path, read_layout_blobs, read_layout_names
from tests.support.peers import require_peer, run_peer
from tests.support.processes import plain_environment
from tests.support.stores import open_store

COMPRESSORS = {"gzip": ("gzip", "-k", "-n"), "zstd": ("zstd", "-q"), "xz": ("xz", "-k"), "xz, threads": ("xz", "-kT2")}


@pytest.fixture(scope="module", params=KINDS)
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    """Have a tool write its archive once: nobody changes it."""
    return write_archive(request.param, tmp_path_factory.mktemp("foreign"))


@pytest.mark.parametrize("way", ["file", "pipe"])
def test_what_a_tool_wrote_is_loaded_whole_under_its_names(foreign: Foreign, way: str, tmp_path: Path) -> None:
    load(foreign.path, tmp_path / "store", by_pipe=way == "pipe")
    check_loaded(tmp_path / "store", foreign)


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_what_a_tool_wrote_and_another_compressed_is_loaded(foreign: Foreign, compressor: str, tmp_path: Path) -> None:
    compressed = compress(compressor, foreign.path, tmp_path)
    for way in ("file", "pipe"):
        load(compressed, tmp_path / way, by_pipe=way == "pipe")
        check_loaded(tmp_path / way, foreign)


def test_what_a_tool_wrote_becomes_the_same_image_each_time(foreign: Foreign, tmp_path: Path) -> None:
    for name in ("first", "second"):
        load(foreign.path, tmp_path / name, by_pipe=name == "second")
    first, second = (read_layout_names(tmp_path / name) for name in ("first", "second"))
    assert first == second
    assert read_layout_blobs(tmp_path / "first") == read_layout_blobs(tmp_path / "second")


def test_a_store_that_loaded_everything_keeps_what_it_had(foreign: Foreign, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    load(foreign.path, tmp_path / "store", by_pipe=False)
    before = store.images()
    load(foreign.path, tmp_path / "store", by_pipe=False)
    assert store.images() == before
    assert all(not finding.is_damage for finding in store.verify())


def test_of_an_index_of_which_a_tool_left_platforms_out_the_missing_are_named(tmp_path: Path) -> None:
    archive = write_sparse_archive(tmp_path)
    store = open_store(tmp_path / "store")
    with pytest.raises(InvalidArchive, match="linux/arm64") as caught:
        store.load(archive)
    assert ARM64.digest in map(str, caught.value.missing)
    assert store.images() == ()
    (image,) = store.load(archive, platform=Platform.parse("linux/amd64"))
    assert (image.name, str(image.digest)) == (APP, IMAGE.digest)
    (present,) = open_store(tmp_path / "present").load(archive, platform="present")
    assert str(present.digest) != INDEX.digest
    for root in ("store", "present"):
        check_invariants(tmp_path / root)


@pytest.mark.parametrize("kind", ["docker", "docker-archive", "oci-archive"])
def test_an_image_to_which_a_tool_gave_no_name_gets_one_or_is_refused(kind: str, tmp_path: Path) -> None:
    archive = write_nameless_archive(kind, tmp_path)
    store = open_store(tmp_path / "store")
    with pytest.raises(InvalidArchive, match="name"):
        store.load(archive)
    asked: list[str] = []

    def name(archived: str) -> str:
        asked.append(archived)
        return "given:1"

    (image,) = store.load(archive, names=name)
    assert (image.name, asked) == ("given:1", [""])
    check_loaded(tmp_path / "store", Foreign(path=archive, configs={"given:1": IMAGE.config_digest}))


def load(archive: Path, root: Path, *, by_pipe: bool) -> None:
    store: Store = open_store(root)
    if not by_pipe:
        store.load(archive)
        return
    with piped(archive.read_bytes()) as pipe:
        store.load(pipe)


def compress(compressor: str, archive: Path, folder: Path) -> Path:
    """Return the archive as a compressor gives it."""
    copy = folder / "archive.tar"
    copy.write_bytes(archive.read_bytes())
    program, *options = COMPRESSORS[compressor]
    run_peer([require_peer(program), *options, str(copy)], plain_environment(folder))
    (compressed,) = folder.glob("archive.tar.*")
    return compressed


def check_loaded(root: Path, foreign: Foreign) -> None:
    """Check that a store has what an archive says, and nothing but that."""
    check_invariants(root)
    found = {name: str(entry["digest"]) for name, entry in read_layout_names(root).items()}
    assert sorted(found) == sorted({*foreign.roots, *foreign.configs})
    assert {name: found[name] for name in foreign.roots} == foreign.roots
    configs = {name: check_image(root, found[name]) for name in foreign.configs}
    assert configs == foreign.configs
    reached = {digest for root_digest in found.values() for digest in reach(root, root_digest)}
    assert set(read_layout_blobs(root)) == reached


def check_image(root: Path, digest: str) -> str:
    """Check the layers of an image against its config, and return the digest of that."""
    manifest = json.loads(blob_path(root, digest).read_bytes())
    config = json.loads(blob_path(root, manifest["config"]["digest"]).read_bytes())
    layers = [blob_path(root, layer["digest"]).read_bytes() for layer in manifest["layers"]]
    assert [digest_of(decompressed(layer)) for layer in layers] == config["rootfs"]["diff_ids"]
    for layer, descriptor in zip(layers, manifest["layers"], strict=True):
        assert len(layer) == descriptor["size"]
        assert descriptor["mediaType"].endswith("gzip") == (layer[:2] == b"\x1f\x8b")
    return str(manifest["config"]["digest"])


def decompressed(layer: bytes) -> bytes:
    return gzip.decompress(layer) if layer[:2] == b"\x1f\x8b" else layer


def reach(root: Path, digest: str) -> set[str]:
    """Return the digests of all blobs of a graph."""
    document = json.loads(blob_path(root, digest).read_bytes())
    if "manifests" in document:
        return {digest}.union(*(reach(root, entry["digest"]) for entry in document["manifests"]))
    return {digest, document["config"]["digest"], *(layer["digest"] for layer in document["layers"])}
