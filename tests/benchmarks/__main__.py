"""Speed and memory, measured side by side: ``make bench``, or ``python -m tests.benchmarks``.

Prints Markdown: a line on the machine, and a table with the bar of each measure beside it. A figure never decides the
exit status; a program that fails, or does not do its job, does.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import NoReturn

from tests.benchmarks.archives import (
    measure_archive_memory,
    measure_docker,
    measure_load,
    measure_members,
    measure_save,
)
from tests.benchmarks.collecting import measure_collect
from tests.benchmarks.daemons import measure_blobs, measure_pushes, measure_requests
from tests.benchmarks.durability import measure_durability
from tests.benchmarks.growth import measure_growth
from tests.benchmarks.importing import measure_import
from tests.benchmarks.lines import measure_cut, measure_push, measure_slow_line, measure_unchanged
from tests.benchmarks.listing import measure_images
from tests.benchmarks.looking import measure_inside, measure_mount
from tests.benchmarks.opening import measure_opening
from tests.benchmarks.patience import measure_latency, measure_listeners
from tests.benchmarks.pruning import measure_prune
from tests.benchmarks.report import Row, render_table
from tests.benchmarks.scene import QUICK, Scene, Sizes, describe_machine, opening_places
from tests.benchmarks.timing import BenchmarkFailed
from tests.benchmarks.transfers import OPERATIONS, measure_memory, measure_transfer
from tests.benchmarks.unpacking import measure_unpack, measure_unpack_growth
from tests.benchmarks.verifying import measure_verify
from tests.support.peers import PeerFailed
from tests.support.processes import ProcessFailed

MEASURES: dict[str, Callable[[Scene], Iterator[Row]]] = {
    **{operation: partial(measure_transfer, operation) for operation in OPERATIONS},
    "memory": measure_memory,
    "archive-save": measure_save,
    "archive-load": measure_load,
    "archive-docker": measure_docker,
    "archive-members": measure_members,
    "archive-memory": measure_archive_memory,
    "slow-line": measure_slow_line,
    "cut": measure_cut,
    "push": measure_push,
    "unchanged": measure_unchanged,
    "prune": measure_prune,
    "images": measure_images,
    "import": measure_import,
    "collect": measure_collect,
    "open": measure_opening,
    "verify": measure_verify,
    "durability": measure_durability,
    "growth": measure_growth,
    "unpack": measure_unpack,
    "unpack-growth": measure_unpack_growth,
    "inside": measure_inside,
    "mount": measure_mount,
    "daemon-images": measure_requests,
    "daemon-blobs": measure_blobs,
    "daemon-push": measure_pushes,
    "daemon-progress": measure_listeners,
    "daemon-latency": measure_latency,
}
_RUNS = 5
_QUICK_RUNS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, print it, and return the exit status."""
    options = _parse(arguments)
    rows: list[Row] = []
    notes: list[str] = []
    failed = False
    sizes = QUICK if options.quick else Sizes()
    with opening_places(options.where, sizes) as (places, missing):
        notes.extend(missing)
        machine = describe_machine(places)
        scene = Scene(places=places, sizes=sizes, runs=options.runs, patience_seconds=options.patience)
        for name in options.only if places else ():
            _say(f"measuring {name} ...")
            try:
                for measured in MEASURES[name](scene):
                    row = replace(measured, bar=None) if options.quick else measured
                    rows.append(row)
                    _say("  " + " | ".join(row.cells()))
            except (BenchmarkFailed, PeerFailed, ProcessFailed) as error:
                failed = True
                _say(f"{name}: {error}")
                notes.append(f"{name}: {str(error).splitlines()[0]}")
    medians = f"Medians of {options.runs}, alternating, each in a fresh process"
    print(f"{medians}{', **quick sizes, for which no bar is meant**' if options.quick else ''}. {machine}.", end="\n\n")
    print(render_table(rows))
    if notes:
        print("\nNot measured:\n")
        print("\n".join(f"- {note}" for note in notes))
    return 1 if failed else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: to try the benchmarks, not the project")
    parser.add_argument("--only", action="append", choices=MEASURES, metavar="NAME", help=", ".join(MEASURES))
    parser.add_argument("--where", choices=("tmpfs", "disk", "both"), default="both", help="which file systems")
    parser.add_argument("--runs", type=int, help=f"rounds of each measure ({_RUNS}, with --quick {_QUICK_RUNS})")
    patience = "wait up to so many seconds before each run for others to leave the processors alone"
    parser.add_argument("--patience", type=float, default=0.0, metavar="SECONDS", help=patience)
    options = parser.parse_args(arguments)
    options.only = options.only or list(MEASURES)
    options.runs = options.runs or (_QUICK_RUNS if options.quick else _RUNS)
    return options


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _end(signal_number: int, _: FrameType | None) -> NoReturn:
    # An exception, so that every folder and process that was made is taken away on the way out.
    raise SystemExit(128 + signal_number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
