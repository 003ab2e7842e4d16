"""What a listing sees, and when; and the file in which it leaves for the next process what documents say."""

import errno
import math
import os
import shutil
import stat
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from minibox_store import Image, Limits, Store, StoreError, StoreUnavailable, _signatures
from minibox_store.layout import stillness
from minibox_store.layout.paths import LayoutPaths
from minibox_store.layout.stillness import BlobFolders
from tests.support.forks import run_forked
from tests.support.images import BuiltImage, build_image, build_index
from tests.support.invariants import find_leftovers
from tests.support.layouts import write_layout
from tests.support.os_proxy import replaced_os
from tests.support.snapshots import snapshot
from tests.support.stores import blob, bound, open_store, put, remount, require_root, rot, whole_second_disk
from tests.support.system_calls import OtherOs
from tests.support.waiting import SOON_SECONDS

# Enough for a cache to be written.
COUNT = 70
SINGLE = {f"app-{number:02}:1": build_image([], salt=str(number)) for number in range(COUNT)}
FIRST = SINGLE["app-00:1"]
CHILD = build_image([], salt="m", platform="linux/arm64/v8")
MULTI = build_index([build_image([], salt="m"), CHILD])
IMAGES = {**SINGLE, "multi:1": MULTI}
CACHE = "listing.cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_layout(tmp_path / "store", IMAGES)
    return tmp_path / "store"


def settle(store: Store) -> tuple[Image, ...]:
    """List until a further call need not look at each file, and return the listing."""
    store.images()
    time.sleep(0.06)
    return store.images()


@contextmanager
def counted_looks() -> Iterator[list[str]]:
    """Note the path of each file that a listing looks at."""
    looked: list[str] = []

    def lstat(path: str) -> os.stat_result:
        looked.append(path)
        return os.lstat(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_signatures, "os", OtherOs(lstat=lstat))
        yield looked


def documents_read(action: Callable[[], object]) -> set[str]:
    """Return the names of the blobs that an action opens."""
    with replaced_os() as system:
        action()
    paths = [path for call in system.calls if call.name == "open" for path in call.paths[:1] if "/blobs/" in path]
    return {path.rpartition("/")[2] for path in paths}


def damaged(images: tuple[Image, ...]) -> set[str]:
    return {image.name for image in images if image.damaged}


def replace_by(path: Path, content: bytes) -> None:
    """Put another file in the place of one, as those do who write in one step."""
    status = path.lstat()
    fresh = path.with_name("fresh")
    fresh.write_bytes(content)
    os.utime(fresh, ns=(status.st_atime_ns, status.st_mtime_ns))
    fresh.rename(path)


def make_folder(path: Path) -> None:
    """Put a folder in the place of a file."""
    path.unlink()
    path.mkdir()


HARMS: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "another file of its size and time": lambda path: replace_by(path, b"x" * path.stat().st_size),
    "a shorter file": lambda path: replace_by(path, path.read_bytes()[:10]),
    "a link to itself elsewhere": lambda path: path.symlink_to(shutil.move(path, path.parents[2] / "elsewhere")),
    "a folder": make_folder,
}
IN_PLACE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, 10),
    "a bit": rot,
}


# What is seen at once, and what within a second


@pytest.fixture
def relied_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a look at all files be relied on for ever, and not for a second alone."""
    monkeypatch.setattr(stillness, "_LONGEST_SECONDS", math.inf)


@pytest.mark.usefixtures("relied_on")
def test_a_settled_store_is_listed_without_a_look_at_any_document(root: Path) -> None:
    store = open_store(root)
    images = settle(store)
    with counted_looks() as looked:
        assert store.images() is images
    assert looked == []


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("image", [FIRST, CHILD], ids=["a manifest", "a manifest below an index"])
def test_a_document_that_is_no_more_what_it_was_is_seen_at_once(root: Path, image: BuiltImage, harm: str) -> None:
    store = open_store(root)
    assert not damaged(settle(store))
    path = blob(root, image.digest)
    kept = path.read_bytes()
    HARMS[harm](path)
    # An index of which one manifest was never fetched is whole.
    expected = {"app-00:1"} if image is FIRST else {"multi:1"} - ({"multi:1"} if harm == "gone" else set())
    assert damaged(store.images()) == expected
    assert damaged(settle(store)) == expected
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.write_bytes(kept)
    assert damaged(store.images()) == set()


@pytest.mark.parametrize("harm", IN_PLACE)
def test_a_document_that_was_changed_in_place_is_seen_within_a_second(root: Path, harm: str) -> None:
    store = open_store(root)
    settle(store)
    path = blob(root, FIRST.digest)
    kept = path.read_bytes()
    IN_PLACE[harm](path)
    changed = time.monotonic()
    while not damaged(store.images()):
        assert time.monotonic() - changed < SOON_SECONDS, "it is not seen"
        time.sleep(0.01)
    assert damaged(store.images()) == {"app-00:1"}
    settle(store)
    path.write_bytes(kept)
    assert damaged(store.images()) == set(), "a repair is seen at once"


@pytest.mark.parametrize("image", [FIRST, CHILD], ids=["a manifest", "a manifest below an index"])
def test_a_repair_in_place_that_gives_a_file_the_time_it_had_is_seen_at_once(root: Path, image: BuiltImage) -> None:
    path, kept = blob(root, image.digest), root.parent / "kept"
    shutil.copy2(path, kept)
    status = path.stat()
    rot(path)  # which leaves no trace in the time of a file
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    store = open_store(root)
    assert len(damaged(settle(store))) == 1
    shutil.copy2(kept, path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    assert damaged(store.images()) == set()


def test_one_image_that_was_changed_in_place_is_seen_at_once_when_it_is_asked_for(root: Path) -> None:
    store = open_store(root)
    settle(store)
    os.truncate(blob(root, FIRST.digest), 10)
    assert store.get("app-00:1").damaged


def test_each_file_is_looked_at_once_a_second(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(stillness, "time", SimpleNamespace(monotonic=lambda: now))
    store = open_store(root)
    store.images()
    now = 1.0
    store.images()
    with counted_looks() as looked:
        for _ in range(100):
            now += 0.0625
            store.images()
    times = looked.count(str(blob(root, FIRST.digest)))
    assert times == 6


def test_a_config_that_is_missing_and_comes_is_told_at_once(root: Path) -> None:
    config = blob(root, FIRST.config_digest)
    kept = config.read_bytes()
    config.unlink()
    store = open_store(root)
    assert settle(store)[0].platform is None
    config.write_bytes(kept[:-1])
    assert store.images()[0].platform is None
    settle(store)
    config.write_bytes(kept)
    assert str(store.images()[0].platform) == "linux/amd64"


def test_a_folder_of_blobs_that_another_one_takes_the_place_of_is_seen_at_once(root: Path, tmp_path: Path) -> None:
    store = open_store(root)
    settle(store)
    folder = root / "blobs" / "sha256"
    folder.rename(tmp_path / "aside")
    assert len(damaged(store.images())) == len(IMAGES)
    settle(store)
    folder.symlink_to(tmp_path / "aside")
    assert not damaged(settle(store))
    (tmp_path / "aside" / FIRST.digest.removeprefix("sha256:")).unlink()
    assert damaged(store.images()) == {"app-00:1"}


def test_what_is_mounted_over_the_blobs_is_seen_at_once(root: Path, tmp_path: Path) -> None:
    require_root()
    (tmp_path / "empty").mkdir()
    store = open_store(root)
    settle(store)
    with bound(tmp_path / "empty", root / "blobs" / "sha256"):
        assert len(damaged(store.images())) == len(IMAGES)
        settle(store)
    assert not damaged(store.images())


def test_changes_that_follow_one_another_within_a_tick_of_the_clock_are_all_seen(root: Path) -> None:
    store = open_store(root)
    path = blob(root, FIRST.digest)
    kept = path.read_bytes()
    for turn in range(50):
        replace_by(path, kept)
        assert not damaged(store.images()), turn
        replace_by(path, b"x" * len(kept))
        assert damaged(store.images()), turn


def test_a_file_system_that_tells_whole_seconds_hides_nothing(tmp_path: Path) -> None:
    with whole_second_disk(tmp_path) as disk:
        write_layout(disk / "store", {"app:1": FIRST})
        store = open_store(disk / "store")
        path = blob(disk / "store", FIRST.digest)
        kept = path.read_bytes()
        assert path.parent.stat().st_mtime_ns % 1_000_000_000 == 0
        for turn in range(12):
            replace_by(path, kept)
            assert not damaged(settle(store)), turn
            replace_by(path, b"x" * len(kept))
            assert damaged(settle(store)), turn


@pytest.mark.usefixtures("relied_on")
def test_a_look_is_relied_on_only_well_after_its_folder_changed(root: Path) -> None:
    folders = BlobFolders(LayoutPaths(str(root)))
    first = folders.glance()
    assert not first.is_settled
    assert not first.covers(folders.glance())
    time.sleep(0.06)
    second = folders.glance()
    assert second.is_settled
    assert second.covers(folders.glance())
    (root / "blobs" / "sha256" / "new").touch()
    third = folders.glance()
    assert not second.covers(third)
    assert not third.is_settled


def test_two_names_of_one_digest_are_judged_by_what_each_entry_says(root: Path) -> None:
    index = (root / "index.json").read_bytes()
    end = index.rindex(b"]}")
    entry = (
        b',{"mediaType":"%b","digest":"%b","size":1,"annotations":{"org.opencontainers.image.ref.name":"wrong:1"}}'
        % (FIRST.media_type.encode(), FIRST.digest.encode())
    )
    (root / "index.json").write_bytes(index[:end] + entry + index[end:])
    for _ in range(2):  # read, and from the cache
        assert damaged(open_store(root).images()) == {"wrong:1"}


@pytest.mark.parametrize("nested", [0, 1])
def test_S7_an_image_of_many_large_documents_is_listed_at_the_cost_of_one(tmp_path: Path, nested: int) -> None:
    many = {str(number): "" for number in range(20_000)}
    images = [build_image([], salt=str(number), annotations={**many, "n": str(number)}) for number in range(20)]
    peaks = []
    for count in (1, 20):
        root = tmp_path / str(count)
        write_layout(root, {"app:1": build_index(images[:count], nested=nested)})
        tracemalloc.start()
        assert not damaged(open_store(root).images())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2.5 * peaks[0]  # one is let go when the next one is there


# What is too long for a line


@pytest.mark.parametrize("length", [64, 65, 100_000])
def test_S7_what_a_config_says_at_length_is_inspected_and_not_listed(root: Path, length: int) -> None:
    image = build_image(config={"created": "x" * length, "os": "linux", "variant": "v" * (4 * length - 12)})
    index = build_index([image, CHILD])
    put(root, image, "long:1")
    put(root, index, "long:2")
    for _ in range(2):  # read, and from the cache
        listed = {each.name: each for each in open_store(root).images()}
        assert (listed["long:1"].created, listed["long:1"].damaged) == ("x" * 64 if length == 64 else None, False)
        long = f"linux/amd64/{'v' * 244}"
        assert [str(each) for each in listed["long:1"].platforms] == ([long] if length == 64 else [])
        assert [str(each) for each in listed["long:2"].platforms] == [
            *([long] if length == 64 else []),
            "linux/arm64/v8",
        ]
        assert (root / CACHE).stat().st_size < 50_000
    (manifest,) = open_store(root).inspect("long:1").manifests
    assert manifest.config is not None
    assert manifest.config.created == "x" * length


def test_S7_an_index_of_many_documents_is_read_each_time_and_keeps_no_other_out_of_the_cache(root: Path) -> None:
    images = [build_image([], salt=f"wide {number}") for number in range(32)]
    indexes = {f"wide-{number:02}:1": build_index([*images, SINGLE[name]]) for number, name in enumerate(SINGLE)}
    usual = build_index(images[:31])
    write_layout(root, {**IMAGES, **indexes, "usual:1": usual})
    store = open_store(root)
    store.images()
    before = (root / CACHE).read_bytes()
    assert usual.digest.removeprefix("sha256:").encode() in before
    assert len(before) < 30_000
    read = documents_read(open_store(root).images)
    assert read >= {each.digest.removeprefix("sha256:") for each in indexes.values()}
    assert usual.digest.removeprefix("sha256:") not in read
    with replaced_os() as system:
        open_store(root).images()
    assert not system.count("replace", CACHE)


# What the system does not let us read


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EPERM])
@pytest.mark.parametrize("call", ["open", "pread"])
@pytest.mark.parametrize("image", [FIRST, CHILD], ids=["a manifest", "a manifest below an index"])
def test_a_manifest_that_may_not_be_read_hides_no_other_image(
    root: Path, image: BuiltImage, call: str, number: int
) -> None:
    whole = open_store(root).images()
    (root / CACHE).unlink()
    store = open_store(root)
    name = "app-00:1" if image is FIRST else "multi:1"
    with replaced_os() as system:
        system.fail(call, number, path=image.digest.removeprefix("sha256:"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stillness, "_LONGEST_SECONDS", math.inf)
            listed = settle(store)
            assert damaged(listed) == {name}
            assert store.images() is listed
        assert [each for each in listed if each.name != name] == [each for each in whole if each.name != name]
        with pytest.raises(StoreUnavailable, match=image.digest.removeprefix("sha256:")):
            store.get(name)
    assert store.get(name) in whole
    lifted = time.monotonic()
    while damaged(store.images()):  # a mode that is changed leaves no trace in what is looked at
        assert time.monotonic() - lifted < SOON_SECONDS, "it is not seen"
        time.sleep(0.01)
    assert store.images() == whole


def test_a_config_that_may_not_be_read_is_no_damage_of_its_manifest(root: Path) -> None:
    with replaced_os() as system:
        system.fail("open", errno.EACCES, path=FIRST.config_digest.removeprefix("sha256:"))
        listed = open_store(root).images()[0]
    assert (listed.name, listed.damaged, listed.platform) == ("app-00:1", False, None)
    assert str(open_store(root).images()[0].platform) == "linux/amd64"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_what_says_nothing_of_a_manifest_ends_the_listing(root: Path, number: int) -> None:
    with replaced_os() as system:
        system.fail("open", number, path=FIRST.digest.removeprefix("sha256:"))
        with pytest.raises(StoreUnavailable):
            open_store(root).images()


@pytest.mark.parametrize("lstat_fails", [False, True])
def test_what_another_user_may_not_read_is_listed_as_damaged(root: Path, lstat_fails: bool) -> None:
    require_root()
    for path in (*root.parents, root):
        if path.stat().st_uid == 0 and str(path).startswith("/tmp/"):
            path.chmod(0o755)
    victim = root / "blobs" / "sha256" if lstat_fails else blob(root, FIRST.digest)
    victim.chmod(0)

    def list_as_another() -> None:
        os.setresuid(12345, 12345, 12345)
        store = open_store(root)
        for _ in range(2):
            assert damaged(settle(store)) == ({*IMAGES} if lstat_fails else {"app-00:1"})

    assert run_forked(list_as_another) == 0
    assert not damaged(open_store(root).images())


# The cache


def test_the_next_process_lists_the_same_and_reads_no_document(root: Path) -> None:
    first = open_store(root).images()
    assert stat.S_IMODE((root / CACHE).stat().st_mode) == 0o600
    second: list[tuple[Image, ...]] = []
    assert documents_read(lambda: second.append(open_store(root).images())) == set()
    assert second == [first]
    assert {str(image.platform) for image in first} == {"linux/amd64", "None"}
    assert [str(each) for each in first[-1].platforms] == ["linux/amd64", "linux/arm64/v8"]


def test_only_what_is_new_is_read(root: Path) -> None:
    open_store(root).images()
    new = build_image([], salt="new")
    put(root, new, "new:1")
    read = documents_read(open_store(root).images)
    assert read == {digest.removeprefix("sha256:") for digest in (new.digest, new.config_digest)}


@pytest.mark.parametrize("image", [FIRST, CHILD], ids=["a manifest", "a manifest below an index"])
@pytest.mark.parametrize("harm", [*HARMS, *IN_PLACE])
def test_the_cache_hides_no_damage(root: Path, harm: str, image: BuiltImage) -> None:
    whole = open_store(root).images()
    path = blob(root, image.digest)
    kept = path.read_bytes()
    {**HARMS, **IN_PLACE}[harm](path)
    with_cache = open_store(root).images()
    (root / CACHE).rename(root / "aside")
    assert with_cache == open_store(root).images()
    assert with_cache != whole
    (root / "aside").rename(root / CACHE)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.write_bytes(kept)
    assert open_store(root).images() == whole


def _overwrite(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


SPOILT: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": _overwrite(b""),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "a bit": rot,
    "the first bit": lambda path: path.write_bytes(b"\0" + path.read_bytes()[1:]),
    "another version": lambda path: path.write_bytes(path.read_bytes().replace(b"listing 3 ", b"listing 2 ", 1)),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "no cache at all": _overwrite(b"{}"),
    "a link": lambda path: path.symlink_to(shutil.move(path, path.with_name("elsewhere"))),
    "too large": lambda path: os.truncate(path, 1 << 30),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_cache_that_is_lost_or_damaged_is_rebuilt(root: Path, spoil: str) -> None:
    whole = open_store(root).images()
    good = (root / CACHE).read_bytes()
    SPOILT[spoil](root / CACHE)
    assert open_store(root).images() == whole
    assert (root / CACHE).read_bytes() == good
    assert not (root / CACHE).is_symlink()


@pytest.mark.parametrize("thing", ["a folder", "a pipe"])
def test_what_is_no_file_in_the_place_of_the_cache_is_passed_over(root: Path, thing: str) -> None:
    (root / CACHE).mkdir() if thing == "a folder" else os.mkfifo(root / CACHE)
    assert len(open_store(root).images()) == len(IMAGES)
    assert not find_leftovers(root)


def test_a_store_that_was_copied_elsewhere_is_read_anew(root: Path, tmp_path: Path) -> None:
    whole = open_store(root).images()
    shutil.copytree(root, tmp_path / "copy")  # other inodes, equal times
    assert FIRST.digest.removeprefix("sha256:") in documents_read(open_store(tmp_path / "copy").images)
    assert documents_read(open_store(tmp_path / "copy").images) == set()
    assert open_store(tmp_path / "copy").images() == whole


def test_a_small_store_has_no_cache(tmp_path: Path) -> None:
    write_layout(tmp_path / "store", dict(list(SINGLE.items())[:60]))
    before = snapshot(tmp_path)
    assert len(open_store(tmp_path / "store").images()) == 60
    assert snapshot(tmp_path) == before


def test_a_store_that_grows_image_by_image_writes_its_cache_seldom(root: Path) -> None:
    store = open_store(root)
    store.images()
    with replaced_os() as system:
        for number in range(COUNT):
            put(root, build_image([], salt=f"more {number}"), f"more-{number:02}:1")
            store.images()
    assert system.count("replace", CACHE) == 1


def test_what_no_name_needs_falls_out_when_the_cache_is_written_anew(root: Path) -> None:
    store = open_store(root)
    store.images()
    kept = FIRST.digest.removeprefix("sha256:").encode()
    assert kept in (root / CACHE).read_bytes()
    store.remove("app-00:1")
    for number in range(COUNT):
        put(root, build_image([], salt=f"more {number}"), f"more-{number:02}:1")
    store.images()
    assert kept not in (root / CACHE).read_bytes()


def test_damaged_images_are_not_kept(root: Path) -> None:
    rot(blob(root, FIRST.digest))
    blob(root, CHILD.digest).unlink()
    blob(root, SINGLE["app-01:1"].config_digest).unlink()
    open_store(root).images()
    cached = (root / CACHE).read_text()
    kept = {image.digest for image in IMAGES.values() if image.digest.removeprefix("sha256:") in cached}
    assert len(kept) == len(IMAGES) - 3
    assert not {FIRST.digest, MULTI.digest, SINGLE["app-01:1"].digest} & kept


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.EACCES])
@pytest.mark.parametrize("name", ["open", "write", "fchmod", "replace"])
def test_a_cache_that_cannot_be_written_is_no_error(root: Path, name: str, number: int) -> None:
    with replaced_os() as system:
        system.fail(name, number, path=f".{CACHE}" if name != "fchmod" else CACHE)
        assert len(open_store(root).images()) == len(IMAGES)
    assert system.count(name, CACHE)
    assert not (root / CACHE).exists()
    assert not find_leftovers(root)


def test_a_store_that_may_not_be_written_to_is_listed_all_the_same(root: Path, tmp_path: Path) -> None:
    require_root()
    before = snapshot(root)
    with bound(root, tmp_path / "view") as view:
        remount(view, "bind,ro")
        assert len(open_store(view).images()) == len(IMAGES)
    assert snapshot(root) == before


def test_a_cache_that_this_user_may_not_read_is_passed_over(root: Path) -> None:
    require_root()
    whole = open_store(root).images()
    for path in (*root.parents, root):
        if path.stat().st_uid == 0 and str(path).startswith("/tmp/"):
            path.chmod(0o755)

    def read_as_another() -> None:
        os.setresuid(12345, 12345, 12345)
        assert open_store(root).images() == whole

    before = snapshot(root)
    assert run_forked(read_as_another) == 0
    assert snapshot(root) == before


def test_nothing_is_written_into_the_store_of_another_user(root: Path) -> None:
    require_root()
    os.chown(root, 12345, 12345)
    assert len(open_store(root).images()) == len(IMAGES)
    assert not (root / CACHE).exists()


def test_neither_check_nor_collection_asks_the_cache(root: Path) -> None:
    store = open_store(root)
    store.images()
    with replaced_os() as system:
        store.verify()
        store.usage()
        store.prune(dry_run=True)
        store.prune()
    assert system.count("open", "index.json"), "this would show it"
    assert not [call for call in system.calls if any(CACHE in path for path in call.paths)]
    assert (root / CACHE).exists()


def test_the_cache_is_for_the_usual_limits_alone(root: Path) -> None:
    narrow = Limits(document_bytes=100)
    assert len(damaged(Store(root, limits=narrow).images())) == len(IMAGES)
    assert not (root / CACHE).exists()
    for number in range(COUNT):  # more than enough for a cache
        put(root, build_image([], salt=f"more {number}"), f"more-{number:02}:1")
    Store(root, limits=Limits(depth=9)).images()
    assert not (root / CACHE).exists()
    open_store(root).images()
    assert (root / CACHE).exists()
    assert len(damaged(Store(root, limits=narrow).images())) == len(IMAGES) + COUNT


def test_a_cache_that_was_half_written_is_swept(root: Path) -> None:
    with replaced_os() as system:
        system.fail("unlink", errno.EIO, path=CACHE)
        system.fail("replace", errno.EIO, path=CACHE)
        open_store(root).images()
    (left,) = find_leftovers(root)
    assert left.startswith(f".{CACHE}.")
    report = open_store(root).prune()
    assert left in [each.path for each in report.removed]
    assert not find_leftovers(root)


def test_a_cache_whose_file_is_swept_before_it_has_its_place_is_no_error(root: Path) -> None:
    open_store(root).tag("app-00:1", "other:1")
    with replaced_os() as system:
        system.before("replace", lambda: open_store(root).prune(), path=CACHE)
        assert len(open_store(root).images()) == len(IMAGES) + 1
    assert not (root / CACHE).exists()
    assert not find_leftovers(root)


def test_an_index_that_cannot_be_read_is_an_error_whatever_the_cache_says(root: Path) -> None:
    open_store(root).images()
    (root / "index.json").write_bytes(b"{")
    with pytest.raises(StoreError, match=r"index\.json"):
        open_store(root).images()
