"""FUSE mounts under lazy/ and cache/, of real servers: which are taken away, which stay, and what the report counts."""

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from minibox_store import PruneReport
from minibox_store.rootfs import unmounting
from tests.support.daemon import running_daemon
from tests.support.derived import hex_of, plant_tree
from tests.support.forks import kill, run_forked
from tests.support.fuse import CONTENT, served
from tests.support.images import build_image
from tests.support.invariants import check_invariants, held_locks, open_files
from tests.support.namespaces import another_namespace
from tests.support.os_proxy import replaced_os
from tests.support.peers import require_peer
from tests.support.served_trees import mount_table
from tests.support.snapshots import snapshot
from tests.support.stores import bound, mounted, open_store, put, put_dead, require_root

IMAGE = build_image(salt="image")
DEAD = build_image(salt="dead")
ALIVE = hex_of(IMAGE.digest)
GONE = "d" * 64


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a store that holds one image."""
    folder = tmp_path / "store"
    put(folder, IMAGE, "image:1")
    yield folder
    assert open_files(folder) == []
    assert held_locks(folder) == []


def mount_points(root: Path) -> set[str]:
    """Return what is mounted below a store, as its paths are there."""
    points = [point for line in mount_table() for point in line.split(" ")[4:5]]
    return {os.path.relpath(point, root) for point in points if point.startswith(f"{root}/")}


def prune_twice(root: Path) -> PruneReport:
    """Plan, then collect, and show that the plan changed nothing and was the truth."""
    before = mount_points(root)
    plan = open_store(root).prune(dry_run=True)
    assert mount_points(root) == before
    report = open_store(root).prune()
    assert (plan.removed, plan.kept, plan.errors) == (report.removed, report.kept, report.errors)
    assert plan.fuse_mounts_killed == report.fuse_mounts_killed
    return report


def kinds(report: PruneReport) -> list[tuple[str, str]]:
    """Return what went, in order."""
    return [(each.kind, each.path) for each in report.removed if each.kind.startswith("mount")]


def is_dead(folder: Path) -> bool:
    """Whether a server has ended and its mount is there still."""
    try:
        os.stat(folder)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


@contextmanager
def killed(folder: Path) -> Iterator[None]:
    """Leave the mount of a server that was killed."""
    with served(folder) as pid:
        kill(pid)
        assert is_dead(folder)
        yield


# Which go


@pytest.mark.parametrize("folder", ["lazy", "cache"])
@pytest.mark.parametrize("name", [ALIVE, hex_of(IMAGE.layer_digests[0]), GONE])
def test_a_mount_whose_server_was_killed_is_unmounted_and_its_place_removed(root: Path, folder: str, name: str) -> None:
    put_dead(root, DEAD)
    with killed(root / folder / name):
        report = prune_twice(root)
        assert kinds(report) == [("mount", f"{folder}/{name}"), ("mount point", f"{folder}/{name}")]
        assert (report.fuse_mounts_killed, report.kept, report.errors) == (1, (), ())
        assert (report.blobs_removed, report.bytes_freed) == (len(DEAD.blobs), DEAD.size_bytes)
        assert not os.path.lexists(root / folder / name)
        assert mount_points(root) == set()
    assert prune_twice(root).removed == ()
    check_invariants(root)


def test_a_mount_whose_server_lives_goes_with_its_image_and_stays_with_it(root: Path) -> None:
    put(root, DEAD, "going:1")
    going = hex_of(DEAD.digest)
    with served(root / "lazy" / going), served(root / "lazy" / ALIVE):
        assert kinds(prune_twice(root)) == []
        assert (root / "lazy" / going / "file").read_bytes() == CONTENT
        open_store(root).remove("going:1")
        report = prune_twice(root)
        assert kinds(report) == [("mount", f"lazy/{going}"), ("mount point", f"lazy/{going}")]
        assert {each.reason for each in report.removed if each.kind == "mount"} == {"its image or layer is gone"}
        assert (root / "lazy" / ALIVE / "file").read_bytes() == CONTENT
        assert os.listdir(root / "lazy") == [ALIVE]


def test_a_mount_that_somebody_has_open_is_unmounted_lazily(root: Path) -> None:
    with served(root / "lazy" / GONE), (root / "lazy" / GONE / "file").open("rb") as file:
        report = prune_twice(root)
        assert report.fuse_mounts_killed == 1
        assert report.errors == ()
        assert not os.path.lexists(root / "lazy" / GONE)
        assert file.read() == CONTENT, "who has it open reads on"


def test_a_dead_mount_that_somebody_works_in_is_unmounted_lazily(root: Path) -> None:
    folder = root / "lazy" / ALIVE
    with served(folder) as pid, subprocess.Popen(["sleep", "60"], cwd=folder) as working:
        try:
            kill(pid)
            assert is_dead(folder)
            report = prune_twice(root)
        finally:
            working.kill()
        assert (report.fuse_mounts_killed, report.errors) == (1, ())
        assert not os.path.lexists(folder)


def test_mounts_on_one_another_all_go_and_all_count(root: Path) -> None:
    with served(root / "lazy" / GONE), served(root / "lazy" / GONE):
        report = prune_twice(root)
        assert report.fuse_mounts_killed == 2
        assert report.errors == ()
        assert not os.path.lexists(root / "lazy" / GONE)


def test_several_mounts_count_each(root: Path) -> None:
    names = ["a" * 64, "b" * 64, "c" * 128]
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(killed(root / "lazy" / name))
        report = prune_twice(root)
        assert report.fuse_mounts_killed == 3
        assert os.listdir(root / "lazy") == []


def test_a_directory_where_nothing_is_mounted_goes_with_its_image_and_stays_with_it(root: Path) -> None:
    for name in (ALIVE, GONE):
        (root / "lazy" / name).mkdir(parents=True)
    plant_tree(root / "cache" / GONE)
    (root / "lazy" / ("e" * 64)).symlink_to(root.parent)
    report = prune_twice(root)
    assert [path for _, path in kinds(report)] == [f"lazy/{GONE}", f"lazy/{'e' * 64}", f"cache/{GONE}"]
    assert report.fuse_mounts_killed == 0
    assert os.listdir(root / "lazy") == [ALIVE]
    assert report.bytes_freed == 8 + len(str(root.parent))


# Which stay


def test_a_server_that_stands_still_holds_up_no_collection(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmounting, "_ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(
        "minibox_store.rootfs.sweeping.ask_server", lambda path: unmounting.ask_server(path, answer_seconds=0.5)
    )
    put_dead(root, DEAD)
    folder = root / "lazy" / ALIVE
    with served(folder) as pid:
        os.kill(pid, signal.SIGSTOP)
        try:

            def work() -> None:
                report = open_store(root).prune()
                assert report.kept == (f"lazy/{ALIVE}: its server does not answer",)
                assert report.blobs_removed == len(DEAD.blobs)
                assert report.fuse_mounts_killed == 0

            assert run_forked(work) == 0
        finally:
            os.kill(pid, signal.SIGCONT)
        assert (folder / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("state", ["stands still", "dead"])
@pytest.mark.parametrize(
    ("where", "is_kept"),
    [
        (f"extracted/{GONE}", True),
        (f"extracted/{hex_of(IMAGE.layer_digests[0])}", False),
        ("base_layers/gone_1", True),
        ("base_layers/image_1", False),
        ("base_layers/gone_1.json", True),
        ("base_layers/.gone_1.0123456789abcdef.tmp", True),
        (f"files/sha256/{GONE}", False),
        ("tmp/left", True),
        ("tmp-layer-1", True),
        ("layers/one", True),
    ],
)
def test_of_a_mount_anywhere_in_a_store_nothing_is_asked_and_it_stays(
    root: Path, where: str, is_kept: bool, state: str
) -> None:
    put_dead(root, DEAD)
    with served(root / where) as pid:
        os.kill(pid, signal.SIGSTOP if state == "stands still" else signal.SIGKILL)
        try:

            def work() -> None:
                for dry_run in (True, False):
                    report = open_store(root).prune(build_cache=True, dry_run=dry_run)
                    assert report.kept == ((f"{where}: something is mounted there",) if is_kept else ())
                    assert (report.blobs_removed, report.errors) == (len(DEAD.blobs), ())

            assert run_forked(work) == 0
            assert mount_points(root) == {where}
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("where", ["containers", "containers/c1", "containers/c1/config.json"])
def test_while_the_server_of_a_containers_state_does_not_answer_no_tree_goes(
    root: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "minibox_store.rootfs.container_names.ask_server", lambda path: unmounting.ask_server(path, answer_seconds=0.5)
    )
    plant_tree(root / "base_layers" / "gone_1")
    (root / where).parent.mkdir(parents=True, exist_ok=True)
    is_file = where.endswith(".json")
    with served(root.parent / "elsewhere" if is_file else root / where) as pid:
        if is_file:
            (root / where).touch()
            subprocess.run(["mount", "--bind", root.parent / "elsewhere/file", root / where], check=True, timeout=10)
        os.kill(pid, signal.SIGSTOP)
        try:

            def work() -> None:
                report = open_store(root).prune()
                assert report.removed == ()
                (error,) = report.errors
                assert error.startswith(f"base_layers/gone_1: a container may be made of it: {where}: the server")

            assert run_forked(work) == 0
        finally:
            os.kill(pid, signal.SIGCONT)
            if is_file:
                subprocess.run(["umount", "-l", root / where], check=True, timeout=10)


def test_a_server_that_stands_still_goes_with_its_image(root: Path) -> None:
    with served(root / "lazy" / GONE) as pid:
        os.kill(pid, signal.SIGSTOP)
        try:
            assert run_forked(lambda: check_killed(root)) == 0
        finally:
            os.kill(pid, signal.SIGCONT)


def check_killed(root: Path) -> None:
    """Collect one mount."""
    report = open_store(root).prune()
    assert (report.fuse_mounts_killed, report.errors) == (1, ())


def test_a_mount_that_is_no_servers_is_left_alone(root: Path) -> None:
    (root / "lazy").mkdir()
    with mounted(root / "lazy" / GONE), mounted(root / "lazy" / ALIVE):
        (root / "lazy" / GONE / "file").write_bytes(b"precious")
        report = prune_twice(root)
        assert (kinds(report), report.errors) == ([], ())
        assert report.kept == (f"lazy/{GONE}: something is mounted there, and it is no FUSE mount",)
        assert (root / "lazy" / GONE / "file").read_bytes() == b"precious"


def test_what_lies_below_the_mount_of_a_dead_server_is_left_alone(root: Path) -> None:
    folder = root / "lazy" / ALIVE
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    folder.mkdir(parents=True)
    require_root()
    subprocess.run(["mount", "--bind", outside, folder], check=True, timeout=10)
    with killed(folder):  # which unmounts all of them in the end
        report = prune_twice(root)
        assert (kinds(report), report.fuse_mounts_killed, report.errors) == ([], 0, ())
        assert report.kept == (f"lazy/{ALIVE}: something is mounted there, and it is no FUSE mount",)
        subprocess.run(["umount", folder], check=True, timeout=10)
        assert (folder / "file").read_bytes() == b"precious"


def test_a_server_that_has_come_after_a_dead_one_is_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "lazy" / ALIVE
    with ExitStack() as stack:
        stack.enter_context(killed(folder))

        def ask(path: str) -> unmounting.ServerState:
            state = unmounting.ask_server(path)
            if state == "dead":
                subprocess.run(["umount", folder], check=True, timeout=10)
                stack.enter_context(served(folder))
            return state

        monkeypatch.setattr("minibox_store.rootfs.sweeping.ask_server", ask)
        report = open_store(root).prune()
        assert (kinds(report), report.errors) == ([], ())
        assert (folder / "file").read_bytes() == CONTENT


def test_a_mount_that_an_overlay_is_made_of_stays_and_so_does_one_that_has_another_in_it(root: Path) -> None:
    first, second = root / "lazy" / ("a" * 64), root / "lazy" / ("b" * 64)
    base = plant_tree(root.parent / "base")
    with (
        served(first),
        served(second),
        mounted(root.parent / "merged", f"lowerdir={first}:{base}", kind="overlay", device="overlay") as merged,
        mounted_on_file(second / "file"),
    ):
        report = prune_twice(root)
        assert (report.fuse_mounts_killed, report.errors) == (0, ())
        assert [each.partition(":")[0] for each in report.kept] == [f"lazy/{'a' * 64}", f"lazy/{'b' * 64}"]
        assert (merged / "file").read_bytes() == CONTENT


@contextmanager
def mounted_on_file(path: Path) -> Iterator[None]:
    """Mount something on a file for the block."""
    subprocess.run(["mount", "--bind", "/etc/hostname", str(path)], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=10)


def test_a_mount_that_other_namespaces_show_too_goes_all_the_same(root: Path) -> None:
    """Each namespace that was made since has a copy of it: that alone does not say that anybody uses it."""
    with served(root / "lazy" / GONE), another_namespace(["true"]) as pid:
        assert GONE.encode() in Path(f"/proc/{pid}/mountinfo").read_bytes()
        report = prune_twice(root)
        assert (report.fuse_mounts_killed, report.kept, report.errors) == (1, (), ())
        assert not os.path.lexists(root / "lazy" / GONE)


def test_a_place_where_another_namespace_alone_has_something_mounted_stays(root: Path) -> None:
    folder = root / "lazy" / GONE
    folder.mkdir(parents=True)
    with another_namespace(["mount", "-t", "tmpfs", "none", str(folder)]):
        report = prune_twice(root)
        assert (report.removed, [each.partition(":")[0] for each in report.kept]) == ((), [f"lazy/{GONE}"])
    assert kinds(prune_twice(root)) == [("mount point", f"lazy/{GONE}")]


def test_a_mount_that_is_shown_elsewhere_stays_there(root: Path) -> None:
    with served(root / "lazy" / GONE), bound(root / "lazy" / GONE, root.parent / "shown") as shown:
        report = prune_twice(root)
        assert (report.fuse_mounts_killed, report.errors) == (1, ())
        assert (shown / "file").read_bytes() == CONTENT


# What goes wrong


def test_what_cannot_be_unmounted_is_told_and_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", path)

    put_dead(root, DEAD)
    with killed(root / "lazy" / GONE):
        with monkeypatch.context() as patch:
            patch.setattr(unmounting, "_umount", refuse)
            report = open_store(root).prune()
        assert report.errors == (f"lazy/{GONE}: Device or resource busy",)
        assert (report.fuse_mounts_killed, report.blobs_removed) == (0, len(DEAD.blobs))
        assert mount_points(root) == {f"lazy/{GONE}"}


def test_what_was_mounted_over_something_is_unmounted_and_the_rest_is_told(root: Path) -> None:
    tree = plant_tree(root / "lazy" / ALIVE)
    before = snapshot(tree)
    with killed(tree):
        report = open_store(root).prune()
        assert (report.fuse_mounts_killed, len(report.errors)) == (1, 1)
        assert snapshot(tree) == before


def test_a_place_that_is_swapped_for_a_link_is_not_followed(root: Path) -> None:
    elsewhere = root.parent / "elsewhere"
    with served(elsewhere):
        (root / "lazy").mkdir()
        (root / "lazy" / GONE).symlink_to(elsewhere)
        descriptor = os.open(root / "lazy", os.O_RDONLY)
        with pytest.raises(OSError, match="Invalid"):
            unmounting.unmount(str(root / "lazy" / GONE), dir_fd=descriptor)
        os.close(descriptor)
        assert kinds(prune_twice(root)) == [("mount point", f"lazy/{GONE}")]
        assert (elsewhere / "file").read_bytes() == CONTENT


def test_an_image_that_comes_back_before_its_mount_is_taken_away_keeps_it(root: Path) -> None:
    put_dead(root, DEAD)
    back = hex_of(DEAD.digest)
    with served(root / "lazy" / back):
        with replaced_os() as system:
            system.after(
                "unlink",
                lambda: system.before("open", lambda: put(root, DEAD, "back:1"), path="store.turn"),
                path="blobs/",
                skip=len(DEAD.blobs) - 1,
            )
            report = open_store(root).prune()
        assert report.fuse_mounts_killed == 0
        assert (root / "lazy" / back / "file").read_bytes() == CONTENT


def test_a_user_unmounts_his_own_by_the_program_that_may(root: Path) -> None:
    """Root may do it himself: here he asks the program, as who is not root has to."""
    require_peer("fusermount3")
    with killed(root / "lazy" / GONE):
        unmounting._unmount_as_user(str(root / "lazy" / GONE))
        assert mount_points(root) == set()
        with pytest.raises(OSError, match="fusermount"):
            unmounting._unmount_as_user(str(root / "lazy" / GONE))


# The daemon


def test_the_daemon_says_how_many_mounts_it_took_away(root: Path) -> None:
    with killed(root / "lazy" / GONE), running_daemon(root.parent / "daemon", data_root=root) as daemon:
        planned = daemon.request("POST", "/system/prune", {"dry_run": "1"})
        assert (planned.status, planned.json()["fuse_mounts_killed"]) == (200, 1)
        answer = daemon.request("POST", "/system/prune")
        assert (answer.status, answer.json()["fuse_mounts_killed"], answer.json()["errors"]) == (200, 1, [])
        assert daemon.request("POST", "/system/prune").json()["fuse_mounts_killed"] == 0
    assert not os.path.lexists(root / "lazy" / GONE)
