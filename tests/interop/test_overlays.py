"""A real overlay over ``store.rootfs`` shows the tree that ``store.unpack`` makes of the same image.

What an overlay cannot show, or what trees of single layers cannot know, is written down here with the reason.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from minibox_store import InvalidArchive
from tests.support.hard_layers import CASES, folder, image_of, member
from tests.support.layouts import write_layout
from tests.support.stores import mounted, open_store, require_root
from tests.support.trees import read_tree, tree_differences

# An overlay has an inode of its own for each name that lies in another layer than the other names of its file.
_NAMES_OF_ONE_FILE = ("same_file", "link_count")
# The tree of a single layer cannot know what is below it. So it makes the directories that its layer does not name as
# those are made that no layer names, and the overlay shows the uppermost: mode 0755, root's, and no time.
_UNNAMED = {
    "the time of a directory with members behind it": "one",
    "devices and FIFOs": "dev",
    "whiteouts": "etc",
    "a whiteout of what the same layer has": "etc",
    "a whiteout behind what the same layer has": "etc",
    "opaque directories in one another": "etc",
    "links": "a",
}
# For the same reason a member whose parent is a link in a lower layer lies in a directory of the link's name.
_LINKED = {
    "members through a linked parent": {
        *(
            (path, what)
            for path in ("absolute", "linked")
            for what in ("kind", "mode", "link_target", "mtime_nanoseconds")
        ),
        *((path, "entry") for path in ("absolute/third", "linked/below", "linked/second")),
        *((path, "entry") for path in ("real/below", "real/second", "real/third")),
    },
    "through a link that leads above the root": {
        *(("up", what) for what in ("kind", "mode", "link_target", "mtime_nanoseconds")),
        ("up/inside", "entry"),
        ("real/inside", "entry"),
    },
}
# An overlay lists the whiteouts of a directory that is in one layer alone, though it finds nothing there.
_LISTED = {("not", "entry"), ("not/there", "entry")}
_DIFFERENCES: dict[str, set[tuple[str, str]]] = {
    **{case: {(path, "mtime_nanoseconds")} for case, path in _UNNAMED.items()},
    **_LINKED,
}
_DIFFERENCES["whiteouts"] |= _LISTED
_DIFFERENCES["the root itself"] = {(".", what) for what in ("mode", "uid", "gid", "mtime_nanoseconds")}
# What these link to is in another layer, and so not in the tree that is made.
_REFUSED = ("hard links to lower layers", "long names by PAX")


@pytest.mark.parametrize("case", [case for case in CASES if case not in _REFUSED])
def test_an_overlay_shows_what_is_unpacked(tmp_path: Path, case: str) -> None:
    require_root()
    write_layout(tmp_path / "store", {"app:1": image_of(CASES[case])})
    store = open_store(tmp_path / "store")
    store.unpack("app:1", tmp_path / "tree")
    with overlay(tmp_path, store.rootfs("app:1")) as shown:
        seen = read_tree(shown)
    differences = tree_differences(seen, read_tree(tmp_path / "tree"), but=_NAMES_OF_ONE_FILE)
    told = "\n".join(map(str, differences))
    assert {(each.path, each.what) for each in differences} == _DIFFERENCES.get(case, set()), told


@pytest.mark.parametrize("case", _REFUSED)
def test_a_hard_link_to_what_a_lower_layer_has_is_refused_in_the_tree_of_one_layer(tmp_path: Path, case: str) -> None:
    write_layout(tmp_path / "store", {"app:1": image_of(CASES[case])})
    with pytest.raises(InvalidArchive, match="hard link"):
        open_store(tmp_path / "store").rootfs("app:1")


def test_a_store_with_a_name_full_of_separators_can_be_mounted(tmp_path: Path) -> None:
    require_root()
    root = tmp_path / "a:b,c\\d e"
    layers = [[folder("etc"), member(f"etc/{number}", content=b"%d" % number)] for number in range(8)]
    write_layout(root, {"app:1": image_of(layers)})
    with overlay(tmp_path, open_store(root).rootfs("app:1")) as shown:
        assert sorted(path.name for path in (shown / "etc").iterdir()) == [str(number) for number in range(8)]
        assert (shown / "etc/7").read_bytes() == b"7"


def test_images_share_the_trees_of_their_layers_and_a_mounted_one_is_changed_by_nobody(tmp_path: Path) -> None:
    require_root()
    base = [folder("etc"), member("etc/hosts", content=b"base")]
    images = {"one:1": image_of([base, [member("one")]]), "two:1": image_of([base, [member("two")]])}
    write_layout(tmp_path / "store", images)
    store = open_store(tmp_path / "store")
    with overlay(tmp_path, store.rootfs("one:1")) as shown:
        before = read_tree(shown)
        assert store.rootfs("two:1").rpartition(":")[2] == store.rootfs("one:1").rpartition(":")[2]
        assert read_tree(shown) == before


@contextmanager
def overlay(base: Path, lower: str) -> Iterator[Path]:
    """Mount an overlay of these lower directories, and an empty one below them: a single one may not be alone."""
    for name in ("bottom", "another"):
        (base / name).mkdir()
    plain = f"lowerdir={base / 'bottom'}:{base / 'another'}"
    with mounted(base / "shown", plain, kind="overlay", device="overlay"):
        pass
    options = f"lowerdir={lower}:{base / 'bottom'}"
    with mounted(base / "shown", options, kind="overlay", device="overlay", is_possible=True) as shown:
        yield shown
