"""The files of an image as they are looked at in its layers: the very ones that a tree would have, or an error."""

import io
import os
import resource
import threading
from pathlib import Path

import pytest

from minibox_store import (
    ContentMismatch,
    Digest,
    FileKind,
    ImageFiles,
    InvalidArchive,
    InvalidDocument,
    InvalidPath,
    PathNotFound,
    StoreUnavailable,
    UnpackLimits,
)
from tests.support.forks import run_forked
from tests.support.hard_layers import CASES, folder, image_of, member, opaque, whiteout
from tests.support.image_views import view_tree
from tests.support.images import build_image, build_index
from tests.support.sparse_tars import data_map
from tests.support.stores import open_store, put, require_root
from tests.support.tars import pax
from tests.support.trees import assert_same_tree, read_tree


@pytest.mark.parametrize("case", CASES)
def test_an_image_shows_what_its_tree_has(tmp_path: Path, case: str) -> None:
    require_root()
    put(tmp_path / "store", image_of(CASES[case]), "hard:1")
    store = open_store(tmp_path / "store")
    store.unpack("hard:1", tmp_path / "tree")
    for _ in ("made now", "kept"):
        with store.open_files("hard:1") as image:
            assert_same_tree(read_tree(tmp_path / "tree"), view_tree(image))


def test_a_file_is_read_and_sought_in_as_any_other(tmp_path: Path) -> None:
    content = os.urandom(700_000)
    with opened(tmp_path, [[member("dir/file", content=content), member("empty")]]) as image:
        with image.open("/dir/file") as file:
            assert file.read(10) == content[:10]
            assert file.seek(-5, io.SEEK_END) == len(content) - 5
            assert file.read() == content[-5:]
            assert (file.seek(300_000), file.read(1000)) == (300_000, content[300_000:301_000])
            assert (file.seek(10, io.SEEK_CUR), file.tell()) == (301_010, 301_010)
            assert (file.seek(len(content) + 5), file.read(1)) == (len(content) + 5, b"")
            with pytest.raises(ValueError, match="nothing before its beginning"):
                file.seek(-1)
            assert not file.writable()
        assert image.read_bytes("dir/file", limit_bytes=len(content)) == content
        assert image.read_bytes("empty") == b""


def test_links_lead_through_the_image_and_never_out_of_it(tmp_path: Path) -> None:
    members = [
        member("etc/os-release", content=b"ID=here"),
        member("absolute", "link", target="/etc/os-release"),
        member("up", "link", target="../../../etc"),
        member("etc/again", "link", target="./../absolute"),
        member("nowhere", "link", target="/etc/hostname"),
        member("itself", "link", target="itself"),
    ]
    with opened(tmp_path, [members]) as image:
        for path in ("etc/os-release", "/absolute", "up/os-release", "up/again", "/../../etc/./../etc//again"):
            assert image.read_bytes(path) == b"ID=here"
        assert image.stat("absolute").kind is FileKind.FILE
        assert (
            image.stat("absolute", follow_links=False).link_target == image.read_link("absolute") == "/etc/os-release"
        )
        assert image.listdir("up") == ("again", "os-release")
        # The machine has such a file, and the image has not.
        assert Path("/etc/hostname").exists()
        with pytest.raises(PathNotFound):
            image.open("nowhere")
        with pytest.raises(InvalidPath, match="more than 40"):
            image.stat("itself")
        assert image.stat("itself", follow_links=False).kind is FileKind.SYMLINK


def test_as_many_links_are_followed_as_linux_follows_and_no_more(tmp_path: Path) -> None:
    links = [member(f"link{number}", "link", target=f"link{number - 1}") for number in range(1, 41)]
    with opened(tmp_path, [[member("link0", content=b"end"), *links]]) as image:
        assert image.read_bytes("link40") == b"end"
    layers = [[member("link0"), *links, member("link41", "link", target="link40")]]
    with opened(tmp_path, layers) as image, pytest.raises(InvalidPath):
        image.open("link41")


@pytest.mark.parametrize("kind", ["directory", "FIFO", "character device", "block device"])
def test_S16_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    members = [member("thing", kind, device=(1, 5)), member("link", "link", target="thing")]
    with opened(tmp_path, [members]) as image:
        for path in ("thing", "link"):
            with pytest.raises(InvalidPath, match="no regular file but a"):
                image.open(path)
            with pytest.raises(InvalidPath):
                image.read_bytes(path)
        assert image.read_at(image.find("thing"), 0, 10) == b""


def test_S16_no_more_is_read_at_once_than_was_asked_for(tmp_path: Path) -> None:
    with opened(tmp_path, [[member("file", content=b"12345")]]) as image:
        assert image.read_bytes("file", limit_bytes=5) == b"12345"
        with pytest.raises(InvalidPath, match="5 bytes, more than 4"):
            image.read_bytes("file", limit_bytes=4)


@pytest.mark.parametrize("path", ["missing", "dir/missing", "missing/below", "", "x\0y"])
def test_what_is_not_there_is_not_found(tmp_path: Path, path: str) -> None:
    with opened(tmp_path, [[folder("dir")]]) as image:
        if not path:
            assert image.stat(path).kind is FileKind.DIRECTORY
            return
        with pytest.raises(PathNotFound) as told:
            image.stat(path)
        assert (told.value.image, told.value.path) == ("image:1", path)


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    with opened(tmp_path, [[member("file"), folder("dir")]]) as image:
        for path in ("file/below", "file/", "file/.", "file/.."):
            with pytest.raises(InvalidPath, match="no directory"):
                image.stat(path)
        with pytest.raises(InvalidPath, match="no directory but a file"):
            image.listdir("file")
        with pytest.raises(InvalidPath, match="no symbolic link but a directory"):
            image.read_link("dir")


def test_a_walk_comes_by_everything_below_once_and_in_order(tmp_path: Path) -> None:
    layers = [[member("b/two"), member("b/c/d"), member("a", "link", target="b")], [member("b/one"), folder("e")]]
    with opened(tmp_path, layers) as image:
        below_b = ["/b/c", "/b/c/d", "/b/one", "/b/two"]
        assert [path for path, _ in image.walk()] == ["/", "/a", "/b", *below_b, "/e"]
        assert [path for path, _ in image.walk("b")] == ["/b", *below_b]
        assert [path for path, _ in image.walk("/a/")] == ["/a", *(path.replace("b", "a", 1) for path in below_b)]


def test_names_of_one_file_share_its_number_and_no_others(tmp_path: Path) -> None:
    layers = [
        [member("a", content=b"1"), member("b", "hard link", target="a"), member("c", content=b"1")],
        [member("d", "hard link", target="b"), member("a", content=b"new")],
    ]
    with opened(tmp_path, layers) as image:
        status = {name: image.stat(name) for name in "abcd"}
        assert status["b"].inode == status["d"].inode
        assert len({status[name].inode for name in "abc"}) == 3
        assert [status[name].link_count for name in "abcd"] == [1, 2, 1, 2]
        assert image.stat("/").link_count == 2


def test_numbers_are_the_same_every_time(tmp_path: Path) -> None:
    put(tmp_path, image_of(CASES["hard links"]), "image:1")
    seen = []
    for _ in range(2):
        with open_store(tmp_path).open_files("image:1") as image:
            seen.append({path: status.inode for path, status in image.walk()})
        for sidecar in tmp_path.glob("files/*/*"):
            sidecar.unlink()
    assert seen[0] == seen[1]


def test_the_holes_of_a_sparse_file_are_zeros(tmp_path: Path) -> None:
    sparse = pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"disk"),
                  (b"GNU.sparse.realsize", b"1000000")])  # fmt: skip
    data = b"2\n5000\n3\n900000\n4\n"
    stored = member("sparse", content=data.ljust(512, b"\0") + b"abcdefg")
    with opened(tmp_path, [[sparse + stored]]) as image:
        expected = bytearray(1_000_000)
        expected[5000:5003], expected[900000:900004] = b"abc", b"defg"
        assert image.stat("disk").size_bytes == 1_000_000
        with image.open("disk") as file:
            assert file.read() == expected
            assert (file.seek(4999), file.read(3)) == (4999, b"\0ab")


def test_an_index_gives_the_image_of_a_platform(tmp_path: Path) -> None:
    both = build_index(
        [build_image([{"name": platform.encode()}], platform=platform) for platform in ("linux/arm64", "linux/amd64")]
    )
    put(tmp_path, both, "both:1")
    from minibox_store import Platform

    with open_store(tmp_path).open_files("both:1") as image:
        assert image.read_bytes("name") == b"linux/amd64"
    with open_store(tmp_path).open_files("both:1", platform=Platform.parse("linux/arm64")) as image:
        assert image.read_bytes("name") == b"linux/arm64"


def test_an_image_whose_config_speaks_of_other_layers_is_refused(tmp_path: Path) -> None:
    image = build_image([{"a": b"1"}], config={"rootfs": {"type": "layers", "diff_ids": []}})
    put(tmp_path, image, "odd:1")
    with pytest.raises(InvalidDocument, match="diff_ids"):
        open_store(tmp_path).open_files("odd:1")


def test_a_layer_that_is_not_what_the_config_promises_is_refused_and_no_index_is_kept(tmp_path: Path) -> None:
    image = build_image([{"a": b"1"}], config={"rootfs": {"type": "layers", "diff_ids": [str(Digest.of(b"other"))]}})
    put(tmp_path, image, "odd:1")
    with pytest.raises(ContentMismatch):
        open_store(tmp_path).open_files("odd:1")
    assert not list(tmp_path.glob("files/*/*"))


def test_a_directory_that_is_hidden_and_filled_by_one_layer_is_as_if_nobody_had_named_it(tmp_path: Path) -> None:
    require_root()
    lower = [folder("d", mode=0o700, uid=5), member("d/old"), folder("d/below", mode=0o700), member("d/below/old")]
    for number, hiding in enumerate((whiteout("d"), opaque("d"))):
        root = tmp_path / str(number)
        with opened(root / "store", [lower, [member("d/below/new"), hiding]]) as image:
            open_store(root / "store").unpack("image:1", root / "tree")
            assert_same_tree(read_tree(root / "tree"), view_tree(image))
            assert image.stat("d/below").mode == 0o755
            assert image.stat("d").mode == (0o755 if hiding == whiteout("d") else 0o700)
            assert image.listdir("d/below") == ("new",)


def test_a_member_that_takes_the_way_of_the_next_one_away(tmp_path: Path) -> None:
    require_root()
    members = [folder("d"), member("d/l", "link", target="."), member("d/l/x"), member("d/l/l"), member("d/l/y")]
    put(tmp_path / "store", image_of([members[:4]]), "whole:1")
    put(tmp_path / "store", image_of([members]), "refused:1")
    with open_store(tmp_path / "store").open_files("whole:1") as image:
        assert image.listdir("d") == ("l", "x")
    with pytest.raises(InvalidArchive, match="no directory"):
        open_store(tmp_path / "store").open_files("refused:1")
    with pytest.raises(InvalidArchive, match="no directory"):
        open_store(tmp_path / "store").unpack("refused:1", tmp_path / "tree")


def test_blobs_that_are_removed_meanwhile_are_read_to_the_end(tmp_path: Path) -> None:
    content = os.urandom(1 << 20)
    put(tmp_path, image_of([[member("file", content=content)]]), "image:1")
    store = open_store(tmp_path)
    with store.open_files("image:1") as image, image.open("file") as file:
        store.remove("image:1")
        assert store.prune().blobs_removed
        assert file.read() == content


def test_many_threads_read_one_image(tmp_path: Path) -> None:
    contents = {f"file{number}": os.urandom(400_000) for number in range(8)}
    with opened(tmp_path, [[member(name, content=content) for name, content in contents.items()]]) as image:
        wrong: list[str] = []

        def read(turn: int) -> None:
            for name, content in list(contents.items())[turn:] + list(contents.items())[:turn]:
                if image.read_bytes(name) != content:
                    wrong.append(name)

        threads = [threading.Thread(target=read, args=(turn,)) for turn in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        assert not wrong


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (UnpackLimits(output_bytes=100_000), "100000 bytes"),
        (UnpackLimits(ratio=2, ratio_floor_bytes=0), "limit"),
        (UnpackLimits(entries=1), "more than 1 members"),
        (UnpackLimits(seconds=0.0), "seconds"),
    ],
)
def test_S8_a_layer_that_passes_a_bound_is_refused_and_no_index_is_kept(
    tmp_path: Path, limits: UnpackLimits, problem: str
) -> None:
    put(tmp_path, image_of([[member("a", content=bytes(1 << 20)), member("b")]]), "bomb:1")
    with pytest.raises(InvalidArchive, match=problem):
        open_store(tmp_path).open_files("bomb:1", limits=limits)
    assert not list(tmp_path.glob("files/*/*"))


def test_the_members_of_all_layers_are_counted_together(tmp_path: Path) -> None:
    put(tmp_path, image_of([[member("a")], [member("b")]]), "image:1")
    with pytest.raises(InvalidArchive, match="more than 1 members"):
        open_store(tmp_path).open_files("image:1", limits=UnpackLimits(entries=1))
    open_store(tmp_path).open_files("image:1", limits=UnpackLimits(entries=2)).close()


@pytest.mark.parametrize("layers", [1, 2])
def test_S8_attributes_of_all_members_together_have_a_bound(tmp_path: Path, layers: int) -> None:
    half = member("a", xattrs={"user.a": bytes(60_000)}), member("b", xattrs={"user.b": bytes(60_000)})
    put(tmp_path, image_of([half] if layers == 1 else [[each] for each in half]), "image:1")
    with pytest.raises(InvalidArchive, match="more than 100000 bytes of extended attributes, link targets and maps"):
        open_store(tmp_path).open_files("image:1", limits=UnpackLimits(extra_bytes=100_000))
    open_store(tmp_path).open_files("image:1", limits=UnpackLimits(extra_bytes=120_012)).close()


def test_S8_the_runs_of_sparse_files_have_a_bound(tmp_path: Path) -> None:
    map_of_runs = b"1000\n" + b"".join(b"%d\n1\n" % (2 * number) for number in range(1000))
    put(tmp_path, image_of([[data_map(map_of_runs, stored=bytes(1000), size=b"2000")]]), "image:1")
    with pytest.raises(InvalidArchive, match="more than 100000 bytes of extended attributes, link targets and maps"):
        open_store(tmp_path).open_files("image:1", limits=UnpackLimits(extra_bytes=100_000))


@pytest.mark.parametrize("layers", [1, 2])
def test_S8_the_targets_of_links_have_a_bound(tmp_path: Path, layers: int) -> None:
    half = [[member(f"{part}{number}", "link", target="t" * 4000) for number in range(20)] for part in "ab"]
    put(tmp_path, image_of([half[0] + half[1]] if layers == 1 else half), "image:1")
    with pytest.raises(InvalidArchive, match="more than 100000 bytes of extended attributes, link targets and maps"):
        open_store(tmp_path).open_files("image:1", limits=UnpackLimits(extra_bytes=100_000))
    open_store(tmp_path).open_files("image:1", limits=UnpackLimits(extra_bytes=160_000)).close()


@pytest.mark.parametrize("kind", ["file", "hard link"])
@pytest.mark.parametrize("layers", [1, 2])
def test_S8_what_is_kept_of_all_members_has_a_bound(tmp_path: Path, layers: int, kind: str) -> None:
    def long(part: str, number: int) -> bytes:
        if kind == "file":
            return member("/".join([part, *["n" * 250] * 7, str(number)]))
        return member(f"{part}{number}", kind, target="./" * 900 + "there")

    half = [[member("there"), *[long(part, number) for number in range(20)]] for part in "ab"]
    put(tmp_path, image_of([half[0] + half[1]] if layers == 1 else half), "image:1")
    what = "layer sha256:[0-9a-f]{64}" if layers == 1 else "the image"
    with pytest.raises(InvalidArchive, match=f"{what} has more files and longer names than are kept in 100000 bytes"):
        open_store(tmp_path).open_files("image:1", limits=UnpackLimits(tree_bytes=100_000))
    open_store(tmp_path).open_files("image:1", limits=UnpackLimits(tree_bytes=150_000)).close()


def test_S8_the_names_of_a_layer_are_not_held_while_it_is_read(tmp_path: Path) -> None:
    put(tmp_path, image_of([[member("/".join([*["n" * 250] * 16, f"{number:05}"])) for number in range(6000)]]), "n:1")

    def look() -> None:
        store = open_store(tmp_path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        store.open_files("n:1").close()
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 6000 * 5000

    assert run_forked(look) == 0


def test_attributes_that_no_file_can_have_are_left_out_as_in_a_tree(tmp_path: Path) -> None:
    attributes = {f"user.{'x' * 70_000}": b"1", f"user.{'x' * 251}": b"2", "user.v": bytes(65_537)}
    kept = {f"user.{'x' * 250}": b"3", "user.w": bytes(65_536)}
    with opened(tmp_path, [[member("a", xattrs={**attributes, **kept})]]) as image:
        assert dict(image.stat("a").xattrs) == kept


@pytest.mark.parametrize("number", [(1 << 12, 0), (0, 1 << 20)])
def test_a_device_that_there_is_not_is_refused_as_in_a_tree(tmp_path: Path, number: tuple[int, int]) -> None:
    put(tmp_path, image_of([[member("a", "character device", device=number)]]), "image:1")
    with pytest.raises(InvalidArchive, match="there is no device"):
        open_store(tmp_path).open_files("image:1")


def test_attributes_that_would_steer_an_overlay_are_not_shown(tmp_path: Path) -> None:
    names = ("trusted.overlay.opaque", "user.overlay.redirect", "user.rootlesscontainers", "user.kept")
    with opened(tmp_path, [[member("a", xattrs=dict.fromkeys(names, b"y"))]]) as image:
        assert dict(image.stat("a").xattrs) == {"user.kept": b"y"}


def test_a_closed_image_and_closing_twice(tmp_path: Path) -> None:
    image = opened(tmp_path, [[member("a", content=b"1")]])
    open_files = len(os.listdir("/proc/self/fd"))
    assert image.read_bytes("a") == b"1"
    image.close()
    image.close()
    assert len(os.listdir("/proc/self/fd")) < open_files


def test_what_is_asked_of_a_closed_image_opens_nothing(tmp_path: Path) -> None:
    image = opened(tmp_path, [[member("a", content=b"1"), member("below/b")]])
    file = image.open("a")
    image.close()
    open_files = os.listdir("/proc/self/fd")
    with pytest.raises(StoreUnavailable, match="the files of image:1: they are closed"):
        file.read()
    with pytest.raises(StoreUnavailable, match="the files of image:1: they are closed"):
        image.listdir("below")
    assert os.listdir("/proc/self/fd") == open_files


def test_a_name_that_no_bytes_are_read_as_is_not_there(tmp_path: Path) -> None:
    with opened(tmp_path, [[member("a")]]) as image, pytest.raises(PathNotFound):
        image.stat("\ud800")


def opened(root: Path, layers: list[list[bytes]]) -> ImageFiles:
    """Return an image of these members, opened from a store."""
    put(root, image_of(layers), "image:1")
    return open_store(root).open_files("image:1")
