"""That the benchmarks run, and measure what they say. How fast anything is decides no test."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import main
from tests.benchmarks.archives import write_members
from tests.benchmarks.growth import exponent, growth_row
from tests.benchmarks.lines import check_pushed
from tests.benchmarks.originals import making_original
from tests.benchmarks.report import Row, render_seconds, render_table
from tests.benchmarks.root_filesystems import choose_files, write_root_filesystem
from tests.benchmarks.scene import QUICK, Place, Scene, python_command, python_environment
from tests.benchmarks.small_blobs import SmallBlobs, make_small_blobs
from tests.benchmarks.timing import BenchmarkFailed, Contender, always, measure, measure_in_turn
from tests.benchmarks.unpacking import check_tree
from tests.benchmarks.verifying import check_digests
from tests.support.filled import loop_disk
from tests.support.layouts import read_layout_blobs
from tests.support.peers import require_peer
from tests.support.processes import plain_environment
from tests.support.served_trees import require_fuse
from tests.support.stores import rot

MIB = 1024 * 1024


def run_python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


WHERE = "tmpfs" if Path("/dev/shm").is_dir() else "disk"


def run_quickly(capsys: pytest.CaptureFixture[str], *measures: str) -> str:
    """Return what the benchmarks print of some measures in their quick form."""
    chosen = [word for name in measures for word in ("--only", name)]
    status = main(["--quick", *chosen, "--where", WHERE, "--runs", "1"])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "/dev/shm" not in printed
    return printed


def test_a_measure_in_its_quick_form_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_quickly(capsys, "save", "prune")
    assert f"| save, 8 x 1 MiB | {WHERE}, full |" in printed
    assert f"| {WHERE}, full | " in printed.partition("| prune, 1,000 live blobs")[2]


def test_archives_stand_beside_what_the_machine_gives(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    require_peer("openssl")
    with loop_disk(tmp_path / "disk", "xfs", 512 * MIB):
        pass
    printed = run_quickly(capsys, "archive-save", "archive-load", "archive-members", "archive-memory")
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ") and "8 x 1 MiB" in line]
    assert [(row[0], row[1]) for row in rows] == [
        (f"| {operation}, 8 x 1 MiB", f"{kind}, {durability}")
        for operation in ("save", "load")
        for kind in (WHERE, "XFS")
        for durability in ("full", "none")
    ]
    assert all(float(row[-3]) > 0 for row in rows)
    assert "| a tar of 1,000 small members, all of it read: the rate |" in printed
    assert "| load from a pipe, peak memory, 3 x 8 MiB |" in printed


@pytest.mark.parametrize(("members", "is_right"), [(7, True), (8, False)])
@pytest.mark.parametrize("reader", ["ours", "tarfile"])
def test_a_tar_of_which_a_reader_leaves_something_out_is_no_measurement(
    reader: str, members: int, is_right: bool, tmp_path: Path
) -> None:
    write_members(tmp_path / "members.tar", 7)
    command = python_command("archiving", "members", reader, tmp_path / "members.tar", members)
    environment = python_environment(tmp_path)
    if is_right:
        assert measure(command, environment=environment, folder=tmp_path).told_seconds > 0
        return
    with pytest.raises(BenchmarkFailed, match="it read 7 members of 8"):
        measure(command, environment=environment, folder=tmp_path)


def test_the_daemon_under_load_stands_beside_a_bare_route_and_a_registry(capsys: pytest.CaptureFixture[str]) -> None:
    for program in ("wrk", "skopeo", "docker-registry", "nginx"):
        require_peer(program)
    measures = ("images", "blobs", "push", "progress", "latency")
    printed = run_quickly(capsys, *(f"daemon-{name}" for name in measures))
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 6
    assert all(float(row[-3].removesuffix(" MiB").removesuffix(" ms")) > 0 for row in rows)


def test_collection_and_verification_stand_beside_those_of_umoci_and_openssl(
    capsys: pytest.CaptureFixture[str],
) -> None:
    require_peer("umoci")
    require_peer("openssl")
    printed = run_quickly(capsys, "collect", "verify")
    rows = [line for line in printed.splitlines() if "umoci gc " in line or "openssl dgst " in line]
    assert [row.partition(",")[0] for row in rows] == ["| prune", "| verify"]
    assert all(float(row.split(" | ")[-3]) > 0 for row in rows)


def test_opening_and_growth_are_told_for_each_thing_that_may_grow(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_quickly(capsys, "open", "growth")
    for row in ("open and list 200 images, cold", "list 200 images, warm"):
        assert f"| {row} | {WHERE} |" in printed
    for operation in ("the first listing", "listing anew", "verify", "importing one more image", "prune"):
        assert f"| {operation}, time per blob" in printed


def test_what_full_durability_costs_is_told_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_quickly(capsys, "durability")
    told = [line.split(" | ")[0] for line in printed.splitlines() if "full durability over none" in line]
    assert [cell.removeprefix("| ").replace(",", ":").partition(":")[0] for cell in told] == [
        *("import", "load", "tag", "remove")
    ]


def test_the_memory_of_who_measures_does_not_count(tmp_path: Path) -> None:
    mine = bytearray(128 * MIB)
    sample = measure(run_python("pass"), environment=plain_environment(tmp_path), folder=tmp_path)
    assert 2 < sample.peak_mib < 64
    assert len(mine) == 128 * MIB


def test_the_memory_of_what_is_measured_counts(tmp_path: Path) -> None:
    code = f"b = b'x' * {64 * MIB}"
    sample = measure(run_python(code), environment=plain_environment(tmp_path), folder=tmp_path)
    assert 64 < sample.peak_mib < 128


def test_a_program_that_fails_is_told_with_what_it_wrote(tmp_path: Path) -> None:
    code = "raise SystemExit('no such thing')"
    with pytest.raises(BenchmarkFailed, match="no such thing"):
        measure(run_python(code), environment=plain_environment(tmp_path), folder=tmp_path)


def test_each_run_has_an_empty_folder_and_comes_in_its_turn(tmp_path: Path) -> None:
    turns: list[str] = []

    def contender(name: str) -> Contender:
        def prepare(folder: Path) -> None:
            assert not list(folder.iterdir())
            turns.append(name)

        return Contender(
            command=always(run_python("print(0.5, 'more')")), environment=plain_environment, prepare=prepare
        )

    place = Place(kind="tmpfs", folder=tmp_path, file_system="any")
    scene = Scene(places=(place,), sizes=QUICK, runs=2)
    samples = measure_in_turn({"a": contender("a"), "b": contender("b")}, scene=scene, place=place)
    assert "".join(turns) == "ababab"
    assert [sample.told_seconds for sample in samples["b"]] == [0.5, 0.5]
    assert not list(tmp_path.iterdir())


def test_the_table_has_the_bar_beside_each_result() -> None:
    rows = [
        Row(measure="pull", where="tmpfs", ours="1 s", theirs="2 s", result=0.5, bar=0.6),
        Row(measure="save", where="tmpfs", ours="1 s", theirs="2 s", result=0.5, bar=0.15),
        Row(measure="memory", where="tmpfs", ours="20.0 MiB", result=20.0, unit="MiB"),
    ]
    assert render_table(rows).splitlines()[2:] == [
        "| pull | tmpfs | 1 s | 2 s | 0.50 | 0.60 | yes |",
        "| save | tmpfs | 1 s | 2 s | 0.50 | 0.15 | **no** |",
        "| memory | tmpfs | 20.0 MiB | - | 20.0 MiB | - | - |",
    ]


def test_a_rate_has_its_bar_below_it() -> None:
    rows = [
        Row(measure="verify", where="tmpfs", ours="1 s", result=0.9, bar=0.85, at_least=True),
        Row(measure="verify", where="tmpfs", ours="1 s", result=0.8, bar=0.85, at_least=True),
        Row(measure="verify", where="tmpfs", ours="1 s", result=0.85, bar=0.85, at_least=True),
        Row(measure="verify", where="tmpfs", ours="1 s", bar=0.85, at_least=True),
    ]
    assert [row.cells()[-3:] for row in rows] == [
        ("0.90", "at least 0.85", "yes"),
        ("0.80", "at least 0.85", "**no**"),
        ("0.85", "at least 0.85", "yes"),
        ("-", "at least 0.85", "-"),
    ]


def test_a_time_is_told_in_a_unit_in_which_it_can_be_read() -> None:
    times = (2.0, 0.25, 0.025, 0.000025, 0.0, -0.025)
    assert [render_seconds(each) for each in times] == ["2.00 s", "250 ms", "25.0 ms", "25.0 µs", "0.0 µs", "-25.0 ms"]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_the_exponent_is_that_of_the_power_by_which_the_time_grows(power: float) -> None:
    assert exponent({size: 0.003 * size**power for size in (1000, 10_000, 100_000)}) == pytest.approx(power)


@pytest.mark.parametrize(
    ("power", "told"), [(0.5, "linear or less"), (1.0, "linear or less"), (1.2, "**more than linear**")]
)
def test_what_grows_faster_than_the_store_is_told_so(power: float, told: str) -> None:
    row = growth_row("prune", "tmpfs", {size: 0.001 * size**power for size in (1000, 10_000, 100_000)})
    assert row.theirs == f"{told}; from 10,000 to 100,000 the exponent is {power:.2f}"
    assert row.result == pytest.approx(power)
    assert row.bar is None


def small_blobs() -> SmallBlobs:
    return make_small_blobs(images=2, live_blobs=10, dead_blobs=3, blob_bytes=100)


def test_a_collection_that_leaves_something_dead_is_no_measurement(tmp_path: Path) -> None:
    blobs = small_blobs()
    assert (len(blobs.live), len(blobs.dead)) == (10, 3)
    blobs.write(tmp_path / "layout")
    with pytest.raises(BenchmarkFailed, match="0 of 10 live blobs are gone, and 3 dead ones are left"):
        blobs.check_collected(tmp_path / "layout")


def test_a_collection_that_takes_something_live_is_no_measurement(tmp_path: Path) -> None:
    blobs = small_blobs()
    blobs.write_live(tmp_path / "layout")
    blobs.check_collected(tmp_path / "layout")
    (tmp_path / "layout/blobs/sha256" / next(iter(blobs.live))).unlink()
    with pytest.raises(BenchmarkFailed, match="1 of 10 live blobs are gone, and 0 dead ones are left"):
        blobs.check_collected(tmp_path / "layout")


def test_a_check_that_finds_damage_is_no_measurement(tmp_path: Path) -> None:
    blobs, root = small_blobs(), tmp_path / "layout"
    blobs.write(root)
    command = python_command("child", "verify", root, 2, "full")
    environment = python_environment(tmp_path)
    assert measure(command, environment=environment, folder=tmp_path).told_seconds > 0
    layer = next(iter(blobs.images.values())).layer_digests[0]
    rot(root / "blobs" / layer.replace(":", "/"))
    with pytest.raises(BenchmarkFailed, match="1 blobs are damaged"):
        measure(command, environment=environment, folder=tmp_path)


def test_a_digest_that_openssl_did_not_find_is_no_measurement() -> None:
    names = {"a" * 64, "b" * 64}
    right = "".join(f"SHA2-256({name})= {name}\n" for name in sorted(names))
    check_digests(right, names)
    for wrong in (right.replace("= b", "= c"), right.partition("\n")[0], ""):
        with pytest.raises(BenchmarkFailed, match="of 2"):
            check_digests(wrong, names)


def test_a_root_filesystem_is_of_the_files_of_this_machine_and_the_same_each_time(tmp_path: Path) -> None:
    entries = [
        write_root_filesystem(tmp_path / name, files=200, layers=3, total_bytes=2 * MIB, with_usr=False)
        for name in ("first", "second")
    ]
    first, second = (read_layout_blobs(tmp_path / name) for name in ("first", "second"))
    assert first == second
    assert len(first) == 3 + 2
    assert entries[0] == entries[1] > 200
    assert sum(file.size_bytes for file in choose_files(200, 2 * MIB, with_usr=False)) <= 2 * MIB


def test_a_root_filesystem_has_directories_filled_as_they_are_here_and_scattered_files_have_not() -> None:
    def filled(*, scattered: bool) -> list[int]:
        chosen = choose_files(200, 2 * MIB, with_usr=False, scattered=scattered)
        assert len({file.name for file in chosen}) == 200
        assert sum(file.size_bytes for file in chosen) <= 2 * MIB
        here = {os.path.dirname(file.path): 0 for file in chosen}
        for file in chosen:
            here[os.path.dirname(file.path)] += 1
        whole = [folder for folder, count in here.items() if count == len(os.listdir(folder)) - folders_in(folder)]
        return [len(here), len(whole)]

    def folders_in(folder: str) -> int:
        return sum(entry.is_dir() for entry in os.scandir(folder))

    together, whole = filled(scattered=False)
    assert whole >= together - 1  # the last one is cut off
    assert filled(scattered=True)[0] > 2 * together


def test_a_tree_that_is_not_whole_is_no_measurement(tmp_path: Path) -> None:
    (tmp_path / "tree/folder").mkdir(parents=True)
    (tmp_path / "tree/folder/file").touch()
    check_tree(tmp_path / "tree", 2)
    with pytest.raises(BenchmarkFailed, match="2 entries were unpacked, where the image has 3"):
        check_tree(tmp_path / "tree", 3)


def test_unpacking_stands_beside_that_of_umoci(capsys: pytest.CaptureFixture[str]) -> None:
    require_peer("umoci")
    printed = run_quickly(capsys, "unpack")
    told = [line for line in printed.splitlines() if line.startswith("| unpack, 300 files in 3 gzip layers of 3 MiB")]
    assert len(told) == 2
    assert all("`umoci unpack` " in line and float(line.split(" | ")[-3]) > 0 for line in told)


def test_the_growth_of_unpacking_is_told_for_each_shape(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_quickly(capsys, "unpack-growth")
    assert sum(line.startswith("| unpack, ") for line in printed.splitlines()) == 7


def test_what_a_look_inside_takes_is_told_beside_an_unpacking(capsys: pytest.CaptureFixture[str]) -> None:
    require_fuse()
    printed = run_quickly(capsys, "inside", "mount")
    mounted = ("mount to the first byte of a file, 300 files in ", "ls -lR over the mount, 300 files in ")
    for row in (
        "first byte of a file in a gzip layer of ",
        *mounted,
        "ls -lR, two files to a directory: 300 files in ",
    ):
        (line,) = (line for line in printed.splitlines() if line.startswith(f"| {row}"))
        assert float(line.split(" | ")[-3].split()[0]) > 0


def test_what_comes_over_lines_is_told_with_what_it_is_compared_with(capsys: pytest.CaptureFixture[str]) -> None:
    for peer in ("nginx", "skopeo", "docker-registry"):
        require_peer(peer)
    rows = {
        row.split(" | ")[0].removeprefix("| "): row.split(" | ")
        for row in run_quickly(capsys, "slow-line", "cut", "push", "unchanged").splitlines()
        if row.startswith("| pu")
    }
    for name in ("pull, 1 x 8 MiB, 20 MiB/s for each connection", "push, 8 x 1 MiB"):
        assert rows[name][3].startswith("skopeo copy ")
        assert float(rows[name][-3]) > 0
    # All of it came, and with heads and documents a little more, though it was cut.
    assert 1 <= float(rows["pull, 8 x 1 MiB, cut 10 times: bytes on the wire"][-3]) < 2
    assert rows["pull of what is there, `if-newer`, 8 x 1 MiB: requests"][-3] == "1.0 requests"


@pytest.mark.parametrize("loss", ["of its tag", "of a blob"])
def test_a_push_that_left_something_out_is_no_measurement(loss: str, tmp_path: Path) -> None:
    with making_original(tmp_path / "original", "save", [MIB]) as image:
        link = tmp_path / "repositories/app/_manifests/tags/latest/current/link"
        link.parent.mkdir(parents=True)
        link.write_text(image.digest)
        for path in map(Path, image.blobs):
            kept = tmp_path / "blobs/sha256" / path.name[:2] / path.name / "data"
            kept.parent.mkdir(parents=True)
            shutil.copy(path, kept)
        check_pushed(tmp_path, image)
        if loss == "of its tag":
            link.write_text("sha256:" + "0" * 64)
        else:
            max((tmp_path / "blobs").rglob("data"), key=lambda kept: kept.stat().st_size).unlink()
        with pytest.raises(BenchmarkFailed, match="does not keep" if loss == "of its tag" else "bytes arrived"):
            check_pushed(tmp_path, image)
