"""The files of an image as they are looked at in its layers: the very ones that a tree would have, or an error."""

from pathlib import Path

import pytest

from tests.support.hard_layers import CASES, image_of
from tests.support.image_views import view_tree
from tests.support.stores import open_store, put, require_root
from tests.support.trees import assert_same_tree, read_tree


@pytest.mark.parametrize("case", CASES)
def test_an_image_shows_what_its_tree_has(tmp_path: Path, case: str) -> None:
    require_root()
    put(tmp_path / "store", image_of(CASES[case]), "hard:1")
    store = open_store(tmp_path / "store")
    store.unpack("hard:1", tmp_path / "tree")
    with store.open_files("hard:1") as image:
        assert_same_tree(read_tree(tmp_path / "tree"), view_tree(image))
    with store.open_files("hard:1") as image:  # now from what was kept
        assert_same_tree(read_tree(tmp_path / "tree"), view_tree(image))
