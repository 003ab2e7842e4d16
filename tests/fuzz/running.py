"""How a target is run: the folder it works in, the seeds it begins with, and the bounds on one input."""

import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]  # no stubs; no wheel on some Pythons

_MOST_BYTES = 1 << 15
_SECONDS_EACH = 20
_MOST_MEMORY_BYTES = 1 << 30


def fuzz(target: Callable[[bytes], None], seeds: Mapping[str, bytes], folder: Path, options: list[str]) -> None:
    """Try inputs until libFuzzer ends the process: with status 0 when its time is over, with another after a failure.

    Args:
        target: raises for an input that the program gets wrong.
        seeds: where to begin.
        folder: where the corpus and what has failed is kept.
        options: libFuzzer's; what is no option is a file to try alone.
    """
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for name, content in seeds.items():
        (corpus / f"seed-{name.replace(' ', '-')}").write_bytes(content)
    # libFuzzer's own limit looks at the peak of a process, which begins with that of the one that has started it.
    bounds = [f"-max_len={_MOST_BYTES}", f"-timeout={_SECONDS_EACH}", "-rss_limit_mb=0"]
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_MEMORY_BYTES, _MOST_MEMORY_BYTES))
    places = [] if any(not each.startswith("-") for each in options) else [str(corpus)]
    arguments = [*bounds, "-print_final_stats=1", f"-artifact_prefix={folder}/failed-", *options, *places]
    atheris.Setup([sys.argv[0], *arguments], target)
    atheris.Fuzz()


def arguments() -> tuple[Path, list[str]]:
    """Return the folder, and libFuzzer's options, of the command line."""
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER [OPTION...]")
    return Path(sys.argv[1]), sys.argv[2:]
