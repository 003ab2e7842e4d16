"""Layers that GNU tar and bsdtar have written of a real tree, compressed by anybody, come back as that tree."""

import gzip
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.hard_layers import CASES, image_of
from tests.support.images import OCI_LAYER, OCI_LAYER_GZIP, Layer, build_image, digest_of
from tests.support.layouts import read_layout_blobs, write_layout
from tests.support.peers import require_peer, run_skopeo
from tests.support.planted_trees import mark, plant, plant_sparse
from tests.support.processes import plain_environment
from tests.support.stores import open_store, require_root
from tests.support.tars import run_gnu_tar
from tests.support.trees import TreeEntry, assert_same_tree, read_tree

_OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_FIFTH_MEBIBYTE = 5 << 20
_GNU_FORMS = {
    "gnu": ["--format=gnu"],
    "ustar": ["--format=ustar"],
    "pax": ["--format=pax", "--xattrs", "--xattrs-include=*"],
}
_BSD_FORMS = {
    "gnutar": ["--format=gnutar"],
    "ustar": ["--format=ustar"],
    "pax": ["--format=pax", "--xattrs"],
    "restricted pax": ["--format=rpax", "--xattrs"],
}
_GNU_SPARSE_FORMS = {
    "gnu": ["--format=gnu"],
    "pax 0.0": ["--format=pax", "--sparse-version=0.0"],
    "pax 0.1": ["--format=pax", "--sparse-version=0.1"],
    "pax 1.0": ["--format=pax", "--sparse-version=1.0"],
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    require_root()
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("form", _GNU_FORMS)
def test_a_layer_of_gnu_tar_comes_back_as_the_tree_it_was_made_of(tmp_path: Path, source: Path, form: str) -> None:
    plant_for(source, form)
    tar = run_gnu_tar(source, "--create", "--numeric-owner", *_GNU_FORMS[form], ".")
    assert_comes_back(tmp_path, tar, source)


@pytest.mark.parametrize("form", _BSD_FORMS)
def test_a_layer_of_bsdtar_comes_back_as_the_tree_it_was_made_of(tmp_path: Path, source: Path, form: str) -> None:
    plant_for(source, form)
    tar = run_bsdtar(source, "--create", "--numeric-owner", *_BSD_FORMS[form], ".")
    assert_comes_back(tmp_path, tar, source)


@pytest.mark.parametrize("form", _GNU_SPARSE_FORMS)
def test_a_sparse_file_of_gnu_tar_comes_back_with_its_holes(tmp_path: Path, source: Path, form: str) -> None:
    plant_sparse_files(source)
    tar = run_gnu_tar(source, "--create", "--numeric-owner", "--sparse", *_GNU_SPARSE_FORMS[form], ".")
    assert len(tar) < _FIFTH_MEBIBYTE / 10
    assert_sparse(assert_comes_back(tmp_path, tar, source))


def test_a_sparse_file_of_bsdtar_comes_back_with_its_holes(tmp_path: Path, source: Path) -> None:
    plant_sparse_files(source)
    tar = run_bsdtar(source, "--create", "--numeric-owner", "--format=pax", ".")
    assert len(tar) < _FIFTH_MEBIBYTE / 10
    assert_sparse(assert_comes_back(tmp_path, tar, source))


@pytest.mark.parametrize(
    "case", ["an opaque directory with content of its own", "hard links to lower layers", "xattrs"]
)
def test_layers_that_skopeo_has_compressed_with_zstd_give_the_same_tree(tmp_path: Path, case: str) -> None:
    require_root()
    write_layout(tmp_path / "gzip", {"app:1": image_of(CASES[case])})
    ends = f"oci:{tmp_path / 'gzip'}:app:1", f"oci:{tmp_path / 'zstd'}:app:1"
    run_skopeo("copy", "--dest-compress", "--dest-compress-format", "zstd", *ends)
    assert any(blob.startswith(_ZSTD_MAGIC) for blob in read_layout_blobs(tmp_path / "zstd").values())
    assert_same_tree(unpacked(tmp_path / "zstd"), unpacked(tmp_path / "gzip"))


@pytest.mark.parametrize("how", ["zstd", "zstd in frames", "gzip", "gzip in members", "not at all"])
def test_a_layer_gives_the_same_tree_however_it_is_compressed(tmp_path: Path, source: Path, how: str) -> None:
    plant(source)
    tar = run_gnu_tar(source, "--create", "--numeric-owner", "--format=pax", ".")
    halves = tar[: len(tar) // 2], tar[len(tar) // 2 :]
    content, media_type = {
        "zstd": lambda: (run_compressor("zstd", tar), _OCI_LAYER_ZSTD),
        "zstd in frames": lambda: (b"".join(run_compressor("zstd", half) for half in halves), _OCI_LAYER_ZSTD),
        "gzip": lambda: (run_compressor("gzip", tar), OCI_LAYER_GZIP),
        "gzip in members": lambda: (b"".join(run_compressor("gzip", half) for half in halves), OCI_LAYER_GZIP),
        "not at all": lambda: (tar, OCI_LAYER),
    }[how]()
    layer = Layer(content=content, media_type=media_type, diff_id=digest_of(tar))
    write_layout(tmp_path / "store", {"app:1": build_image([layer])})
    assert_same_tree(unpacked(tmp_path / "store"), read_tree(source))


# ---- how


def plant_for(source: Path, form: str) -> None:
    """Plant what a form of tar has room for; the restricted one takes nanoseconds along with other records alone."""
    plant(source, plain=form != "pax")
    if "pax" in form:
        mark(source)


def plant_sparse_files(source: Path) -> None:
    plant_sparse(source / "sparse")
    with (source / "hole").open("wb") as file:
        file.truncate(_FIFTH_MEBIBYTE)
    (source / "full").write_bytes(b"data" * 1000)
    for path in (*source.iterdir(), source):
        # GNU's own form has no room for a fraction of a second.
        os.utime(path, (1_500_000_000, 1_500_000_000))


def assert_comes_back(folder: Path, tar: bytes, source: Path) -> Path:
    """Fail unless an image of one layer is unpacked to the tree of which the layer was made; return where it is."""
    layer = Layer(content=gzip.compress(tar, 1, mtime=0), media_type=OCI_LAYER_GZIP, diff_id=digest_of(tar))
    write_layout(folder / "store", {"app:1": build_image([layer])})
    assert_same_tree(unpacked(folder / "store"), read_tree(source))
    return folder / "tree"


def assert_sparse(tree: Path) -> None:
    """Fail unless what were holes are holes."""
    assert (tree / "hole").stat().st_blocks == 0
    assert (tree / "sparse").stat().st_blocks * 512 < (tree / "sparse").stat().st_size / 10


def unpacked(root: Path) -> dict[str, TreeEntry]:
    """Return what the image of a store becomes; it is unpacked beside the store."""
    tree = root.with_name("tree" if root.name == "store" else f"tree-{root.name}")
    open_store(root).unpack("app:1", tree)
    return read_tree(tree)


def run_bsdtar(folder: Path, *arguments: str) -> bytes:
    return run_with_bytes([require_peer("bsdtar"), *arguments], folder)


def run_compressor(program: str, content: bytes) -> bytes:
    return run_with_bytes([require_peer(program), "--stdout"], Path("/"), content)


def run_with_bytes(command: list[str], folder: Path, stdin: bytes = b"") -> bytes:
    environment = {**plain_environment(folder), "LC_ALL": "C.UTF-8", "TZ": "UTC0"}
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        command, cwd=folder, env=environment, input=stdin, stdout=subprocess.PIPE, check=True, timeout=60
    )
    return done.stdout
