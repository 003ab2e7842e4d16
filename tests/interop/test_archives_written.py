"""What is saved here is read by skopeo, podman, Docker, containerd, umoci and three tars, with every digest."""

import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from minibox_store import Digest, Platform
from tests.support.builders import Builder, opening_builder
from tests.support.engines import Containerd, Docker, running_containerd, running_docker
from tests.support.foreign_archives import APP, ARM64, IMAGE, INDEX, OTHER, SECOND
from tests.support.forks import run_as_user
from tests.support.images import BuiltImage, build_image, digest_of, random_layer
from tests.support.layouts import blob_path, read_layout_blobs, read_layout_names, write_layout
from tests.support.peers import require_peer, run_peer, run_skopeo, run_umoci
from tests.support.processes import plain_environment
from tests.support.stores import open_store, require_root
from tests.support.tar_tools import TOOLS, extract, list_names

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Format = Literal["minibox", "oci", "docker", "both"]
FORMATS: list[Format] = ["minibox", "oci", "docker", "both"]
COMPRESSIONS: list[Literal["zstd"] | None] = [None, "zstd"]
KIBIBYTE = 1024
PLAIN_NAME = "localhost:5000/plain:3"
INDEX_NAME = "example.org/team/index:4"
# Layers that are no multiple of a block of 4 KiB, on both sides of the size from which they are aligned.
PLAIN = build_image([random_layer(size_bytes) for size_bytes in (63 * KIBIBYTE, 64 * KIBIBYTE + 512, 300 * KIBIBYTE)])
IMAGES = {APP: IMAGE, OTHER: SECOND, PLAIN_NAME: PLAIN}
ALIGNED_FROM_BYTES = 64 * KIBIBYTE


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a store once: nobody changes it."""
    layout = tmp_path_factory.mktemp("source") / "store"
    write_layout(layout, {**IMAGES, INDEX_NAME: INDEX})
    return layout


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    with running_docker() as running:
        yield running


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    with running_containerd() as running:
        yield running


@pytest.fixture
def builder() -> Iterator[Builder]:
    with opening_builder("vfs") as opened:
        yield opened


# ---- tars


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("archive_format", FORMATS)
def test_a_tar_lists_and_extracts_every_form(tool: str, archive_format: Format, source: Path, tmp_path: Path) -> None:
    names = [PLAIN_NAME] if archive_format == "minibox" else list(IMAGES)
    archive = tmp_path / "archive.tar"
    open_store(source).save(names, archive, format=archive_format)
    files = extract(tool, archive, tmp_path / "extracted")
    folders = [] if archive_format == "minibox" else ["blobs", "blobs/sha256"]
    assert sorted(name.rstrip("/") for name in list_names(tool, archive)) == sorted([*folders, *files])
    blobs = {name: content for name, content in files.items() if name.startswith("blobs/")}
    assert blobs == expected_blobs(names, documents=archive_format != "docker")
    controls = {
        "minibox": {"meta.json"},
        "oci": {"oci-layout", "index.json"},
        "docker": {"manifest.json", "repositories"},
        "both": {"oci-layout", "index.json", "manifest.json", "repositories"},
    }
    assert set(files) - set(blobs) == controls[archive_format]


@pytest.mark.parametrize("archive_format", FORMATS)
def test_large_members_begin_at_a_block_of_a_disk(archive_format: Format, source: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar"
    open_store(source).save(PLAIN_NAME, archive, format=archive_format)
    with tarfile.open(archive, "r:") as opened:
        members = opened.getmembers()
    large = [member for member in members if member.size >= ALIGNED_FROM_BYTES]
    assert len(large) == 2
    assert [member.offset_data % 4096 for member in large] == [0, 0]
    assert not any(member.pax_headers for member in members if member not in large)


@pytest.mark.parametrize("archive_format", FORMATS)
def test_zstd_and_two_tars_decompress_it_to_the_very_same(archive_format: Format, source: Path, tmp_path: Path) -> None:
    plain, compressed = tmp_path / "archive.tar", tmp_path / "archive.tar.zst"
    open_store(source).save(PLAIN_NAME, plain, format=archive_format)
    open_store(source).save(PLAIN_NAME, compressed, format=archive_format, compress="zstd")
    assert zstd.decompress(compressed.read_bytes()) == plain.read_bytes()
    environment = plain_environment(tmp_path)
    run_peer([require_peer("zstd"), "-q", "-d", str(compressed), "-o", str(tmp_path / "decompressed")], environment)
    assert (tmp_path / "decompressed").read_bytes() == plain.read_bytes()
    for program in (["tar", "--zstd"], ["bsdtar"]):
        listed = run_peer([require_peer(program[0]), *program[1:], "-tf", str(compressed)], environment)
        assert [name.rstrip("/") for name in listed.splitlines()] == list_names("tarfile", plain)


# ---- tools for images


@pytest.mark.parametrize("compress", COMPRESSIONS)
@pytest.mark.parametrize("archive_format", ["oci", "both"])
def test_skopeo_reads_an_oci_archive_with_every_digest(
    archive_format: Format, compress: Literal["zstd"] | None, source: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "archive.tar"
    open_store(source).save(list(IMAGES), archive, format=archive_format, compress=compress)
    for number, (name, image) in enumerate(IMAGES.items()):
        layout = tmp_path / f"layout-{number}"
        run_skopeo("copy", "--preserve-digests", f"oci-archive:{archive}:{name}", f"oci:{layout}:copied")
        assert read_layout_names(layout)["copied"]["digest"] == image.digest
        assert read_layout_blobs(layout) == image.blobs


@pytest.mark.parametrize("archive_format", ["oci", "both"])
def test_skopeo_reads_it_as_a_user_too(archive_format: Format, source: Path) -> None:
    require_root()
    require_peer("skopeo")  # the process that becomes a user cannot skip the test
    content = io.BytesIO()
    open_store(source).save(PLAIN_NAME, content, format=archive_format)

    def read(folder: Path) -> None:
        (folder / "archive.tar").write_bytes(content.getvalue())
        # It extracts the archive, and who is not root gives nothing away that it makes for that.
        run_skopeo("copy", "--preserve-digests", f"oci-archive:{folder}/archive.tar", f"oci:{folder}/layout:copied")
        assert read_layout_blobs(folder / "layout") == PLAIN.blobs

    assert run_as_user(read) == 0


def test_skopeo_reads_all_platforms_of_an_index(source: Path, tmp_path: Path) -> None:
    open_store(source).save(INDEX_NAME, tmp_path / "archive.tar", format="oci")
    target = f"oci:{tmp_path / 'layout'}:copied"
    run_skopeo("copy", "--all", "--preserve-digests", f"oci-archive:{tmp_path / 'archive.tar'}:{INDEX_NAME}", target)
    assert read_layout_blobs(tmp_path / "layout") == INDEX.blobs


@pytest.mark.parametrize("compress", COMPRESSIONS)
@pytest.mark.parametrize("archive_format", ["docker", "both"])
def test_skopeo_reads_a_docker_archive_with_the_digests_of_configs_and_what_layers_are(
    archive_format: Format, compress: Literal["zstd"] | None, source: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "archive.tar"
    open_store(source).save(list(IMAGES), archive, format=archive_format, compress=compress)
    for number, (name, image) in enumerate(IMAGES.items()):
        layout = tmp_path / f"layout-{number}"
        source_name = f"docker-archive:{archive}:{name}"
        run_skopeo("copy", "--dest-oci-accept-uncompressed-layers", source_name, f"oci:{layout}:copied")
        manifest = json.loads(blob_path(layout, read_layout_names(layout)["copied"]["digest"]).read_bytes())
        assert manifest["config"]["digest"] == image.config_digest
        found = [blob_path(layout, layer["digest"]).read_bytes() for layer in manifest["layers"]]
        assert [digest_of(layer) for layer in found] == diff_ids(image)


@pytest.mark.parametrize("compress", COMPRESSIONS)
@pytest.mark.parametrize("archive_format", ["oci", "docker", "both"])
def test_podman_loads_what_is_saved(
    archive_format: Format, compress: Literal["zstd"] | None, source: Path, builder: Builder, tmp_path: Path
) -> None:
    archive = tmp_path / "archive.tar"
    # Of an OCI archive podman takes one image alone.
    names = [PLAIN_NAME] if archive_format == "oci" else list(IMAGES)
    open_store(source).save(names, archive, format=archive_format, compress=compress)
    builder.load(archive)
    assert builder.configs() == {name: IMAGES[name].config_digest for name in names}
    for name in names:
        assert builder.layers(name) == diff_ids(IMAGES[name])


@pytest.mark.parametrize("archive_format", ["docker", "both"])
def test_docker_loads_what_is_saved(archive_format: Format, source: Path, docker: Docker, tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar"
    open_store(source).save(list(IMAGES), archive, format=archive_format)
    docker.load(archive)
    assert docker.configs() == {name: image.config_digest for name, image in IMAGES.items()}
    for name, image in IMAGES.items():
        assert docker.layers(name) == diff_ids(image)
    docker.run("image", "rm", *IMAGES)
    assert docker.configs() == {}


@pytest.mark.parametrize("archive_format", ["oci", "both"])
def test_containerd_imports_what_is_saved_with_every_digest(
    archive_format: Format, source: Path, containerd: Containerd, tmp_path: Path
) -> None:
    archive = tmp_path / "archive.tar"
    open_store(source).save(list(IMAGES), archive, format=archive_format)
    containerd.load(archive)
    assert containerd.roots() == {name: image.digest for name, image in IMAGES.items()}
    assert containerd.digests() >= {digest for image in IMAGES.values() for digest in image.blobs}
    containerd.run("images", "remove", "--sync", *IMAGES)
    assert containerd.digests() == set()


def test_containerd_imports_what_docker_would(source: Path, containerd: Containerd, tmp_path: Path) -> None:
    open_store(source).save(list(IMAGES), tmp_path / "archive.tar", format="docker")
    containerd.load(tmp_path / "archive.tar")
    assert sorted(containerd.roots()) == sorted(IMAGES)
    assert containerd.digests() >= {image.config_digest for image in IMAGES.values()}
    containerd.run("images", "remove", "--sync", *IMAGES)


def test_umoci_reads_the_layout_that_an_oci_archive_is(source: Path, tmp_path: Path) -> None:
    archive, layout = tmp_path / "archive.tar", tmp_path / "layout"
    open_store(source).save([INDEX_NAME, APP], archive, format="oci", platform=Platform.parse("linux/amd64"))
    extract("GNU tar", archive, layout)
    assert sorted(run_umoci("ls", "--layout", layout).split()) == sorted([INDEX_NAME, APP])
    run_umoci("raw", "unpack", "--rootless", "--image", f"{layout}:{APP}", tmp_path / "root")
    assert (tmp_path / "root/bin/tool").read_bytes() == bytes(range(256)) * 300


def test_one_platform_of_an_index_is_what_docker_loads(source: Path, docker: Docker, tmp_path: Path) -> None:
    arm64 = Platform.parse("linux/arm64")
    open_store(source).save(INDEX_NAME, tmp_path / "a.tar", format="docker", platform=arm64)
    docker.load(tmp_path / "a.tar")
    assert docker.configs() == {INDEX_NAME: ARM64.config_digest}
    docker.run("image", "rm", INDEX_NAME)


@pytest.mark.parametrize("archive_format", ["docker", "both"])
def test_a_name_of_docker_hub_is_the_same_to_all(
    archive_format: Format, docker: Docker, containerd: Containerd, builder: Builder, tmp_path: Path
) -> None:
    write_layout(tmp_path / "store", {"app:5": IMAGE})
    archive, canonical = tmp_path / "archive.tar", "docker.io/library/app:5"
    open_store(tmp_path / "store").save("app:5", archive, format=archive_format)
    docker.load(archive)
    containerd.load(archive)
    builder.load(archive)
    assert docker.configs() == {"app:5": IMAGE.config_digest}
    # By the tags of Docker's form podman goes as it does with what Docker saves: a name without a host is of here.
    by_podman = "localhost/app:5" if archive_format == "docker" else canonical
    assert builder.configs() == {by_podman: IMAGE.config_digest}
    assert list(containerd.roots()) == [canonical]
    assert json.loads(run_skopeo("inspect", "--config", f"docker-archive:{archive}:app:5")) == json.loads(
        IMAGE.blobs[IMAGE.config_digest]
    )
    docker.run("image", "rm", "app:5")
    containerd.run("images", "remove", "--sync", canonical)


def expected_blobs(names: list[str], *, documents: bool) -> dict[str, bytes]:
    """Return the members that the blobs of images are."""
    images = [IMAGES[name] for name in names]
    return {
        f"blobs/{digest.replace(':', '/')}": content
        for image in images
        for digest, content in image.blobs.items()
        if documents or digest not in image.document_digests
    }


def diff_ids(image: BuiltImage) -> list[str]:
    """Return the digests of the layers of an image, decompressed."""
    config = json.loads(image.blobs[image.config_digest])
    return [str(Digest.parse(each)) for each in config["rootfs"]["diff_ids"]]
