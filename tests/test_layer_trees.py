"""Trees of single layers: each built once, whole or not at all, and together what overlayfs makes the image of."""

import ctypes
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minibox_store import ContentMismatch, Event, InvalidArchive, Store, StoreUnavailable, UnpackingLayer
from minibox_store.rootfs.layer_trees import lower_directories
from tests.properties.test_tree_properties import FILE_PATHS, MODES, OPAQUE, PATHS, WHITEOUTS, Model, Refused
from tests.support.forks import RAISED, run_forked
from tests.support.images import OCI_LAYER, BuiltImage, Layer, build_image, digest_of
from tests.support.layer_trees import Content, apply, file, folder, hard_link, layer_of, link, listing, tar_of
from tests.support.os_proxy import replaced_os
from tests.support.stores import mounted, open_store, put, require_root
from tests.support.trees import assert_same_tree, read_tree

LOWER = layer_of(folder("etc", 0o750, uid=3), file("etc/a", b"1"), file("etc/b", b"2"), folder("usr"), file("usr/c"))
UPPER = layer_of(folder("etc", 0o711), file("etc/.wh.a"), file("etc/d", b"3"), folder("usr"), file("usr/.wh..wh..opq"))
EMPTY = layer_of()
IMAGE = build_image([LOWER, UPPER, EMPTY])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with an image of three layers."""
    require_root()
    put(tmp_path / "store", IMAGE, "a:1")
    return tmp_path / "store"


def trees(root: Path) -> dict[str, int]:
    """Return the trees of a store, and the inode of each."""
    return {path.name: path.stat().st_ino for path in (root / "extracted").iterdir()}


def layer_path(root: Path, image: BuiltImage, number: int) -> str:
    return str(root / "extracted" / image.layer_digests[number].removeprefix("sha256:"))


def test_the_lower_directories_are_the_layers_the_top_one_first(root: Path) -> None:
    seen: list[Event] = []
    found = open_store(root).rootfs("a:1", on_event=seen.append)
    assert found.split(":") == [layer_path(root, IMAGE, number) for number in (2, 1, 0)]
    assert [(event.position, event.total) for event in seen if isinstance(event, UnpackingLayer)] == [
        (1, 3),
        (2, 3),
        (3, 3),
    ]
    assert os.listdir(root / "ingest" / "partial") == []
    assert not [name for name in os.listdir(root / "ingest") if len(name) == 16]


def test_an_overlay_of_the_layers_is_the_tree_of_the_image(root: Path, tmp_path: Path) -> None:
    store = open_store(root)
    store.unpack("a:1", tmp_path / "flat")
    with mounted(tmp_path / "over", f"lowerdir={store.rootfs('a:1')}", kind="overlay") as over:
        # Of the empty layer's root overlayfs takes the mode and time, and the flat tree that of no layer: the same.
        assert_same_tree(read_tree(over), read_tree(tmp_path / "flat"))


def test_a_layer_is_unpacked_once_for_all_images(root: Path) -> None:
    store = open_store(root)
    store.rootfs("a:1")
    before = trees(root)
    other = build_image([LOWER, layer_of(file("x"))], salt="other")
    put(root, other, "b:1")
    seen: list[Event] = []
    store.rootfs("b:1", on_event=seen.append)
    assert [event.position for event in seen if isinstance(event, UnpackingLayer)] == [2]
    assert before.items() <= trees(root).items()


def test_a_layer_that_stands_twice_in_an_image_is_there_once(tmp_path: Path) -> None:
    require_root()
    image = build_image([LOWER, UPPER, LOWER])
    put(tmp_path / "store", image, "a:1")
    store = open_store(tmp_path / "store")
    found = store.rootfs("a:1")
    assert found.split(":") == [layer_path(tmp_path / "store", image, number) for number in (0, 1)]
    store.unpack("a:1", tmp_path / "flat")
    with mounted(tmp_path / "over", f"lowerdir={found}", kind="overlay") as over:
        assert listing(over) == listing(tmp_path / "flat")


def test_nothing_is_below_a_layer_that_hides_all_that_is(tmp_path: Path) -> None:
    require_root()
    image = build_image([LOWER, layer_of(file("new"), file(".wh..wh..opq")), EMPTY])
    put(tmp_path / "store", image, "a:1")
    found = open_store(tmp_path / "store").rootfs("a:1")
    assert found.split(":") == [layer_path(tmp_path / "store", image, number) for number in (2, 1)]


def test_what_separates_paths_and_options_is_escaped(tmp_path: Path) -> None:
    require_root()
    odd = tmp_path / "a:b,c\\d"
    odd.mkdir()
    put(odd / "store", IMAGE, "a:1")
    found = open_store(odd / "store").rootfs("a:1")
    escaped = str(tmp_path / "a\\:b\\,c\\\\d" / "store")
    assert found.startswith(escaped + "/extracted/")
    assert lower_directories([]) == ""
    # mount(8) has commas of its own; overlayfs takes the text as it is.
    over = tmp_path / "over"
    over.mkdir()
    _mount_overlay(over, found)
    try:
        assert listing(over) == {"etc": "d", "etc/b": "2", "etc/d": "3", "usr": "d"}
    finally:
        _libc().umount2(os.fsencode(over), 2)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mount_overlay(over: Path, lower: str) -> None:
    done = _libc().mount(b"none", os.fsencode(over), b"overlay", 0, f"lowerdir={lower}".encode())
    assert done == 0, os.strerror(ctypes.get_errno())


def test_a_layer_that_is_wrong_leaves_no_tree(root: Path) -> None:
    tar = tar_of([file("a", b"1")])
    wrong = Layer(content=tar, media_type=OCI_LAYER, diff_id=digest_of(b"another"))
    bad = layer_of(file("a"), file("a/b"))
    put(root, build_image([LOWER, wrong], salt="wrong"), "wrong:1")
    put(root, build_image([bad], salt="bad"), "bad:1")
    with pytest.raises(ContentMismatch):
        open_store(root).rootfs("wrong:1")
    with pytest.raises(InvalidArchive):
        open_store(root).rootfs("bad:1")
    assert list(trees(root)) == [LOWER_NAME]
    assert not [name for name in os.listdir(root / "ingest") if len(name) == 16]


def test_a_tree_that_is_there_does_not_vouch_for_a_config_that_promises_something_else(root: Path) -> None:
    store = open_store(root)
    store.rootfs("a:1")
    before = trees(root)
    wrong = Layer(content=LOWER.content, media_type=LOWER.media_type, diff_id=digest_of(b"another"))
    put(root, build_image([wrong], salt="wrong"), "wrong:1")
    with pytest.raises(ContentMismatch):
        store.rootfs("wrong:1")
    assert trees(root) == before
    assert listing(Path(layer_path(root, IMAGE, 0)))["etc/a"] == "1"


def test_what_another_program_left_is_no_tree_and_goes_aside_as_long_as_it_is_mounted(root: Path) -> None:
    store = open_store(root)
    path = Path(layer_path(root, IMAGE, 0))
    path.mkdir(parents=True)
    (path / "foreign").write_text("f")
    lower = lower_directories([str(path), *_empty(str(root.parent))])
    with mounted(root.parent / "over", f"lowerdir={lower}", kind="overlay") as over:
        assert path.name in store.rootfs("a:1")
        assert sorted(listing(path)) == ["etc", "etc/a", "etc/b", "usr", "usr/c"]
        assert store.prune().errors == ()
        assert (over / "foreign").read_text() == "f"
        assert len([name for name in trees(root) if name.endswith(".tmp")]) == 1
    before = trees(root)
    assert store.prune().errors == ()
    assert trees(root).items() == {name: inode for name, inode in before.items() if name[0] != "."}.items()
    store.rootfs("a:1")
    assert before.items() >= trees(root).items()


def test_what_is_no_directory_stays_and_is_named(root: Path) -> None:
    path = Path(layer_path(root, IMAGE, 0))
    path.parent.mkdir()
    path.symlink_to("../layers/one")
    with pytest.raises(StoreUnavailable, match=f"{path}: it is there, and is no directory"):
        open_store(root).rootfs("a:1")
    assert os.readlink(path) == "../layers/one"


def test_the_root_of_a_user_namespace_gets_trees_for_overlays_in_there(root: Path) -> None:
    image = build_image([LOWER, layer_of(file("etc/.wh..wh..opq"))], salt="opaque")
    put(root, image, "opaque:1")
    with replaced_os(trees=True) as system:
        system.fail("setxattr", errno.EPERM, path="trusted.")
        first = open_store(root).rootfs("opaque:1")
    assert os.getxattr(Path(layer_path(root, image, 1), "etc"), "user.overlay.opaque") == b"y"
    before = trees(root)
    assert (open_store(root).rootfs("opaque:1"), trees(root)) == (first, before)


LOWER_NAME = digest_of(LOWER.content).removeprefix("sha256:")


def test_who_finishes_second_takes_the_tree_of_the_first(root: Path) -> None:
    first = open_store(root)
    built: list[str] = []
    with replaced_os(trees=True) as system:
        target = layer_path(root, IMAGE, 0)
        system.before("replace", lambda: built.append(Store(root).rootfs("a:1")), target=target)
        found = first.rootfs("a:1")
    assert built == [found]
    assert not [name for name in os.listdir(root / "ingest") if len(name) == 16]
    assert listing(Path(layer_path(root, IMAGE, 0))) == {
        "etc": "d",
        "etc/a": "1",
        "etc/b": "2",
        "usr": "d",
        "usr/c": "",
    }


def test_several_processes_build_the_same_trees(root: Path) -> None:
    pids = []
    for _ in range(4):
        pid = os.fork()
        if not pid:
            status = RAISED
            try:
                for _ in range(5):
                    open_store(root).rootfs("a:1")
                    for path in (root / "extracted").iterdir():
                        if os.getpid() % 2:
                            shutil.rmtree(path, ignore_errors=True)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 4
    assert not [name for name in os.listdir(root / "ingest") if len(name) == 16]


def test_a_deep_tree_of_a_process_that_died_is_swept_by_a_prune(root: Path) -> None:
    deep = layer_of(file("/".join(["d"] * 1500)))
    put(root, build_image([deep], salt="deep"), "deep:1")

    def die() -> None:
        with replaced_os(trees=True) as system:
            system.before("replace", lambda: os._exit(7), target="extracted")
            open_store(root).rootfs("deep:1")

    assert run_forked(die) == 7
    assert [name for name in os.listdir(root / "ingest") if len(name) == 16]
    report = open_store(root).prune()
    assert report.errors == ()
    assert not [name for name in os.listdir(root / "ingest") if len(name) == 16]


def test_a_user_builds_trees_of_layers_whose_root_nobody_may_write_to() -> None:
    require_root()
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, 65534, 65534)
        image = build_image([layer_of(folder(".", 0o555), folder("d", 0), file("d/f", b"1", uid=7))])

        def work() -> None:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            put(Path(home, "store"), image, "a:1")
            store = open_store(Path(home, "store"))
            assert store.rootfs("a:1") == store.rootfs("a:1")
            assert not [name for name in os.listdir(Path(home, "store", "ingest")) if len(name) == 16]

        assert run_forked(work) == 0
        tree = Path(layer_path(Path(home, "store"), image, 0))
        assert stat.S_IMODE(tree.stat().st_mode) == 0o555
        assert os.getxattr(tree / "d" / "f", "user.rootlesscontainers") == b"\x08\x07\x10\x07"


def with_whiteouts_of_what_is_there(layers: Sequence[Sequence[Content]]) -> list[list[Content]]:
    """Return layers without the whiteouts in directories that no lower layer has, or that the layer hides itself.

    No tool writes those.
    """
    model = Model()
    found = []
    for layer in layers:
        hidden = [(each, _hidden_by(each)) for each in layer]
        found.append(
            [
                each
                for each in layer
                if not _hides_nothing(model, each)
                and not any(other is not each and _is_in(each, path) for other, path in hidden)
            ]
        )
        try:
            model.apply(found[-1])
        except Refused:
            break
    return found


def _hidden_by(content: Content) -> list[str] | None:
    """Return the path that a whiteout hides, or hides what is below of; None for what is none."""
    member = content[0] if isinstance(content, tuple) else content
    *way, name = member.name.split("/")
    if name == ".wh..wh..opq":
        return way
    return [*way, name.removeprefix(".wh.")] if name.startswith(".wh.") else None


def _is_in(content: Content, path: list[str] | None) -> bool:
    """Whether a whiteout lies in what is hidden at a path."""
    member = content[0] if isinstance(content, tuple) else content
    *way, name = member.name.split("/")
    return path is not None and name.startswith(".wh.") and way[: len(path)] == path


def _hides_nothing(model: Model, content: Content) -> bool:
    member = content[0] if isinstance(content, tuple) else content
    *way, name = member.name.split("/")
    there = model.at(way)
    return name.startswith(".wh.") and (there is None or there.kind != "d")


PLAIN: st.SearchStrategy[Content] = st.one_of(
    st.builds(file, FILE_PATHS, st.sampled_from([b"1", b"2"])),
    st.builds(file, PATHS, st.just(b"3")),
    st.builds(folder, PATHS, MODES),
    st.builds(file, WHITEOUTS),
    st.builds(file, OPAQUE),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(PLAIN, max_size=6), min_size=2, max_size=4))
def test_overlayfs_shows_what_the_flat_tree_has(given_layers: list[list[Content]]) -> None:
    """Where no layer has links, or hides what is not there: a tree of one layer cannot know what is below it."""
    require_root()
    layers = with_whiteouts_of_what_is_there(given_layers)
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as around:
        paths = []
        try:
            apply(Path(around, "flat"), *layers)
        except InvalidArchive:
            assume(False)
        for number, layer in enumerate(layers):
            apply(Path(around, str(number)), layer, form="overlay")
            paths.append(str(Path(around, str(number))))
        lower = lower_directories([*paths, *_empty(around)])
        with mounted(Path(around, "over"), f"lowerdir={lower}", kind="overlay") as over:
            shown, flat = listing(over), listing(Path(around, "flat"))
            # A marker in what its own layer has replaced leaves an empty directory there, and nothing else.
            assert {path: text for path, text in shown.items() if path in flat or text != "d"} == flat


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ([file(".wh..wh..opq"), file("a/.wh.b")], {}),
        ([file("a/.wh.b"), file("a/c/.wh.d"), file(".wh..wh..opq")], {}),
        ([file(".wh..wh..opq"), file("a/.wh..wh..opq")], {}),
        ([file(".wh..wh..opq"), folder("a"), file("a/.wh.b")], {"a": "d"}),
        ([file(".wh.a"), file("a/.wh.b")], {}),
        ([file("a/c/.wh.d"), file(".wh.a")], {}),
        ([file("a/.wh..wh..opq"), file(".wh.a")], {}),
        ([file("a/.wh..wh..opq")], {"a": "d"}),
        ([file(".wh.a"), file("a/.wh.b"), file("a/e", b"2")], {"a": "d", "a/e": "2"}),
        ([file("a/.wh.c"), file("a/c/.wh.d")], {"a": "d", "a/b": "1"}),
    ],
)
def test_a_directory_of_whiteouts_alone_shows_only_where_a_lower_layer_has_it(
    tmp_path: Path, layer: list[Content], expected: dict[str, str]
) -> None:
    require_root()
    lowest: list[Content] = [folder("a"), file("a/b", b"1"), folder("a/c"), file("a/c/d", b"1")]
    layers = [lowest, layer]
    apply(tmp_path / "flat", *layers)
    for number, each in enumerate(layers):
        apply(tmp_path / str(number), each, form="overlay")
    lower = lower_directories([str(tmp_path / "0"), str(tmp_path / "1"), *_empty(str(tmp_path))])
    with mounted(tmp_path / "over", f"lowerdir={lower}", kind="overlay") as over:
        assert listing(over) == listing(tmp_path / "flat") == expected


def _empty(around: str) -> list[str]:
    """A mount wants two trees, of which the lowest may hide the others: so there is one on top with nothing in it."""
    apply(Path(around, "empty"), [], form="overlay")
    return [str(Path(around, "empty"))]


def test_a_hard_link_to_a_lower_layer_has_no_tree(root: Path) -> None:
    put(root, build_image([LOWER, layer_of(hard_link("x", "etc/a"), link("y", "x"))], salt="link"), "link:1")
    with pytest.raises(InvalidArchive, match="not there"):
        open_store(root).rootfs("link:1")
