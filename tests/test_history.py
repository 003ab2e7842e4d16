"""The generations of index.json: kept at each change, whoever made it; undone, found again, and mended from."""

import ctypes
import errno
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from minibox_store import (
    Image,
    IncompleteImage,
    IndexRepair,
    Limits,
    LostName,
    NothingToDo,
    RepairReport,
    Store,
    StoreDamaged,
    StoreFull,
    StoreUnavailable,
)
from tests.support.archives import members_of, pack
from tests.support.forks import RAISED, not_possible, run_forked
from tests.support.images import build_image, build_index
from tests.support.invariants import (
    check_invariants,
    find_leftovers,
    generations,
    held_locks,
    open_files,
    read_index,
    read_names,
    stored,
)
from tests.support.layouts import write_layout
from tests.support.os_proxy import DIED, no_hard_links, replaced_os
from tests.support.snapshots import snapshot
from tests.support.sources import memory_of, read_all, root_of
from tests.support.stores import blob, mend_index, open_store, put, rot

IMAGE = build_image(salt="image")
OTHER = build_image(salt="other")
MULTI = build_index([build_image(salt="m"), build_image(salt="m", platform="linux/arm64")])
NAME = "org.opencontainers.image.ref.name"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a store with one image. Whatever a test does, it leaves no open file and no lock behind."""
    folder = tmp_path / "store"
    put(folder, IMAGE, "app:1")
    yield folder
    assert open_files(folder) == []
    assert held_locks(folder) == []


def names_in(path: Path) -> dict[str, str]:
    """Return the digest that each name stands for in a generation."""
    entries = json.loads(path.read_bytes())["manifests"]
    return {entry["annotations"][NAME]: entry["digest"] for entry in entries if NAME in entry.get("annotations", {})}


def rewrite(root: Path, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Change index.json as another tool does, in place and in other words; return what it says then."""
    index = read_index(root)
    change(index)
    (root / "index.json").write_text(json.dumps(index, indent=1))
    return (root / "index.json").read_bytes()


def drop(name: str) -> Callable[[dict[str, Any]], object]:
    """Return the change that takes a name out of an index."""

    def change(index: dict[str, Any]) -> None:
        index["manifests"] = [each for each in index["manifests"] if each.get("annotations", {}).get(NAME) != name]

    return change


def change_once(root: Path) -> None:
    """Change index.json by a name that no test uses."""
    number = len(list(root.parent.glob("change-*")))
    (root.parent / f"change-{number}").touch()
    open_store(root).tag("app:1", f"change:{number}")


# What is kept


def test_after_every_verb_the_newest_generation_says_what_index_json_says(root: Path) -> None:
    store = open_store(root)
    (root.parent / "a.tar").write_bytes(pack(members_of(OTHER, "other:1")))
    verbs: list[Callable[[], object]] = [
        lambda: store.import_image(memory_of({"multi:1": MULTI}), "multi:1"),
        lambda: store.load(root.parent / "a.tar"),
        lambda: store.tag("app:1", "other:1"),
        store.undo,
        lambda: store.remove("multi:1"),
        store.undo,
    ]
    for number, verb in enumerate(verbs, 3):
        verb()
        check_invariants(root)
        assert [path.name for path in generations(root)] == [f"{each:010}.json" for each in range(1, number + 1)]
    before = snapshot(root / "history")
    store.tag("app:1", "app:1")
    store.prune()
    assert snapshot(root / "history") == before, "what changes no name makes no generation"
    assert [len(names_in(path)) for path in generations(root)] == [0, 1, 2, 3, 3, 3, 2, 3]


def test_ten_generations_are_kept_and_they_are_the_newest(root: Path) -> None:
    for number in range(15):
        open_store(root).tag("app:1", f"tag:{number}")
        check_invariants(root)
    assert [path.name for path in generations(root)] == [f"{number:010}.json" for number in range(8, 18)]
    assert [len(names_in(path)) for path in generations(root)] == list(range(7, 17))


def test_a_generation_is_a_file_of_its_own_and_its_owners_alone_whatever_the_umask(root: Path) -> None:
    def work() -> None:
        os.umask(0o777)
        open_store(root).tag("app:1", "two:1")

    assert run_forked(work) == 0
    found = [path.lstat() for path in generations(root)]
    assert [(stat.S_IMODE(each.st_mode), each.st_nlink) for each in found] == [(0o600, 1)] * 3
    assert len({each.st_ino for each in found} | {(root / "index.json").stat().st_ino}) == 4
    assert stat.S_IMODE((root / "history").stat().st_mode) == 0o700


def test_a_generation_is_durable_before_anything_is_published(root: Path) -> None:
    (root.parent / "a.tar").write_bytes(pack(members_of(OTHER, "other:1")))
    with replaced_os() as system:
        Store(root).load(root.parent / "a.tar")
        happened = [(call.name, call.paths[-1]) for call in system.calls if call.paths]
    synced = next(index for index, (name, path) in enumerate(happened) if name == "fsync" and "/history/" in path)
    published = [index for index, (name, path) in enumerate(happened) if name == "link" and "/blobs/sha256/" in path]
    assert len(published) == len(OTHER.blobs)
    assert synced < min(published)
    ends = [path for name, path in happened if name == "replace"]
    assert ends[-2:] == [f"{root}/index.json", str(generations(root)[-1])]


def test_what_another_tool_wrote_is_recorded_before_the_next_change(root: Path) -> None:
    foreign = rewrite(root, lambda index: index["manifests"][0]["annotations"].update({"x": "y"}))
    check_invariants(root, history_behind=True)
    assert len(generations(root)) == 2, "reading, and another tool's writing, record nothing"
    open_store(root).tag("app:1", "two:1")
    check_invariants(root)
    assert [path.read_bytes() for path in generations(root)[2:]] == [foreign, (root / "index.json").read_bytes()]


def test_the_first_change_of_another_tools_store_records_what_it_found(tmp_path: Path) -> None:
    write_layout(tmp_path, {"app:1": IMAGE})
    found = (tmp_path / "index.json").read_bytes()
    open_store(tmp_path).remove("app:1")
    check_invariants(tmp_path)
    assert generations(tmp_path)[0].read_bytes() == found
    assert [image.name for image in open_store(tmp_path).undo()] == ["app:1"]
    assert read_names(tmp_path) == {"app:1": IMAGE.digest}


def test_what_else_lies_in_the_history_is_neither_read_nor_touched(root: Path) -> None:
    extra = ["12.json", "0000000099.json.bak", "٠٠٠٠٠٠٠٠٠٩.json", "notes", ".hidden"]
    for name in extra:
        (root / "history" / name).write_bytes(b"precious")
    (root / "history" / "0000000050.json").mkdir()
    open_store(root).tag("app:1", "two:1")
    assert {name: (root / "history" / name).read_bytes() for name in extra} == dict.fromkeys(extra, b"precious")
    assert generations(root)[-1].name == "0000000052.json"
    assert generations(root)[-1].read_bytes() == (root / "index.json").read_bytes()


def test_a_generation_is_no_root_and_prune_leaves_the_history_but_for_what_was_never_finished(root: Path) -> None:
    put(root, OTHER, "other:1")
    open_store(root).remove("other:1")
    before = snapshot(root / "history")
    unfinished = root / "history" / f".0000000009.json.{'0' * 16}.tmp"
    unfinished.write_bytes(b"{")
    assert find_leftovers(root) == [f"history/{unfinished.name}"]
    report = open_store(root).prune()
    assert {each.path for each in report.removed if each.kind != "blob"} == {f"history/{unfinished.name}"}
    assert stored(root) == set(IMAGE.blobs)
    assert snapshot(root / "history") == before
    check_invariants(root)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_store_whose_history_is_no_folder_is_not_changed(root: Path, kind: str) -> None:
    shutil.rmtree(root / "history")
    if kind == "file":
        (root / "history").write_bytes(b"precious")
    else:
        (root / "history").symlink_to(root.parent)
    before = snapshot(root)
    with pytest.raises(StoreUnavailable):
        open_store(root).tag("app:1", "two:1")
    assert snapshot(root) == before
    assert os.listdir(root.parent) == ["store"]


# What breaks off


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(("name", "path"), [("open", "/history/"), ("write", "/history/"), ("fsync", "/history/")])
@pytest.mark.parametrize("verb", ["load", "tag", "undo"])
def test_a_disk_that_is_full_when_the_generation_is_written_changes_nothing(
    root: Path, verb: str, name: str, path: str, number: int
) -> None:
    (root.parent / "a.tar").write_bytes(pack(members_of(OTHER, "other:1")))
    store = Store(root)
    store.tag("app:1", "two:1")
    store.remove("two:1")
    before = snapshot(root)
    with replaced_os() as system:
        system.fail(name, number, path=path)
        with pytest.raises(StoreFull, match="no space left"):
            {
                "load": lambda: store.load(root.parent / "a.tar"),
                "tag": lambda: store.tag("app:1", "three:1"),
                "undo": store.undo,
            }[verb]()
    assert snapshot(root) == before
    check_invariants(root)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_names_are_taken_away_where_there_is_no_room_for_a_file_and_the_last_is_given_back(
    root: Path, number: int
) -> None:
    put(root, IMAGE, "two:1", "three:1", "four:1")
    (root / "listing.cache").write_bytes(b"a help")
    (root / "listing.cache").chmod(0o600)
    with replaced_os() as system:
        system.refuse_new_files(number)
        for name in ("two:1", "three:1"):
            Store(root).remove(name)
            check_invariants(root, history_behind=True)
        with pytest.raises(StoreFull):
            Store(root).tag("app:1", "five:1")
    assert set(read_names(root)) == {"app:1", "four:1"}
    assert not (root / "listing.cache").exists(), "it is of the least use"
    assert stat.S_IMODE((root / "index.json").stat().st_mode) == 0o644, "whatever the spare file's was"
    assert [image.name for image in open_store(root).undo()] == ["three:1"]
    check_invariants(root)


def test_the_listing_that_another_process_leaves_at_that_moment_does_not_become_index_json(root: Path) -> None:
    put(root, IMAGE, "two:1")
    (root / "listing.cache").write_bytes(b"a help")
    (root.parent / "other").write_bytes(b"another's help")
    with replaced_os() as system:
        system.refuse_new_files(errno.ENOSPC)
        system.before("replace", lambda: (root.parent / "other").replace(root / "listing.cache"), path="listing.cache")
        Store(root).remove("two:1")
    check_invariants(root, history_behind=True)
    assert set(read_names(root)) == {"app:1"}


@pytest.mark.parametrize("kind", ["the newest", "linked", "a folder"])
def test_what_is_no_old_generation_or_is_somebodys_backup_too_is_not_given_up(root: Path, kind: str) -> None:
    put(root, IMAGE, "two:1")
    *old, _ = generations(root)
    for path in old:
        if kind == "linked":
            (root.parent / path.name).hardlink_to(path)
        else:
            path.unlink()
            if kind == "a folder":
                path.mkdir()
    before = snapshot(root)
    with replaced_os() as system:
        system.refuse_new_files(errno.ENOSPC)
        with pytest.raises(StoreFull, match="no space left"):
            Store(root).remove("two:1")
    assert snapshot(root) == before


def test_a_process_may_die_as_it_gives_a_generation_up(tmp_path: Path) -> None:
    template = tmp_path / "template"
    put(template, IMAGE, "app:1", "two:1", "three:1")
    rewrite(template, drop("two:1"))

    def work(root: Path, position: int) -> None:
        with replaced_os() as system:
            system.refuse_new_files(errno.ENOSPC)
            system.die_at(position, torn=bool(position % 2))
            Store(root).remove("three:1")

    for position in count():
        root = tmp_path / str(position)
        shutil.copytree(template, root)
        status = run_forked(partial(work, root, position))
        check_invariants(root, leftovers=True)
        assert set(read_names(root)) in ({"app:1", "three:1"}, {"app:1"}), f"operation {position}"
        change_once(root)
        open_store(root).prune()
        check_invariants(root)
        if status != DIED:
            assert (status, position > 10) == (0, True)
            break


@pytest.mark.parametrize("name", ["replace", "fsync", "unlink"])
def test_a_change_counts_though_its_generation_could_not_be_numbered(root: Path, name: str) -> None:
    for number in range(9):
        open_store(root).tag("app:1", f"tag:{number}")
    with replaced_os() as system:
        path = {"replace": "/history/.", "fsync": "/history", "unlink": "/history/0"}[name]
        system.fail(name, errno.EIO, path=path, skip=2 if name == "fsync" else 0)
        Store(root).tag("app:1", "two:1")
    assert read_names(root)["two:1"] == IMAGE.digest
    check_invariants(root, history_behind=True)
    open_store(root).remove("two:1")
    check_invariants(root)
    assert [image.name for image in open_store(root).undo()] == ["two:1"]


def count_changes(work: Callable[[], object]) -> int:
    """Return at how many operations a change may die."""
    with replaced_os() as system:
        work()
        return len(system.changes)


@pytest.mark.parametrize("foreign", [False, True], ids=["", "after another tool's rewrite"])
@pytest.mark.parametrize("verb", ["tag", "undo", "first change"])
def test_a_process_may_die_at_any_operation_and_the_next_change_works(tmp_path: Path, verb: str, foreign: bool) -> None:
    template = tmp_path / "template"
    if verb == "first change":
        write_layout(template, {"app:1": IMAGE, "two:1": IMAGE})
    else:
        put(template, IMAGE, "app:1", "two:1")
        open_store(template).remove("two:1")
        for number in range(10):
            open_store(template).tag("app:1", f"tag:{number}")
        open_store(template).tag("app:1", "two:1")
        open_store(template).remove("two:1")
    if foreign:
        rewrite(template, drop("tag:3" if verb != "first change" else "two:1"))
    before = read_names(template)

    def work(root: Path) -> object:
        store = Store(root, durability="full" if verb == "tag" else "none")
        return store.undo() if verb == "undo" else store.tag("app:1", "new:1")

    shutil.copytree(template, tmp_path / "counted")
    changes = count_changes(lambda: work(tmp_path / "counted"))
    after = read_names(tmp_path / "counted")
    assert after != before
    for position in range(changes):
        root = tmp_path / str(position)
        shutil.copytree(template, root)

        def die(root: Path = root, position: int = position) -> None:
            with replaced_os() as system:
                system.die_at(position, torn=bool(position % 2))
                work(root)

        assert run_forked(die) == DIED, f"operation {position}"
        check_invariants(root, leftovers=True)
        assert read_names(root) in (before, after), f"operation {position}"
        said = (root / "index.json").read_bytes()
        change_once(root)
        assert said in [path.read_bytes() for path in generations(root)[-2:]], f"operation {position}"
        open_store(root).prune()
        check_invariants(root)
        shutil.rmtree(root)


def test_a_generation_whose_index_json_never_came_is_no_last_change(root: Path) -> None:
    open_store(root).tag("app:1", "two:1")
    open_store(root).remove("two:1")

    def die() -> None:
        with replaced_os() as system:
            system.before("replace", lambda: os._exit(DIED), path=f"{root}/index.json")
            open_store(root).remove("app:1")

    assert run_forked(die) == DIED
    assert len(generations(root)) == 4
    assert [image.name for image in open_store(root).undo()] == ["two:1"]
    assert set(read_names(root)) == {"app:1", "two:1"}


# Undo


def test_a_name_that_was_removed_is_given_back_with_all_that_stood_in_its_entry(root: Path) -> None:
    rewrite(
        root,
        lambda index: index["manifests"][0].update({"x-unknown": [1], "platform": {"os": "a", "architecture": "b"}}),
    )
    entry = read_index(root)["manifests"][0]
    store = open_store(root)
    store.remove("app:1")
    (image,) = store.undo()
    assert isinstance(image, Image)
    assert (image.name, str(image.digest), image.damaged) == ("app:1", IMAGE.digest, False)
    assert read_index(root)["manifests"] == [entry]
    check_invariants(root)


def test_a_name_that_was_given_to_another_image_is_given_back_and_an_undo_of_that_too(root: Path) -> None:
    put(root, OTHER, "other:1", "app:1")
    store = open_store(root)
    for digest in (IMAGE.digest, OTHER.digest, IMAGE.digest):
        assert [(image.name, str(image.digest)) for image in store.undo()] == [("app:1", digest)]
        assert read_names(root) == {"app:1": digest, "other:1": OTHER.digest}
        check_invariants(root)


def test_names_that_the_last_change_added_stay(root: Path) -> None:
    store = open_store(root)

    def swap(index: dict[str, Any]) -> None:
        drop("app:1")(index)
        index["manifests"].append({**OTHER.root, "annotations": {NAME: "new:1"}})

    put(root, OTHER, "other:1")
    rewrite(root, swap)
    assert [image.name for image in store.undo()] == ["app:1"]
    assert set(read_names(root)) == {"app:1", "new:1", "other:1"}
    check_invariants(root)


def test_an_entry_without_a_name_is_given_back_too(root: Path) -> None:
    rewrite(root, lambda index: index["manifests"].append(IMAGE.root))
    open_store(root).tag("app:1", "two:1")
    rewrite(root, lambda index: index["manifests"].remove(IMAGE.root))
    assert open_store(root).undo() == (), "it has no name to be listed by"
    assert IMAGE.root in read_index(root)["manifests"]
    check_invariants(root)


def test_another_tools_rewrite_is_the_last_change_and_is_recorded_first(root: Path) -> None:
    store = open_store(root)
    store.tag("app:1", "two:1")
    foreign = rewrite(root, drop("two:1"))
    assert [image.name for image in store.undo()] == ["two:1"]
    check_invariants(root)
    assert generations(root)[-2].read_bytes() == foreign
    assert set(read_names(root)) == {"app:1", "two:1"}


@pytest.mark.parametrize("what", ["no store", "an empty store", "an addition", "an undo that only added"])
def test_where_nothing_was_taken_away_there_is_nothing_to_undo(root: Path, what: str) -> None:
    store = open_store(root)
    if what == "no store":
        shutil.rmtree(root)
    elif what == "an empty store":
        shutil.rmtree(root)
        write_layout(root, {})
    elif what == "an addition":
        store.tag("app:1", "two:1")
    else:
        store.remove("app:1")
        store.undo()
    before = snapshot(root / "history")
    names = read_names(root)
    with pytest.raises(NothingToDo, match=r"nothing to do for .*: "):
        store.undo()
    assert read_names(root) == names
    assert snapshot(root / "history") == before
    assert root.exists() == (what != "no store")


def test_an_undo_is_refused_once_a_blob_is_gone(root: Path) -> None:
    store = open_store(root)
    put(root, OTHER, "other:1")
    store.remove("app:1")
    store.prune()
    before = snapshot(root)
    with pytest.raises(IncompleteImage) as caught:
        store.undo()
    assert (caught.value.root, caught.value.missing) == ("app:1", (IMAGE.digest,))
    assert snapshot(root) == before


@pytest.mark.parametrize("victim", ["layer", "config", "manifest"])
@pytest.mark.parametrize("harm", ["gone", "short"])
def test_an_undo_walks_the_whole_graph_and_changes_nothing_if_a_part_of_it_is_not_there(
    root: Path, victim: str, harm: str
) -> None:
    digest = {"layer": IMAGE.layer_digests[1], "config": IMAGE.config_digest, "manifest": IMAGE.digest}[victim]
    open_store(root).remove("app:1")
    content = blob(root, digest).read_bytes()
    blob(root, digest).unlink()
    if harm == "short":
        blob(root, digest).write_bytes(content[:-1])
    before = snapshot(root)
    with pytest.raises((IncompleteImage, StoreDamaged), match=digest.removeprefix("sha256:")):
        open_store(root).undo()
    assert snapshot(root) == before


def test_what_an_undo_gives_back_is_pinned_against_a_prune_that_runs_meanwhile(root: Path) -> None:
    store = open_store(root)
    store.remove("app:1")
    with replaced_os() as system:
        pruned: list[int] = []
        system.before(
            "open",
            lambda: pruned.append(open_store(root).prune().blobs_removed),
            path=f"{root}/ingest/store.turn",
            skip=1,
        )
        store.undo()
    assert pruned == [0]
    check_invariants(root)
    assert read_names(root) == {"app:1": IMAGE.digest}


def test_an_undo_that_another_change_comes_before_undoes_that_one(root: Path) -> None:
    put(root, OTHER, "other:1")
    store = open_store(root)
    store.remove("app:1")
    with replaced_os() as system:
        system.before("open", lambda: open_store(root).remove("other:1"), path=f"{root}/ingest/store.turn", skip=1)
        assert [image.name for image in store.undo()] == ["other:1"]
    assert set(read_names(root)) == {"other:1"}
    check_invariants(root)


def test_an_undo_works_without_hard_links(root: Path) -> None:
    open_store(root).remove("app:1")
    with replaced_os() as system:
        no_hard_links(system)
        assert [image.name for image in open_store(root).undo()] == ["app:1"]
    check_invariants(root)


def test_an_undo_whose_generation_cannot_be_read_says_which(root: Path) -> None:
    open_store(root).remove("app:1")
    generations(root)[-2].write_bytes(b"{")
    with pytest.raises(StoreDamaged, match=generations(root)[-2].name):
        open_store(root).undo()
    assert read_names(root) == {}


# Another tool that writes at this moment


def test_an_index_that_another_tool_is_writing_is_read_when_it_is_whole(root: Path) -> None:
    content = (root / "index.json").read_bytes()

    def write_slowly() -> None:
        for end in (0, 1, len(content) // 2, len(content) - 1, len(content)):
            (root / "index.json").write_bytes(content[:end])
            time.sleep(0.05)

    patient = Store(root, durability="none", settle_seconds=10.0)
    (root / "index.json").write_bytes(b"")
    other = threading.Thread(target=write_slowly)
    other.start()
    try:
        for _ in range(20):
            assert [image.name for image in patient.images()] == ["app:1"]
            time.sleep(0.01)
    finally:
        other.join()


def test_a_change_waits_for_an_index_that_is_being_written_and_keeps_what_it_says_then(root: Path) -> None:
    put(root, OTHER, "other:1")
    whole = rewrite(root, drop("other:1"))
    (root / "index.json").write_bytes(whole[:20])
    other = threading.Timer(0.1, lambda: (root / "index.json").write_bytes(whole))
    other.start()
    Store(root, durability="none", settle_seconds=10.0).tag("app:1", "two:1")
    other.join()
    assert set(read_names(root)) == {"app:1", "two:1"}
    assert generations(root)[-2].read_bytes() == whole
    check_invariants(root)


def test_a_manifest_that_another_tool_is_writing_is_read_when_it_is_whole(root: Path) -> None:
    path = blob(root, IMAGE.digest)
    path.chmod(0o600)
    path.write_bytes(IMAGE.blobs[IMAGE.digest][:10])
    other = threading.Timer(0.1, lambda: path.write_bytes(IMAGE.blobs[IMAGE.digest]))
    other.start()
    assert read_all(Store(root, durability="none", settle_seconds=10.0), root_of(IMAGE)) == IMAGE.blobs[IMAGE.digest]
    other.join()


@pytest.mark.parametrize("file", ["index.json", "the manifest"])
def test_a_file_that_is_being_emptied_is_waited_for_though_its_time_does_not_say_so_yet(root: Path, file: str) -> None:
    path = blob(root, IMAGE.digest) if file == "the manifest" else root / file
    content = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(b"")
    keep_blocks(path)
    os.utime(path, (1.0, 1.0))
    other = threading.Timer(0.1, lambda: path.write_bytes(content))
    other.start()
    patient = Store(root, durability="none", settle_seconds=10.0)
    assert [(image.name, image.damaged) for image in patient.images()] == [("app:1", False)]
    other.join()


def keep_blocks(path: Path) -> None:
    """Give an empty file blocks, as it has them until all of its truncation is done."""
    keep_size, length = 1, ctypes.c_int64(4096)
    with path.open("r+b") as opened:
        if ctypes.CDLL(None).fallocate(opened.fileno(), keep_size, ctypes.c_int64(0), length):
            not_possible("an empty file may not have blocks here")
    assert (path.stat().st_size, path.stat().st_blocks > 0) == (0, True)


def seconds_of(action: Callable[[], object]) -> float:
    """Return how long something takes to be refused as damage."""
    start = time.monotonic()
    with pytest.raises(StoreDamaged):
        action()
    return time.monotonic() - start


@pytest.mark.parametrize("content", [b"{", b""], ids=["half", "empty"])
def test_damage_is_waited_for_only_as_long_as_somebody_may_be_writing(root: Path, content: bytes) -> None:
    path = blob(root, IMAGE.digest)
    path.chmod(0o600)
    path.write_bytes(content)
    (root / "index.json").write_bytes(content)
    hasty = Store(root, durability="none", settle_seconds=0.3)
    for action in (hasty.images, lambda: hasty.open_blob(root_of(IMAGE))):
        for touched in (root / "index.json", path):
            os.utime(touched)
        assert seconds_of(action) < 10, "whoever is just writing is waited for, and no longer than was said"
    patient = Store(root, durability="none", settle_seconds=60.0)
    long_ago, ahead = "what was written long ago is in nobody's hands", "nor is what a clock is behind"
    for when, reason in ((1.0, long_ago), (9e9, ahead)):
        os.utime(root / "index.json", (when, when))
        os.utime(path, (when, when))
        for action in (patient.images, lambda: patient.open_blob(root_of(IMAGE))):
            assert seconds_of(action) < 10, reason


@pytest.mark.parametrize("harm", ["missing", "EIO", "link", "layer"])
def test_what_no_writing_would_mend_is_said_at_once(root: Path, harm: str) -> None:
    patient = Store(root, durability="none", settle_seconds=60.0)
    with replaced_os() as system:
        if harm == "EIO":
            system.fail("open", errno.EIO, path="index.json")
        elif harm == "layer":
            blob(root, IMAGE.layer_digests[0]).unlink()
            blob(root, IMAGE.layer_digests[0]).write_bytes(b"short")
        else:
            (root / "index.json").unlink()
            if harm == "link":
                (root / "index.json").symlink_to("/nowhere")
        assert seconds_of(lambda: patient.save("app:1", root.parent / "a.tar")) < 10


# Lost names


def test_a_name_that_another_tool_dropped_is_found_with_its_generation_and_descriptor(root: Path) -> None:
    store = open_store(root)
    put(root, OTHER, "other:1")
    rewrite(root, drop("other:1"))
    (lost,) = store.lost_names()
    assert lost == LostName(name="other:1", descriptor=lost.descriptor, generation=3)
    assert (str(lost.descriptor.digest), lost.descriptor.size_bytes) == (OTHER.digest, OTHER.root["size"])
    store.tag("app:1", "two:1")
    assert [each.name for each in store.lost_names()] == ["other:1"]
    store.prune()
    assert store.lost_names() == (), "the image is gone"


def test_a_lost_name_is_offered_as_the_newest_whole_image_it_stood_for(root: Path) -> None:
    put(root, OTHER, "app:1")
    put(root, MULTI, "multi:1", "a:1")
    store = open_store(root)
    store.remove("app:1")
    rewrite(root, lambda index: index["manifests"].clear())
    found = {each.name: (str(each.descriptor.digest), each.generation) for each in store.lost_names()}
    assert list(found) == ["a:1", "app:1", "multi:1"]
    assert found == {"a:1": (MULTI.digest, 6), "app:1": (OTHER.digest, 5), "multi:1": (MULTI.digest, 6)}
    blob(root, OTHER.layer_digests[0]).unlink()
    rot(blob(root, MULTI.document()["manifests"][0]["digest"]))
    found = {each.name: (str(each.descriptor.digest), each.generation) for each in store.lost_names()}
    assert found == {"app:1": (IMAGE.digest, 2)}


def test_where_no_name_was_lost_none_is_found(root: Path) -> None:
    put(root, OTHER, "app:1")
    generations(root)[0].write_bytes(b"{")
    assert open_store(root).lost_names() == ()
    assert open_store(root.parent / "nowhere").lost_names() == ()
    assert not (root.parent / "nowhere").exists()


# Mending


@pytest.mark.parametrize("harm", ["half", "empty", "no index", "gone", "a link", "a folder", "too large"])
def test_a_damaged_index_is_mended_from_the_newest_generation_and_kept_aside(root: Path, harm: str) -> None:
    put(root, OTHER, "other:1")
    path = root / "index.json"
    said = path.read_bytes()
    wrong = {"half": said[: len(said) // 2], "empty": b"", "no index": b"[]", "too large": b" " * 20_000}.get(harm)
    path.unlink()
    if wrong is not None:
        path.write_bytes(wrong)
    elif harm == "a link":
        path.symlink_to("/nowhere")
    elif harm == "a folder":
        path.mkdir()
    store = Store(root, durability="none", limits=Limits(index_bytes=10_000), settle_seconds=0.0)
    before = [path.read_bytes() for path in generations(root)]
    with pytest.raises(StoreDamaged):
        store.images()
    report = mend_index(store)
    assert report == IndexRepair(generation=3, kept_aside=report.kept_aside, names=("app:1", "other:1"))
    assert path.read_bytes() == said
    assert [path.read_bytes() for path in generations(root)] == before, "it says what the newest says already"
    check_invariants(root)
    if harm == "gone":
        assert report.kept_aside is None
    else:
        assert report.kept_aside is not None
        aside = root / report.kept_aside
        assert aside.parent == root / "quarantine"
        assert aside.is_symlink() if harm == "a link" else aside.is_dir() or aside.read_bytes() == wrong
    assert store.repair() == RepairReport()


def test_an_index_that_can_be_read_is_not_mended(root: Path) -> None:
    before = snapshot(root)
    assert open_store(root).repair() == RepairReport()
    assert open_store(root.parent / "nowhere").repair() == RepairReport()
    assert snapshot(root) == before
    assert not (root.parent / "nowhere").exists()


def test_an_index_that_another_tool_is_still_writing_is_not_mended(root: Path) -> None:
    whole = (root / "index.json").read_bytes()
    (root / "index.json").write_bytes(whole[:20])
    other = threading.Timer(0.1, lambda: (root / "index.json").write_bytes(whole))
    other.start()
    assert Store(root, durability="none", settle_seconds=10.0).repair() == RepairReport()
    other.join()
    assert not (root / "quarantine").exists()


def test_an_older_generation_is_taken_where_newer_ones_cannot_be_read_without_what_is_gone_since(root: Path) -> None:
    put(root, OTHER, "other:1")
    put(root, MULTI, "multi:1")
    store = open_store(root)
    store.remove("other:1")
    store.prune()
    (root / "index.json").write_bytes(b"{")
    generations(root)[-1].write_bytes(b"{")
    report = mend_index(store)
    assert (report.generation, report.names, report.left_out) == (4, ("app:1", "multi:1"), ("other:1",))
    assert read_names(root) == {"app:1": IMAGE.digest, "multi:1": MULTI.digest}
    generations(root)[-2].write_bytes(b"[]")
    check_invariants(root)


def test_an_image_that_is_damaged_is_not_forgotten_when_the_index_is_mended(root: Path) -> None:
    rot(blob(root, IMAGE.digest))
    (root / "index.json").write_bytes(b"")
    assert mend_index(open_store(root)).names == ("app:1",)
    assert open_store(root).get("app:1").damaged


@pytest.mark.parametrize("history", ["gone", "damaged"])
def test_without_a_generation_that_can_be_read_nothing_is_mended(root: Path, history: str) -> None:
    (root / "index.json").write_bytes(b"{")
    if history == "gone":
        shutil.rmtree(root / "history")
    else:
        for path in generations(root):
            path.write_bytes(b"[]")
    before = snapshot(root)
    with pytest.raises(StoreDamaged, match="no generation of it"):
        open_store(root).repair()
    assert snapshot(root) == before


@pytest.mark.parametrize("number", [None, errno.ENOSPC, errno.EIO], ids=["death", "full disk", "error"])
def test_who_dies_or_fails_while_it_mends_loses_nothing_and_the_next_mends(tmp_path: Path, number: int | None) -> None:
    template = tmp_path / "template"
    put(template, IMAGE, "app:1")
    put(template, OTHER, "other:1")
    said = (template / "index.json").read_bytes()
    (template / "index.json").write_bytes(b"{damaged")
    shutil.copytree(template, tmp_path / "counted")
    changes = count_changes(Store(tmp_path / "counted", settle_seconds=0.0).repair)
    for position in range(changes):
        root = tmp_path / str(position)
        shutil.copytree(template, root)

        def mend(root: Path = root, position: int = position) -> None:
            with replaced_os() as system:
                if number is None:
                    system.die_at(position, torn=bool(position % 2))
                else:
                    system.fail_change(position, number)
                Store(root, settle_seconds=0.0).repair()

        assert run_forked(mend) in ((DIED,) if number is None else (0, RAISED))
        kept = [path.read_bytes() for path in [root / "index.json", *root.glob("quarantine/*")] if path.exists()]
        assert b"{damaged" in kept, f"operation {position}"
        if said not in kept:
            assert mend_index(open_store(root)).names == ("app:1", "other:1")
        assert (root / "index.json").read_bytes() == said
        open_store(root).prune()
        check_invariants(root)
        shutil.rmtree(root)
