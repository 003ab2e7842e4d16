"""What is measured of archives: one call in a process that has imported what it needs, and prints the seconds it took.

What only some of these calls need is imported by them: of some the whole process is measured too.

Usage: python -m tests.benchmarks.archiving OPERATION ARGUMENT...
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import minibox_store.archive  # noqa: F401  # which the first save or load would import while it is measured
from minibox_store import Store
from minibox_store.tar import TarReader
from tests.benchmarks.child import Durability

_READ_BYTES = 64 * 1024


def main(operation: str, *arguments: str) -> None:
    """Carry out one operation, and print what it took."""
    _OPERATIONS[operation](*arguments)


def _save(root: str, archive: str, durability: str) -> None:
    store = Store(root, durability=cast(Durability, durability))
    _tell(lambda: store.save("latest", archive))


def _load(root: str, archive: str, durability: str) -> None:
    store = Store(root, durability=cast(Durability, durability))
    _tell(lambda: store.load(archive, names=lambda name: name or "latest"))


def _load_piped(root: str, archive: str, durability: str) -> None:
    store = Store(root, durability=cast(Durability, durability))
    with _output_of("cat", archive) as pipe:
        _tell(lambda: store.load(pipe, names=lambda name: name or "latest"))


@contextmanager
def _output_of(*command: str) -> Iterator[BinaryIO]:
    """Give what a program writes, as a pipe."""
    import subprocess

    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        yield cast(BinaryIO, process.stdout)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with status {process.returncode}")


def _read_members(reader: str, archive: str, members: str) -> None:
    """Read every member of a tar, data and all, by this project's reader or by Python's."""
    begin = time.perf_counter()
    with open(archive, "rb") as file:
        found = _by_tarfile(file) if reader == "tarfile" else _by_us(file)
    print(time.perf_counter() - begin)
    if found != int(members):
        raise SystemExit(f"it read {found} members of {members}")


def _by_us(file: BinaryIO) -> int:
    reader, found = TarReader(file), 0
    for member in reader:
        rest = member.size_bytes
        while rest:
            rest -= len(reader.read(_READ_BYTES))
        found += 1
    return found


def _by_tarfile(file: BinaryIO) -> int:
    import tarfile

    found = 0
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            data = archive.extractfile(member)
            assert data is not None
            data.read()
            found += 1
    return found


def _tell(call: Callable[[], object]) -> None:
    begin = time.perf_counter()
    call()
    print(time.perf_counter() - begin)


_OPERATIONS: dict[str, Callable[..., None]] = {
    "save": _save,
    "load": _load,
    "load-piped": _load_piped,
    "members": _read_members,
}


if __name__ == "__main__":
    main(*sys.argv[1:])
