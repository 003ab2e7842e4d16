"""Layers put over one another by their entries: what is kept of an entry, and what the merging costs."""

import sys
from pathlib import Path

import pytest

from minibox_store.errors import InvalidArchive
from minibox_store.limits import UnpackLimits
from minibox_store.rootfs.layer_entries import LayerEntry, encode_entries, iter_entries
from minibox_store.rootfs.merging import Merger
from minibox_store.tar.member import MemberKind
from tests.support.hard_layers import image_of, member
from tests.support.stores import open_store, put


def test_entries_are_what_they_were_before_they_were_written() -> None:
    entries = [
        LayerEntry("entry", "", MemberKind.DIRECTORY, 0o1777, 2**32 - 2, 0, mtime_nanoseconds=-1),
        LayerEntry("whiteout", "a/\udcff", MemberKind.FILE),
        LayerEntry("opaque", "grüße", MemberKind.FILE),
        LayerEntry("entry", "disk", MemberKind.BLOCK_DEVICE, device_major=4095, device_minor=1048575),
        LayerEntry("entry", "l" * 4000, MemberKind.SYMLINK, 0o777, 1, 2, 3, 4, "t" * 4000, xattrs={"user.a": b"\0"}),
        LayerEntry("entry", "f", MemberKind.FILE, 0o600, size_bytes=2**62, mtime_nanoseconds=2**62 * 10**9 + 1,
                   data_offset=512, content=b"c" * 32, segments=((0, 1), (2**61, 5))),
        LayerEntry("entry", "g", MemberKind.FILE, segments=()),
    ]  # fmt: skip
    encoded = b"".join(encode_entries(entries))
    for cut in (1, 7, 100, len(encoded)):
        pieces = [encoded[at : at + cut] for at in range(0, len(encoded), cut)]
        assert list(iter_entries(pieces)) == entries


def count_steps(merge: list[list[LayerEntry]]) -> int:
    """Return how many lines of the merging run for these layers."""
    steps = 0

    def trace(frame: object, event: str, argument: object) -> object:
        nonlocal steps
        steps += event == "line"
        return trace

    merger = Merger()
    sys.settrace(trace)  # type: ignore[arg-type]  # it takes any callable of three
    try:
        for layer in merge:
            merger.apply_layer(layer)
    finally:
        sys.settrace(None)
    return steps


@pytest.mark.parametrize("shape", ["one directory", "opaque markers", "whiteouts", "opaque again and again"])
def test_S24_what_the_merging_costs_grows_as_the_members_do(shape: str) -> None:
    def layers(count: int) -> list[list[LayerEntry]]:
        files = [LayerEntry("entry", f"d/{number}", MemberKind.FILE) for number in range(count)]
        folders = [LayerEntry("entry", f"d{number}/f", MemberKind.FILE) for number in range(count)]
        if shape == "one directory":
            return [files, files]
        if shape == "whiteouts":
            return [files, [LayerEntry("whiteout", f"d/{number}", MemberKind.FILE) for number in range(count)]]
        if shape == "opaque markers":
            return [folders, [LayerEntry("opaque", f"d{number}", MemberKind.FILE) for number in range(count)]]
        return [files, [each for file in files for each in (file, LayerEntry("opaque", "d", MemberKind.FILE))]]

    assert count_steps(layers(2000)) < 2.2 * count_steps(layers(1000))


def test_S24_directories_that_no_member_names_are_counted() -> None:
    merger = Merger(UnpackLimits(tree_bytes=5_000_000))
    with pytest.raises(InvalidArchive, match="the image has more files and longer names than are kept in 5000000"):
        merger.apply_layer([_file(f"{number}" + "/d" * 2000) for number in range(3)])


def test_S24_a_few_members_do_not_ask_for_a_hundred_thousand_directories() -> None:
    with pytest.raises(InvalidArchive, match="more directories that no member names than any image needs"):
        Merger().apply_layer([_file(f"{number}" + "/d" * 2000) for number in range(60)])
    Merger().apply_layer([_file(f"{number}" + "/d" * 30) for number in range(4000)])


def test_a_file_that_each_layer_has_once_more_counts_once() -> None:
    merger = Merger(UnpackLimits(tree_bytes=150_000))
    tree = [LayerEntry("entry", "d", MemberKind.DIRECTORY), *(_file(f"d/{number}") for number in range(100))]
    gone = [LayerEntry("whiteout", f"d/gone-{number}", MemberKind.FILE) for number in range(100)]
    for _ in range(3):
        merger.apply_layer([*tree, *gone])
    with pytest.raises(InvalidArchive, match="than are kept in 150000 bytes"):
        merger.apply_layer(_file(f"d/new-{number}") for number in range(100))


def _link(path: str, target: str) -> LayerEntry:
    return LayerEntry("entry", path, MemberKind.SYMLINK, link_target=target)


def _file(path: str) -> LayerEntry:
    return LayerEntry("entry", path, MemberKind.FILE)


def test_S24_short_names_do_not_lead_through_many_directories_again_and_again() -> None:
    there = [LayerEntry("entry", "/".join([name] * 1900), MemberKind.DIRECTORY) for name in "ab"]
    links = [_link(f"{name}l", "/".join([name] * 1900)) for name in "ab"]
    between = [_file(f"{name}l/{number}") for number in range(200) for name in "ab"]
    with pytest.raises(InvalidArchive, match="lead through more directories than any image needs"):
        Merger().apply_layer([*there, *links, *between])


@pytest.mark.parametrize("target", ["./" * 1900 + "d", "/".join("a" * 1900)])
def test_S24_links_that_lead_nowhere_or_to_what_is_not_there_are_bounded_too(target: str) -> None:
    folders = [LayerEntry("entry", f"{number}", MemberKind.DIRECTORY) for number in range(200)]
    links = [_link(f"{number}/l", target) for number in range(200)]
    with pytest.raises(InvalidArchive, match="lead through more directories than any image needs"):
        Merger().apply_layer([*folders, *links, *[_file(f"{number}/l/f") for number in range(200)]])


@pytest.mark.parametrize("end", ["", "/../a"])
def test_a_link_leads_to_no_name_that_is_longer_than_one_can_be(tmp_path: Path, end: str) -> None:
    link = member("l", "link", target="t" * 256 + end)
    put(tmp_path / "store", image_of([[link, member("l/x")]]), "image:1")
    store = open_store(tmp_path / "store")
    with pytest.raises(InvalidArchive, match="'l/x'"):
        store.unpack("image:1", tmp_path / "tree")
    with pytest.raises(InvalidArchive, match="'l/x': a part of its path is longer than 255 bytes"):
        store.open_files("image:1")


def test_members_that_links_lead_to_by_a_long_way_are_there_however_many_they_are() -> None:
    place = "opt/packages/linux-64/cuda/12.4/targets/x86_64-linux"
    links = [
        _link("usr/local/cuda", "../../etc/alternatives/cuda"),
        _link("etc/alternatives/cuda", "/usr/local/cuda-12"),
        _link("usr/local/cuda-12", "../../usr/local/cuda-12.4"),
        _link("usr/local/cuda-12.4", f"../../{place}"),
    ]
    merger = Merger()
    merger.apply_layer([*links, *[_file(f"usr/local/cuda/{number % 2}/{number}") for number in range(6000)]])
    found = merger.root
    for part in place.split("/"):
        found = found.names[part]
    assert [len(found.names[name].names) for name in "01"] == [3000, 3000]
