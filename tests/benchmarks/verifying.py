"""Verify, against openssl over the same files on all cores: the rates, with every file in the page cache for both."""

import os
import statistics
from collections.abc import Iterator, Sequence

from tests.benchmarks.originals import is_installed
from tests.benchmarks.report import Row, render_mib, render_seconds, render_spread
from tests.benchmarks.scene import Scene, python_command, python_environment
from tests.benchmarks.timing import (
    BenchmarkFailed,
    Contender,
    Sample,
    always,
    largest_mib,
    measure_in_turn,
    median_seconds,
)
from tests.support.layouts import write_random_layout
from tests.support.processes import plain_environment

_BAR = 0.85
_MIB = 1024 * 1024
# A quarter of the bytes in blobs of each of these sizes: the first number is the blobs, the second their part of all.
_MIXTURE = ((1, 4), (4, 16), (16, 64), (256, 1024))
# openssl gets so much at once: a process for each small file would measure the starting of processes.
_BATCH_BYTES = 16 * _MIB
# The largest files come first, so that no core ends long before the others; -L 1 makes a command of each line.
_OPENSSL = 'cd "$1" && xargs -L 1 -P "$2" openssl dgst -sha256 < "$3"'


def measure_verify(scene: Scene) -> Iterator[Row]:
    """Yield the rows of verify; what is compared is the call, the process around it is told beside it."""
    place, total = scene.places[0], scene.sizes.verified_bytes
    root, listed = place.folder / "verified", place.folder / "verified-list"
    write_random_layout(root, [total // part for count, part in _MIXTURE for _ in range(count)])
    files = [(entry.stat().st_size, entry.name) for entry in os.scandir(root / "blobs" / "sha256")]
    listed.write_text("".join(f"{' '.join(names)}\n" for names in _batches(files)))
    cores = len(os.sched_getaffinity(0))
    contenders = {
        "verify": Contender(
            command=always(python_command("child", "verify", root, cores, "full")), environment=python_environment
        )
    }
    if is_installed("openssl"):
        command = ["sh", "-c", _OPENSSL, "sh", str(root / "blobs" / "sha256"), str(cores), str(listed)]
        contenders["openssl"] = Contender(command=always(command), environment=plain_environment)
    samples = measure_in_turn(contenders, scene=scene, place=place)
    for sample in samples.get("openssl", ()):
        check_digests(sample.output, {name for _, name in files})
    text = f"verify, {total // _MIB:,} MiB in {len(files)} blobs, {cores} at once"
    yield from _rows(text, place.kind, total, samples["verify"], samples.get("openssl"))


def check_digests(output: str, names: set[str]) -> None:
    """Raise BenchmarkFailed unless openssl has found for every file the digest that it is called by."""
    found = [line.replace(")", "(").split("(") for line in output.splitlines()]
    right = {parts[1] for parts in found if len(parts) == 3 and parts[2].removeprefix("= ") == parts[1]}
    if right != names:
        raise BenchmarkFailed(f"openssl found the digests of {len(right)} blobs of {len(names)}")


def _batches(files: Sequence[tuple[int, str]]) -> Iterator[list[str]]:
    """Yield the names, the largest file first, as many together as fill a batch."""
    batch: list[str] = []
    filled = 0
    for size_bytes, name in sorted(files, reverse=True):
        if batch and filled + size_bytes > _BATCH_BYTES:
            yield batch
            batch, filled = [], 0
        batch.append(name)
        filled += size_bytes
    if batch:
        yield batch


def _rows(text: str, where: str, total: int, verify: list[Sample], openssl: list[Sample] | None) -> Iterator[Row]:
    taken = [sample.told_seconds for sample in verify]
    rate = total / statistics.median(taken)
    theirs, result = "openssl is not installed", None
    if openssl:
        other_rate = total / median_seconds(openssl)
        spread = render_spread([sample.seconds for sample in openssl])
        theirs, result = f"openssl dgst -sha256 {_render_rate(other_rate)}: {spread}", rate / other_rate
    yield Row(
        measure=text,
        where=where,
        ours=f"{_render_rate(rate)}: {render_spread(taken)}",
        theirs=theirs,
        result=result,
        bar=_BAR,
        at_least=True,
    )
    yield Row(
        measure="verify, the whole process",
        where=where,
        ours=f"{render_seconds(median_seconds(verify))}, {render_mib(largest_mib(verify))}",
        theirs=render_seconds(median_seconds(openssl)) if openssl else "-",
    )


def _render_rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / _MIB:,.0f} MiB/s"
