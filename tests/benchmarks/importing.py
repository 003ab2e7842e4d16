"""What `import minibox_store` costs over `import attrs`, where nothing but the core's dependencies is installed."""

import compileall
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

from tests.benchmarks.report import Row, render_seconds
from tests.benchmarks.scene import PROJECT, Scene
from tests.benchmarks.timing import BenchmarkFailed, Contender, always, measure_in_turn, median_seconds
from tests.support.processes import plain_environment

_BAR_MS = 40.0
# The core's dependencies, and theirs.
_DISTRIBUTIONS = ("attrs", "cattrs", "typing_extensions", "urllib3")
_NOT_YET = ("cattrs", "urllib3")
_STATEMENTS = {
    "nothing": "pass",
    "attrs": "import attrs",
    "package": "import minibox_store",
    "store": "from minibox_store import Store",
}


def measure_import(scene: Scene) -> Iterator[Row]:
    """Yield the rows of import."""
    place = scene.places[0]
    environment = place.folder / "environment"
    python = _make_environment(environment)
    _check_laziness(python)
    contenders = {
        name: Contender(command=always([str(python), "-I", "-c", statement]), environment=plain_environment)
        for name, statement in _STATEMENTS.items()
    }
    runs = max(scene.sizes.import_runs, scene.runs)
    samples = measure_in_turn(contenders, scene=scene, place=place, runs=runs)
    nothing, attrs, package, store = (median_seconds(samples[name]) for name in _STATEMENTS)
    for statement, seconds, bar in (("package", package, _BAR_MS), ("store", store, None)):
        yield Row(
            measure=f"`{_STATEMENTS[statement]}` over `import attrs`, {runs} runs each",
            where="clean environment",
            ours=f"{render_seconds(seconds - nothing)} over a bare interpreter",
            theirs=f"`import attrs` {render_seconds(attrs - nothing)} over it",
            result=(seconds - attrs) * 1000,
            unit="ms",
            bar=bar,
        )


def _make_environment(folder: Path) -> Path:
    """Make a virtual environment from what is installed here, so that it needs no network; return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, capture_output=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    for name in _DISTRIBUTIONS:
        installed = distribution(name)
        for file in installed.files or ():
            if file.suffix == ".py":
                target = packages / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(installed.locate_file(file)), target)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "minibox_store", packages / "minibox_store", ignore=ignored)
    # As pip does on installing.
    compileall.compile_dir(packages, quiet=2)
    return folder / "bin" / "python"


def _check_laziness(python: Path) -> None:
    command = [str(python), "-I", "-c", "import minibox_store, sys; print(*sys.modules)"]
    modules = subprocess.run(command, check=True, capture_output=True).stdout.decode().split()
    early = sorted(set(_NOT_YET) & set(modules))
    if early:
        raise BenchmarkFailed(f"`import minibox_store` imports {' and '.join(early)} before anybody uses it")
