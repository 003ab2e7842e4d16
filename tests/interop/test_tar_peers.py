"""An archive is the same to GNU tar, bsdtar and tarfile as to this project: what it wrote, and what they packed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from minibox_store import InvalidArchive, Store
from tests.support.archives import blob_name, piped
from tests.support.foreign_archives import APP, Foreign, write_archive
from tests.support.images import BuiltImage, build_image, build_index, random_layer
from tests.support.layouts import read_layout_blobs, read_layout_names, write_layout
from tests.support.stores import open_store
from tests.support.tar_tools import FORMATS, SHORT_NAMES, TOOLS, extract, list_names, pack

NAME = "example.org/team/app:1"
KIBIBYTE = 1024
# Blobs of the sizes at which their data is aligned, or is not.
LAYERS = [random_layer(size_bytes) for size_bytes in (63 * KIBIBYTE, 64 * KIBIBYTE, 200 * KIBIBYTE)]
IMAGE = build_image(LAYERS)
OTHER = build_image([LAYERS[1], {"etc/release": b"1"}], docker=True)
IMAGES = {
    "one platform": IMAGE,
    "several platforms": build_index([IMAGE, build_image(platform="linux/arm64")]),
    "sha512": build_image(LAYERS, algorithm="sha512"),
}
PACKED = [
    pytest.param(tool, tar_format, image, id=f"{tool} {tar_format}, {kind}")
    for tool in TOOLS
    for tar_format in FORMATS[tool]
    for kind, image in IMAGES.items()
    if kind != "sha512" or tar_format not in SHORT_NAMES
]


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("tool", TOOLS)
def test_what_is_saved_is_listed_and_extracted_by_others(tool: str, image: BuiltImage, tmp_path: Path) -> None:
    archive = saved(image, tmp_path)
    files = extract(tool, archive, tmp_path / "extracted")
    assert list_names(tool, archive)[0] == "meta.json"
    assert sorted(list_names(tool, archive)) == sorted(files)
    assert json.loads(files.pop("meta.json"))["manifest_digest"] == image.digest
    assert files == {blob_name(digest): content for digest, content in image.blobs.items()}


@pytest.mark.parametrize(("tool", "tar_format", "image"), PACKED)
def test_what_others_pack_is_loaded(tool: str, tar_format: str, image: BuiltImage, tmp_path: Path) -> None:
    names = [*extract("tarfile", saved(image, tmp_path), tmp_path / "extracted")]
    orders: dict[str, Callable[[], list[str]]] = {
        "sorted": lambda: sorted(names),
        "the other way round": lambda: sorted(names, reverse=True),
        "the whole folder": lambda: ["."],
        "each with a dot before it": lambda: [f"./{name}" for name in sorted(names)],
        "the folder of the blobs first": lambda: ["blobs", *sorted(name for name in names if "/" not in name)],
    }
    for order, chosen in orders.items():
        archive = pack(tool, tar_format, tmp_path / "extracted", chosen(), tmp_path / f"{order}.tar")
        for way in ("file", "pipe"):
            check_loaded(archive, tmp_path / f"{order}, {way}", image, by_pipe=way == "pipe")


@pytest.mark.parametrize("archive_format", ["oci", "docker", "both"])
@pytest.mark.parametrize(("tool", "tar_format"), [(tool, each) for tool in TOOLS for each in FORMATS[tool]])
def test_every_form_that_others_pack_anew_is_loaded(
    tool: str, tar_format: str, archive_format: Literal["oci", "docker", "both"], tmp_path: Path
) -> None:
    images = {NAME: IMAGE, "example.org/team/other:2": OTHER}
    write_layout(tmp_path / "source", images)
    store = open_store(tmp_path / "source")
    store.save(list(images), tmp_path / "saved.tar", format=archive_format)
    names = sorted(extract("tarfile", tmp_path / "saved.tar", tmp_path / "extracted"))
    for number, chosen in enumerate((["."], names, names[::-1])):
        archive = pack(tool, tar_format, tmp_path / "extracted", chosen, tmp_path / f"{number}.tar")
        for way in ("file", "pipe"):
            root = tmp_path / f"{number}, {way}"
            load(archive, root, by_pipe=way == "pipe")
            open_store(root).save(list(images), tmp_path / "again.tar", format=archive_format)
            assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "saved.tar").read_bytes()


@pytest.fixture(scope="module")
def docker_archive(tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    """Have skopeo write an archive in which members are links to others."""
    return write_archive("skopeo, docker-archive", tmp_path_factory.mktemp("foreign"))


@pytest.mark.parametrize("links", ["symbolic", "hard"])
@pytest.mark.parametrize(("tool", "tar_format"), [(tool, each) for tool in TOOLS for each in FORMATS[tool]])
def test_a_docker_archive_that_others_pack_anew_is_loaded_with_its_links(
    tool: str, tar_format: str, links: str, docker_archive: Foreign, tmp_path: Path
) -> None:
    tree = tmp_path / "extracted"
    extract(tool, docker_archive.path, tree)
    made = [path for path in tree.rglob("layer.tar") if path.is_symlink()]
    assert len(made) == 3
    if links == "hard":
        for path in made:
            target = path.resolve()
            path.unlink()
            path.hardlink_to(target)
    # The links come before what they lead to, or after it.
    first = sorted(path.name for path in tree.iterdir() if path.is_dir())
    last = sorted(path.name for path in tree.iterdir() if path.is_file())
    for number, names in enumerate([["."], first + last, last + first]):
        archive = pack(tool, tar_format, tree, names, tmp_path / f"{number}.tar")
        for way in ("file", "pipe"):
            root = tmp_path / f"{number}, {way}"
            load(archive, root, by_pipe=way == "pipe")
            (entry,) = read_layout_names(root).values()
            manifest = json.loads(read_layout_blobs(root)[entry["digest"]])
            assert manifest["config"]["digest"] == docker_archive.configs[APP]


@pytest.mark.parametrize("tool", TOOLS)
def test_what_others_pack_without_a_blob_is_refused(tool: str, tmp_path: Path) -> None:
    names = sorted(extract("tarfile", saved(IMAGE, tmp_path), tmp_path / "extracted"))
    lost = IMAGE.layer_digests[1]
    names.remove(blob_name(lost))
    archive = pack(tool, FORMATS[tool][0], tmp_path / "extracted", names, tmp_path / "packed.tar")
    with pytest.raises(InvalidArchive, match=lost):
        open_store(tmp_path / "store").load(archive)
    assert open_store(tmp_path / "store").images() == ()


def saved(image: BuiltImage, folder: Path) -> Path:
    """Return an archive of an image, written by the code under test."""
    write_layout(folder / "source", {NAME: image})
    archive = folder / "saved.tar"
    Store(folder / "source", durability="none").save(NAME, archive)
    return archive


def load(archive: Path, root: Path, *, by_pipe: bool) -> None:
    store: Store = open_store(root)
    if by_pipe:
        with piped(archive.read_bytes()) as pipe:
            store.load(pipe)
    else:
        store.load(archive)


def check_loaded(archive: Path, root: Path, image: BuiltImage, *, by_pipe: bool) -> None:
    load(archive, root, by_pipe=by_pipe)
    assert read_layout_blobs(root) == image.blobs
    assert {name: entry["digest"] for name, entry in read_layout_names(root).items()} == {NAME: image.digest}
