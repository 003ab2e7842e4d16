"""The merged view of random layers against the tree that they unpack to: entry by entry, and refusal by refusal.

Many more layers are tried where MINIBOX_DEEP is 1.
"""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibox_store import InvalidArchive
from tests.support.hard_layers import folder, image_of, member, opaque, whiteout
from tests.support.image_views import view_tree
from tests.support.stores import open_store, put, require_root
from tests.support.trees import assert_same_tree, read_tree
from tests.support.trials import DEEP, trial_count

# Few names, so that members meet one another.
_PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
_TARGETS = st.lists(st.sampled_from(["a", "b", "c", "..", ".", ""]), min_size=1, max_size=4).map("/".join)
_MEMBERS = st.one_of(
    st.builds(lambda path, content: member(path, content=content), _PATHS, st.binary(max_size=3)),
    st.builds(lambda path, mode: folder(path, mode=mode), _PATHS, st.sampled_from([0o700, 0o755])),
    st.builds(lambda path, target: member(path, "link", target=target or "/"), _PATHS, _TARGETS),
    st.builds(lambda path, target: member(path, "hard link", target=target), _PATHS, _PATHS),
    st.builds(lambda path: member(path, "FIFO"), _PATHS),
    st.builds(whiteout, _PATHS),
    st.builds(opaque, _PATHS),
)
_LAYERS = st.lists(st.lists(_MEMBERS, max_size=6), min_size=1, max_size=4)


@pytest.mark.timeout(900 if DEEP else 120)
@settings(max_examples=trial_count(100, 1000), deadline=None)
@given(_LAYERS)
def test_random_layers_show_what_they_unpack_to(layers: list[list[bytes]]) -> None:
    require_root()
    root = Path(tempfile.mkdtemp(prefix="minibox-view-"))
    try:
        put(root / "store", image_of(layers), "random:1")
        store = open_store(root / "store")
        refusal = None
        try:
            store.unpack("random:1", root / "tree")
        except InvalidArchive as error:
            refusal = error
        try:
            with store.open_files("random:1") as image:
                assert refusal is None, f"the tree was refused: {refusal}"
                assert_same_tree(read_tree(root / "tree"), view_tree(image))
        except InvalidArchive:
            assert refusal is not None
    finally:
        shutil.rmtree(root)
