"""Layers in a directory: what each member becomes, what a whiteout hides, and that nothing is reached outside."""

import errno
import io
import os
import resource
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from minibox_store import InvalidArchive, UnpackLimits, UnpackPolicy, _files
from minibox_store.limits import DEFAULT_UNPACK_LIMITS
from minibox_store.rootfs.directories import Directories
from minibox_store.rootfs.tree import Form, check_nothing
from minibox_store.rootfs.tree_bounds import TreeBounds
from minibox_store.tar import Member, MemberKind, encode_header
from tests.support.forks import forked, run_forked
from tests.support.layer_trees import (
    Content,
    apply,
    device,
    file,
    folder,
    hard_link,
    link,
    listing,
    tar_of,
    writing,
)
from tests.support.os_proxy import OsProxy, replaced_os
from tests.support.snapshots import snapshot
from tests.support.sparse_tars import all_ways
from tests.support.stores import require_root
from tests.support.tars import END, Joined, run_gnu_tar
from tests.support.traced_memory import peak_of
from tests.support.trees import read_tree

SECOND = 10**9
NOBODY = 65534
LATE = 1_700_000_000 * SECOND + 123_456_789
AS_USER = UnpackPolicy(owners="record")


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """Where the tree goes; what is beside it holds a secret, and may not change."""
    with guarding_outside(tmp_path) as found:
        yield found


@pytest.fixture
def quick_tree(tmp_path: Path) -> Iterator[Path]:
    """The same in memory where there is some: a disk that others use too takes its time."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as around:
        with guarding_outside(Path(around)) as found:
            yield found
        for each in os.listdir(around):
            _files.remove_tree(os.path.join(around, each))  # too deep for others


@contextmanager
def guarding_outside(around: Path) -> Iterator[Path]:
    outside = around / "outside"
    outside.mkdir(mode=0o700)
    (outside / "secret").write_text("secret")
    (outside / "secret").chmod(0o600)
    before = snapshot(outside), outside.stat().st_mtime_ns, (outside / "secret").stat().st_nlink
    yield around / "tree"
    assert (snapshot(outside), outside.stat().st_mtime_ns, (outside / "secret").stat().st_nlink) == before


# ---- what a member becomes


def test_every_kind_of_member_becomes_what_it_says(tree: Path) -> None:
    require_root()
    done = apply(
        tree,
        [
            folder("d", 0o1750, uid=7, mtime=LATE),
            (Member("d/f", size_bytes=3, mode=0o4711, uid=1000, gid=100, mtime_nanoseconds=LATE), b"abc"),
            link("d/l", "f"),
            hard_link("d/h", "/d/f"),
            device("d/null"),
            Member("d/disk", MemberKind.BLOCK_DEVICE, mode=0o660, device_major=8, device_minor=1, gid=6),
            Member("d/queue", MemberKind.FIFO, mode=0o622, uid=5, mtime_nanoseconds=-1),
        ],
    )
    found = read_tree(tree)
    assert {path: entry.kind for path, entry in found.items()} == {
        ".": "directory",
        "d": "directory",
        "d/f": "file",
        "d/l": "link",
        "d/h": "file",
        "d/null": "character device",
        "d/disk": "block device",
        "d/queue": "FIFO",
    }
    assert (found["d"].mode, found["d"].uid, found["d"].mtime_nanoseconds) == (0o1750, 7, LATE)
    plain = found["d/f"]
    assert (plain.mode, plain.uid, plain.gid, plain.mtime_nanoseconds) == (0o4711, 1000, 100, LATE)
    assert plain.same_file == ("d/f", "d/h")
    assert found["d/disk"].device == (8, 1)
    assert (found["d/null"].mode, found["d/disk"].gid, found["d/queue"].uid) == (0o666, 6, 5)
    assert (found["d/queue"].mode, found["d/queue"].mtime_nanoseconds) == (0o622, -1)
    assert (done.layers, done.entries, done.size_bytes, done.left_out) == (1, 7, 3, ())


@pytest.mark.parametrize("size_bytes", [0, 1, 128 * 1024, 128 * 1024 + 1, 3 * 1024 * 1024 + 7])
def test_a_file_has_every_byte_whatever_its_size(tree: Path, size_bytes: int) -> None:
    content = os.urandom(size_bytes)
    apply(tree, [file("before", b"x" * 100), file("f", content), file("behind", b"y")])
    assert (tree / "f").read_bytes() == content
    assert ((tree / "before").read_bytes(), (tree / "behind").read_bytes()) == (b"x" * 100, b"y")


def test_holes_are_holes(quick_tree: Path) -> None:
    """As GNU tar writes them; what it reads from them is for its own tests."""
    source = quick_tree.parent / "source"
    source.mkdir()
    with (source / "f").open("wb") as sparse:
        sparse.write(b"a" * 5000)
        sparse.seek(50 << 20)
        sparse.write(b"b" * 300_000)
        sparse.truncate(100 << 20)
    tar = run_gnu_tar(source, "--sparse", "--format=pax", "-cf", "-", "f")
    with writing(quick_tree) as writer:
        writer.apply_layer(io.BytesIO(tar))
        assert writer.finish().size_bytes < 1 << 20
    found = quick_tree / "f"
    assert found.read_bytes() == (source / "f").read_bytes()
    assert found.stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("way", range(4))
def test_S8_a_sparse_file_of_many_small_pieces_takes_no_disk_without_end(tree: Path, way: int) -> None:
    fine = all_ways([(number * 4096, 4096) for number in range(100)], 100 * 4096)[way]
    dense = all_ways([(number * 8, 4) for number in range(1000)], 8000)[way]
    bomb = all_ways([(number * 4096, 1) for number in range(100)], 100 * 4096)[way]
    with writing(tree, limits=UnpackLimits(ratio_floor_bytes=50 * 4096)) as writer:
        writer.apply_layer(io.BytesIO(fine + END))
        writer.apply_layer(io.BytesIO(dense + END))
        with pytest.raises(InvalidArchive, match="waste more than 204800 bytes"):
            writer.apply_layer(io.BytesIO(bomb + END))
    assert sum(path.stat().st_blocks * 512 for path in tree.iterdir()) < 500_000


def test_modes_and_groups_are_those_of_the_members_whatever_the_umask_and_the_folder_around(tree: Path) -> None:
    require_root()
    os.chown(tree.parent, -1, 1234)
    tree.parent.chmod(0o2755)
    before = os.umask(0o077)
    try:
        apply(tree, [folder("d", 0o777), file("d/f", mode=0o666), folder("d/locked", 0), file("d/locked/in", mode=0)])
    finally:
        os.umask(before)
    found = read_tree(tree)
    assert {path: f"{entry.mode:o}" for path, entry in found.items()} == {
        ".": "755",
        "d": "777",
        "d/f": "666",
        "d/locked": "0",
        "d/locked/in": "0",
    }
    assert {entry.gid for entry in found.values()} == {0}


def test_the_time_of_a_directory_is_that_of_the_last_member_which_names_it(tree: Path) -> None:
    apply(
        tree,
        [folder("d", mtime=1 * SECOND), file("d/a"), folder("e", mtime=5 * SECOND)],
        [file("d/b"), folder("e", 0o700, mtime=6 * SECOND), file("implied/x")],
    )
    assert (tree / "d").stat().st_mtime_ns == 1 * SECOND
    assert (tree / "e").stat().st_mtime_ns == 6 * SECOND
    assert ((tree / "implied").stat().st_mtime_ns, (tree / "implied").stat().st_mode & 0o777) == (0, 0o755)
    assert tree.stat().st_mtime_ns == 0


def test_a_member_replaces_what_is_there_and_writes_to_nothing(tree: Path) -> None:
    apply(
        tree,
        [file("a", b"old"), hard_link("kept", "a"), link("b", "a"), folder("c"), file("c/in"), file("d", b"old")],
        [file("a", b"new"), file("b", b"new"), file("c", b"new"), folder("d"), file("d/in")],
    )
    assert listing(tree) == {"a": "new", "kept": "old", "b": "new", "c": "new", "d": "d", "d/in": ""}


def test_a_directory_over_a_directory_keeps_its_content_and_takes_the_rest(tree: Path) -> None:
    first = Member("d", MemberKind.DIRECTORY, mode=0o700, uid=3, xattrs={"user.a": b"1"})
    second = Member("d", MemberKind.DIRECTORY, mode=0o750, uid=4, xattrs={"user.b": b"2"})
    apply(tree, [first, file("d/f", b"x")], [second])
    found = read_tree(tree)
    noted = {} if os.geteuid() == 0 else {"user.rootlesscontainers": b"\x08\x04"}  # the owner, which a user cannot set
    assert (found["d"].mode, found["d"].xattrs) == (0o750, {"user.b": b"2", **noted})
    assert "d/f" in found


def test_a_root_entry_is_the_root_of_the_tree(tree: Path) -> None:
    apply(tree, [folder(".", 0o711, mtime=LATE), file("./f")])
    assert (stat.S_IMODE(tree.stat().st_mode), tree.stat().st_mtime_ns) == (0o711, LATE)


def test_times_and_numbers_at_the_edges_are_taken_or_refused_and_never_cut_short(tree: Path) -> None:
    require_root()
    apply(tree, [file("far", mtime=2**62), file("before", mtime=-(2**62)), device("d", 4095, 2**20 - 1)])
    assert os.lstat(tree / "d").st_rdev == os.makedev(4095, 2**20 - 1)
    for number, bad in enumerate(
        [
            device("d", 4096, 0),
            device("d", 1, 2**20),
            Member("f", uid=2**32 - 1),
            Member("f", gid=2**40),
            Member("d", MemberKind.DIRECTORY, uid=2**32),
            Member("l", MemberKind.SYMLINK, link_target="x", gid=2**32 - 1),
            link("l", "x" * 5000),
        ]
    ):
        with pytest.raises(InvalidArchive):
            apply(tree.with_name(f"tree-{number}"), [bad])


def test_attributes_are_set_and_those_that_steer_who_reads_the_tree_are_not(tree: Path) -> None:
    require_root()
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    steering = ["trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque", "user.rootlesscontainers"]
    marked = {"security.capability": capability, "user.x": b"1", **dict.fromkeys(steering, b"y")}
    done = apply(tree, [Member("f", mode=0o755, uid=9, xattrs=marked)])
    assert read_tree(tree)["f"].xattrs == {"security.capability": capability, "user.x": b"1"}
    assert done.left_out_count == len(steering)
    assert all(name in "".join(done.left_out) for name in steering)


def test_what_the_file_system_does_not_take_is_told_and_of_much_the_first(tree: Path) -> None:
    done = apply(tree, [Member(f"f{number}", xattrs={"nonsense.x": b"1"}) for number in range(100)])
    assert done.left_out_count == 100
    assert done.left_out[0].startswith("f0: the attribute nonsense.x (")
    assert len(done.left_out) == 32


def test_what_is_told_of_a_long_name_is_a_sentence_that_can_be_read(tree: Path) -> None:
    done = apply(tree, [Member("/".join(["\x01" * 240] * 4), xattrs={"nonsense." + "\x02" * 240: b"1"})])
    assert [(len(each), each.isprintable()) for each in done.left_out] == [(999, True)]


def test_an_attribute_that_is_too_large_for_the_file_system_is_told_and_no_full_disk(tree: Path) -> None:
    require_root()
    large = {"user.large": b"x" * 60_000}
    members = [
        attrs_with(member, {"trusted.large": b"x"} if member.kind is MemberKind.SYMLINK else large)
        for member in (Member("f"), folder("d"), link("l", "nowhere"))
    ]
    with replaced_os(trees=True) as system:
        system.fail("setxattr", errno.ENOSPC)
        done = apply(tree, members)
    assert [sentence.partition("(")[2] for sentence in done.left_out] == ["larger than the file system takes)"] * 3
    assert sorted(listing(tree)) == ["d", "f", "l"]


def test_an_attribute_without_end_is_told_by_its_beginning(tree: Path) -> None:
    done = apply(tree, [Member("f", xattrs={"user.overlay." + "x" * 500_000: b"1", "user." + "y" * 500_000: b"1"})])
    assert len(done.left_out) == 2
    assert all(len(sentence) < 1000 for sentence in done.left_out)


def test_a_text_in_what_was_left_out_breaks_no_line(tree: Path) -> None:
    done = apply(tree, [Member("a\nb\x1b[2J", xattrs={"nonsense.x": b"1"})])
    assert done.left_out[0].isprintable()


# ---- links of the image


def test_a_path_below_a_link_leads_to_where_the_link_does(tree: Path) -> None:
    apply(
        tree,
        [folder("usr/lib"), link("lib", "usr/lib"), file("lib/a", b"1"), link("usr/up", "/lib/../..//usr/./lib")],
        [file("usr/up/b", b"2"), link("dangling", "made/now"), file("dangling/c", b"3")],
    )
    assert listing(tree) == {
        "usr": "d",
        "usr/lib": "d",
        "usr/lib/a": "1",
        "usr/lib/b": "2",
        "lib": "-> usr/lib",
        "usr/up": "-> /lib/../..//usr/./lib",
        "made": "d",
        "made/now": "d",
        "made/now/c": "3",
        "dangling": "-> made/now",
    }


@pytest.mark.parametrize(
    "target", ["/", "..", "../../../../..", "/../..", "/outside", "../outside", "../tree/../outside"]
)
def test_no_link_leads_out_of_the_tree(tree: Path, target: str) -> None:
    apply(tree, [link("way", target), file("way/secret", b"mine"), folder("way/more"), link("way/l", "x")])
    assert "mine" in listing(tree).values()


def test_links_in_a_circle_are_refused(tree: Path) -> None:
    with pytest.raises(InvalidArchive, match="more than 40 links"):
        apply(tree, [link("a", "b"), link("b", "a"), file("a/x")])


def test_as_many_links_as_the_system_follows_are_followed(tree: Path) -> None:
    chain = [link(f"l{number}", f"l{number + 1}") for number in range(40)]
    apply(tree, [*chain, folder("l40"), file("l0/in", b"x")])
    assert (tree / "l0" / "in").read_text() == (tree / "l40" / "in").read_text() == "x"
    with pytest.raises(InvalidArchive, match="more than 40 links"):
        apply(tree.with_name("other"), [link("start", "l0"), *chain, folder("l40"), file("start/in")])


def test_a_file_in_the_way_is_refused(tree: Path) -> None:
    with pytest.raises(InvalidArchive, match="no directory"):
        apply(tree, [file("a"), file("a/b")])


@pytest.mark.parametrize("name", ["../outside/x", "a/../../outside/x", "..", "/.."])
def test_a_name_that_leads_upwards_is_refused(tree: Path, name: str) -> None:
    with pytest.raises(InvalidArchive, match="upwards"):
        apply(tree, [file(name, b"x")])


def test_S11_the_chain_of_links_longer_than_a_path_stays_inside(tree: Path) -> None:
    """CVE-2025-4517: links whose whole way is longer than PATH_MAX, where realpath() gives up and a check with it."""
    step = "d" * 247
    members: list[Content] = []
    path = ""
    for letter in "abcdefghijklmnop":
        members += [folder(f"{path}{step}"), link(f"{path}{letter}", step)]
        path += f"{letter}/"
    members.append(link(f"{path}{'l' * 254}", "../" * len("abcdefghijklmnop")))
    members.append(link("escape", f"{path}{'l' * 254}/../../outside"))
    apply(tree, [*members, file("escape/secret", b"written"), hard_link("stolen", "escape/secret")])
    assert (tree / "stolen").read_text() == "written"
    with pytest.raises(InvalidArchive, match="is not there"):
        apply(tree.with_name("other"), [*members, hard_link("stolen", "escape/secret")])


def test_S12_an_entry_that_is_the_root_may_only_be_a_directory(tree: Path) -> None:
    """CVE-2021-29136."""
    for number, name in enumerate((".", "/.", "./.", "//.")):
        with pytest.raises(InvalidArchive, match="root"):
            apply(tree.with_name(f"tree-{number}"), [link(name, "/outside"), file("x")])


def test_S12_a_whiteout_goes_through_no_link(tree: Path) -> None:
    lower: list[Content] = [folder("real"), file("real/f", b"1"), link("way", "real"), link("out", "../outside")]
    members = ["way/.wh.f", "way/.wh..wh..opq", "out/.wh.secret", "out/.wh..wh..opq", "/out/.wh.secret"]
    apply(tree, lower, [file(name) for name in members])
    assert listing(tree) == {"real": "d", "real/f": "1", "way": "-> real", "out": "-> ../outside"}


def test_an_absolute_link_begins_at_the_root_of_the_tree(tree: Path) -> None:
    apply(tree, [link("usr/abs", "/etc"), file("usr/abs/x", b"1")])
    assert listing(tree) == {"usr": "d", "usr/abs": "-> /etc", "etc": "d", "etc/x": "1"}


def test_the_way_to_a_member_is_asked_again_once_a_link_on_it_has_gone(tree: Path) -> None:
    lower: list[Content] = [folder("c"), link("a", "c")]
    apply(tree, lower, [file("a/x"), file(".wh.a"), file("a/y")])
    assert listing(tree) == {"c": "d", "c/x": "", "a": "d", "a/y": ""}
    with pytest.raises(InvalidArchive, match="no directory"):
        apply(tree.with_name("other"), [link("l", "."), file("l/l"), file("l/z")])


def test_a_whiteout_of_a_link_hides_the_link(tree: Path) -> None:
    apply(tree, [folder("real"), file("real/f", b"1"), link("way", "real")], [file(".wh.way")])
    assert listing(tree) == {"real": "d", "real/f": "1"}


# ---- a hostile neighbour


def swap_for_ever(tree: Path, ready: Callable[[], None]) -> None:
    """Put links to the outside in the place of directories, and back, until somebody ends this."""
    aside = tree.with_name(f"{tree.name}-aside")
    ready()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for name in ("a", "a/b", "c"):
            path = tree / name
            try:
                os.rename(path, aside)
                os.symlink(tree.parent.parent / "outside", path)
                time.sleep(0.002)
                os.unlink(path)
                os.rename(aside, path)
                time.sleep(0.001)
            except OSError:
                continue


def test_S12_a_process_that_swaps_directories_for_links_gains_nothing(quick_tree: Path) -> None:
    """CVE-2018-15664, CVE-2025-47290. The fixture holds that nothing outside has changed."""
    names = [f"{folder_name}/{number}" for number in range(40) for folder_name in ("a", "a/b", "c", "c/d/e")]
    first: list[Content] = [file("a/b/x"), file("c/d/e/x"), *(file(name, b"x" * 10) for name in names)]
    second: list[Content] = [
        *(file(f"{name.rpartition('/')[0]}/.wh.{name.rpartition('/')[2]}") for name in names),
        *(hard_link(f"{name}h", "a/b/x") for name in names),
        *(device(f"{name}n") for name in names),
        *(link(f"{name}l", "secret") for name in names),
        folder("a/b", 0o777, mtime=LATE),
        file("a/secret", b"mine", mode=0o777),
        file("a/.wh..wh..opq"),
        file("c/.wh..wh..opq"),
    ]
    tars = [tar_of(first), tar_of(second)]
    met_links = rounds = 0
    quick_tree.mkdir()
    begun = time.monotonic()
    # On a busy machine the neighbour is seldom there: a minute at most.
    while (lasted := time.monotonic() - begun) < 3 or (met_links <= 3 and lasted < 60):
        root = quick_tree / str(rounds)
        rounds += 1
        # With so few open, each directory is entered by its name again and again.
        with writing(root, most_open=2) as writer, forked(lambda ready, root=root: swap_for_ever(root, ready)):  # type: ignore[misc]
            try:
                for tar in tars:
                    writer.apply_layer(io.BytesIO(tar))
                writer.finish()
            except OSError as error:
                met_links += error.errno in (errno.ELOOP, errno.ENOTDIR)
    assert met_links > 3, f"in {rounds} rounds the neighbour has not come between often enough to show anything"


# ---- hard links


def test_S13_a_hard_link_leads_to_the_tree_and_never_to_where_the_process_stands(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2026-50163: the target was checked inside the root, and then linked relative to the working directory."""
    monkeypatch.chdir(tree.parent / "outside")
    targets = ["secret", "./secret", "/secret", str(tree.parent / "outside" / "secret")]
    for number, target in enumerate(targets):
        with pytest.raises(InvalidArchive, match="not there"):
            apply(tree.with_name(f"tree-{number}"), [hard_link("x", target)])
    for number, target in enumerate(["../outside/secret", "a/../../outside/secret"]):
        with pytest.raises(InvalidArchive, match="upwards"):
            apply(tree.with_name(f"up-{number}"), [hard_link("x", target)])


def test_S13_a_hard_link_through_a_link_stays_inside(tree: Path) -> None:
    out = [link("out", "../outside"), link("abs", str(tree.parent / "outside"))]
    for number, target in enumerate(["out/secret", "abs/secret"]):
        with pytest.raises(InvalidArchive, match="not there"):
            apply(tree.with_name(f"tree-{number}"), [*out, hard_link("x", target)])
    apply(tree, [*out, link("to", "../outside/secret"), hard_link("x", "to")])
    assert os.readlink(tree / "x") == "../outside/secret"
    assert os.lstat(tree / "x").st_ino == os.lstat(tree / "to").st_ino


def test_a_hard_link_to_a_file_of_its_own_name_in_another_directory_is_made(tree: Path) -> None:
    apply(tree, [folder("a"), folder("b"), file("a/f", b"1"), hard_link("b/f", "a/f")])
    assert os.path.samefile(tree / "a" / "f", tree / "b" / "f")


def test_hard_links_to_directories_to_nothing_and_to_themselves(tree: Path) -> None:
    for number, bad in enumerate(["d", "/", ".", "missing", "d/missing", "x"]):
        with pytest.raises(InvalidArchive, match=r"hard link|not there"):
            apply(tree.with_name(f"tree-{number}"), [folder("d"), hard_link("x", bad)])
    apply(tree, [file("f", b"1"), hard_link("f", "f"), file("g", b"2"), hard_link("g", "f")])
    assert listing(tree) == {"f": "1", "g": "1"}


def test_a_hard_link_reaches_what_a_lower_layer_has(tree: Path) -> None:
    apply(tree, [folder("d"), file("d/f", b"1")], [hard_link("g", "d/f"), file("d/.wh.f")])
    assert listing(tree) == {"d": "d", "g": "1"}


# ---- modes, owners and who may set them


def test_S14_no_mode_owner_or_time_goes_through_a_link(tree: Path) -> None:
    """CVE-2021-32760."""
    secret = tree.parent / "outside" / "secret"
    before = secret.stat()
    linked = Member("l", MemberKind.SYMLINK, link_target=str(secret), mode=0o4777, uid=77, mtime_nanoseconds=LATE)
    done = apply(tree, [attrs_with(linked, {"user.x": b"1"}), folder("d"), link("d/up", str(secret.parent))])
    after = secret.stat()
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)
    assert "user.x" not in os.listxattr(secret)
    assert done.left_out_count == (1 if os.geteuid() == 0 else 2)  # the attribute, and the owner that a user cannot set


def attrs_with(member: Member, xattrs: dict[str, bytes]) -> Member:
    import attrs

    return attrs.evolve(member, xattrs=xattrs)


@pytest.mark.parametrize(("privileges", "mode", "has_capability"), [("keep", 0o6755, True), ("drop", 0o755, False)])
def test_S14_setuid_bits_and_capabilities_go_by_the_policy(
    tree: Path, privileges: str, mode: int, has_capability: bool
) -> None:
    require_root()
    capability = {"security.capability": bytes.fromhex("0100000200040000000000000000000000000000")}
    policy = UnpackPolicy(privileges="keep" if privileges == "keep" else "drop")
    root = Member("f", mode=0o6755, uid=1, xattrs=capability)
    apply(tree, [root, folder("d", 0o2775), hard_link("g", "f"), device("n", mode=0o4666)], policy=policy)
    found = read_tree(tree)
    assert found["f"].mode == found["g"].mode == mode
    assert ("security.capability" in found["f"].xattrs) == has_capability
    assert found["d"].mode == 0o2775
    assert found["n"].mode == (0o4666 if privileges == "keep" else 0o666)


def test_owners_are_recorded_as_umoci_does_and_devices_as_podman_does(tree: Path) -> None:
    done = apply(
        tree,
        [
            Member("f", uid=1000, gid=5),
            Member("g", gid=300),
            folder("d", uid=70000),
            device("null"),
            Member("disk", MemberKind.BLOCK_DEVICE, mode=0o660, uid=1, gid=6, device_major=8, device_minor=17),
            Member("l", MemberKind.SYMLINK, link_target="x", uid=3),
            Member("q", MemberKind.FIFO),
        ],
        policy=AS_USER,
    )
    found = read_tree(tree)
    record = "user.rootlesscontainers"
    assert found["f"].xattrs == {record: b"\x08\xe8\x07\x10\x05"}
    assert found["g"].xattrs == {record: b"\x10\xac\x02"}
    assert found["d"].xattrs == {record: b"\x08\xf0\xa2\x04\x10\xf0\xa2\x04"}
    assert found["null"].xattrs == {"user.containers.override_stat": b"0:0:0666:char-1-3"}
    assert found["disk"].xattrs == {"user.containers.override_stat": b"1:6:0660:block-8-17"}
    assert (found["null"].kind, found["null"].size_bytes, found["q"].kind) == ("file", 0, "FIFO")
    assert {entry.uid for entry in found.values()} == {os.geteuid()}
    assert [sentence for sentence in done.left_out if sentence.startswith("l: its owner")]


def test_owners_and_devices_may_be_left_out(tree: Path) -> None:
    done = apply(tree, [Member("f", uid=1000), device("null")], policy=UnpackPolicy(owners="omit"))
    assert listing(tree) == {"f": ""}
    assert (read_tree(tree)["f"].xattrs, done.left_out) == ({}, ("null: a device",))


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of an unprivileged user, which that user can come to."""
    require_root()
    with tempfile.TemporaryDirectory() as found:
        os.chown(found, NOBODY, NOBODY)
        yield Path(found)


def test_a_user_sets_attributes_of_what_the_mode_lets_nobody_write_to(home: Path) -> None:
    marked = {"user.x": b"1"}

    def work() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        read_only = [Member(f"f{mode:o}", mode=mode, xattrs=marked) for mode in (0o444, 0o555, 0)]
        directories = [Member(f"d{mode:o}", MemberKind.DIRECTORY, mode=mode, xattrs=marked) for mode in (0o555, 0)]
        done = apply(home / "tree", [*read_only, *directories])
        assert done.left_out == ()

    assert run_forked(work) == 0
    found = read_tree(home / "tree")
    assert {path: (entry.mode, entry.xattrs) for path, entry in found.items() if path not in ("", ".", "/")} == {
        **{f"f{mode:o}": (mode, marked) for mode in (0o444, 0o555, 0)},
        **{f"d{mode:o}": (mode, marked) for mode in (0o555, 0)},
    }


def test_a_user_unpacks_what_a_user_may(home: Path) -> None:

    def work() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        capability = {"security.capability": bytes.fromhex("0100000200040000000000000000000000000000")}
        closed: list[Content] = [folder("d", 0o555), file("d/f", b"1", mode=0), folder("d/e", 0), file("d/e/g", b"2")]
        done = apply(
            home / "tree",
            [*closed, device("null"), Member("c", uid=12, xattrs=capability)],
            [file("d/e/.wh.g"), file("d/h"), file("d/.wh..wh..opq"), folder("d", 0o500)],
        )
        assert done.left_out_count == 1, done
        assert done.left_out[0].startswith("c: the attribute security.capability (")
        assert sorted(os.listdir(home / "tree" / "d")) == ["h"]
        apply(home / "overlay", [file("d/.wh.x"), file("e/.wh..wh..opq")], form="overlay")
        assert os.getxattr(home / "overlay" / "e", "user.overlay.opaque") == b"y"
        assert stat.S_ISCHR(os.lstat(home / "overlay" / "d" / "x").st_mode)
        with pytest.raises(PermissionError):
            apply(home / "set", [Member("f", uid=1)], policy=UnpackPolicy(owners="set"))

    assert run_forked(work) == 0
    assert os.getxattr(home / "tree" / "c", "user.rootlesscontainers") == b"\x08\x0c"
    assert stat.S_IMODE((home / "tree" / "d").stat().st_mode) == 0o500


# ---- whiteouts


def test_a_whiteout_hides_what_lower_layers_have(tree: Path) -> None:
    lower: list[Content] = [file("a"), folder("d"), folder("d/e"), file("d/e/f"), file("d/g"), file("kept")]
    apply(tree, lower, [file(".wh.a"), file("d/.wh.e"), file(".wh.missing"), file("no/.wh.way")])
    assert set(listing(tree)) == {"d", "d/g", "kept"}


@pytest.mark.parametrize("order", ["whiteouts first", "whiteouts last"])
def test_a_whiteout_spares_its_own_layer_in_whatever_order(tree: Path, order: str) -> None:
    lower: list[Content] = [folder("d", 0o700, uid=1), file("d/old", b"1"), folder("d/e"), file("d/e/old"), file("f")]
    whiteouts: list[Content] = [file(".wh.d"), file(".wh.f"), file("o/.wh..wh..opq")]
    own: list[Content] = [file("d/new", b"2"), file("d/e/new", b"3"), file("f", b"4"), file("o/new", b"5")]
    more: list[Content] = [folder("o"), file("o/old"), folder("o/p", 0o711), file("o/p/old")]
    upper = [*whiteouts, *own] if order == "whiteouts first" else [*own, *whiteouts]
    apply(tree, [*lower, *more], upper)
    found = listing(tree)
    assert found == {"d": "d", "d/new": "2", "d/e": "d", "d/e/new": "3", "f": "4", "o": "d", "o/new": "5"}
    # Of the lower directory nothing is left, its mode and owner neither.
    assert ((tree / "d").stat().st_mode & 0o777, (tree / "d").stat().st_uid) == (0o755, os.geteuid())


def test_an_opaque_directory_at_the_root_hides_everything_below(tree: Path) -> None:
    apply(tree, [file("a"), file("d/b")], [file("d/c"), file(".wh..wh..opq"), file("e")], [file(".wh.e")])
    assert set(listing(tree)) == {"d", "d/c"}


def test_a_second_marker_in_a_layer_spares_what_came_between(tree: Path) -> None:
    apply(tree, [file("d/a")], [file("d/.wh..wh..opq"), file("d/b"), file("d/.wh..wh..opq"), file("d/.wh.b")])
    assert set(listing(tree)) == {"d", "d/b"}


def test_whiteouts_in_the_lowest_layer_hide_nothing(tree: Path) -> None:
    apply(tree, [file("a"), file(".wh.a"), folder("d"), file("d/b"), file("d/.wh..wh..opq"), file(".wh..wh.plnk")])
    assert set(listing(tree)) == {"a", "d", "d/b"}


# ---- the tree of a single layer


def test_overlay_whiteouts_are_devices_and_marks(tree: Path) -> None:
    require_root()
    done = apply(
        tree,
        [
            *(file("d/.wh.gone"), file("o/.wh..wh..opq"), file("o/in"), file("own", b"1"), file(".wh.own")),
            *(file(".wh.e"), file("e/f"), file("g/f"), file(".wh.g"), file(".wh.h"), folder("h"), file(".wh.i")),
            *(file("i", b"2"), file("j"), folder("j"), link("l", "d"), file("l/.wh.x"), device("z", 0, 0)),
            *(device("tty", 5, 0), device("odd", 0, 5)),
        ],
        form="overlay",
    )
    found = read_tree(tree)
    devices = {path: entry.device for path, entry in found.items() if entry.kind == "character device"}
    assert devices == {"d/gone": (0, 0), "tty": (5, 0), "odd": (0, 5)}
    opaque = {path for path, entry in found.items() if entry.xattrs.get("trusted.overlay.opaque") == b"y"}
    assert opaque == {"o", "e", "g", "h", "j"}
    assert (listing(tree)["own"], listing(tree)["i"]) == ("1", "2")
    assert done.left_out_count == 1


def test_what_overlayfs_takes_for_a_whiteout_is_a_device_in_a_tree_of_all_layers(tree: Path) -> None:
    require_root()
    assert apply(tree, [device("z", 0, 0)]).left_out_count == 0
    assert read_tree(tree)["z"].device == (0, 0)


def test_overlay_whiteouts_go_where_nothing_lower_shows(tree: Path) -> None:
    """Overlayfs may show the devices themselves there."""
    require_root()
    hidden: list[Content] = [file("o/.wh.a"), file("o/p/.wh.b"), folder("o/p"), file("o/.wh..wh..opq"), file("n/.wh.c")]
    apply(tree, hidden, form="overlay")
    assert set(listing(tree)) == {"o", "o/p", "n", "n/c"}


def test_a_hard_link_to_what_the_same_layer_hides_is_refused(tree: Path) -> None:
    require_root()
    with pytest.raises(InvalidArchive, match="not there"):
        apply(tree, [file(".wh.a"), hard_link("b", "a")], form="overlay")


# ---- bounds, and what they cost


def test_more_members_than_are_allowed_are_refused(tree: Path) -> None:
    with writing(tree, limits=UnpackLimits(entries=3)) as writer:
        writer.apply_layer(io.BytesIO(tar_of([file("a"), file("b")])))
        with pytest.raises(InvalidArchive, match="more than 3 members"):
            writer.apply_layer(io.BytesIO(tar_of([file(".wh.a"), file("b")])))


def _far(name: str) -> list[Content]:
    return [link(f"{name}l", "/".join([name] * 1900)), folder(f"{name}l/x")]


def test_S24_short_names_do_not_lead_through_many_directories_again_and_again(quick_tree: Path) -> None:
    between = [file(f"{name}l/x/{number}") for number in range(2000) for name in "ab"]
    with (
        writing(quick_tree) as writer,
        pytest.raises(InvalidArchive, match="lead through more directories than any image needs"),
    ):
        writer.apply_layer(io.BytesIO(tar_of([*_far("a"), *_far("b"), *between])))
    assert len(os.listdir(quick_tree)) == 4


def test_S24_links_that_lead_nowhere_take_their_time_too(quick_tree: Path) -> None:
    links: list[Content] = [folder("a"), folder("b"), *(link(f"{name}l", "./" * 1900 + name) for name in "ab")]
    between = [file(f"{name}l/{number}") for number in range(200) for name in "ab"]
    with (
        writing(quick_tree) as writer,
        pytest.raises(InvalidArchive, match="lead through more directories than any image needs"),
    ):
        writer.apply_layer(io.BytesIO(tar_of([*links, *between])))


def test_S24_links_to_what_is_not_there_make_no_directories_without_end(quick_tree: Path) -> None:
    makers: list[Content] = []
    for number in range(2000):
        makers += [folder(f"{number}"), hard_link(f"{number}/l", "al"), file(f"{number}/l/f")]
    with (
        writing(quick_tree) as writer,
        pytest.raises(InvalidArchive, match="lead through more directories than any image needs"),
    ):
        writer.apply_layer(io.BytesIO(tar_of([*_far("a"), *makers])))
    assert len(os.listdir(quick_tree)) < 100


def test_S10_what_directories_have_is_kept_within_bounds(quick_tree: Path) -> None:
    limits = UnpackLimits(directory_attribute_bytes=100)
    marked = attrs_with(folder("d"), {"user.x": b"1" * 90})
    with writing(quick_tree, limits=limits) as writer:
        writer.apply_layer(io.BytesIO(tar_of([marked, marked, marked])))  # the last one alone counts
        with pytest.raises(InvalidArchive, match="directories up to it have more than 100 bytes of attributes"):
            writer.apply_layer(io.BytesIO(tar_of([attrs_with(folder("e"), {"user.x": b"1"})])))


@pytest.mark.parametrize("form", ["flat", "overlay"])
def test_S24_directories_that_no_member_names_are_counted(quick_tree: Path, form: Form) -> None:
    chains = [file(f"{number}" + "/d" * 100 + "/.wh.a" * (form == "overlay")) for number in range(30)]
    with (
        writing(quick_tree, limits=UnpackLimits(tree_bytes=1_000_000), form=form) as writer,
        pytest.raises(InvalidArchive, match="the image has more files and longer names than are kept in 1000000 bytes"),
    ):
        writer.apply_layer(io.BytesIO(tar_of(chains)))
    assert len(os.listdir(quick_tree)) == 10


@pytest.mark.parametrize("form", ["flat", "overlay"])
def test_S24_the_names_that_are_kept_of_a_layer_over_others_are_counted(quick_tree: Path, form: Form) -> None:
    names = [file(("" if form == "flat" else ".wh.") + f"{number}".zfill(250)) for number in range(300)]
    with writing(quick_tree, limits=UnpackLimits(tree_bytes=100_000), form=form) as writer:
        writer.apply_layer(io.BytesIO(tar_of(names if form == "flat" else [])))  # there is nothing that it could hide
        with pytest.raises(InvalidArchive, match="more files and longer names than are kept in 100000 bytes"):
            writer.apply_layer(io.BytesIO(tar_of(names)))


def test_S10_directories_with_long_names_and_attributes_take_little_memory(quick_tree: Path) -> None:
    def members() -> Iterator[bytes]:
        for number in range(400):
            yield encode_header(Member(f"n{number}", MemberKind.DIRECTORY, uname="u" * 500_000, gname="g" * 500_000))
        for number in range(400):
            yield encode_header(attrs_with(folder(f"d{number}"), {"user.x": b"1" * 1_000_000}))

    def work() -> None:
        with writing(quick_tree) as writer:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with pytest.raises(InvalidArchive, match="bytes of attributes"):
                writer.apply_layer(Joined(members()))
            assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 100 * 1024 * 1024

    assert run_forked(work) == 0


def test_a_directory_takes_half_a_kilobyte_until_the_end(quick_tree: Path) -> None:
    def peak_bytes(count: int) -> int:
        tar = tar_of([folder(f"{number // 400}/{number // 20 % 20}/{number % 20}") for number in range(count)])

        def work() -> None:
            with writing(quick_tree.with_name(f"{count}")) as writer:
                writer.apply_layer(io.BytesIO(tar))
                writer.finish()

        return peak_of(work)

    assert peak_bytes(6000) - peak_bytes(2000) < 512 * 4000


def test_the_check_ends_the_work_between_two_members(tree: Path) -> None:
    calls = iter([None, None])

    def check() -> None:
        if next(calls, InterruptedError):
            raise InterruptedError

    with writing(tree, check=check) as writer, pytest.raises(InterruptedError):
        writer.apply_layer(io.BytesIO(tar_of([folder("a"), folder("b"), folder("c")])))
    assert sorted(os.listdir(tree)) == ["a", "b"]


def test_the_check_ends_the_work_between_two_pieces_of_one_file(tree: Path) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise InterruptedError

    content = bytes(64 << 20)
    with writing(tree, check=check) as writer, pytest.raises(InterruptedError):
        writer.apply_layer(io.BytesIO(tar_of([file("f", content)])))
    assert (tree / "f").stat().st_size <= 8 << 20


def system_calls(tree: Path, monkeypatch: pytest.MonkeyPatch, *layers: Sequence[Content]) -> int:
    """Return how many calls of the system a tree takes, and how many bytes of names they return."""
    proxy = OsProxy()
    listed = 0

    def listdir(path: int) -> list[str]:
        nonlocal listed
        names = os.listdir(path)
        listed += len(names)
        return names

    monkeypatch.setattr(proxy, "listdir", listdir, raising=False)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("tree", "contents", "directories", "ownership", "whiteouts"):
            patch.setattr(f"minibox_store.rootfs.{module}.os", proxy)
        apply(tree, *layers)
    return len(proxy.calls) + listed


def wide(count: int) -> list[Sequence[Content]]:
    return [[file(f"d/{number}") for number in range(count)]]


def wide_and_hidden(count: int) -> list[Sequence[Content]]:
    names = range(count)
    whiteouts = [file(f"d/.wh.{number}") for number in names]
    return [*wide(count), [*wide(count)[0], *whiteouts, *(file("d/.wh..wh..opq") for _ in names), *whiteouts]]


def opaque(count: int) -> list[Sequence[Content]]:
    lower: list[Content] = [file(f"d/{number}/{inner}") for number in range(count) for inner in range(3)]
    markers = [file(f"d/{number}/.wh..wh..opq") for number in range(count)]
    return [lower, [file("d/x"), *markers, file("d/.wh..wh..opq"), *markers]]


def deep(count: int) -> list[Sequence[Content]]:
    parts = min(count, 1900)
    return [[folder("/".join(["d"] * depth)) for depth in range(1, parts)]]


def chains(count: int) -> list[Sequence[Content]]:
    return [[folder(f"{chain}/" + "/".join(["d"] * depth)) for chain in range(count // 50) for depth in range(1, 51)]]


def replaced(count: int) -> list[Sequence[Content]]:
    return [[each for number in range(count) for each in (folder(f"d/{number}/x"), file(f"d/{number}"))]]


@pytest.mark.parametrize("shape", [wide, wide_and_hidden, opaque, deep, chains, replaced])
def test_S24_the_work_is_linear_in_the_members(
    quick_tree: Path, monkeypatch: pytest.MonkeyPatch, shape: Callable[[int], list[Sequence[Content]]]
) -> None:
    # More than may be open at once, in both.
    few = system_calls(quick_tree, monkeypatch, *shape(400))
    many = system_calls(quick_tree.with_name("many"), monkeypatch, *shape(1600))
    assert many <= 4.5 * few
    assert many <= 12 * sum(len(layer) for layer in shape(1600))


def test_a_deep_tree_costs_no_more_files_than_a_flat_one(quick_tree: Path) -> None:
    path = "/".join(["d"] * 1900)
    apply(
        quick_tree,
        [file(f"{path}/f", b"1"), hard_link("g", f"{path}/f")],
        [file(f"{path}/h"), file(f"{path}/.wh.f")],
        [file(".wh.d")],
    )
    assert listing(quick_tree) == {"g": "1"}


def test_a_directory_that_is_closed_is_entered_again(tmp_path: Path) -> None:
    opened = os.open(tmp_path, os.O_RDONLY)
    directories = Directories(opened, TreeBounds("the image", DEFAULT_UNPACK_LIMITS), check_nothing, most_open=2)
    try:
        made = directories.root
        for _ in range(10):
            made = directories.make(made, "d", 1)
        directory = directories.root.children["d"]
        assert os.fstat(directories.open(directory)).st_ino == (tmp_path / "d").stat().st_ino
        assert sum(1 for name in os.listdir("/proc/self/fd") if _leads_below(name, tmp_path)) <= 3
    finally:
        directories.close()
        os.close(opened)


def _leads_below(name: str, folder: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{name}").startswith(str(folder))
    except FileNotFoundError:
        return False
