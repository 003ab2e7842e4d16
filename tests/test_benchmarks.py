"""That the benchmarks run, and measure what they say. How fast anything is decides no test."""

import sys
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import main
from tests.benchmarks.report import Row, render_table
from tests.benchmarks.scene import QUICK, Place, Scene
from tests.benchmarks.timing import BenchmarkFailed, Contender, always, measure, measure_in_turn
from tests.support.processes import plain_environment

MIB = 1024 * 1024


def run_python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def test_a_measure_in_its_quick_form_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    where = "tmpfs" if Path("/dev/shm").is_dir() else "disk"
    status = main(["--quick", "--only", "save", "--only", "prune", "--where", where, "--runs", "1"])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert f"| save, 8 x 1 MiB | {where}, full |" in printed
    assert f"| {where}, full | " in printed.partition("| prune, 1,000 live blobs")[2]
    assert "/dev/shm" not in printed


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
