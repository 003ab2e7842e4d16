"""A pull that unpacks: while layers come, once for an image, in one step with its name; and all the ways it can end."""

import errno
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from minibox_store import Cancellation, Event, Image, Store
from minibox_store._locks import holding_lock
from minibox_store.errors import (
    Cancelled,
    ContentMismatch,
    ImageNotFound,
    InvalidArchive,
    InvalidDocument,
    MissingLibrary,
    RegistryError,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from minibox_store.events import BlobStored, ImageCopied, NothingToUnpack, RegisteringName, UnpackingLayer
from minibox_store.limits import MEBIBYTE
from minibox_store.mounts import read_mounts
from tests.support.forks import run_alone
from tests.support.images import (
    OCI_LAYER,
    OCI_LAYER_GZIP,
    BuiltImage,
    Layer,
    build_image,
    build_index,
    build_layer,
    digest_of,
)
from tests.support.invariants import check_invariants, open_files, read_names
from tests.support.os_proxy import no_hard_links, replaced_os
from tests.support.peers import require_peer
from tests.support.registries import quick_client
from tests.support.scripted_registry import (
    Answer,
    ScriptedRegistry,
    blob_target,
    serve_image,
)
from tests.support.stores import blob, mounted, open_store, put, require_root, rot
from tests.support.waiting import SOON_SECONDS, wait_for

NAME = "team/app:1"
TAG = "team_app_1"
NOBODY = 65534
LAYERS: list[Mapping[str, bytes]] = [
    {"etc/first": b"1", "etc/all": b"1"},
    {"etc/second": b"2", "etc/all": b"2"},
    {"etc/third": b"3", "etc/all": b"3"},
]
IMAGE = build_image(LAYERS)
MOVED = build_image([LAYERS[0], {"etc/moved": b"m"}], salt="moved")


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as registry:
        yield registry


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a store. Whatever a pull meets, it leaves no thread, no open file and nothing half done."""
    folder = tmp_path / "store"
    yield folder
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("minibox")]
    assert open_files(folder) == []
    # An old tree stays aside where a process of somebody else's cannot be looked into: that may have it mounted.
    assert [path.name for path in folder.glob("base_layers/.*")] == [] or read_mounts().doubts
    check_invariants(folder, history_behind=True)


def pull(root: Path, registry: ScriptedRegistry, image: BuiltImage = IMAGE, **options: Any) -> Image:
    """Pull an image as NAME from a registry that serves it now, unless the options say otherwise."""
    serve_image(registry, "team/app", "1", image)
    return pull_again(root, registry, **options)


def pull_again(root: Path, registry: ScriptedRegistry, **options: Any) -> Image:
    """Pull from a registry as it is."""
    reference = registry.reference("team/app", "1")
    store = options.pop("store", None) or open_store(root)
    return store.pull(reference, **{"name": NAME, "client": quick_client(), "unpack": True, **options})


def hold_back(registry: ScriptedRegistry, image: BuiltImage, number: int) -> threading.Event:
    """Let a registry hold a layer back, in its middle, until the event that is returned is set."""
    release = threading.Event()
    digest = image.layer_digests[number]
    answer = Answer(body=image.blobs[digest], hold=release, hold_after_bytes=len(image.blobs[digest]) // 2)
    registry.allow("GET", blob_target("team/app", digest), answer)
    return release


def tree_of(root: Path, place: str = TAG) -> dict[str, bytes]:
    """Return the files of a tree by their paths."""
    base = root / "base_layers" / place
    return {path.relative_to(base).as_posix(): path.read_bytes() for path in base.rglob("*") if path.is_file()}


def files_of(*layers: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return what layers without any whiteout leave, by the order in which they are applied."""
    return {path: content for layer in layers for path, content in layer.items()}


def growing(root: Path, path: str) -> list[bytes]:
    """Return what is in a file of each tree that grows; a layer that comes by now may take the file away first."""
    found = []
    for file in root.glob(f"base_layers/.*/{path}"):
        with suppress(FileNotFoundError):
            found.append(file.read_bytes())
    return found


# ---- what is there afterwards


def test_a_pull_that_unpacks_leaves_the_tree_and_what_it_was_made_of_under_the_tag_of_its_name(
    root: Path, registry: ScriptedRegistry
) -> None:
    pulled = pull(root, registry, store=Store(root, durability="full"))
    assert tree_of(root) == files_of(*LAYERS)
    assert json.loads((root / "base_layers" / f"{TAG}.json").read_bytes()) == {
        "name": NAME,
        "manifest_digest": str(pulled.digest),
        "config_digest": IMAGE.config_digest,
    }
    assert open_store(root).base_layer(NAME) == str(root / "base_layers" / TAG)
    assert read_names(root) == {NAME: IMAGE.digest}
    assert sorted(path.name for path in (root / "base_layers").iterdir()) == [TAG, f"{TAG}.json"]


def test_without_being_asked_a_pull_unpacks_nothing(root: Path, registry: ScriptedRegistry) -> None:
    pull(root, registry, unpack=False)
    assert not (root / "base_layers").exists()
    assert open_store(root).base_layer(NAME) is None
    with pytest.raises(ImageNotFound):
        open_store(root).base_layer("other:1")


def test_a_layer_that_comes_twice_is_applied_twice(root: Path, registry: ScriptedRegistry) -> None:
    events: list[Event] = []
    pull(root, registry, build_image([LAYERS[0], LAYERS[1], LAYERS[0]]), on_event=events.append)
    assert tree_of(root) == files_of(LAYERS[0], LAYERS[1], LAYERS[0])
    told = [(event.position, event.total) for event in events if isinstance(event, UnpackingLayer)]
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_an_image_without_layers_has_an_empty_tree(root: Path, registry: ScriptedRegistry) -> None:
    pull(root, registry, build_image([]))
    assert tree_of(root) == {}
    assert (root / "base_layers" / TAG).is_dir()


def test_the_layers_are_told_in_order_and_before_the_name_is_registered(root: Path, registry: ScriptedRegistry) -> None:
    events: list[Event] = []
    pull(root, registry, on_event=events.append)
    kinds = (UnpackingLayer, RegisteringName, ImageCopied)
    told = [event for event in events if isinstance(event, kinds)]
    assert [event.position for event in told if isinstance(event, UnpackingLayer)] == [1, 2, 3]
    assert [str(event.descriptor.digest) for event in told if isinstance(event, UnpackingLayer)] == IMAGE.layer_digests
    assert [type(event) for event in told] == [UnpackingLayer] * 3 + [RegisteringName, ImageCopied]


def test_an_index_of_which_one_platform_is_pulled_gives_that_platforms_tree(
    root: Path, registry: ScriptedRegistry
) -> None:
    index = build_index([build_image([{"arm": b""}], platform="linux/arm64"), IMAGE])
    pull(root, registry, index)
    assert tree_of(root) == files_of(*LAYERS)


PULL = """
import sys
from minibox_store import Store

Store(sys.argv[1]).pull(sys.argv[2], name="team/app:1", unpack=True)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def run_pull(root: Path, registry: ScriptedRegistry, *wrapper: str) -> str:
    """Pull in a process of its own, durably, and return what it says."""
    command = [*wrapper, sys.executable, "-c", PULL, str(root), registry.reference("team/app", "1")]
    folder = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_tree_and_what_stands_beside_it_are_on_the_disk_before_the_name_is(
    root: Path, registry: ScriptedRegistry, tmp_path: Path
) -> None:
    strace = require_peer("strace")
    pull(root, registry, MOVED)
    serve_image(registry, "team/app", "1", IMAGE)
    log = tmp_path / "calls"
    calls = "trace=syncfs,fsync,unlink,unlinkat,rename,renameat,renameat2"
    run_pull(root, registry, strace, "-f", "-y", "-s", "500", "-e", calls, "-o", str(log))
    lines = log.read_text().splitlines()

    def place(*parts: str, behind: int = -1) -> int:
        """Return which call is the first one, behind another, that has all of these in it."""
        found = (number for number, line in enumerate(lines) if number > behind and all(part in line for part in parts))
        return next(found)

    synced = place("syncfs(", "/base_layers/.")
    put_aside = place("rename", f'/{TAG}.json", ', f"/.{TAG}.json.", behind=synced)
    put_aside_for_good = place("fsync(", "/base_layers>", behind=put_aside)
    exchanged = place("renameat2(", "RENAME_EXCHANGE", behind=put_aside_for_good)
    exchanged_for_good = place("fsync(", "/base_layers>", behind=exchanged)
    written = place("rename", f"/{TAG}.json", behind=exchanged_for_good)
    assert "fsync(" in lines[place("fsync(", f"/.{TAG}.json.", behind=exchanged_for_good)]
    written_for_good = place("fsync(", "/base_layers>", behind=written)
    assert place("rename", "index.json") == place("rename", "index.json", behind=written_for_good)
    assert tree_of(root) == files_of(*LAYERS)


def test_a_large_layer_takes_no_memory_of_its_size(root: Path, registry: ScriptedRegistry) -> None:
    size_bytes = 80 * MEBIBYTE
    serve_image(registry, "team/app", "1", build_image([{"large": bytes(size_bytes)}]))
    assert int(run_pull(root, registry)) < 90 * 1024
    assert (root / "base_layers" / TAG / "large").stat().st_size == size_bytes


# ---- what has no root filesystem


def artifact() -> BuiltImage:
    """Return something that a registry holds and nobody can run."""
    image = build_image([{"values.yaml": b"x"}], compressed=False)
    manifest = {**image.document(), "artifactType": "application/vnd.example"}
    manifest["config"] = {**manifest["config"], "mediaType": "application/vnd.oci.empty.v1+json"}
    content = json.dumps(manifest).encode()
    digest = digest_of(content)
    return BuiltImage(
        root={"mediaType": image.media_type, "digest": digest, "size": len(content)},
        blobs={**{key: item for key, item in image.blobs.items() if key != image.digest}, digest: content},
        media_types={**image.media_types, digest: image.media_type},
    )


def attestation() -> BuiltImage:
    """Return what BuildKit keeps beside an image: its config is one, and its layer is none."""
    statement = Layer(content=b"{}", media_type="application/vnd.in-toto+json", diff_id=digest_of(b"{}"))
    return build_image([statement])


@pytest.mark.parametrize("image", [artifact(), attestation()], ids=["artifact", "attestation"])
@pytest.mark.parametrize("platform", [None, "linux/amd64"])
def test_what_has_no_root_filesystem_is_registered_and_it_is_told_that_nothing_is_unpacked(
    root: Path, registry: ScriptedRegistry, image: BuiltImage, platform: str | None
) -> None:
    events: list[Event] = []
    options = {"platform": None} if platform is None else {}
    pull(root, registry, image, on_event=events.append, **options)
    assert read_names(root) == {NAME: image.digest}
    assert NothingToUnpack(name=NAME) in events
    assert not (root / "base_layers").exists()


def test_an_index_that_is_kept_whole_is_not_unpacked(root: Path, registry: ScriptedRegistry) -> None:
    events: list[Event] = []
    index = build_index([IMAGE, build_image(platform="linux/arm64")], attestations=True)
    pull(root, registry, index, platform=None, on_event=events.append)
    assert read_names(root) == {NAME: index.digest}
    assert NothingToUnpack(name=NAME) in events
    assert not (root / "base_layers").exists()


# ---- once for an image


def inode(root: Path, place: str = TAG) -> int:
    return (root / "base_layers" / place).stat().st_ino


def test_a_tree_that_is_current_is_not_unpacked_again(root: Path, registry: ScriptedRegistry) -> None:
    pull(root, registry)
    before = inode(root)
    events: list[Event] = []
    pull_again(root, registry, on_event=events.append)
    assert inode(root) == before
    assert not [event for event in events if isinstance(event, UnpackingLayer | NothingToUnpack)]


@pytest.mark.parametrize("lost", ["tree", "sidecar"])
def test_a_tree_or_what_stands_beside_it_that_is_gone_is_made_again(
    root: Path, registry: ScriptedRegistry, lost: str
) -> None:
    pull(root, registry)
    if lost == "tree":
        (root / "base_layers" / TAG).rename(root / "base_layers" / "elsewhere")
    else:
        (root / "base_layers" / f"{TAG}.json").unlink()
        (root / "base_layers" / TAG / "etc" / "first").write_bytes(b"changed")
    pull_again(root, registry)
    assert tree_of(root) == files_of(*LAYERS)


def test_a_tag_that_has_moved_has_its_new_tree_in_the_place_of_the_old_one(
    root: Path, registry: ScriptedRegistry
) -> None:
    pull(root, registry)
    pull(root, registry, MOVED)
    assert tree_of(root) == files_of(LAYERS[0], {"etc/moved": b"m"})
    assert read_names(root) == {NAME: MOVED.digest}
    assert sorted(path.name for path in (root / "base_layers").iterdir()) == [TAG, f"{TAG}.json"]


def test_two_names_of_one_tag_have_a_tree_each(root: Path, registry: ScriptedRegistry) -> None:
    pull(root, registry)
    pull(root, registry, MOVED, name="team_app:1")
    store = open_store(root)
    first, second = store.base_layer(NAME), store.base_layer("team_app:1")
    assert first == str(root / "base_layers" / TAG)
    assert second is not None
    assert second.startswith(f"{first}-")
    assert tree_of(root) == files_of(*LAYERS)
    assert tree_of(root, Path(second).name) == files_of(LAYERS[0], {"etc/moved": b"m"})


def test_a_name_that_was_moved_without_unpacking_has_no_tree_until_the_next_pull(
    root: Path, registry: ScriptedRegistry
) -> None:
    pull(root, registry)
    pull(root, registry, MOVED, unpack=False)
    assert open_store(root).base_layer(NAME) is None
    pull_again(root, registry)
    assert open_store(root).base_layer(NAME) is not None
    assert tree_of(root) == files_of(LAYERS[0], {"etc/moved": b"m"})


def test_a_current_tree_that_goes_while_the_layers_come_is_made_again_before_the_name_is_written(
    root: Path, registry: ScriptedRegistry
) -> None:
    pull(root, registry)
    open_store(root).remove(NAME)

    def on_event(event: Event) -> None:
        with suppress(FileNotFoundError):
            if isinstance(event, BlobStored):
                (root / "base_layers" / f"{TAG}.json").unlink()
                (root / "base_layers" / TAG).rename(root / "gone")

    pull_again(root, registry, on_event=on_event)
    assert tree_of(root) == files_of(*LAYERS)
    assert open_store(root).base_layer(NAME) is not None


# ---- while the layers come


def test_a_layer_is_unpacked_while_a_later_one_is_held_back_by_the_registry(
    root: Path, registry: ScriptedRegistry
) -> None:
    serve_image(registry, "team/app", "1", IMAGE)
    release = hold_back(registry, IMAGE, 2)
    pulled: list[Image] = []
    thread = threading.Thread(target=lambda: pulled.append(pull_again(root, registry)))
    thread.start()
    try:
        # Nothing lets the registry go on before two layers are seen as files.
        wait_for(lambda: growing(root, "etc/all") == [b"2"])
        assert not blob(root, IMAGE.layer_digests[2]).exists()
        assert not (root / "base_layers" / TAG).exists()
        assert read_names(root) == {}
    finally:
        release.set()
        thread.join(20)
    assert [str(each.digest) for each in pulled] == [IMAGE.digest]
    assert tree_of(root) == files_of(*LAYERS)


def test_layers_that_come_in_another_order_are_applied_in_theirs(root: Path, registry: ScriptedRegistry) -> None:
    serve_image(registry, "team/app", "1", IMAGE)
    release = hold_back(registry, IMAGE, 0)
    stored: list[str] = []

    def on_event(event: Event) -> None:
        if isinstance(event, BlobStored):
            stored.append(str(event.descriptor.digest))
            if {*stored} >= {*IMAGE.layer_digests[1:]}:
                release.set()

    pull_again(root, registry, on_event=on_event)
    assert stored[-1] == IMAGE.layer_digests[0]
    assert tree_of(root) == files_of(*LAYERS)


def test_an_interrupt_as_the_unpacking_begins_leaves_no_thread_that_waits_for_layers(
    root: Path, registry: ScriptedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[threading.Thread] = []
    start = threading.Thread.start

    def interrupted_start(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.startswith("minibox-unpack"):
            begun.append(thread)
            raise KeyboardInterrupt  # here it comes most often: the main thread waits for the other to begin

    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    with pytest.raises(KeyboardInterrupt):
        pull(root, registry)
    [thread] = begun
    thread.join(15)
    assert not thread.is_alive(), "Python waits for it at its end, for ever"
    assert read_names(root) == {}


def test_a_prune_in_the_middle_takes_nothing_that_is_still_to_be_unpacked(
    root: Path, registry: ScriptedRegistry
) -> None:
    serve_image(registry, "team/app", "1", IMAGE)

    def on_event(event: Event) -> None:
        if isinstance(event, UnpackingLayer):
            open_store(root).prune()

    pull_again(root, registry, on_event=on_event)
    assert tree_of(root) == files_of(*LAYERS)


def test_a_blob_that_somebody_takes_away_before_it_is_unpacked_is_unpacked_all_the_same(
    root: Path, registry: ScriptedRegistry
) -> None:
    serve_image(registry, "team/app", "1", IMAGE)
    taken: list[str] = []

    def on_event(event: Event) -> None:
        if isinstance(event, BlobStored):
            blob(root, str(event.descriptor.digest)).unlink()
            taken.append(str(event.descriptor.digest))

    pull_again(root, registry, on_event=on_event)
    assert {*taken} == {IMAGE.config_digest, *IMAGE.layer_digests}
    assert tree_of(root) == files_of(*LAYERS)


def test_without_hard_links_it_is_the_same(root: Path, registry: ScriptedRegistry) -> None:
    with replaced_os() as system:
        no_hard_links(system)
        pull(root, registry)
        pull(root, registry, MOVED)
    assert tree_of(root) == files_of(LAYERS[0], {"etc/moved": b"m"})


def test_a_wrong_layer_of_the_store_is_replaced_and_not_unpacked(root: Path, registry: ScriptedRegistry) -> None:
    put(root, IMAGE, "other:1")
    rot(blob(root, IMAGE.layer_digests[0]))
    pull(root, registry)
    assert tree_of(root) == files_of(*LAYERS)
    assert [path.name.rpartition(".")[0] for path in (root / "quarantine").iterdir()] == [
        IMAGE.layer_digests[0].replace(":", "-")
    ]


# ---- what fails


def with_diff_id(image: BuiltImage, number: int, diff_id: str) -> BuiltImage:
    """Return the same layers under a config that promises another content for one of them."""
    layers = [
        Layer(content=image.blobs[digest], media_type=OCI_LAYER_GZIP, diff_id=diff_id) for digest in image.layer_digests
    ]
    ids = json.loads(image.blobs[image.config_digest])["rootfs"]["diff_ids"]
    ids[number] = diff_id
    return build_image(
        [
            Layer(content=each.content, media_type=each.media_type, diff_id=promised)
            for each, promised in zip(layers, ids, strict=True)
        ]
    )


WRONG = with_diff_id(IMAGE, 1, digest_of(b"something else"))
NO_TAR = build_image([LAYERS[0], Layer(content=b"x" * 2000, media_type=OCI_LAYER_GZIP, diff_id=digest_of(b"x" * 2000))])


@pytest.mark.parametrize(
    ("image", "error"), [(WRONG, ContentMismatch), (NO_TAR, InvalidArchive)], ids=["wrong diffID", "no tar"]
)
def test_a_layer_that_cannot_be_unpacked_fails_the_pull_and_name_and_tree_stay_as_they_were(
    root: Path, registry: ScriptedRegistry, image: BuiltImage, error: type[StoreError]
) -> None:
    pull(root, registry, MOVED)
    before = inode(root)
    with pytest.raises(error):
        pull(root, registry, image)
    assert read_names(root) == {NAME: MOVED.digest}
    assert (inode(root), tree_of(root)) == (before, files_of(LAYERS[0], {"etc/moved": b"m"}))
    assert open_store(root).base_layer(NAME) is not None
    events: list[Event] = []
    pull(root, registry, MOVED, on_event=events.append)
    assert not [event for event in events if isinstance(event, UnpackingLayer)]


def test_a_layer_that_cannot_be_unpacked_ends_the_copy_though_another_one_would_never_come(
    root: Path, registry: ScriptedRegistry
) -> None:
    serve_image(registry, "team/app", "1", WRONG)
    release = hold_back(registry, WRONG, 2)
    try:
        with pytest.raises(ContentMismatch, match=digest_of(b"something else")):
            pull_again(root, registry)
        assert not release.is_set()
        assert not blob(root, WRONG.layer_digests[2]).exists()
    finally:
        release.set()
    assert read_names(root) == {}


def test_a_config_that_does_not_speak_of_each_layer_is_told_before_a_layer_moves(
    root: Path, registry: ScriptedRegistry
) -> None:
    config = {"rootfs": {"type": "layers", "diff_ids": [digest_of(b"")]}}
    with pytest.raises(InvalidDocument, match="diff_ids"):
        pull(root, registry, build_image(LAYERS, config=config))
    assert not (root / "blobs").exists()


def test_a_registry_that_fails_ends_the_unpacking_and_its_own_error_is_told(
    root: Path, registry: ScriptedRegistry
) -> None:
    serve_image(registry, "team/app", "1", IMAGE)
    registry.allow("GET", blob_target("team/app", IMAGE.layer_digests[2]), Answer(status=404))
    with pytest.raises((RegistryError, StoreError), match=IMAGE.layer_digests[2][7:]):
        pull_again(root, registry)
    assert read_names(root) == {}
    assert not (root / "base_layers" / TAG).exists()


def test_a_library_that_is_missing_is_named(
    root: Path, registry: ScriptedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    zstd = pytest.importorskip("backports.zstd")
    plain = build_layer(LAYERS[0], compressed=False)
    layer = Layer(
        content=zstd.compress(plain.content),
        media_type="application/vnd.oci.image.layer.v1.tar+zstd",
        diff_id=plain.diff_id,
    )
    image = build_image([layer])
    pull(root, registry, image)
    assert tree_of(root) == dict(LAYERS[0])
    for module in ("backports.zstd", "compression.zstd", "backports", "compression"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingLibrary, match=r"minibox-store\[zstd\]"):
        pull(root, registry, image, name="other:1")
    assert read_names(root) == {NAME: image.digest}


def test_a_name_that_cannot_be_written_leaves_the_old_tree(root: Path, registry: ScriptedRegistry) -> None:
    pull(root, registry, MOVED)
    before = inode(root)
    store = open_store(root, lock_timeout_seconds=0.2)
    serve_image(registry, "team/app", "1", IMAGE)

    with pytest.raises(StoreBusy), holding_lock(f"{root}/ingest/store.lock", doing="sitting", timeout_seconds=1):
        pull_again(root, registry, store=store)
    assert read_names(root) == {NAME: MOVED.digest}
    assert (inode(root), tree_of(root)) == (before, files_of(LAYERS[0], {"etc/moved": b"m"}))
    assert store.base_layer(NAME) is not None


def test_a_lock_of_the_trees_that_is_not_to_be_had_fails_the_pull(root: Path, registry: ScriptedRegistry) -> None:
    pull(root, registry, MOVED)
    store = open_store(root, lock_timeout_seconds=0.2)
    lock = holding_lock(f"{root}/ingest/base_layers.lock", doing="sitting", timeout_seconds=1)
    with pytest.raises(StoreBusy, match="sitting"), lock:
        pull(root, registry, IMAGE, store=store)
    assert read_names(root) == {NAME: MOVED.digest}
    assert tree_of(root) == files_of(LAYERS[0], {"etc/moved": b"m"})


def test_a_disk_that_is_full_fails_the_pull(root: Path, registry: ScriptedRegistry) -> None:
    pull(root, registry, MOVED)
    with replaced_os() as system:
        system.fail("write", errno.ENOSPC, path="/base_layers/")
        with pytest.raises(StoreError, match="space"):
            pull(root, registry, IMAGE)
    assert read_names(root) == {NAME: MOVED.digest}
    assert tree_of(root) == files_of(LAYERS[0], {"etc/moved": b"m"})


def test_layers_that_do_not_fit_once_unpacked_fail_the_pull(tmp_path: Path, registry: ScriptedRegistry) -> None:
    image = build_image([{"small": b"s"}, {"large": bytes(8 * MEBIBYTE)}])
    assert image.size_bytes < 100_000
    with mounted(tmp_path / "disk", "size=4m") as disk:
        root = disk / "store"
        with pytest.raises(StoreFull):
            pull(root, registry, image)
        assert read_names(root) == {}
        assert [*(root / "base_layers").iterdir()] == []
        pull(root, registry, IMAGE)
        assert tree_of(root) == files_of(*LAYERS)


def test_a_listener_that_fails_as_a_layer_is_unpacked_ends_the_pull_with_its_error(
    root: Path, registry: ScriptedRegistry
) -> None:
    def on_event(event: Event) -> None:
        if isinstance(event, UnpackingLayer):
            raise RuntimeError("no room for a line")

    with pytest.raises(RuntimeError, match="no room for a line"):
        pull(root, registry, on_event=on_event)
    assert read_names(root) == {}


# ---- cancelled


def test_a_cancel_ends_the_pull_within_a_second_while_the_unpacking_waits_for_a_layer(
    root: Path, registry: ScriptedRegistry
) -> None:
    serve_image(registry, "team/app", "1", IMAGE)
    release = hold_back(registry, IMAGE, 1)
    cancellation = Cancellation()
    ended: list[float] = []

    def cancel() -> None:
        wait_for(lambda: bool([*root.glob("base_layers/.*/etc/first")]))
        ended.append(time.monotonic())
        cancellation.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        with pytest.raises(Cancelled):
            pull_again(root, registry, cancellation=cancellation)
        assert time.monotonic() - ended[0] < SOON_SECONDS
    finally:
        release.set()
        thread.join(10)
    assert read_names(root) == {}


def test_a_cancel_in_the_middle_of_a_layer_ends_the_unpacking_within_a_second(
    root: Path, registry: ScriptedRegistry
) -> None:
    image = build_image([{f"{number:04}/file": b"x" * 100 for number in range(8000)}])
    cancellation = Cancellation()
    cancelled: list[float] = []

    def cancel() -> None:
        wait_for(lambda: bool([*root.glob("base_layers/.*/0010")]))
        cancelled.append(time.monotonic())
        cancellation.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        with pytest.raises(Cancelled):
            pull(root, registry, image, cancellation=cancellation)
        assert time.monotonic() - cancelled[0] < SOON_SECONDS  # what there was of the tree is removed, too
    finally:
        thread.join(10)
    assert read_names(root) == {}


@pytest.mark.parametrize("kind", [BlobStored, UnpackingLayer, RegisteringName])
def test_a_cancel_at_any_event_leaves_name_and_tree_as_they_were(
    root: Path, registry: ScriptedRegistry, kind: type
) -> None:
    pull(root, registry, MOVED)
    cancellation = Cancellation()

    def on_event(event: Event) -> None:
        if isinstance(event, kind):
            cancellation.cancel()

    with pytest.raises(Cancelled):
        pull(root, registry, IMAGE, on_event=on_event, cancellation=cancellation)
    assert read_names(root) == {NAME: MOVED.digest}
    assert tree_of(root) == files_of(LAYERS[0], {"etc/moved": b"m"})
    assert open_store(root).base_layer(NAME) is not None


def test_a_failed_unpacking_cancels_nothing_of_its_caller(root: Path, registry: ScriptedRegistry) -> None:
    cancellation = Cancellation()
    with pytest.raises(ContentMismatch):
        pull(root, registry, WRONG, cancellation=cancellation)
    assert not cancellation.is_cancelled
    pull(root, registry, cancellation=cancellation)
    assert tree_of(root) == files_of(*LAYERS)


# ---- as a user


def test_a_user_has_a_tree_of_their_own_with_the_owners_noted_beside_the_files(registry: ScriptedRegistry) -> None:
    require_root()
    image = build_image([owned_layer()])
    serve_image(registry, "team/app", "1", image)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root = Path(folder) / "store"
        root.mkdir(mode=0o700)
        os.chown(root, NOBODY, NOBODY)

        def work() -> None:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            pull_again(root, registry)
            pull_again(root, registry, name="other:1")
            open_store(root).remove("other:1")
            assert open_store(root).prune().errors == ()

        assert run_alone(work) == 0  # who is not root may not look into others, which may have it mounted
        assert tree_of(root) == {"etc/secret": b"s"}
        status = (root / "base_layers" / TAG / "etc" / "secret").lstat()
        assert (status.st_uid, status.st_mode & 0o7777) == (NOBODY, 0o640)
        assert os.getxattr(root / "base_layers" / TAG / "etc" / "secret", "user.rootlesscontainers") != b""
        assert sorted(path.name for path in root.glob("base_layers/*")) == [TAG, f"{TAG}.json"]


def owned_layer() -> Layer:
    """Return a layer whose one file is another user's."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("etc/secret")
        member.size, member.mode, member.uid, member.gid = 1, 0o640, 33, 44
        tar.addfile(member, io.BytesIO(b"s"))
    content = buffer.getvalue()
    return Layer(content=content, media_type=OCI_LAYER, diff_id=digest_of(content))


# ---- others at work


def test_pulls_of_one_name_at_once_leave_one_tree_that_is_its_names(root: Path, registry: ScriptedRegistry) -> None:
    serve_image(registry, "team/app", "1", IMAGE)
    serve_image(registry, "team/app", "2", MOVED)
    errors: list[Exception] = []

    def work(number: int) -> None:
        reference = registry.reference("team/app", str(number % 2 + 1))
        try:
            for _ in range(5):
                open_store(root, lock_timeout_seconds=30).pull(reference, name=NAME, client=quick_client(), unpack=True)
        except Exception as error:  # noqa: BLE001  # told by the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    layers = LAYERS if read_names(root) == {NAME: IMAGE.digest} else [LAYERS[0], {"etc/moved": b"m"}]
    assert tree_of(root) == files_of(*layers)
    assert open_store(root).base_layer(NAME) is not None
    assert sorted(path.name for path in (root / "base_layers").iterdir()) == [TAG, f"{TAG}.json"]


def test_an_old_tree_stays_whole_below_an_overlay_that_was_mounted_from_it(
    root: Path, registry: ScriptedRegistry, tmp_path: Path
) -> None:
    require_root()
    pull(root, registry)
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    options = (f"lowerdir={root}/base_layers/{TAG}", f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work")
    with mounted(tmp_path / "container", *options, kind="overlay", device="overlay") as container:
        pull(root, registry, MOVED)
        assert tree_of(root) == files_of(LAYERS[0], {"etc/moved": b"m"})
        seen = {path.relative_to(container).as_posix(): path for path in container.rglob("*") if path.is_file()}
        assert {name: path.read_bytes() for name, path in seen.items()} == files_of(*LAYERS)
        assert [path.name.startswith(f".{TAG}.") for path in root.glob("base_layers/.*")] == [True]
        open_store(root).prune()
        assert {name: path.read_bytes() for name, path in seen.items()} == files_of(*LAYERS)

    def is_collected() -> bool:
        open_store(root).prune()
        return not [*root.glob("base_layers/.*")]

    wait_for(
        is_collected, "it is still there"
    )  # a namespace that a test beside this one makes has the mount until it ends
    assert tree_of(root) == files_of(LAYERS[0], {"etc/moved": b"m"})


def test_a_place_that_something_is_mounted_on_fails_the_pull(
    root: Path, registry: ScriptedRegistry, tmp_path: Path
) -> None:
    require_root()
    pull(root, registry)
    with mounted(root / "base_layers" / TAG):
        with pytest.raises(StoreUnavailable, match="something is mounted on it"):
            pull(root, registry, MOVED)
        assert read_names(root) == {NAME: IMAGE.digest}
    assert tree_of(root) == files_of(*LAYERS)
    assert open_store(root).base_layer(NAME) is not None


def test_pulls_removals_and_prunes_at_once_leave_a_tree_for_each_name_and_no_other(
    root: Path, registry: ScriptedRegistry
) -> None:
    serve_image(registry, "team/app", "1", IMAGE)
    serve_image(registry, "team/app", "2", MOVED)
    errors: list[Exception] = []

    def pull_often(number: int) -> None:
        store = open_store(root, lock_timeout_seconds=30)
        reference = registry.reference("team/app", str(number % 2 + 1))
        for _ in range(8):
            store.pull(reference, name=f"name/{number % 3}", client=quick_client(), unpack=True)

    def take_away(number: int) -> None:
        store = open_store(root, lock_timeout_seconds=30)
        for _ in range(8):
            with suppress(ImageNotFound):
                store.remove(f"name/{number % 3}")
            report = store.prune()
            assert report.errors == ()

    def guarded(work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except Exception as error:  # noqa: BLE001  # told by the test's own thread
            errors.append(error)

    work = [pull_often, pull_often, pull_often, take_away, take_away]
    threads = [threading.Thread(target=guarded, args=(each, number)) for number, each in enumerate(work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    store = open_store(root)
    store.prune()
    for name, digest in read_names(root).items():
        found = store.base_layer(name)
        layers = LAYERS if digest == IMAGE.digest else [LAYERS[0], {"etc/moved": b"m"}]
        assert found is not None, name
        assert tree_of(root, Path(found).name) == files_of(*layers)
    assert len([*(root / "base_layers").iterdir()]) == 2 * len(read_names(root))
