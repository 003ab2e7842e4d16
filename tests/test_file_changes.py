"""How the files of two images differ, as values: by path, and by what of a file is another."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibox_store import FileChanges, FileKind, ImageNotFound
from tests.support.hard_layers import MTIME, folder, image_of, member, whiteout
from tests.support.sparse_tars import data_map
from tests.support.stores import open_store, put
from tests.support.tars import pax


def differences(root: Path, before: list[list[bytes]], after: list[list[bytes]]) -> FileChanges:
    """Return what a store says of two images of these layers."""
    put(root, image_of(before), "before:1")
    put(root, image_of(after), "after:1")
    return open_store(root).diff("before:1", "after:1")


def test_an_image_does_not_differ_from_itself(tmp_path: Path) -> None:
    layers = [[member("a", content=b"1"), folder("dir"), member("dir/link", "link", target="/a")]]
    assert differences(tmp_path, layers, layers) == FileChanges(added=(), removed=(), changed=())


def test_images_of_other_layers_with_the_same_files_do_not_differ(tmp_path: Path) -> None:
    one = [[folder("dir"), member("dir/a", content=b"1"), member("b", content=b"2")]]
    several = [[member("b", content=b"0"), folder("dir")], [member("b", content=b"2")], [member("dir/a", content=b"1")]]
    assert differences(tmp_path, one, several) == FileChanges(added=(), removed=(), changed=())


def test_what_was_added_and_removed_is_told_with_all_below_it(tmp_path: Path) -> None:
    base = [folder("a"), member("a/b"), folder("kept"), member("kept/x"), member("z")]
    top = [whiteout("a"), whiteout("kept/x"), folder("new"), member("new/file"), member("kept/y")]
    found = differences(tmp_path, [base], [base, top])
    assert found.removed == ("/a", "/a/b", "/kept/x")
    assert found.added == ("/kept/y", "/new", "/new/file")
    assert found.changed == ()


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        (member("f", content=b"12"), member("f", content=b"34"), ("content",)),
        (member("f", content=b"12"), member("f", content=b"345"), ("content", "size")),
        (member("f", mode=0o644), member("f", mode=0o4755), ("mode",)),
        (member("f", uid=1), member("f", uid=2), ("owner",)),
        (member("f", gid=1), member("f", gid=2), ("owner",)),
        (member("f", mtime=MTIME), member("f", mtime=MTIME + 1), ("mtime",)),
        (member("f", xattrs={"user.a": b"1"}), member("f", xattrs={"user.a": b"2"}), ("xattrs",)),
        (member("f", "link", target="a"), member("f", "link", target="b"), ("link",)),
        (member("f"), member("f", "FIFO"), ("kind",)),
        (member("f", content=b"1", mode=0o755), folder("f"), ("kind",)),
        (member("f", "block device", device=(8, 1)), member("f", "block device", device=(8, 2)), ("device",)),
        (folder("f", uid=1, mtime=MTIME), folder("f", mode=0o700, mtime=0), ("mode", "mtime", "owner")),
    ],
)
def test_what_has_changed_is_named(tmp_path: Path, before: bytes, after: bytes, what: tuple[str, ...]) -> None:
    found = differences(tmp_path, [[before]], [[after]])
    assert (found.added, found.removed) == ((), ())
    [change] = found.changed
    assert (change.path, change.what) == ("/f", what)


def test_a_change_tells_both_sides(tmp_path: Path) -> None:
    [change] = differences(tmp_path, [[member("f", content=b"1")]], [[folder("f")]]).changed
    assert (change.before.kind, change.before.size_bytes, change.after.kind) == (FileKind.FILE, 1, FileKind.DIRECTORY)


def test_a_directory_that_becomes_a_file_takes_what_it_held_along(tmp_path: Path) -> None:
    found = differences(tmp_path, [[folder("f"), member("f/a")]], [[folder("f"), member("f/a")], [member("f")]])
    assert found.removed == ("/f/a",)
    assert [change.path for change in found.changed] == ["/f"]


def test_names_are_compared_byte_by_byte(tmp_path: Path) -> None:
    odd = [os.fsdecode(name) for name in (b"\xff", b"\xc3\xa4", b"\xf0\x9f\x98\x80", b"\xef\xbf\xbd")]
    names = ["a", "a-", "a0", *odd]
    found = differences(tmp_path, [[member(name) for name in names]], [[member(name) for name in reversed(names)]])
    assert found == FileChanges(added=(), removed=(), changed=())


def test_a_sparse_file_does_not_differ_from_the_same_one_with_its_zeros(tmp_path: Path) -> None:
    whole = bytes(5000) + b"abc" + bytes(995_000 - 3)
    before, after = [[sparse("disk", 1_000_000, b"1\n5000\n3\n", b"abc")]], [[member("disk", content=whole)]]
    assert differences(tmp_path, before, after).changed == ()
    other = [[sparse("disk", 1_000_000, b"1\n5000\n3\n", b"abd")]]
    assert [change.what for change in differences(tmp_path / "other", other, after).changed] == [("content",)]


def test_a_file_with_holes_too_large_to_hash_is_compared_by_what_is_stored(tmp_path: Path) -> None:
    size_bytes = 1 << 40
    images = {
        "one": sparse("disk", size_bytes, b"1\n5000\n3\n", b"abc"),
        "equal": sparse("disk", size_bytes, b"2\n5000\n1\n5001\n2\n", b"abc"),
        "other": sparse("disk", size_bytes, b"1\n5000\n3\n", b"abd"),
        "zeros": sparse("disk", size_bytes, b"2\n0\n3\n5000\n3\n", b"\0\0\0abc"),
    }
    for name, content in images.items():
        put(tmp_path, image_of([[content]]), f"{name}:1")
    store = open_store(tmp_path)
    assert store.diff("one:1", "equal:1").changed == ()
    assert store.diff("one:1", "zeros:1").changed == ()
    assert [change.what for change in store.diff("one:1", "other:1").changed] == [("content",)]


def test_what_comparing_sparse_files_costs_grows_as_their_parts_do(tmp_path: Path) -> None:
    steps = []
    for count in (400, 800):
        apart = 1 << 18
        text = b"%d\n" % count + b"".join(b"%d\n1\n" % (number * apart) for number in range(count))
        file = data_map(text, stored=bytes(count), size=b"%d" % (count * apart))
        put(tmp_path / str(count), image_of([[file]]), "before:1")
        put(tmp_path / str(count), image_of([[file, folder("other")]]), "after:1")
        store = open_store(tmp_path / str(count))
        for name in ("before:1", "after:1"):
            store.open_files(name).close()
        steps.append(count_steps(partial(store.diff, "before:1", "after:1")))
    assert steps[1] < 2.5 * steps[0]


def count_steps(work: Callable[[], FileChanges]) -> int:
    """Return how many lines of Python run."""
    steps = 0

    def trace(frame: object, event: str, argument: object) -> object:
        nonlocal steps
        steps += event == "line"
        return trace

    sys.settrace(trace)  # type: ignore[arg-type]  # it takes any callable of three
    try:
        work()
    finally:
        sys.settrace(None)
    return steps


def test_an_image_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    put(tmp_path, image_of([[member("a")]]), "a:1")
    with pytest.raises(ImageNotFound):
        open_store(tmp_path).diff("a:1", "b:1")


_NAMES = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map("/".join)
_FILES = st.dictionaries(_NAMES, st.binary(max_size=1), max_size=5)


@settings(max_examples=30, deadline=None)
@given(_FILES, _FILES)
def test_the_way_back_is_the_other_way_round(
    tmp_path_factory: pytest.TempPathFactory, before: dict[str, bytes], after: dict[str, bytes]
) -> None:
    root = tmp_path_factory.mktemp("diff")
    put(root, image_of([[member(f"{name}.f", content=content) for name, content in before.items()]]), "before:1")
    put(root, image_of([[member(f"{name}.f", content=content) for name, content in after.items()]]), "after:1")
    there, back = open_store(root).diff("before:1", "after:1"), open_store(root).diff("after:1", "before:1")
    assert (there.added, there.removed) == (back.removed, back.added)
    assert [(change.path, change.what) for change in there.changed] == [(each.path, each.what) for each in back.changed]
    paths = {f"/{name}.f": content for name, content in after.items()}
    assert {path for path in there.added if path.endswith(".f")} == paths.keys() - {f"/{name}.f" for name in before}
    assert {change.path for change in there.changed} == {
        f"/{name}.f" for name, content in before.items() if name in after and after[name] != content
    }


def sparse(name: str, size_bytes: int, segments: bytes, stored: bytes) -> bytes:
    """Return a sparse file of GNU tar's form 1.0."""
    records = [
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", name.encode()),
        (b"GNU.sparse.realsize", b"%d" % size_bytes),
    ]
    return pax(records) + member("sparse", content=segments.ljust(512, b"\0") + stored)
