"""What a store notes of names and blobs: when, by what, and what comes of it when the notes are torn, gone or odd."""

import errno
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibox_store import BlobNotFound, ImageFilter, Store, StoreError, StoreUnavailable, _files
from minibox_store.documents import LayoutEntry
from minibox_store.layout.journal import Journal
from minibox_store.layout_index import NAME_ANNOTATION, with_entry, without_name
from minibox_store.registry import Credentials
from tests.support.archives import members_of, pack
from tests.support.forks import run_forked
from tests.support.images import BuiltImage, build_image
from tests.support.invariants import check_invariants, held_locks, open_files, read_index, read_names, stored
from tests.support.journals import (
    DAY,
    HOUR,
    age_index,
    names_journal,
    origins_journal,
    read_lines,
    set_ages,
    used_line,
    written_line,
)
from tests.support.os_proxy import DIED, replaced_os
from tests.support.registries import quick_client
from tests.support.scripted_registry import (
    Answer,
    ScriptedRegistry,
    ScriptedServer,
    TokenServer,
    blob_headers,
    blob_target,
    pull_scope,
    redirect,
    registry_error,
    serve_image,
)
from tests.support.sources import root_of
from tests.support.stores import blob, bound, open_layout, open_store, put, remount, require_root

IMAGE = build_image(salt="image")
OTHER = build_image(salt="other")
NOW = 1_800_000_000.0


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a store that holds one image. Whatever a test does, it leaves no open file and no lock behind."""
    folder = tmp_path / "store"
    put(folder, IMAGE, "image:1")
    yield folder
    assert open_files(folder) == []
    assert held_locks(folder) == []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock by which names are written and used."""

    def set_clock(seconds: float) -> None:
        monkeypatch.setattr("minibox_store.layout.activity.time", SimpleNamespace(time=lambda: seconds))

    set_clock(NOW)
    return set_clock


def times_of(root: Path, name: str = "image:1") -> tuple[float, float]:
    """Return when a name was written and used, as the store takes it."""
    layout = open_layout(root)
    times = layout.activity.times(layout.read_index())[name]
    return times.written_seconds, times.used_seconds


def forget(root: Path) -> None:
    """Let the store have noted nothing of names."""
    names_journal(root).unlink(missing_ok=True)


def noted(root: Path) -> list[tuple[str, str]]:
    """Return what was noted, and of which name."""
    return [(line[0], line[-1]) for line in read_lines(names_journal(root))]


def old(root: Path, condition: str = "older_than=1d") -> list[str]:
    """Return the names that are old."""
    return [image.name for image in open_store(root).images(ImageFilter.parse(condition))]


# What is noted of names


def test_whatever_writes_a_name_notes_it(root: Path, clock: Callable[[float], None]) -> None:
    store = open_store(root)
    (root.parent / "a.tar").write_bytes(pack(members_of(OTHER, "loaded:1")))
    forget(root)
    put(root, OTHER, "other:1")
    put(root, OTHER, "other:1")  # for what it stands for already
    store.load(root.parent / "a.tar")
    store.tag("other:1", "tagged:1")
    store.remove("tagged:1")
    store.undo()
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", OTHER)
        store.pull(registry.reference("team/app", "1"), name="pulled:1", client=quick_client())
    names = ["other:1", "other:1", "loaded:1", "tagged:1", "tagged:1", "pulled:1"]
    assert noted(root) == [("written", name) for name in names]
    assert [line[1:3] for line in read_lines(names_journal(root))] == [[f"{NOW:.6f}", OTHER.digest]] * len(names)
    assert stat.S_IMODE(names_journal(root).stat().st_mode) == 0o600
    check_invariants(root)


def test_of_names_that_are_written_within_a_millisecond_the_last_is_the_youngest(
    root: Path, clock: Callable[[float], None]
) -> None:
    put(root, OTHER, "image:2")
    clock(NOW + 0.0004)
    put(root, IMAGE, "image:1")  # it stands before the other one
    assert old(root, "keep_last=1") == ["image:2"]
    open_layout(root).activity.tidy({"image:1", "image:2"})
    assert old(root, "keep_last=1") == ["image:2"]


def test_looking_at_an_image_notes_nothing(root: Path) -> None:
    before = names_journal(root).read_bytes()
    store = open_store(root)
    store.images()
    store.images(ImageFilter.parse("older_than=1d", "label!=x", "max_bytes=0"))
    store.get("image:1")
    store.inspect("image:1")
    store.verify()
    store.usage()
    store.prune(ImageFilter.parse("reference=*"), dry_run=True)
    store.prune()
    store.untag("image:1")
    assert names_journal(root).read_bytes() == before


def test_a_save_counts_as_use_at_most_once_an_hour(root: Path, clock: Callable[[float], None]) -> None:
    put(root, IMAGE, "image:1")
    store = open_store(root)
    forget(root)
    for seconds, count in ((0.0, 1), (1.0, 1), (3599.0, 1), (3601.0, 2), (3700.0, 2), (9000.0, 3)):
        clock(NOW + seconds)
        store.save("image:1", root.parent / "a.tar")
        assert noted(root) == [("used", "image:1")] * count
    assert times_of(root)[1] == NOW + 9000


def test_a_name_that_was_just_written_need_not_be_noted_as_used(root: Path) -> None:
    open_store(root).save("image:1", root.parent / "a.tar")
    assert noted(root) == [("written", "image:1")]


def test_a_save_from_where_nothing_may_be_written_is_no_failure(root: Path) -> None:
    require_root()
    forget(root)
    with bound(root, root.parent / "bound") as folder:
        remount(folder, "bind,ro")
        open_store(folder).save("image:1", root.parent / "a.tar")
    assert (root.parent / "a.tar").exists()
    assert not names_journal(root).exists()


def test_after_a_clock_went_back_a_use_is_noted_once_an_hour_too(root: Path, clock: Callable[[float], None]) -> None:
    clock(NOW + DAY)
    put(root, IMAGE, "image:1")
    clock(NOW)
    forget_lines = len(noted(root))
    for _ in range(3):
        open_store(root).save("image:1", root.parent / "a.tar")
    assert noted(root)[forget_lines:] == [("used", "image:1")]
    # A name is not used before it is written, and one that was written in the future is young.
    assert times_of(root) == (NOW + DAY, NOW + DAY)
    clock(NOW + HOUR)
    put(root, IMAGE, "image:1")
    assert times_of(root) == (NOW + HOUR, NOW + HOUR), "what was noted last counts"


# What is not known


def test_a_name_without_a_record_is_as_old_as_the_index(root: Path) -> None:
    forget(root)
    age_index(root, 3 * DAY)
    assert times_of(root) == pytest.approx((time.time() - 3 * DAY,) * 2, abs=5)
    assert old(root) == ["image:1"]
    put(root, OTHER, "other:1")
    assert old(root) == []


def test_a_name_that_another_tool_gave_to_another_image_is_as_old_as_the_index(root: Path) -> None:
    put(root, OTHER, "other:1")
    set_ages(root, {"image:1": 9 * DAY, "other:1": 9 * DAY})
    assert old(root) == ["image:1", "other:1"]
    index = read_index(root)
    index["manifests"][0].update(digest=OTHER.digest, size=OTHER.root["size"])
    (root / "index.json").write_text(json.dumps(index))
    assert old(root) == ["other:1"]
    assert [each.path for each in open_store(root).prune(ImageFilter.parse("older_than=1d")).removed[:1]] == ["other:1"]


def test_what_was_noted_of_a_name_counts_for_the_image_it_stands_for_or_makes_it_younger(root: Path) -> None:
    digest = IMAGE.digest
    names_journal(root).write_text(written_line("image:1", digest, NOW) + written_line("image:1", "sha256:x", NOW + 9))
    age_index(root, 9 * DAY)
    assert times_of(root)[0] >= NOW + 9
    names_journal(root).write_text(written_line("image:1", "sha256:x", NOW + 9) + written_line("image:1", digest, NOW))
    assert times_of(root)[0] == NOW


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "-5", "1e300", "x", "", "0x1"])
def test_a_time_that_nobody_noted_is_passed_over(root: Path, seconds: str) -> None:
    line = f"\nwritten\t{seconds}\t{IMAGE.digest}\timage:1\t.\nused\t{seconds}\timage:1\t."
    names_journal(root).write_text(written_line("image:1", IMAGE.digest, NOW) + line)
    assert times_of(root) == (NOW, NOW)


def test_a_process_that_dies_between_the_note_and_the_index_makes_a_name_younger_and_no_more(root: Path) -> None:
    set_ages(root, {"image:1": 9 * DAY})
    before = times_of(root)[0]

    def die() -> None:
        with replaced_os() as system:
            system.before("replace", lambda: os._exit(DIED), target="/index.json")
            put(root, OTHER, "image:1")

    assert run_forked(die) == DIED
    assert read_names(root) == {"image:1": IMAGE.digest}
    assert times_of(root)[0] > before
    put(root, OTHER, "image:1")
    assert old(root) == []


def come_and_go(root: Path, name: str) -> None:
    """Write a name that only another tool would write, and take it away."""
    entry = LayoutEntry(descriptor=attrs.evolve(root_of(OTHER), annotations={NAME_ANNOTATION: name}))
    open_layout(root).change_index(partial(with_entry, new=entry), "as another tool")
    open_layout(root).change_index(partial(without_name, name=name), "as another tool")


def test_a_name_that_undo_gives_back_cannot_write_lines_of_its_own(root: Path) -> None:
    put(root, OTHER, "other:1")
    set_ages(root, {"image:1": HOUR, "other:1": HOUR})
    forged = f"x{written_line('image:1', IMAGE.digest, 5.0)}"
    for odd in (forged, "tab\tin it", "x\n"):
        come_and_go(root, odd)
        assert [image.name for image in open_store(root).undo()] == [odd]
    assert {name for _, name in noted(root)} <= {"image:1", "other:1"}
    assert times_of(root)[0] == pytest.approx(time.time() - HOUR, abs=10)
    assert times_of(root, forged)[0] == pytest.approx(time.time(), abs=10)


# Torn, gone and odd

LINES = [
    written_line("image:1", IMAGE.digest, NOW),
    used_line("image:1", NOW + 5),
    written_line("other:1", OTHER.digest, NOW + 10),
    written_line("image:1", IMAGE.digest, NOW + 20),
    used_line("other:1", NOW + 30),
    written_line("éa:1", IMAGE.digest, NOW + 40),
]


def test_a_journal_that_is_torn_anywhere_makes_no_name_older_than_its_last_whole_line_and_never_raises(
    tmp_path: Path,
) -> None:
    root = tmp_path / "store"
    put(root, IMAGE, "image:1")
    put(root, OTHER, "other:1")
    os.utime(root / "index.json", (NOW + 100, NOW + 100))
    whole = "".join(LINES).encode()
    ends = [len("".join(LINES[:count]).encode()) for count in range(len(LINES) + 1)]
    for cut in range(len(whole) + 1):
        lines = sum(end <= cut for end in ends) - 1
        known = {"image:1": (NOW + 100, NOW + 100), "other:1": (NOW + 100, NOW + 100)}
        if lines >= 1:
            known["image:1"] = (NOW, NOW + (5 if lines >= 2 else 0))
        if lines >= 3:
            known["other:1"] = (NOW + 10, NOW + (30 if lines >= 5 else 10))
        if lines >= 4:
            known["image:1"] = (NOW + 20, NOW + 20)
        names_journal(root).write_bytes(whole[:cut])
        assert {name: times_of(root, name) for name in known} == known, cut
    # Whatever was torn, the next line is whole.
    for cut in range(0, len(whole), 7):
        names_journal(root).write_bytes(whole[:cut])
        open_layout(root).activity.note_written(["other:1"], open_layout(root).read_index())
        assert times_of(root, "other:1")[0] == pytest.approx(time.time(), abs=10)


FIELDS = st.tuples(*[st.text(max_size=6)] * 2) | st.tuples(*[st.text("a\t\n.\r\x85\u2028é\ud800", max_size=5)] * 3)


@settings(max_examples=200)
@given(pieces=st.lists(st.lists(FIELDS, max_size=3), max_size=3), junk=st.binary(max_size=30), cut=st.integers(0, 60))
def test_what_was_added_is_read_whatever_lies_before_it(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[list[tuple[str, ...]]], junk: bytes, cut: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "folder" / "lines"
    journal = Journal(str(path))
    assert list(journal.lines()) == []
    expected: list[tuple[str, ...]] = []
    for lines in pieces:
        journal.append(lines)
        expected += [line for line in lines if writable(line)]
    assert list(journal.lines()) == expected
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((path.read_bytes()[:cut] if path.exists() else b"") + junk)
    before = list(journal.lines())
    journal.append([("one", "two")])
    assert list(journal.lines()) == [*before, ("one", "two")]
    journal.rewrite(before)
    assert list(journal.lines()) == [line for line in before if writable(line)] == before


def writable(line: tuple[str, ...]) -> bool:
    return not any("\t" in text or "\n" in text or "\ud800" in text for text in line) and encodable("".join(line))


def encodable(text: str) -> bool:
    with suppress(UnicodeEncodeError):
        return text.encode() is not None
    return False


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "file").write_bytes(b"x")


def make_large(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, 70 << 20)


ODD: dict[str, Callable[[Path], object]] = {
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to a file": lambda path: path.symlink_to(path.parent.parent.parent / "victim"),
    "a folder": make_folder,
    "a pipe": os.mkfifo,
    "70 MiB": make_large,
    "no text": lambda path: path.write_bytes(bytes(range(256)) * 10),
}


@pytest.mark.parametrize("what", ["names", "origins"])
@pytest.mark.parametrize("odd", ODD)
def test_what_is_in_the_place_of_a_journal_stops_nothing_and_makes_way(root: Path, odd: str, what: str) -> None:
    (root.parent / "victim").write_bytes(b"kept")
    path = root / "journal" / what
    path.unlink(missing_ok=True)
    ODD[odd](path)
    kind = stat.S_IFMT(path.lstat().st_mode)
    age_index(root, 3 * DAY)
    store = open_store(root)
    assert old(root) == (["image:1"] if what == "names" else [])
    store.save("image:1", root.parent / "a.tar")
    assert store.repair().is_whole
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", OTHER)
        store.pull(registry.reference("team/app", "1"), name="image:1", client=quick_client())
    assert old(root) == []
    assert f"\t{OTHER.digest}\timage:1\t." in names_journal(root).read_bytes().decode(errors="replace")
    assert store.prune().errors == ()
    assert (root.parent / "victim").read_bytes() == b"kept"
    aside = [each for each in path.parent.iterdir() if each.name.endswith(".odd")]
    assert [stat.S_IFMT(each.lstat().st_mode) for each in aside] == ([] if odd in ("no text", "70 MiB") else [kind])
    assert stored(root) == set(OTHER.blobs)
    check_invariants(root)


def test_a_pipe_that_somebody_reads_swallows_no_note(root: Path) -> None:
    path = names_journal(root)
    path.unlink()
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        open_store(root).save("image:1", root.parent / "a.tar")
        open_store(root).tag("image:1", "tagged:1")
        assert os.read(reading, 100) == b""
    finally:
        os.close(reading)
    assert noted(root) == [("written", "tagged:1")]


def test_a_folder_of_journals_that_is_none_is_named_and_changes_nothing(root: Path) -> None:
    forget(root)
    (root / "journal").rmdir()
    (root / "journal").write_bytes(b"odd")
    age_index(root, 3 * DAY)
    assert old(root) == ["image:1"]
    with pytest.raises(StoreUnavailable, match="journal"):
        open_store(root).tag("image:1", "tagged:1")
    assert read_names(root) == {"image:1": IMAGE.digest}
    report = open_store(root).prune(ImageFilter.parse("older_than=1d"))
    assert [each.path for each in report.removed if each.kind == "name"] == ["image:1"]
    assert stored(root) == set()
    assert [error.partition(":")[0] for error in report.errors] == ["journal"]


def test_a_journal_that_a_disk_does_not_take_changes_no_name(root: Path) -> None:
    for number in (errno.ENOSPC, errno.EIO):
        with replaced_os() as system:
            system.fail("write", number, path="/journal/")
            with pytest.raises(StoreError):
                open_store(root).tag("image:1", "tagged:1")
            open_store(root).save("image:1", root.parent / "a.tar")
        assert read_names(root) == {"image:1": IMAGE.digest}
    check_invariants(root)


def test_a_durable_store_notes_durably_and_before_the_name(root: Path) -> None:
    with replaced_os() as system:
        Store(root).tag("image:1", "tagged:1")
    calls = [(call.name, Path(call.paths[0]).name) for call in system.calls if call.name in ("fsync", "replace")]
    assert calls.index(("fsync", "names")) < [name for name, _ in calls].index("replace")
    with replaced_os() as system:
        open_store(root).tag("image:1", "tagged:2")
    assert system.count("fsync") == 0


# Many at once, and tidying


def test_several_processes_add_at_once_and_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lines"

    def add(number: int) -> None:
        journal = Journal(str(path))
        for count in range(200):
            journal.append([(f"process {number}", f"line {count}"), ("second", "x" * number * 50)])

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda number: run_forked(partial(add, number)), range(6))) == [0] * 6
    found = list(Journal(str(path)).lines())
    assert len(found) == 6 * 200 * 2
    for number in range(6):
        own = [fields[1] for fields in found if fields[0] == f"process {number}"]
        assert own == [f"line {count}" for count in range(200)]


def make_untidy(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line * (1 + (2 << 20) // len(line)))


def test_tidying_keeps_what_is_known_of_each_name_and_forgets_the_others(root: Path) -> None:
    open_store(root).tag("image:1", "tagged:1")
    put(root, OTHER, "other:1")
    set_ages(root, {"image:1": 9 * DAY, "other:1": 5 * DAY}, {"image:1": DAY, "tagged:1": HOUR})
    index = read_index(root)
    before = {name: times_of(root, name) for name in read_names(root)}
    make_untidy(names_journal(root), used_line("gone:1", NOW))
    assert {name: times_of(root, name) for name in before} == before
    assert open_store(root).prune().errors == ()
    assert read_index(root) == index
    assert {name: times_of(root, name) for name in before} == before
    assert {name for _, name in noted(root)} == set(before)
    assert names_journal(root).stat().st_size < 2000
    assert stat.S_IMODE(names_journal(root).stat().st_mode) == 0o600
    assert not list(names_journal(root).parent.glob(".*"))


def test_a_dry_run_tidies_nothing_and_a_small_journal_is_left(root: Path) -> None:
    before = names_journal(root).read_bytes()
    open_store(root).prune()
    assert names_journal(root).read_bytes() == before
    make_untidy(names_journal(root), used_line("gone:1", NOW))
    size_bytes = names_journal(root).stat().st_size
    open_store(root).prune(dry_run=True)
    assert names_journal(root).stat().st_size == size_bytes


def test_a_journal_that_cannot_be_tidied_hides_nothing_of_what_was_removed(root: Path) -> None:
    put(root, OTHER, "other:1")
    make_untidy(names_journal(root), used_line("gone:1", NOW))
    with replaced_os() as system:
        system.fail("replace", errno.EROFS, target="/journal/")
        report = open_store(root).prune(ImageFilter.parse("reference=other:1"))
    assert report.blobs_removed == len(OTHER.blobs)
    assert report.errors == (f"journal: {os.strerror(errno.EROFS)}",)
    check_invariants(root)


# Origins


def origins_of(root: Path) -> dict[str, tuple[str, ...]]:
    return open_layout(root).origins.read()


def pull(root: Path, registry: ScriptedRegistry, image: BuiltImage, repository: str = "team/app") -> None:
    serve_image(registry, repository, "1", image)
    open_store(root).pull(registry.reference(repository, "1"), name="pulled:1", client=quick_client())


def test_of_each_blob_of_a_pulled_image_it_is_noted_where_it_is_to_be_had_and_of_no_other(root: Path) -> None:
    shared = build_image([{"a": b"shared"}], salt="first")
    second = build_image([{"a": b"shared"}, {"b": b"own"}], salt="second")
    put(root, shared, "shared:1")
    (root.parent / "a.tar").write_bytes(pack(members_of(OTHER, "loaded:1")))
    open_store(root).load(root.parent / "a.tar")
    assert origins_of(root) == {}
    assert not origins_journal(root).exists()
    with ScriptedRegistry() as registry:
        pull(root, registry, second)
        expected = dict.fromkeys(second.blobs, (f"{registry.host}/team/app",))
        assert origins_of(root) == expected
        pull(root, registry, second)
        assert origins_of(root) == expected
    assert stat.S_IMODE(origins_journal(root).stat().st_mode) == 0o600


def test_the_latest_origin_comes_first_and_each_once(root: Path) -> None:
    with ScriptedRegistry() as registry:
        for repository in ("team/a", "team/b", "team/a"):
            pull(root, registry, OTHER, repository)
            open_store(root).untag("pulled:1")
            open_store(root).prune()
        expected = (f"{registry.host}/team/a", f"{registry.host}/team/b")
        assert origins_of(root) == dict.fromkeys(OTHER.blobs, expected)
        make_untidy(origins_journal(root), f"\nsha256:{'0' * 64}\texample.org/gone\t.")
        pull(root, registry, OTHER, "team/a")
        open_store(root).prune()
        assert origins_of(root) == dict.fromkeys(OTHER.blobs, expected)


def test_a_pull_that_ends_while_a_collection_tidies_keeps_its_origins(root: Path) -> None:
    put(root, build_image(salt="dead"), "dead:1")
    open_store(root).remove("dead:1")
    with ScriptedRegistry() as registry:
        pull(root, registry, build_image(salt="earlier"))
        make_untidy(origins_journal(root), f"\nsha256:{'0' * 64}\texample.org/gone\t.")
        serve_image(registry, "team/late", "1", OTHER)

        def bring() -> None:
            assert run_forked(lambda: pull_outside(root, registry.reference("team/late", "1"))) == 0

        with replaced_os() as system:
            # Behind the last batch of blobs: the next to take the turn is who tidies.
            system.before("open", bring, path="ingest/store.turn", skip=1)
            open_store(root).prune()
        late = (f"{registry.host}/team/late",)
        assert {digest: origins_of(root).get(digest) for digest in OTHER.blobs} == dict.fromkeys(OTHER.blobs, late)
        assert f"sha256:{'0' * 64}" not in origins_of(root)


def pull_outside(root: Path, reference: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_files, "os", os)
        open_store(root).pull(reference, name="late:1", client=quick_client())


def test_of_what_a_failed_pull_has_fetched_and_the_next_one_uses_it_is_known_from_where(root: Path) -> None:
    lacking = OTHER.layer_digests[1]
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", OTHER)
        registry.allow("GET", blob_target("team/app", lacking), registry_error(404, "BLOB_UNKNOWN", "no"), at_most=1)
        with pytest.raises(BlobNotFound, match=lacking):
            open_store(root).pull(registry.reference("team/app", "1"), name="x:1", client=quick_client(), parallel=1)
        assert read_names(root) == {"image:1": IMAGE.digest}
        assert noted(root) == [("written", "image:1")]
        fetched = stored(root) & set(OTHER.blobs)
        assert OTHER.layer_digests[0] in fetched
        with ScriptedRegistry() as other:
            pull(root, other, OTHER, "team/other")
            assert origins_of(root) == dict.fromkeys(OTHER.blobs, (f"{other.host}/team/other",))


def test_s28_no_token_password_or_signed_query_is_written_into_a_store(root: Path) -> None:
    password, token, signature = "planted-password-5f2c", "planted-token-91ab", "planted-signature-77de"
    layer = OTHER.layer_digests[0]
    with ScriptedRegistry() as registry, TokenServer() as tokens, ScriptedServer() as storage:
        challenge = tokens.challenge(service="x", scope=pull_scope("team/app"))
        signed = f"/blob?X-Amz-Signature={signature}"
        storage.allow("GET", signed, Answer(headers=blob_headers(layer), body=OTHER.blobs[layer]))
        tokens.expect_token(token, service="x", scope=pull_scope("team/app"), credentials=("alice", password))
        serve_image(registry, "team/app", "1", OTHER, authorization=f"Bearer {token}", challenge=challenge)
        registry.allow(
            "GET",
            blob_target("team/app", layer),
            redirect(f"{storage.url}{signed}"),
            requires={"Authorization": f"Bearer {token}"},
        )
        client = quick_client(
            credentials={registry.host: Credentials("alice", password)}, realms={registry.host: [tokens.host]}
        )
        open_store(root).pull(registry.reference("team/app", "1"), name="pulled:1", client=client)
        origins = {origin for origins in origins_of(root).values() for origin in origins}
        assert origins == {f"{registry.host}/team/app"}
    assert blob(root, layer).exists()
    written = [path.read_bytes() for path in root.rglob("*") if path.is_file() and "blobs" not in path.parts]
    assert any(b"/team/app\t." in content for content in written)
    for planted in (password, token, signature, "alice", "Signature", "?"):
        assert not [content for content in written if planted.encode() in content], planted
