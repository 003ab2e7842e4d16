"""What a collection takes and what it leaves, kind by kind, and what must never happen."""

import json
import os
import pickle
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from minibox_store import IncompleteImage, PruneReport, Removal, StoreDamaged, StoreError, StoreUnavailable
from minibox_store.layout import sweeping
from minibox_store.layout.marking import Marking
from tests.support.derived import hex_of
from tests.support.forks import forked, run_alone, run_forked, sleep_for_ever
from tests.support.images import (
    OCI_INDEX,
    BuiltImage,
    build_image,
    build_index,
    digest_of,
    encode_document,
)
from tests.support.invariants import (
    check_invariants,
    held_locks,
    open_files,
    read_index,
    read_names,
    stored,
)
from tests.support.layouts import write_layout
from tests.support.os_proxy import replaced_os
from tests.support.snapshots import snapshot
from tests.support.sources import copy_into
from tests.support.stores import (
    blob,
    bound,
    layer_of,
    mounted,
    open_layout,
    open_store,
    put,
    put_dead,
    require_root,
    rot,
)

IMAGE = build_image(salt="image")
DEAD = build_image(salt="dead")
MULTI = build_index([build_image(salt="m"), build_image(salt="m", platform="linux/arm64")], attestations=True)
TRANSACTION = "0123456789abcdef"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a store that holds one image. Whatever a test does, it leaves no open file and no lock behind."""
    folder = tmp_path / "store"
    put(folder, IMAGE, "image:1")
    yield folder
    assert open_files(folder) == []
    assert held_locks(folder) == []


def paths_of(report: PruneReport) -> set[str]:
    """Return what was removed, by its path."""
    return {each.path for each in report.removed}


def blob_names(*images: BuiltImage) -> set[str]:
    """Return the paths of all blobs of some images, relative to a store."""
    return {"blobs/" + digest.replace(":", "/") for image in images for digest in image.blobs}


def prune_twice(root: Path, *, build_cache: bool = False) -> PruneReport:
    """Plan, then collect, and show that the plan changed nothing and was the truth."""
    before = snapshot(root)
    plan = open_store(root).prune(dry_run=True, build_cache=build_cache)
    assert snapshot(root) == before
    report = open_store(root).prune(build_cache=build_cache)
    assert plan.dry_run
    assert not report.dry_run
    assert (plan.removed, plan.kept, plan.absent, plan.errors) == (
        report.removed,
        report.kept,
        report.absent,
        report.errors,
    )
    return report


def prune_alone(root: Path, *, build_cache: bool = False) -> PruneReport:
    """Do the same in a process that sees no others: whatever another program has left is nobody's then."""
    answer = root.parent / "answer"

    def collect() -> None:
        answer.write_bytes(pickle.dumps(prune_twice(root, build_cache=build_cache)))

    assert run_alone(collect) == 0
    report = pickle.loads(answer.read_bytes())
    assert isinstance(report, PruneReport)
    answer.unlink()
    return report


@contextmanager
def program(*command: str, folder: Path | None = None) -> Iterator[int]:
    """Run a program beside the test until the end of the block."""
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            yield process.pid
        finally:
            process.kill()


# Blobs


def test_blobs_that_no_entry_reaches_go_and_the_others_stay(root: Path) -> None:
    put_dead(root, DEAD)
    report = prune_twice(root)
    assert paths_of(report) == blob_names(DEAD)
    assert (report.blobs_removed, report.bytes_freed) == (len(DEAD.blobs), DEAD.size_bytes)
    assert (report.build_cache_removed, report.build_cache_bytes_freed) == (0, 0)
    assert {each.kind for each in report.removed} == {"blob"}
    assert stored(root) == set(IMAGE.blobs)
    assert prune_twice(root).removed == ()
    check_invariants(root)


@pytest.mark.parametrize("name", [None, "kept:1"])
def test_every_entry_is_a_root_with_or_without_a_name(root: Path, name: str | None) -> None:
    sha512 = build_image(algorithm="sha512", salt="512")
    for image in (MULTI, sha512):
        put(root, image, "x:1")
        index = read_index(root)
        annotations = {"org.opencontainers.image.ref.name": f"{image.digest[:20]}"} if name else {"other": "thing"}
        index["manifests"][-1]["annotations"] = annotations
        (root / "index.json").write_text(json.dumps(index))
    put_dead(root, DEAD)
    report = prune_twice(root)
    assert paths_of(report) == blob_names(DEAD)
    assert stored(root) == {*IMAGE.blobs, *MULTI.blobs, *sha512.blobs}
    check_invariants(root)


def test_dead_blobs_of_both_algorithms_go_and_shared_ones_stay(root: Path) -> None:
    sha512 = build_image(algorithm="sha512", salt="512")
    sharing = build_image([*shared_layers(IMAGE)], salt="sharing")
    put_dead(root, sha512)
    put_dead(root, sharing)
    report = prune_twice(root)
    assert paths_of(report) == blob_names(sha512) | blob_names(sharing) - blob_names(IMAGE)
    assert stored(root) == set(IMAGE.blobs)
    check_invariants(root)


def shared_layers(_: BuiltImage) -> list[dict[str, bytes]]:
    """Return the layers that IMAGE was built from."""
    stamp = b"linux/amd64 image\n"
    return [
        {"etc/hostname": b"minibox\n", "etc/platform": stamp},
        {"bin/hello": b"#!/bin/sh\necho hello\n", "srv/data": stamp * 100},
    ]


def test_what_stands_for_an_unknown_type_or_a_subject_is_a_leaf(root: Path) -> None:
    subject = build_image(salt="subject")
    referrer = build_image(salt="referrer", subject=subject.root)
    put(root, referrer, "referrer:1")
    leaf = b"<xml/>"
    blob(root, digest_of(leaf)).write_bytes(leaf)
    index = read_index(root)
    index["manifests"].append({"mediaType": "application/xml", "digest": digest_of(leaf), "size": len(leaf)})
    (root / "index.json").write_text(json.dumps(index))
    put_dead(root, subject)
    report = prune_twice(root)
    assert paths_of(report) == blob_names(subject) - blob_names(referrer)
    assert stored(root) == {*IMAGE.blobs, *referrer.blobs, digest_of(leaf)}


def test_files_below_blobs_that_are_no_blobs_are_left_alone(root: Path) -> None:
    folder = root / "blobs" / "sha256"
    for name in ("README", "a" * 63, "A" * 64, "g" * 64, "a" * 65, ".hidden", "a" * 64 + ".tmp"):
        (folder / name).write_bytes(b"x")
    (folder / ("b" * 64)).mkdir()
    (root / "blobs" / "md5").mkdir()
    (root / "blobs" / "md5" / ("a" * 32)).write_bytes(b"x")
    (root / "blobs" / "sha512").mkdir()
    (root / "blobs" / "sha512" / ("a" * 64)).write_bytes(b"x")
    before = snapshot(root)
    assert prune_twice(root).removed == ()
    assert snapshot(root) == before


@pytest.mark.parametrize("kind", ["link", "link to a live blob", "dangling link", "FIFO", "socket"])
def test_what_is_no_file_and_has_the_name_of_a_dead_blob_is_removed_and_not_followed(root: Path, kind: str) -> None:
    outside = root.parent / "outside"
    outside.write_bytes(b"precious")
    path = blob(root, "sha256:" + "c" * 64)
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "link to a live blob":
        path.symlink_to(blob(root, IMAGE.layer_digests[0]))
    elif kind == "dangling link":
        path.symlink_to("/nowhere")
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        here = os.open(path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)
    assert paths_of(prune_twice(root)) == {f"blobs/sha256/{'c' * 64}"}
    assert not os.path.lexists(path)
    assert outside.read_bytes() == b"precious"
    check_invariants(root)


def test_blobs_go_in_batches_and_each_counts_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "_BATCH", 7)
    dead = [f"dead {number}".encode() for number in range(40)]
    for content in dead:
        blob(root, digest_of(content)).write_bytes(content)
    with replaced_os() as system:
        report = open_store(root).prune()
        assert system.count("open", "ingest/store.lock") == 6
    assert (report.blobs_removed, report.bytes_freed) == (40, sum(map(len, dead)))
    assert len(paths_of(report)) == 40
    check_invariants(root)


def test_counts_and_bytes_are_what_happened_and_not_what_was_planned(root: Path) -> None:
    put_dead(root, DEAD)
    gone, stubborn = DEAD.layer_digests
    with replaced_os() as system:
        # One is gone before its turn comes, another cannot be removed.
        system.before("unlink", lambda: blob(root, gone).unlink(missing_ok=True), path=f"{root}/blobs/")
        system.fail("unlink", 1, path=stubborn.removeprefix("sha256:"))
        report = open_store(root).prune()
    assert paths_of(report) == blob_names(DEAD) - {
        f"blobs/sha256/{d.removeprefix('sha256:')}" for d in (gone, stubborn)
    }
    assert report.bytes_freed == DEAD.size_bytes - len(DEAD.blobs[gone]) - len(DEAD.blobs[stubborn])
    assert report.blobs_removed == 2
    assert [error for error in report.errors if stubborn.removeprefix("sha256:") in error] == list(report.errors)
    assert len(report.errors) == 1
    assert stored(root) == {*IMAGE.blobs, stubborn}
    assert open_store(root).prune().blobs_removed == 1


def test_a_dead_blob_goes_though_an_unfinished_download_or_a_dead_transaction_has_its_name(root: Path) -> None:
    put_dead(root, DEAD)
    first, second = (digest.removeprefix("sha256:") for digest in DEAD.layer_digests)
    (root / "ingest" / "partial" / f"sha256-{first}").write_bytes(b"half")
    folder = root / "ingest" / TRANSACTION
    folder.mkdir()
    (folder / "lock").touch()
    os.link(blob(root, DEAD.layer_digests[1]), folder / f"sha256-{second}")
    report = prune_twice(root)
    assert paths_of(report) == {
        *blob_names(DEAD),
        f"ingest/partial/sha256-{first}",
        f"ingest/{TRANSACTION}",
    }
    assert report.bytes_freed == DEAD.size_bytes + len(b"half"), "each byte counts once"
    assert stored(root) == set(IMAGE.blobs)
    check_invariants(root)


# Sidecars


def sidecar(root: Path, digest: str) -> Path:
    """Return where another program keeps what it knows of a layer."""
    return blob(root, digest).with_name(digest.removeprefix("sha256:") + ".index.json")


def test_the_sidecars_of_live_layers_stay_and_those_of_dead_and_missing_ones_go(root: Path) -> None:
    put_dead(root, DEAD)
    missing = "sha256:" + "d" * 64
    for digest in (*IMAGE.layer_digests, *DEAD.layer_digests, missing):
        sidecar(root, digest).write_bytes(b"{}")
    report = prune_twice(root)
    swept = {str(sidecar(Path(), digest)) for digest in (*DEAD.layer_digests, missing)}
    assert paths_of(report) == swept | blob_names(DEAD)
    assert all(sidecar(root, digest).read_bytes() == b"{}" for digest in IMAGE.layer_digests)
    assert (report.blobs_removed, report.bytes_freed) == (len(DEAD.blobs), DEAD.size_bytes + 3 * 2)


def test_the_sidecars_of_live_layers_swept(root: Path) -> None:
    for digest in IMAGE.layer_digests:
        sidecar(root, digest).write_bytes(b"{}")
    assert prune_twice(root).removed == ()
    assert all(sidecar(root, digest).exists() for digest in IMAGE.layer_digests)


def test_a_sidecar_whose_layer_comes_back_meanwhile_stays(root: Path) -> None:
    sidecar(root, DEAD.layer_digests[0]).write_bytes(b"{}")
    with replaced_os() as system:
        system.before("open", lambda: copy_into(open_layout(root), DEAD, "back:1"), path="ingest/store.turn")
        report = open_store(root).prune()
    assert report.removed == ()
    assert sidecar(root, DEAD.layer_digests[0]).exists()
    check_invariants(root)


def test_a_sidecar_stays_while_its_layer_cannot_be_removed(root: Path) -> None:
    put_dead(root, DEAD)
    digest = DEAD.layer_digests[0]
    sidecar(root, digest).write_bytes(b"{}")
    with replaced_os() as system:
        system.fail("unlink", 1, path=f"blobs/sha256/{digest.removeprefix('sha256:')}")
        report = open_store(root).prune()
    assert sidecar(root, digest).exists()
    assert len(report.errors) == 1


def test_a_dry_run_tells_of_no_sidecar_whose_layer_is_new_and_stays(root: Path) -> None:
    put_dead(root, DEAD)
    sidecar(root, DEAD.layer_digests[0]).write_bytes(b"{}")
    for dry_run in (True, False):
        assert open_store(root).prune(dry_run=dry_run, keep_newer_than_seconds=3600).removed == ()
    assert sidecar(root, DEAD.layer_digests[0]).exists()


@pytest.mark.parametrize("name", ["e" * 64 + ".index.json.bak", "short.index.json", ".index.json"])
def test_what_only_looks_like_a_sidecar_is_left_alone(root: Path, name: str) -> None:
    (root / "blobs" / "sha256" / name).write_bytes(b"x")
    assert prune_twice(root).removed == ()
    assert (root / "blobs" / "sha256" / name).exists()


def test_a_sidecar_that_is_a_link_is_removed_and_not_followed_and_a_folder_is_left(root: Path) -> None:
    outside = root.parent / "outside"
    outside.write_bytes(b"precious")
    sidecar(root, "sha256:" + "d" * 64).symlink_to(outside)
    sidecar(root, "sha256:" + "e" * 64).mkdir()
    assert paths_of(prune_twice(root)) == {f"blobs/sha256/{'d' * 64}.index.json"}
    assert outside.read_bytes() == b"precious"


# Our own leftovers


@pytest.mark.parametrize("has_lock", [True, False])
def test_a_transaction_whose_process_has_ended_goes(root: Path, has_lock: bool) -> None:
    folder = root / "ingest" / TRANSACTION
    folder.mkdir()
    if has_lock:
        (folder / "lock").touch()
        (folder / "staged-0011223344556677").write_bytes(b"12345")
        (folder / f"sha256-{'a' * 64}.own").write_bytes(b"123")
    report = prune_twice(root)
    assert report.removed == (
        Removal(
            kind="transaction",
            path=f"ingest/{TRANSACTION}",
            size_bytes=8 if has_lock else 0,
            reason="its process has ended",
        ),
    )
    assert not folder.exists()
    check_invariants(root)


def test_a_transaction_of_a_living_process_stays_whole(root: Path) -> None:
    put_dead(root, DEAD)

    def work(ready: Callable[[], None]) -> None:
        with open_layout(root).open_writer() as writer:
            assert [writer.has_blob(layer_of(DEAD, number)) for number in (0, 1)] == [True, True]
            ready()
            sleep_for_ever()

    with forked(work):
        before = {path for path in (root / "ingest").rglob("*") if path.is_file()}
        report = prune_twice(root)
        assert paths_of(report) == blob_names(DEAD) - {
            "blobs/" + digest.replace(":", "/") for digest in DEAD.layer_digests
        }
        assert {path for path in (root / "ingest").rglob("*") if path.is_file()} >= before


@pytest.mark.parametrize("name", [".index.json." + "0" * 16 + ".tmp", ".oci-layout." + "f" * 16 + ".tmp"])
def test_a_file_that_was_half_written_beside_the_index_goes(root: Path, name: str) -> None:
    (root / name).write_bytes(b"{")
    assert paths_of(prune_twice(root)) == {name}
    check_invariants(root)


def test_a_file_that_is_being_written_beside_the_index_stays(root: Path) -> None:
    with replaced_os() as system, ThreadPoolExecutor(2) as pool:
        gate = system.block("replace", path=f"{root}/index.json")
        tagging = pool.submit(lambda: open_store(root).tag("image:1", "second:1"))
        gate.wait()
        pruning = pool.submit(lambda: open_store(root).prune())
        while not any("prune.lock" in each for each in held_locks(root)):
            time.sleep(0.002)
        time.sleep(0.05)
        gate.open()
        assert pruning.result(20).removed == ()
        assert tagging.result(20).name == "second:1"
    check_invariants(root)


def test_locks_stay(root: Path) -> None:
    open_store(root).prune()
    (root / "ingest" / "life.lock").touch()
    before = sorted(path.name for path in (root / "ingest").iterdir())
    assert prune_twice(root).removed == ()
    assert sorted(path.name for path in (root / "ingest").iterdir()) == before
    assert {"store.lock", "store.turn", "prune.lock", "life.lock"} <= set(before)


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "FIFO", "another name"])
def test_what_lies_among_the_unfinished_downloads_and_is_none_goes(root: Path, kind: str) -> None:
    outside = root.parent / "outside"
    outside.write_bytes(b"precious")
    path = root / "ingest" / "partial" / ("junk" if kind == "another name" else "sha256-" + "a" * 64)
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "dangling link":
        path.symlink_to("/nowhere")
    elif kind == "folder":
        path.mkdir()
        (path / "x").write_bytes(b"x")
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.write_bytes(b"x")
    report = prune_alone(root)
    assert paths_of(report) == {f"ingest/partial/{path.name}"}
    assert report.errors == ()
    assert outside.read_bytes() == b"precious"


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_has_the_name_of_a_transaction_and_is_none_goes(root: Path, kind: str) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "lock").write_bytes(b"precious")
    path = root / "ingest" / TRANSACTION
    path.symlink_to(outside) if kind == "link" else path.write_bytes(b"x")
    assert paths_of(prune_alone(root)) == {f"ingest/{TRANSACTION}"}
    assert (outside / "lock").read_bytes() == b"precious"


def test_a_probe_for_hard_links_that_was_broken_off_goes(root: Path) -> None:
    def die() -> None:
        with replaced_os() as system:
            system.before("unlink", lambda: os._exit(0), path="/ingest/")
            open_store(root).info()

    assert run_forked(die) == 0
    left = [path for path in (root / "ingest").iterdir() if path.suffix not in (".lock", ".turn")]
    assert len(left) > 1
    open_store(root).prune()
    check_invariants(root)


def test_a_probe_for_hard_links_is_not_disturbed_by_a_prune(root: Path) -> None:
    with replaced_os() as system:
        system.before("link", lambda: prune_alone_once(root), path="/ingest/")
        assert open_store(root).info().hard_links is True


# What other programs leave


def leave(root: Path) -> set[str]:
    """Leave what other programs leave, and return it by relative path."""
    for folder in ("tmp/work/deep", "tmp-pull-123/x", "tmp-layer-abc", "ingest/download"):
        (root / folder).mkdir(parents=True)
    for name in ("tmp/work/deep/file", "tmp/file", "tmp-pull-123/x/file", "tmp-layer-abc/file", "ingest/download/data"):
        (root / name).write_bytes(b"12345")
    (root / "tmp-pull-file").write_bytes(b"12345")
    (root / "ingest" / "strange").write_bytes(b"12345")
    return {
        *("tmp/work", "tmp/file", "tmp-pull-123", "tmp-pull-file", "tmp-layer-abc"),
        *("ingest/download", "ingest/strange"),
    }


def test_what_other_programs_left_unfinished_goes_when_nobody_has_it_open(root: Path) -> None:
    left = leave(root)
    report = prune_alone(root)
    assert (paths_of(report), report.kept, report.errors) == (left, (), ())
    assert {each.kind for each in report.removed} == {"temporary"}
    assert (report.bytes_freed, report.blobs_removed) == (7 * 5, 0)
    assert (root / "tmp").is_dir()
    assert not any((root / "tmp").iterdir())
    check_invariants(root)


def test_what_another_process_has_open_or_works_in_stays(root: Path) -> None:
    left = leave(root)
    with (
        program("sleep", "60", folder=root / "tmp-pull-123" / "x"),
        (root / "tmp" / "work" / "deep" / "file").open("rb"),
        (root / "ingest" / "strange").open("rb"),
    ):
        report = prune_twice(root)
    used = {"tmp-pull-123", "tmp/work", "ingest/strange"}
    reasons = dict(each.split(": ", 1) for each in report.kept)
    assert {path for path, why in reasons.items() if "somebody" in why} == used
    assert paths_of(report) <= left - used
    assert all((root / path).exists() for path in used)


def test_what_a_process_alone_with_us_has_open_is_all_that_stays(root: Path) -> None:
    left = leave(root)
    answer = root.parent / "answer"

    def collect() -> None:
        with program("sleep", "60", folder=root / "tmp-layer-abc"):
            answer.write_bytes(pickle.dumps(prune_twice(root)))

    assert run_alone(collect) == 0
    report = pickle.loads(answer.read_bytes())
    assert paths_of(report) == left - {"tmp-layer-abc"}
    assert [why.partition(":")[0] for why in report.kept] == ["tmp-layer-abc"]
    assert (root / "tmp-layer-abc" / "file").exists()


@pytest.mark.parametrize("where", ["here", "another namespace"])
def test_what_somebody_has_open_by_another_name_for_it_stays(root: Path, where: str) -> None:
    require_root()
    job, elsewhere = root / "tmp" / "job", root.parent / "elsewhere"
    job.mkdir(parents=True)
    elsewhere.mkdir()
    (root / "tmp" / "left").mkdir()
    script = f"mount --bind {root} {elsewhere} && cd {elsewhere}/tmp/job && echo && exec sleep 60"

    def work() -> None:
        separate = ["unshare", "--mount"] if where == "another namespace" else []
        worker = subprocess.Popen([*separate, "sh", "-c", script], stdout=subprocess.PIPE)
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"\n"
            report = open_store(root).prune()
            assert (report.kept, report.errors) == (("tmp/job: somebody has it open",), ())
            assert [each.path for each in report.removed] == ["tmp/left"]
        finally:
            worker.kill()
            worker.wait()

    assert run_alone(work) == 0
    assert job.is_dir()


def test_a_program_that_runs_from_a_temporary_folder_stays(root: Path) -> None:
    folder = root / "tmp-layer-run"
    folder.mkdir()
    shutil.copy(shutil.which("sleep") or "/bin/sleep", folder / "sleep")
    answer = root.parent / "answer"

    def collect() -> None:
        with program(str(folder / "sleep"), "60"):
            time.sleep(0.1)
            answer.write_bytes(pickle.dumps(prune_twice(root)))

    assert run_alone(collect) == 0
    assert pickle.loads(answer.read_bytes()).removed == ()
    assert (folder / "sleep").exists()


def test_what_was_begun_while_others_were_swept_is_looked_at_anew(root: Path) -> None:
    (root / "tmp").mkdir()
    (root / "tmp" / "old").write_bytes(b"x")
    answer = root.parent / "answer"

    def collect() -> None:
        with replaced_os() as system, ExitStack() as stack:

            def begin() -> None:
                (root / "tmp-pull-new").mkdir()
                stack.enter_context((root / "tmp-pull-new" / "data").open("wb"))

            system.before("unlink", begin, path="tmp/old")
            answer.write_bytes(pickle.dumps(open_store(root).prune()))

    assert run_alone(collect) == 0
    report = pickle.loads(answer.read_bytes())
    assert "tmp/old" in paths_of(report)
    assert (root / "tmp-pull-new" / "data").exists(), "it was open, and it is gone"


def test_what_cannot_be_looked_into_counts_as_used() -> None:
    require_root()
    with tempfile.TemporaryDirectory() as name:
        root, answer = Path(name, "store"), Path(name, "answer")
        put(root, IMAGE, "image:1")
        left = leave(root)
        put_dead(root, DEAD)
        answer.touch()
        for path in [answer.parent, answer, root, *root.rglob("*")]:
            os.chown(path, 65534, 65534)

        def collect() -> None:
            os.setgid(65534)
            os.setuid(65534)
            answer.write_bytes(pickle.dumps(open_store(root).prune()))

        # This very process is another user's then.
        assert run_forked(collect) == 0
        report = pickle.loads(answer.read_bytes())
        assert paths_of(report) == blob_names(DEAD)
        assert {why.partition(":")[0] for why in report.kept} == left
        assert all("cannot be looked into" in why for why in report.kept)


def test_a_link_in_a_temporary_folder_is_removed_and_not_followed(root: Path) -> None:
    outside = root.parent / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "file").write_bytes(b"precious")
    (root / "tmp").mkdir()
    (root / "tmp" / "link").symlink_to(outside)
    (root / "tmp" / "folder").mkdir()
    (root / "tmp" / "folder" / "link").symlink_to(outside)
    (root / "tmp-pull-link").symlink_to(outside)
    (root / "ingest" / "link").symlink_to(outside)
    report = prune_alone(root)
    assert paths_of(report) == {"tmp/link", "tmp/folder", "tmp-pull-link", "ingest/link"}
    assert (outside / "deep" / "file").read_bytes() == b"precious"


def test_a_temporary_folder_that_is_itself_a_link_is_not_entered(root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    (root / "tmp").symlink_to(outside)
    (root / "layers").symlink_to(outside)
    prune_alone(root, build_cache=True)
    assert (outside / "file").read_bytes() == b"precious"


def test_what_something_is_mounted_on_stays(root: Path) -> None:
    left = leave(root)
    with mounted(root / "tmp" / "work" / "deep"):
        (root / "tmp" / "work" / "deep" / "inside").write_bytes(b"precious")
        report = prune_alone(root)
        assert (root / "tmp" / "work" / "deep" / "inside").read_bytes() == b"precious"
    assert paths_of(report) == left - {"tmp/work"}
    assert [why.partition(":")[0] for why in report.kept] == ["tmp/work"]


def test_what_cannot_be_removed_is_told_and_the_rest_goes(root: Path) -> None:
    require_root()
    left = leave(root)
    stubborn = root / "tmp" / "work" / "deep" / "file"
    if subprocess.run(["chattr", "+i", str(stubborn)], capture_output=True, check=False).returncode:
        pytest.skip("this file system knows no immutable files")
    try:
        report = prune_alone_once(root)
    finally:
        subprocess.run(["chattr", "-i", str(stubborn)], check=True)
    assert paths_of(report) == left - {"tmp/work"}
    assert [error.startswith("tmp/work: ") for error in report.errors] == [True]
    assert stubborn.exists()


def prune_alone_once(root: Path) -> PruneReport:
    """Collect in a process that sees no others, without a plan before."""
    answer = root.parent / "answer"

    def collect() -> None:
        answer.write_bytes(pickle.dumps(open_store(root).prune()))

    assert run_alone(collect) == 0
    report = pickle.loads(answer.read_bytes())
    assert isinstance(report, PruneReport)
    return report


def test_a_folder_that_may_not_be_read_is_told_and_the_rest_goes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_dead(root, DEAD)
    folder = root / "ingest" / TRANSACTION
    (folder / "closed").mkdir(parents=True)
    (folder / "lock").touch()
    (root / "ingest" / "partial" / "half").write_bytes(b"12")
    real = os.listdir

    def listdir(path: str) -> list[str]:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr("minibox_store.layout.leftovers.os.listdir", listdir)
    report = open_store(root).prune()
    assert paths_of(report) >= blob_names(DEAD) | {"ingest/partial/half"}


@pytest.mark.parametrize(
    ("closed", "mode", "told"),
    [
        ("base_layers", 0o600, "base_layers/entry"),
        (f"extracted/{hex_of(IMAGE.layer_digests[0])}/usr", 0, None),
        ("files/sha256", 0o600, "files/sha256/entry"),
        ("tmp", 0, None),
        ("layers", 0, None),
    ],
)
def test_what_may_not_be_looked_into_is_told_with_all_that_went_before_it(
    closed: str, mode: int, told: str | None
) -> None:
    def work(folder: str) -> None:
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        root = Path(folder) / "store"
        put(root, IMAGE, "image:1")
        put_dead(root, DEAD)
        (root / "layers" / "one").mkdir(parents=True)
        (root / closed / "entry").mkdir(parents=True)
        (root / closed).chmod(mode)
        report = open_store(root).prune(build_cache=True)
        (root / closed).chmod(0o700)
        assert report.blobs_removed == len(DEAD.blobs)
        assert report.errors == (f"{told or closed}: Permission denied",)
        assert (root / closed / "entry").is_dir()

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o777)
        assert run_forked(lambda: work(folder)) == 0


# The build cache


def unpack(root: Path, *names: str) -> None:
    """Leave unpacked layers."""
    for name in names:
        (root / "layers" / name / "etc").mkdir(parents=True)
        (root / "layers" / name / "etc" / "file").write_bytes(b"12345")


def test_unpacked_layers_go_only_when_that_is_asked_for(root: Path) -> None:
    unpack(root, "a", "b")
    (root / "layers" / "file").write_bytes(b"123")
    assert prune_alone(root).removed == ()
    report = prune_alone(root, build_cache=True)
    assert paths_of(report) == {"layers/a", "layers/b", "layers/file"}
    assert {each.kind for each in report.removed} == {"build cache"}
    assert (report.build_cache_removed, report.build_cache_bytes_freed) == (3, 13)
    assert (report.blobs_removed, report.bytes_freed) == (0, 0)
    assert (root / "layers").is_dir()


def test_an_unpacked_layer_stays_while_extracted_points_into_it(root: Path) -> None:
    unpack(root, "whole", "part", "relative", "prefix", "prefix-longer", "free")
    extracted = root / "extracted"
    extracted.mkdir()
    (extracted / "1").symlink_to(root / "layers" / "whole")
    (extracted / "2").symlink_to(root / "layers" / "part" / "etc")
    (extracted / "3").symlink_to("../layers/relative")
    (extracted / "4").symlink_to(root / "layers" / "prefix-longer")
    report = prune_alone(root, build_cache=True)
    assert paths_of(report) == {"layers/free", "layers/prefix"}
    assert all("extracted/ points into it" in why for why in report.kept)
    assert (root / "layers" / "part" / "etc" / "file").exists()


@pytest.mark.parametrize("option", ["lowerdir=", "lowerdir+="])
def test_an_unpacked_layer_stays_while_an_overlay_stands_on_it(root: Path, option: str) -> None:
    unpack(root, "one", "two", "three", "free")
    folders = [str(root / "layers" / name) for name in ("one", "two", "three")]
    options = [f"{option}{':'.join(folders)}"] if option == "lowerdir=" else [option + each for each in folders]
    with mounted(root.parent / "merged", *options, kind="overlay", device="overlay"):
        report = prune_alone(root, build_cache=True)
        assert (root.parent / "merged" / "etc" / "file").read_bytes() == b"12345"
    assert paths_of(report) == {"layers/free"}
    assert (root / "layers" / "three" / "etc" / "file").exists()


def test_an_unpacked_layer_stays_while_an_overlay_writes_to_it(root: Path) -> None:
    unpack(root, "upper", "work", "free")
    (root.parent / "lower").mkdir()
    shutil.rmtree(root / "layers" / "work" / "etc")
    options = [
        f"lowerdir={root.parent}/lower",
        f"upperdir={root}/layers/upper",
        f"workdir={root}/layers/work",
    ]
    with mounted(root.parent / "merged", *options, kind="overlay", device="overlay"):
        report = prune_alone(root, build_cache=True)
    assert paths_of(report) == {"layers/free"}


@pytest.mark.parametrize("part", ["", "etc"])
def test_an_unpacked_layer_stays_while_it_is_mounted_elsewhere(root: Path, part: str) -> None:
    unpack(root, "bound", "free")
    with bound(root / "layers" / "bound" / part, root.parent / "elsewhere") as elsewhere:
        report = prune_alone(root, build_cache=True)
        assert any(elsewhere.iterdir())
    assert paths_of(report) == {"layers/free"}
    assert (root / "layers" / "bound" / "etc" / "file").exists()


def test_an_unpacked_layer_stays_while_something_is_mounted_in_it(root: Path) -> None:
    unpack(root, "under", "free")
    with mounted(root / "layers" / "under" / "etc"):
        report = prune_alone(root, build_cache=True)
    assert paths_of(report) == {"layers/free"}


def test_a_link_among_the_unpacked_layers_is_removed_and_not_followed(root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    unpack(root, "a")
    (root / "layers" / "link").symlink_to(outside)
    (root / "layers" / "a" / "link").symlink_to(outside)
    assert paths_of(prune_alone(root, build_cache=True)) == {"layers/a", "layers/link"}
    assert (outside / "file").read_bytes() == b"precious"


# Never touched


def test_what_it_does_not_know_is_never_touched(root: Path) -> None:
    for folder in (
        "containers/c1",
        "volumes/v1",
        "images/i1",
        "history",
        "quarantine",
        "unknown",
        "tmpfoo",
        "tmp-other",
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "file").write_bytes(b"precious")
    for name in (
        "state.json",
        "tmp-pull-",
        "tmp-layer-",
        ".hidden",
        "index.json.bak",
        ".index.json.short.tmp",
        "x.tmp",
    ):
        (root / name).write_bytes(b"precious")
    before = snapshot(root)
    report = prune_alone(root, build_cache=True)
    assert (report.removed, report.kept, report.errors) == ((), (), ())
    assert snapshot(root) == before


def test_a_dry_run_writes_nothing_at_all_and_takes_no_lock(root: Path) -> None:
    put_dead(root, DEAD)
    leave(root)
    unpack(root, "a")
    sidecar(root, "sha256:" + "d" * 64).write_bytes(b"{}")
    (root / "ingest" / TRANSACTION).mkdir()
    before = snapshot(root)
    locks = sorted((path.name, path.stat().st_mtime_ns) for path in (root / "ingest").glob("*.*"))
    with replaced_os(trees=True) as system:
        plan = open_store(root).prune(dry_run=True, build_cache=True)
        assert system.changes == []
    assert plan.blobs_removed == len(DEAD.blobs)
    assert snapshot(root) == before
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (root / "ingest").glob("*.*")) == locks


def test_a_layout_of_another_tool_is_collected_as_well(tmp_path: Path) -> None:
    root = tmp_path / "foreign"
    write_layout(root, {"image:1": IMAGE, "multi:1": MULTI})
    for digest, content in DEAD.blobs.items():
        blob(root, digest).write_bytes(content)
    assert paths_of(prune_twice(root)) == blob_names(DEAD)
    assert stored(root) == {*IMAGE.blobs, *MULTI.blobs}
    check_invariants(root)


# Fail closed


def harm(path: Path, how: str) -> None:
    """Make a document unreadable."""
    content = path.read_bytes()
    path.unlink()
    if how == "truncated":
        path.write_bytes(content[:-1])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "other bytes":
        path.write_bytes(content)
        rot(path)
    elif how == "a folder":
        path.mkdir()
    elif how == "a link":
        path.with_name("aside").write_bytes(content)
        path.symlink_to(path.with_name("aside"))
    elif how == "a FIFO":
        os.mkfifo(path)
    else:
        assert how == "gone"


HARMS = ["truncated", "emptied", "other bytes", "a folder", "a link", "a FIFO", "gone"]


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("how", HARMS)
def test_S29_sweep_after_an_unreadable_manifest(root: Path, how: str, dry_run: bool) -> None:
    put(root, build_image(salt="second"), "second:1")
    put_dead(root, DEAD)
    (root / "ingest" / "partial" / "half").write_bytes(b"x")
    (root / "ingest" / TRANSACTION).mkdir()
    harm(blob(root, IMAGE.digest), how)
    before = snapshot(root)
    with pytest.raises((StoreDamaged, IncompleteImage), match=IMAGE.digest.removeprefix("sha256:")) as caught:
        open_store(root).prune(dry_run=dry_run)
    if how == "gone":
        assert isinstance(caught.value, IncompleteImage)
        assert caught.value.root == "image:1"
    assert snapshot(root) == before


@pytest.mark.parametrize("how", [each for each in HARMS if each != "gone"])
def test_S29_an_unreadable_manifest_below_an_index_stops_everything(root: Path, how: str) -> None:
    put(root, MULTI, "multi:1")
    put_dead(root, DEAD)
    child = build_image(salt="m").digest
    harm(blob(root, child), how)
    before = snapshot(root)
    with pytest.raises(StoreDamaged, match=child.removeprefix("sha256:")):
        open_store(root).prune()
    assert snapshot(root) == before


@pytest.mark.parametrize("how", HARMS)
def test_S29_what_could_not_be_read_once_is_not_passed_over_when_it_is_asked_for_again(root: Path, how: str) -> None:
    marking = Marking(open_layout(root))
    marking.begin(lambda index: index)
    put(root, MULTI, "multi:1")
    put(root, DEAD, "late:1")
    harm(blob(root, DEAD.digest), how)
    for _ in range(3):
        with pytest.raises((StoreDamaged, IncompleteImage), match=DEAD.digest.removeprefix("sha256:")):
            marking.mark_new_roots()
    if how == "a folder":
        blob(root, DEAD.digest).rmdir()
    else:
        blob(root, DEAD.digest).unlink(missing_ok=True)
    blob(root, DEAD.digest).write_bytes(DEAD.blobs[DEAD.digest])
    marking.mark_new_roots()
    assert {hex_of(digest) for image in (IMAGE, MULTI, DEAD) for digest in image.blobs} <= marking.live_names


@pytest.mark.parametrize(
    "content", [b"", b" ", b"{", b"{}", b"[]", b'{"schemaVersion":2,"manifests":{}}', b"\x00" * 200]
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_S29_an_unreadable_index_taken_as_empty(root: Path, content: bytes, dry_run: bool) -> None:
    (root / "index.json").write_bytes(content)
    before = snapshot(root)
    with pytest.raises(StoreDamaged, match=r"index\.json"):
        open_store(root).prune(dry_run=dry_run)
    assert snapshot(root) == before
    assert stored(root) == set(IMAGE.blobs)


@pytest.mark.parametrize("how", ["gone", "a folder", "a link", "a FIFO"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_S29_no_index_beside_blobs_is_damage_and_not_an_empty_store(root: Path, how: str, dry_run: bool) -> None:
    harm(root / "index.json", how)
    before = snapshot(root)
    with pytest.raises(StoreDamaged, match=r"index\.json"):
        open_store(root).prune(dry_run=dry_run)
    assert snapshot(root) == before


def test_S29_a_document_that_is_both_index_and_manifest_stops_everything(root: Path) -> None:
    both = encode_document({**MULTI.document(), **IMAGE.document(), "mediaType": OCI_INDEX})
    blob(root, digest_of(both)).write_bytes(both)
    index = read_index(root)
    index["manifests"].append({"mediaType": OCI_INDEX, "digest": digest_of(both), "size": len(both)})
    (root / "index.json").write_text(json.dumps(index))
    put_dead_files(root)
    before = snapshot(root)
    with pytest.raises(StoreDamaged, match=digest_of(both).removeprefix("sha256:")):
        open_store(root).prune()
    assert snapshot(root) == before


def put_dead_files(root: Path) -> None:
    """Put dead blobs into a store by hand."""
    for digest, content in DEAD.blobs.items():
        blob(root, digest).write_bytes(content)


def test_S29_an_error_of_the_disk_while_a_manifest_is_read_stops_everything(root: Path) -> None:
    put_dead(root, DEAD)
    before = snapshot(root)
    for name in ("open", "pread", "fstat"):
        with replaced_os() as system:
            system.fail(name, 5, path=IMAGE.digest.removeprefix("sha256:"))
            with pytest.raises(StoreError, match=IMAGE.digest.removeprefix("sha256:") + "|" + str(root)):
                open_store(root).prune()
    assert snapshot(root) == before


def test_S29_a_manifest_that_becomes_unreadable_behind_the_plan_stops_what_is_left(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "_BATCH", 1)
    put_dead(root, DEAD)

    def harm_another() -> None:
        put(root, build_image(salt="second"), "second:1")
        rot(blob(root, build_image(salt="second").digest))

    with replaced_os() as system:
        system.before("open", harm_another, path="ingest/store.turn")
        with pytest.raises(StoreDamaged):
            open_store(root).prune()
    assert stored(root) >= {*IMAGE.blobs, *DEAD.blobs, *build_image(salt="second").blobs}


@pytest.mark.parametrize("how", ["other bytes", "gone"])
def test_S29_a_manifest_that_becomes_unreadable_between_two_batches_ends_it_and_what_went_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(sweeping, "_BATCH", 1)
    put_dead(root, DEAD)
    second = build_image(salt="second")

    def harm_another() -> None:
        put(root, second, "second:1")
        harm(blob(root, second.digest), how)

    with replaced_os() as system:
        system.before("open", harm_another, path="ingest/store.turn", skip=1)
        report = open_store(root).prune()
    assert report.blobs_removed == 1
    assert [second.digest in error for error in report.errors] == [True]
    assert len(DEAD.blobs.keys() & set(stored(root))) == len(DEAD.blobs) - 1


def test_a_blob_that_is_missing_and_no_document_does_not_stop_a_collection(root: Path) -> None:
    put_dead(root, DEAD)
    blob(root, IMAGE.layer_digests[0]).unlink()
    assert paths_of(prune_twice(root)) == blob_names(DEAD)
    assert read_names(root) == {"image:1": IMAGE.digest}


def test_a_manifest_that_a_foreign_index_names_and_that_was_never_fetched_is_told_and_counts_as_a_leaf(
    root: Path,
) -> None:
    here, absent = build_image(salt="m"), build_image(salt="m", platform="linux/arm64")
    index = build_index([here, absent], nested=1)
    put(root, index, "multi:1")
    for digest in absent.blobs.keys() - here.blobs.keys():
        blob(root, digest).unlink()
    put_dead(root, DEAD)
    report = prune_twice(root)
    assert [str(digest) for digest in report.absent] == [absent.digest]
    assert paths_of(report) == blob_names(DEAD)
    check_invariants(root, absent_manifests=True)


def test_a_store_that_cannot_be_written_is_told_and_nothing_goes(root: Path) -> None:
    put_dead(root, DEAD)
    before = snapshot(root)
    with replaced_os() as system:
        system.fail("open", 30, path="prune.lock")
        with pytest.raises(StoreUnavailable, match=r"prune\.lock"):
            open_store(root).prune()
    assert snapshot(root) == before
