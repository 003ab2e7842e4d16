"""Images that buildah has built and podman has saved are unpacked to what their containers have mounted.

The storage driver ``overlay`` gives layers of what a real overlay mount keeps, opaque directories among them, and
``vfs`` those that a comparison of two trees gives.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from attrs import frozen

from tests.support.builders import Builder, opening_builder
from tests.support.hard_layers import OPAQUE
from tests.support.layer_contents import layer_names
from tests.support.peers import run_skopeo, run_umoci
from tests.support.planted_trees import change, mark, plant
from tests.support.served_trees import require_fuse
from tests.support.stores import open_store
from tests.support.trees import TreeEntry, assert_same_tree, read_tree

_NAME = "localhost/changed:latest"


@frozen(kw_only=True)
class Built:
    """What a test is given: who has built the image, and what a container of it has mounted."""

    builder: Builder
    tree: dict[str, TreeEntry]


@pytest.fixture(scope="module", params=["overlay", "vfs"])
def built(request: pytest.FixtureRequest) -> Iterator[Built]:
    """Build the image once: nobody changes it."""
    with opening_builder(request.param) as builder:
        yield Built(builder=builder, tree=build(builder))


@pytest.mark.parametrize("form", ["oci-dir", "oci-archive", "docker-archive"])
def test_what_podman_saved_is_unpacked_to_what_the_container_has(tmp_path: Path, built: Built, form: str) -> None:
    save(built.builder, form, tmp_path / "layout")
    open_store(tmp_path / "layout").unpack(_NAME, tmp_path / "tree")
    expected = dict(built.tree)
    if built.builder.driver == "overlay":
        # An overlay shows how many names the lower file has: one of them is another file above.
        expected["usr/bin/sudo"] = replace(expected["usr/bin/sudo"], link_count=1)
    assert_same_tree(without_root(read_tree(tmp_path / "tree")), expected)
    names = {name for layer in layer_names(tmp_path / "layout", _NAME) for name in layer}
    # What the images are built for: were they not in the layers, nothing would have been compared.
    assert "etc/.wh.shadow" in names
    assert (f"names/{OPAQUE}" in names) == (built.builder.driver == "overlay")


def test_umoci_unpacks_what_podman_saved_to_the_same(tmp_path: Path, built: Built) -> None:
    save(built.builder, "oci-dir", tmp_path / "layout")
    run_umoci("raw", "unpack", "--image", f"{tmp_path / 'layout'}:{_NAME}", tmp_path / "umoci")
    open_store(tmp_path / "layout").unpack(_NAME, tmp_path / "ours")
    assert_same_tree(read_tree(tmp_path / "ours"), read_tree(tmp_path / "umoci"))


def test_a_mount_of_what_podman_saved_shows_the_unpacked_tree(tmp_path: Path, built: Built) -> None:
    require_fuse()
    save(built.builder, "oci-dir", tmp_path / "layout")
    (tmp_path / "mounted").mkdir()
    store = open_store(tmp_path / "layout")
    store.unpack(_NAME, tmp_path / "ours")
    with store.mount(_NAME, tmp_path / "mounted"):
        assert_same_tree(read_tree(tmp_path / "mounted"), read_tree(tmp_path / "ours"))


def build(builder: Builder) -> dict[str, TreeEntry]:
    """Build an image of a planted tree and a layer of changes, and return what a container of it has mounted."""
    with builder.container() as (container, root):
        # Neither nanoseconds nor xattrs of root's own get into its layers.
        plant(root, plain=True)
        mark(root, trusted=False)
        builder.commit(container, "base")
    with builder.container("base") as (container, root):
        change(root)
        changed = without_root(read_tree(root))
        builder.commit(container, _NAME)
    with builder.container(_NAME) as (_, root):
        committed = without_root(read_tree(root))
    # The times of what was changed just now are cut to seconds on the way.
    assert_same_tree(committed, changed, but=("mtime_nanoseconds",))
    return committed


def save(builder: Builder, form: str, layout: Path) -> None:
    """Save the image in a form, and make a layout of it."""
    if form == "oci-dir":
        builder.save(_NAME, form, layout)
        return
    archive = layout.with_suffix(".tar")
    builder.save(_NAME, form, archive)
    run_skopeo("copy", f"{form}:{archive}", f"oci:{layout}:{_NAME}")


def without_root(tree: dict[str, TreeEntry]) -> dict[str, TreeEntry]:
    """Return a tree without its root, which no layer of a builder names: it has the time of its mounting."""
    return {path: entry for path, entry in tree.items() if path != "."}
