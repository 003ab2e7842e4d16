"""What a collection takes of what was made of images: trees and indexes, of each kind."""

import fcntl
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from minibox_store import ImageFilter, PruneReport, StoreBusy, StoreDamaged
from minibox_store import _locks as locks
from minibox_store.rootfs import container_names
from tests.support.derived import (
    TREE_BYTES,
    UNFINISHED,
    base_layer,
    extracted,
    file_index,
    hex_of,
    plant_tree,
    write_sidecar,
)
from tests.support.forks import forked, run_alone, run_forked, sleep_for_ever
from tests.support.images import build_image, random_layer
from tests.support.invariants import check_invariants, held_locks, open_files
from tests.support.namespaces import another_namespace
from tests.support.os_proxy import DIED, replaced_os
from tests.support.snapshots import snapshot
from tests.support.sources import memory_of
from tests.support.stores import blob, bound, layer_of, mounted, open_layout, open_store, put, put_dead, require_root

IMAGE = build_image(salt="image")
DEAD = build_image([random_layer(2048, salt="dead")], salt="dead")
LIVE_LAYER, DEAD_LAYER = IMAGE.layer_digests[0], DEAD.layer_digests[0]
GONE = "sha256:" + "d" * 64
HAND_MADE = ("extracted layer", "base layer", "sidecar", "temporary", "mount point")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a store that holds one image, beside a folder that no collection may touch."""
    folder = tmp_path / "store"
    put(folder, IMAGE, "image:1")
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "outside" / "deep" / "file").write_bytes(b"precious")
    before = snapshot(tmp_path / "outside")
    yield folder
    assert snapshot(tmp_path / "outside") == before
    assert open_files(folder) == []
    assert held_locks(folder) == []


def prune_twice(root: Path, *, build_cache: bool = False) -> PruneReport:
    """Plan, then collect, and show that the plan changed nothing and was the truth."""
    before = snapshot(root)
    plan = open_store(root).prune(dry_run=True, build_cache=build_cache)
    assert snapshot(root) == before
    report = open_store(root).prune(build_cache=build_cache)
    assert (plan.removed, plan.kept) == (report.removed, report.kept)
    assert sorted(map(whoever, plan.errors)) == sorted(map(whoever, report.errors))
    for removal in report.removed:
        assert not os.path.lexists(root / removal.path), removal
    return report


def whoever(error: str) -> str:
    """Return an error without the number of a process: of several that cannot be looked into, any may be named."""
    return re.sub(r"process [0-9]+(/task/[0-9]+)?", "a process", error)


def derived(report: PruneReport) -> dict[str, int]:
    """Return what went that was made of images, with its bytes."""
    return {each.path: each.size_bytes for each in report.removed if each.kind in HAND_MADE}


def subjects(sentences: tuple[str, ...]) -> list[str]:
    """Return what some sentences are about."""
    return [each.partition(": ")[0] for each in sentences]


# extracted/


def test_the_trees_of_layers_that_are_gone_go_and_those_of_live_ones_stay(root: Path) -> None:
    put_dead(root, DEAD)
    for digest in (LIVE_LAYER, DEAD_LAYER, GONE, "sha512:" + "e" * 128):
        extracted(root, digest)
    report = prune_twice(root)
    swept = {f"extracted/{hex_of(digest)}" for digest in (DEAD_LAYER, GONE)} | {f"extracted/{'e' * 128}"}
    assert derived(report) == dict.fromkeys(swept, TREE_BYTES)
    assert report.bytes_freed == DEAD.size_bytes + 3 * TREE_BYTES
    assert (report.blobs_removed, report.fuse_mounts_killed, report.kept, report.errors) == (len(DEAD.blobs), 0, (), ())
    assert os.listdir(root / "extracted") == [hex_of(LIVE_LAYER)]
    assert prune_twice(root).removed == ()
    check_invariants(root)


@pytest.mark.parametrize("target", ["../layers/one", "{outside}", "/nowhere", "../base_layers"])
def test_a_link_for_a_layer_that_is_gone_is_removed_and_not_followed(root: Path, target: str) -> None:
    plant_tree(root / "layers" / "one")
    (root / "base_layers").mkdir()
    (root / "extracted").mkdir()
    for digest in (GONE, LIVE_LAYER):
        (root / "extracted" / hex_of(digest)).symlink_to(target.format(outside=root.parent / "outside"))
    report = prune_twice(root)
    assert list(derived(report)) == [f"extracted/{hex_of(GONE)}"]
    assert os.path.lexists(root / "extracted" / hex_of(LIVE_LAYER))
    assert (root / "layers" / "one" / "file").exists()


def test_an_unpacked_layer_goes_with_the_link_that_pointed_into_it_in_one_collection(root: Path) -> None:
    for name in ("one", "two"):
        plant_tree(root / "layers" / name)
    (root / "extracted").mkdir()
    (root / "extracted" / hex_of(GONE)).symlink_to("../layers/one")
    (root / "extracted" / hex_of(LIVE_LAYER)).symlink_to("../layers/two")
    report = prune_twice(root, build_cache=True)
    assert {each.path for each in report.removed} == {f"extracted/{hex_of(GONE)}", "layers/one"}


def test_what_is_called_by_no_digest_or_is_no_tree_is_left_alone(root: Path) -> None:
    for folder in ("extracted", "lazy", "cache", "files/sha256", "files/cache"):
        (root / folder).mkdir(parents=True)
        for name in ("a" * 63, "A" * 64, "g" * 64, ".hidden", "README", f".short.{'0' * 15}.tmp"):
            (root / folder / name).write_bytes(b"x")
        (root / folder / "folder").mkdir()
    for folder in ("extracted", "lazy", "cache"):
        (root / folder / ("c" * 64)).write_bytes(b"a file, and no tree")
    (root / "files" / "sha256" / ("c" * 64)).mkdir()
    before = snapshot(root)
    report = prune_twice(root)
    assert (report.removed, report.kept, report.errors) == ((), (), ())
    assert snapshot(root) == before


@pytest.mark.parametrize("folder", ["extracted", "base_layers", "lazy", "files", "containers"])
def test_a_folder_of_trees_that_is_itself_a_link_is_not_entered(root: Path, folder: str) -> None:
    outside = root.parent / "outside"
    (root / folder).symlink_to(outside)
    (outside / "gone_1").mkdir()
    (outside / ("c" * 64)).mkdir()
    report = prune_twice(root)
    assert (report.removed, report.errors) == ((), ())
    (outside / "gone_1").rmdir()
    (outside / ("c" * 64)).rmdir()


def test_the_tree_of_a_layer_that_a_running_transaction_holds_stays(root: Path) -> None:
    put_dead(root, DEAD)
    extracted(root, DEAD_LAYER)

    def work(ready: Callable[[], None]) -> None:
        with open_layout(root).open_writer() as writer:
            assert writer.has_blob(layer_of(DEAD))
            ready()
            sleep_for_ever()

    with forked(work):
        assert derived(prune_twice(root)) == {}
    assert list(derived(prune_twice(root))) == [f"extracted/{hex_of(DEAD_LAYER)}"]


def test_the_tree_of_a_layer_that_comes_back_before_its_turn_stays(root: Path) -> None:
    put_dead(root, DEAD)
    extracted(root, DEAD_LAYER)
    extracted(root, GONE)
    with replaced_os() as system:
        # The blobs have gone by then; the collection has begun with the trees.
        system.after("unlink", lambda: system.before("open", come_back, path="store.turn"), path="blobs/", skip=2)

        def come_back() -> None:
            open_store(root).import_image(memory_of({"back:1": DEAD}), "back:1")

        report = open_store(root).prune()
    assert list(derived(report)) == [f"extracted/{hex_of(GONE)}"]
    assert (root / "extracted" / hex_of(DEAD_LAYER) / "file").exists()
    check_invariants(root)


# base_layers/


def test_the_tree_of_an_image_that_has_no_name_any_more_goes_with_the_file_beside_it(root: Path) -> None:
    base_layer(root, "image_1", "image:1", IMAGE)
    base_layer(root, "gone_1", "gone:1", DEAD)
    base_layer(root, "image_1-0123456789ab", "image_1", DEAD)
    report = prune_twice(root)
    assert derived(report).keys() == {
        "base_layers/gone_1",
        "base_layers/gone_1.json",
        "base_layers/image_1-0123456789ab",
        "base_layers/image_1-0123456789ab.json",
    }
    assert report.bytes_freed == sum(derived(report).values())
    assert derived(report)["base_layers/gone_1"] == TREE_BYTES
    assert sorted(os.listdir(root / "base_layers")) == ["image_1", "image_1.json"]
    assert [each.reason for each in report.removed if each.kind == "base layer"] == [
        "its image is no longer in the index"
    ] * 2
    check_invariants(root)


def test_a_tree_stays_with_its_image_whatever_it_is_called(root: Path) -> None:
    base_layer(root, "called-otherwise", "image:1", IMAGE)
    assert prune_twice(root).removed == ()


def test_a_tree_stays_while_its_name_stands_for_another_image_by_now(root: Path) -> None:
    base_layer(root, "image_1", "image:1", DEAD)
    assert prune_twice(root).removed == ()


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("image:1", "image_1"),
        ("docker.io/library/image:1", "image_1"),
        ("image:1", "docker.io_library_image_1"),
        ("registry.example.org:5000/team/app:1", "registry.example.org_5000_team_app_1"),
        ("image:1", "image_1-1e1c7dbc51f8"),
        ("[::1]:5000/x:1", "[__1]_5000_x_1"),
    ],
)
def test_a_tree_with_no_file_beside_it_stays_while_a_name_may_be_its(root: Path, name: str, tag: str) -> None:
    open_store(root).untag("image:1")
    put(root, IMAGE, name)
    base_layer(root, tag.replace("1e1c7dbc51f8", digest_of_name(name)))
    base_layer(root, "another_1")
    assert list(derived(prune_twice(root))) == ["base_layers/another_1"]
    open_store(root).untag(name)
    assert len(derived(prune_twice(root))) == 1
    assert os.listdir(root / "base_layers") == []


def test_a_tree_with_a_suffix_and_no_file_beside_it_goes_when_its_image_has_another_place(root: Path) -> None:
    tag = f"image_1-{digest_of_name('image:1')[:12]}"
    base_layer(root, tag)
    assert derived(prune_twice(root)) == {}
    base_layer(root, "image_1", "image:2", IMAGE)
    assert derived(open_store(root).prune(dry_run=True)).keys() == {"base_layers/image_1", "base_layers/image_1.json"}
    write_sidecar(root, "image_1", "image:1", IMAGE)
    assert derived(prune_twice(root)).keys() == {f"base_layers/{tag}"}


def digest_of_name(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def test_the_name_that_a_filter_chose_takes_its_tree_along_and_the_plan_says_so(root: Path) -> None:
    put(root, DEAD, "going:1")
    base_layer(root, "going_1", "going:1", DEAD)
    extracted(root, DEAD_LAYER)
    chosen = ImageFilter.parse("reference=going:*")
    before = snapshot(root)
    plan = open_store(root).prune(chosen, dry_run=True)
    assert snapshot(root) == before
    report = open_store(root).prune(chosen)
    assert plan.removed == report.removed
    assert derived(report).keys() == {
        "base_layers/going_1",
        "base_layers/going_1.json",
        f"extracted/{hex_of(DEAD_LAYER)}",
    }


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name":"gone:1"}', b'{"name":1}', b"\xff", None, "link"])
def test_a_tree_whose_file_cannot_be_read_may_be_anybodys_and_stays(root: Path, content: bytes | str | None) -> None:
    base_layer(root, "gone_1")
    path = root / "base_layers" / "gone_1.json"
    if content is None:
        os.mkfifo(path)
    elif content == "link":
        path.symlink_to(root / "base_layers" / "gone_1" / "file")
    else:
        assert isinstance(content, bytes)
        path.write_bytes(content)
    report = prune_twice(root)
    assert report.removed == ()
    assert subjects(report.errors) == ["base_layers/gone_1"]
    assert "nobody knows whose it is" in report.errors[0]
    assert (root / "base_layers" / "gone_1" / "file").exists()


def test_a_file_beside_no_tree_goes_if_a_pull_wrote_it(root: Path) -> None:
    write_sidecar(root, "gone_1", "gone:1", DEAD)
    write_sidecar(root, "stale_1", "image:1", IMAGE)
    (root / "base_layers" / "notes.json").write_text('{"mine": 1}')
    (root / "base_layers" / "notes.txt").write_text("mine")
    report = prune_twice(root)
    assert derived(report).keys() == {"base_layers/gone_1.json", "base_layers/stale_1.json"}
    assert sorted(os.listdir(root / "base_layers")) == ["notes.json", "notes.txt"]


def test_a_tree_whose_tag_ends_like_a_file_that_stands_beside_one_is_a_tree(root: Path) -> None:
    base_layer(root, "gone")
    base_layer(root, "gone.json")
    assert derived(prune_twice(root)).keys() == {"base_layers/gone", "base_layers/gone.json"}


@pytest.mark.parametrize("target", ["{outside}", "image_1", "/nowhere"])
def test_a_link_in_the_place_of_a_tree_is_removed_and_not_followed(root: Path, target: str) -> None:
    base_layer(root, "image_1")
    (root / "base_layers" / "gone_1").symlink_to(target.format(outside=root.parent / "outside"))
    write_sidecar(root, "gone_1", "gone:1", DEAD)
    assert derived(prune_twice(root)).keys() == {"base_layers/gone_1", "base_layers/gone_1.json"}
    assert (root / "base_layers" / "image_1" / "file").exists()


def test_a_tree_whose_name_is_given_while_its_lock_is_waited_for_stays(root: Path) -> None:
    put_dead(root, DEAD)
    base_layer(root, "back_1", "back:1", DEAD)
    (root / "ingest" / "base_layers.lock").touch()
    with replaced_os() as system:
        system.before("open", lambda: put(root, DEAD, "back:1"), path="base_layers.lock")
        report = open_store(root).prune()
    assert not [each for each in report.removed if each.kind == "base layer"]
    assert (root / "base_layers" / "back_1" / "file").exists()


def test_a_tree_does_not_go_while_somebody_else_holds_the_lock_of_all_of_them(root: Path) -> None:
    put_dead(root, DEAD)
    base_layer(root, "gone_1")
    path = root / "ingest" / "base_layers.lock"

    def sit(ready: Callable[[], None]) -> None:
        with locks.holding_lock(str(path), doing="putting a tree in its place", timeout_seconds=1):
            ready()
            sleep_for_ever()

    with forked(sit) as pid:
        report = open_store(root, lock_timeout_seconds=0.2).prune()
        assert report.errors == (f"store busy: {busy_text(report, pid, path)}",)
        assert report.blobs_removed == len(DEAD.blobs)
        assert (root / "base_layers" / "gone_1").exists()
        with pytest.raises(StoreBusy):
            open_store(root, lock_timeout_seconds=0.2).prune()


def busy_text(report: PruneReport, pid: int, path: Path) -> str:
    (error,) = report.errors
    assert f"process {pid} holds {path} (putting a tree in its place)" in error
    return error.removeprefix("store busy: ")


# What a container is made of


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("containers/c1/config.json", '{"rootfs": "{root}/base_layers/gone_1"}'),
        ("containers/c1/config.json", '{"rootfs":"base_layers\\/gone_1"}'),
        ("containers/c1/config.json", '{"image": "gone:1"}'),
        ("containers/c1/config.json", '{"image": "docker.io/library/gone:1@sha256:00"}'),
        ("containers/c1/deep/state", "lowerdir={root}/base_layers/gone_1:/other"),
        ("containers/state.db", "\x00\x01gone_1\x00"),
        ("containers/c1/log", "started from gone_1."),
        ("state.json", '{"containers": [{"base": "gone_1"}]}'),
    ],
)
def test_a_tree_that_the_state_of_a_container_speaks_of_stays(root: Path, where: str, text: str) -> None:
    base_layer(root, "gone_1", "gone:1", DEAD)
    base_layer(root, "gone_12", "gone:12", DEAD)
    (root / where).parent.mkdir(parents=True, exist_ok=True)
    (root / where).write_text(text.replace("{root}", str(root)))
    report = prune_twice(root)
    assert derived(report).keys() == {"base_layers/gone_12", "base_layers/gone_12.json"}
    assert report.kept == ("base_layers/gone_1: the state of a container speaks of it",)
    (root / where).unlink()
    assert "base_layers/gone_1" in derived(prune_twice(root))


@pytest.mark.parametrize("text", ["gone_1-slim", "begone_1", "gone_1.2", "gone:12", "gone_10", "x-gone_1"])
def test_a_tree_goes_though_the_state_of_a_container_speaks_of_one_that_is_called_alike(root: Path, text: str) -> None:
    base_layer(root, "gone_1")
    (root / "containers" / "c1").mkdir(parents=True)
    (root / "containers" / "c1" / "config.json").write_text(json.dumps({"image": text}))
    assert list(derived(prune_twice(root))) == ["base_layers/gone_1"]


@pytest.mark.parametrize(
    ("name", "tag", "text"),
    [
        ("gone:1", "gone_1-0123456789ab", "gone:1"),
        ("gone:1", "gone_1-0123456789ab", "docker.io/library/gone:1"),
        ("docker.io/library/gone:1", "docker.io_library_gone_1", "gone:1"),
        ("team/gone:latest", "team_gone_latest", "team/gone"),
        ("gone", "gone", "docker.io/library/gone:latest"),
    ],
)
def test_a_tree_stays_while_the_state_of_a_container_speaks_of_its_image_however_it_is_spelt(
    root: Path, name: str, tag: str, text: str
) -> None:
    base_layer(root, tag, name, DEAD)
    config = root / "containers" / "c1" / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"image": text}))
    assert derived(prune_twice(root)) == {}
    config.unlink()
    assert f"base_layers/{tag}" in derived(prune_twice(root))


@pytest.mark.parametrize("text", ["team/gone:1", "team/gone/more", "team/gone-slim", "my-team/gone", "team/gone.d"])
def test_a_name_without_its_tag_is_no_part_of_another_one(root: Path, text: str) -> None:
    base_layer(root, "team_gone_latest", "team/gone:latest", DEAD)
    (root / "containers" / "c1").mkdir(parents=True)
    (root / "containers" / "c1" / "config.json").write_text(json.dumps({"image": text}))
    assert "base_layers/team_gone_latest" in derived(prune_twice(root))


def test_what_a_container_writes_to_its_log_does_not_hold_up_a_collection(root: Path) -> None:
    """Each of eight million places begins like the tag, and is none."""
    base_layer(root, "a_a_a", "a/a_a", DEAD)
    (root / "containers" / "c1").mkdir(parents=True)
    (root / "containers" / "c1" / "log").write_bytes(b"a_" * 8_000_000)
    began = time.process_time()
    assert "base_layers/a_a_a" in derived(open_store(root).prune())
    assert time.process_time() - began < 8


def test_a_tree_stays_that_a_link_of_a_container_leads_to_and_one_that_stands_where_pieces_meet(root: Path) -> None:
    base_layer(root, "linked_1")
    base_layer(root, "large_1")
    (root / "containers" / "c1").mkdir(parents=True)
    (root / "containers" / "c1" / "rootfs").symlink_to("../../base_layers/linked_1")
    # The text lies across the end of the first piece that is read.
    (root / "containers" / "c1" / "log").write_bytes(bytes(4 * 1024 * 1024 - 3) + b"large_1" + bytes(100))
    os.mkfifo(root / "containers" / "c1" / "fifo")
    assert sorted(subjects(prune_twice(root).kept)) == ["base_layers/large_1", "base_layers/linked_1"]


def test_what_a_container_has_in_its_own_files_is_not_read(root: Path) -> None:
    base_layer(root, "gone_1")
    (root / "containers" / "c1" / "rootfs" / "etc").mkdir(parents=True)
    (root / "containers" / "c1" / "rootfs" / "etc" / "motd").write_text("gone_1")
    assert list(derived(prune_twice(root))) == ["base_layers/gone_1"]


def test_the_state_of_a_container_is_read_where_it_is_mounted(root: Path) -> None:
    base_layer(root, "gone_1")
    base_layer(root, "gone_2")
    outside = root.parent / "state"
    outside.mkdir()
    (outside / "config.json").write_text('{"image": "gone:1"}')
    (root / "containers" / "c2").mkdir(parents=True)
    (root / "containers" / "c2" / "config.json").touch()
    with bound(outside, root / "containers" / "c1"):
        assert list(derived(prune_twice(root))) == ["base_layers/gone_2"]
    config = root / "containers" / "c2" / "config.json"
    subprocess.run(["mount", "--bind", outside / "config.json", config], check=True, timeout=10)
    try:
        assert derived(prune_twice(root)) == {}
    finally:
        subprocess.run(["umount", "-l", config], check=True, timeout=10)


@pytest.mark.parametrize("what", ["a folder", "a file", "more files than can be looked at"])
def test_a_tree_stays_while_the_state_of_containers_cannot_be_read_whole(
    root: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_layer(root, "gone_1")
    (root / "containers" / "c1").mkdir(parents=True)
    (root / "containers" / "c1" / "config.json").write_text("{}")
    if what == "more files than can be looked at":
        monkeypatch.setattr(container_names, "_MOST_FILES", 1)
    else:
        real_scandir, real_open = os.scandir, os.open

        def scandir(path: str | int) -> object:
            if what == "a folder" and str(path).endswith("c1"):
                raise PermissionError(13, "Permission denied", path)
            return real_scandir(path)

        def opening(path: str, *arguments: int, **options: int) -> int:
            if what == "a file" and str(path).endswith("config.json"):
                raise PermissionError(13, "Permission denied", path)
            return real_open(path, *arguments, **options)

        monkeypatch.setattr("os.scandir", scandir)
        monkeypatch.setattr("os.open", opening)
    report = open_store(root).prune()
    assert derived(report) == {}
    assert subjects(report.errors) == ["base_layers/gone_1"]
    assert "a container may be made of it" in report.errors[0]
    assert (root / "base_layers" / "gone_1" / "file").exists()


# Mounts


@contextmanager
def overlay_on(*lower: Path) -> Iterator[Path]:
    """Mount an overlay beside the store."""
    folder = lower[0].parents[2] / "merged"
    with mounted(folder, "lowerdir=" + ":".join(map(str, lower)), kind="overlay", device="overlay"):
        yield folder


@pytest.mark.parametrize("part", ["", "usr"])
def test_trees_that_an_overlay_is_made_of_stay_and_go_when_it_is_gone(root: Path, part: str) -> None:
    first, second = base_layer(root, "gone_1"), extracted(root, GONE)
    base_layer(root, "free_1")
    with overlay_on(first / part, second / part) as merged:
        report = prune_twice(root)
        assert derived(report).keys() == {"base_layers/free_1"}
        assert sorted(subjects(report.kept)) == ["base_layers/gone_1", f"extracted/{hex_of(GONE)}"]
        assert report.errors == ()
        assert any(merged.iterdir())
        assert (first / "file").exists()
    assert len(derived(prune_twice(root))) == 2


def test_trees_that_an_overlay_in_another_namespace_is_made_of_stay(root: Path) -> None:
    first, second = base_layer(root, "gone_1"), extracted(root, GONE)
    merged = root.parent / "merged"
    merged.mkdir()
    command = ["mount", "-t", "overlay", "-o", f"lowerdir={first}:{second}", "overlay", str(merged)]
    with another_namespace(command):
        report = prune_twice(root)
        assert (derived(report), report.errors) == ({}, ())
        assert len(report.kept) == 2
    assert len(derived(prune_twice(root))) == 2


def test_a_tree_stays_while_a_part_of_it_is_mounted_elsewhere_or_something_in_it(root: Path) -> None:
    trees = {name: base_layer(root, name) for name in ("bound_1", "within_1", "deep_1", "free_1")}
    with (
        bound(trees["bound_1"] / "usr", root.parent / "elsewhere"),
        mounted(trees["within_1"] / "usr" / "bin"),
        # The same file system, deep within: no device number tells it from the tree.
        bound(root.parent / "outside", trees["deep_1"] / "usr" / "bin"),
    ):
        report = prune_twice(root)
        assert list(derived(report)) == ["base_layers/free_1"]
        assert sorted(subjects(report.kept)) == ["base_layers/bound_1", "base_layers/deep_1", "base_layers/within_1"]
        assert all((tree / "file").exists() for name, tree in trees.items() if name != "free_1")


def test_a_mount_that_comes_between_the_look_and_the_removal_is_not_crossed(root: Path) -> None:
    tree = base_layer(root, "gone_1")
    point = tree / "usr" / "bin"
    require_root()

    def mount() -> None:
        subprocess.run(["mount", "--bind", str(root.parent / "outside"), str(point)], check=True, timeout=10)

    with replaced_os() as system:
        system.before("replace", mount, path="base_layers/gone_1")
        report = open_store(root).prune()
    (aside,) = (root / "base_layers").glob(".gone_1.*.tmp")
    try:
        assert (aside / "usr" / "bin" / "deep" / "file").read_bytes() == b"precious"
        assert subjects(report.errors) == ["base_layers/gone_1"]
        assert aside.name in report.errors[0]
        again = open_store(root).prune()
        assert again.removed == ()
        assert subjects(again.kept) == [f"base_layers/{aside.name}"]
    finally:
        subprocess.run(["umount", str(aside / "usr" / "bin")], check=True, timeout=10)
    assert list(derived(prune_twice(root))) == [f"base_layers/{aside.name}"]


def test_a_tree_that_somebody_works_in_stays(root: Path) -> None:
    base_layer(root, "cwd_1")
    base_layer(root, "open_1")
    base_layer(root, "free_1")
    with (
        subprocess.Popen(["sleep", "60"], cwd=root / "base_layers" / "cwd_1" / "usr") as working,
        (root / "base_layers" / "open_1" / "file").open("rb"),
    ):
        try:
            report = prune_twice(root)
        finally:
            working.kill()
    assert list(derived(report)) == ["base_layers/free_1"]
    assert report.kept == ("base_layers/cwd_1: somebody has it open", "base_layers/open_1: somebody has it open")


def test_what_a_user_cannot_look_into_keeps_the_trees_that_it_may_use_and_errors_say_so() -> None:
    require_root()
    with tempfile.TemporaryDirectory() as name:
        root, answer = Path(name, "store"), Path(name, "answer")
        put(root, IMAGE, "image:1")
        put_dead(root, DEAD)
        base_layer(root, "gone_1")
        extracted(root, GONE)
        file_index(root, GONE)
        merged = Path(name, "merged")
        merged.mkdir()
        answer.touch()
        for path in [Path(name), answer, root, *root.rglob("*")]:
            os.chown(path, 65534, 65534, follow_symlinks=False)

        def collect() -> None:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            answer.write_bytes(pickle.dumps(prune_twice(root)))

        def report() -> PruneReport:
            assert run_forked(collect) == 0
            found = pickle.loads(answer.read_bytes())
            assert isinstance(found, PruneReport)
            return found

        # What is mounted on what is told to everybody; what an overlay's paths mean elsewhere is not.
        lower = f"lowerdir={root}/base_layers/gone_1:{root}/extracted"
        with another_namespace(
            ["mount", "--bind", str(root), "/mnt"],
            ["mount", "-t", "overlay", "-o", lower.replace(str(root), "/mnt"), "overlay", str(merged)],
        ) as pid:
            first = report()
            assert derived(first).keys() == {f"files/sha256/{hex_of(GONE)}"}
            told = [*first.errors, *first.kept]
            assert sorted(subjects(tuple(told))) == ["base_layers/gone_1", f"extracted/{hex_of(GONE)}"]
            assert all(f"process {pid}" in error for error in first.errors)
            assert first.errors
        # The processes of others that have nothing of their own mounted are in nobody's way.
        second = report()
        assert derived(second).keys() == {"base_layers/gone_1", f"extracted/{hex_of(GONE)}"}
        assert second.errors == ()


# What was left half done


def test_unfinished_trees_go_unless_somebody_holds_their_lock(root: Path) -> None:
    names = [f".gone_1.{UNFINISHED}", f".a b.{UNFINISHED}"]
    for folder in ("base_layers", "extracted", "lazy"):
        for name in names:
            plant_tree(root / folder / name)
    (root / "base_layers" / f".gone_1.json.{UNFINISHED}").write_bytes(b"{")
    held = os.open(root / "base_layers" / names[0], os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    report = prune_twice(root)
    assert {each.kind for each in report.removed} == {"temporary"}
    assert set(os.listdir(root / "base_layers")) == {names[0]}
    assert os.listdir(root / "extracted") + os.listdir(root / "lazy") == []
    assert derived(report)[f"base_layers/{names[1]}"] == TREE_BYTES
    fcntl.flock(held, fcntl.LOCK_UN)
    os.close(held)
    assert list(derived(prune_twice(root))) == [f"base_layers/{names[0]}"]


def test_an_unfinished_tree_that_is_locked_as_it_is_about_to_go_stays_and_is_no_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making and its locking, a tree that grows looks like one that was left behind."""
    growing = root / "base_layers" / f".image_1.{UNFINISHED}"
    growing.mkdir(parents=True)
    monkeypatch.setattr("minibox_store.rootfs.removing._locks.is_locked", lambda path: False)
    opened = os.open(growing, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        report = open_store(root).prune()
    finally:
        os.close(opened)
    assert (derived(report), report.errors) == ({}, ())
    assert growing.is_dir()


def test_a_tree_that_somebody_holds_the_lock_of_stays(root: Path) -> None:
    tree = extracted(root, GONE)
    held = os.open(tree, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    report = open_store(root).prune()
    os.close(held)
    assert (report.removed, report.kept) == ((), (f"extracted/{hex_of(GONE)}: somebody works in it",))


def test_a_tree_that_was_put_aside_stays_while_anything_is_mounted_by_the_name_that_it_had(root: Path) -> None:
    """A running container is made of the old tree, and its overlay tells the path alone, where a new tree lies now."""
    tree = base_layer(root, "image_1", "image:1", IMAGE)
    aside = root / "base_layers" / f".image_1.{UNFINISHED}"
    with overlay_on(tree, plant_tree(root / "volumes" / "v1")) as merged:
        tree.rename(aside)
        plant_tree(tree)
        report = prune_twice(root)
        assert (report.removed, subjects(report.kept)) == ((), [f"base_layers/{aside.name}"])
        assert (merged / "file").read_bytes() == b"123"
    assert list(derived(prune_twice(root))) == [f"base_layers/{aside.name}"]


def test_a_crash_in_the_middle_leaves_no_half_of_a_tree_under_its_name(root: Path) -> None:
    base_layer(root, "gone_1", "gone:1", DEAD)

    def die() -> None:
        with replaced_os(trees=True) as system:
            system.before("unlink", lambda: os._exit(DIED), path="usr/bin/tool")
            open_store(root).prune()

    assert run_forked(die) == DIED
    assert not (root / "base_layers" / "gone_1").exists()
    (aside,) = (root / "base_layers").glob(".gone_1.*.tmp")
    assert list(derived(prune_twice(root))) == [f"base_layers/{aside.name}"]
    assert os.listdir(root / "base_layers") == []


def test_what_cannot_be_taken_apart_is_told_with_what_is_left_of_it_and_the_rest_goes(root: Path) -> None:
    require_root()
    base_layer(root, "free_1")
    stubborn = base_layer(root, "gone_1") / "usr" / "bin" / "tool"
    if subprocess.run(["chattr", "+i", str(stubborn)], capture_output=True, check=False).returncode:
        pytest.skip("this file system knows no immutable files")
    try:
        report = open_store(root).prune()
        (aside,) = (root / "base_layers").glob(".gone_1.*.tmp")
        assert derived(report) == {"base_layers/free_1": TREE_BYTES, "base_layers/gone_1": 3}, "bytes are what has gone"
        assert report.bytes_freed == TREE_BYTES + 3
        assert len(report.errors) == 1
        assert "Operation not permitted" in report.errors[0]
        assert aside.name in report.errors[0]
    finally:
        for path in (root / "base_layers").rglob("tool"):
            subprocess.run(["chattr", "-i", str(path)], check=True)
    assert list(derived(prune_twice(root)).values()) == [5]


def test_a_tree_with_the_longest_name_goes_too(root: Path) -> None:
    for name in ("x" * 255, "y" * 254, "ä" * 127):
        base_layer(root, name)
    assert len(derived(prune_twice(root))) == 3
    assert os.listdir(root / "base_layers") == []


def test_a_tree_of_any_depth_goes(root: Path) -> None:
    (root / "base_layers").mkdir()
    here = os.open(root / "base_layers", os.O_RDONLY)
    for number in range(2000):
        name = "d" if number else "gone_1"
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    report = open_store(root).prune()
    assert (list(derived(report)), report.errors) == (["base_layers/gone_1"], ())


# files/


def test_the_indexes_of_layers_that_are_gone_go_with_what_was_decoded_of_them(root: Path) -> None:
    put_dead(root, DEAD)
    for digest in (LIVE_LAYER, DEAD_LAYER, GONE, "sha512:" + "e" * 128):
        file_index(root, digest)
    (root / "files" / "cache").mkdir()
    for digest in (LIVE_LAYER, GONE):
        (root / "files" / "cache" / hex_of(digest)).write_bytes(b"12")
    (root / "files" / "sha256" / hex_of(IMAGE.layer_digests[1])).symlink_to(root.parent / "outside" / "deep" / "file")
    (root / "files" / "sha256" / ("f" * 64)).symlink_to(root.parent / "outside" / "deep" / "file")
    report = prune_twice(root)
    assert derived(report).keys() == {
        *(f"files/sha256/{each}" for each in (hex_of(DEAD_LAYER), hex_of(GONE), "f" * 64)),
        f"files/sha512/{'e' * 128}",
        f"files/cache/{hex_of(GONE)}",
    }
    assert {each.kind for each in report.removed} == {"blob", "sidecar"}
    check_invariants(root)


def test_a_half_written_index_goes_when_nobody_has_it_open(root: Path) -> None:
    file_index(root, LIVE_LAYER)
    half = root / "files" / "sha256" / f".{hex_of(LIVE_LAYER)}.{UNFINISHED}"
    half.write_bytes(b"12")
    with half.open("rb"):
        report = prune_twice(root)
        assert (report.removed, subjects(report.kept)) == ((), [f"files/sha256/{half.name}"])
    answer = root.parent / "answer"
    # Alone: what other processes here have open is not for everybody to see.
    assert run_alone(lambda: void(answer.write_bytes(pickle.dumps(prune_twice(root))))) == 0
    assert derived(pickle.loads(answer.read_bytes())) == {f"files/sha256/{half.name}": 2}


def void(_: object) -> None:
    """Return nothing."""


# Fail closed


def test_nothing_made_of_images_goes_while_a_manifest_cannot_be_read(root: Path) -> None:
    extracted(root, GONE)
    base_layer(root, "gone_1")
    file_index(root, GONE)
    blob(root, IMAGE.digest).unlink()
    blob(root, IMAGE.digest).write_bytes(b"{")
    before = snapshot(root)
    with pytest.raises(StoreDamaged):
        open_store(root).prune()
    assert snapshot(root) == before


def test_what_belongs_to_others_is_never_touched(root: Path) -> None:
    for name in ("containers/c1", "volumes/v1", "images/i1", "unknown/x"):
        plant_tree(root / name)
    (root / "state.json").write_text("{}")
    before = snapshot(root)
    report = prune_twice(root)
    assert (report.removed, report.kept, report.errors) == ((), (), ())
    assert snapshot(root) == before
    shutil.rmtree(root / "unknown")
