"""Wheels of what is installed: packages for a machine without a package index.

Spec: "Binary distribution format" of the Python packaging specifications.
"""

import importlib.metadata
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from tests.support.forks import not_possible

# What an installer has written beside what the wheel had.
_NOT_IN_WHEELS = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")


def write_wheels(folder: Path, *requirements: str) -> None:
    """Write a wheel of each distribution that is named, and of those that these need.

    Where one is not installed the test is skipped, or fails.
    """
    folder.mkdir()
    waiting, done = [canonicalize_name(Requirement(each).name) for each in requirements], set[NormalizedName]()
    while waiting:
        name = waiting.pop()
        if name in done:
            continue
        done.add(name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            not_possible(f"{name} is not installed")
        _write_wheel(folder, found)
        waiting.extend(_needed(found))


def _needed(distribution: importlib.metadata.Distribution) -> Iterator[NormalizedName]:
    """Yield the names of what a distribution needs here, its extras left out."""
    for text in distribution.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield canonicalize_name(requirement.name)


def _write_wheel(folder: Path, distribution: importlib.metadata.Distribution) -> None:
    tags = [line.split()[1] for line in (distribution.read_text("WHEEL") or "").splitlines() if line.startswith("Tag:")]
    # One tag of its own is enough for this machine, and the last is one for Python 3.
    stem = f"{distribution.name.replace('-', '_')}-{distribution.version}"
    with zipfile.ZipFile(folder / f"{stem}-{tags[-1]}.whl", "w") as wheel:
        record = []
        for path in distribution.files or ():
            pure = PurePosixPath(path)
            if ".." in pure.parts or pure.suffix == ".pyc" or _is_of_installer(pure):
                continue
            wheel.write(str(path.locate()), str(pure))
            record.append(f'"{pure}",,\n')
            if pure.parts[0].endswith(".dist-info"):
                information = pure.parts[0]
        wheel.writestr(f"{information}/RECORD", "".join(record))


def _is_of_installer(path: PurePosixPath) -> bool:
    return path.parts[0].endswith(".dist-info") and path.name in _NOT_IN_WHEELS
