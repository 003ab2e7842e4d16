"""The operating system as the whole library sees it, failing at one call, or at every call from one on.

``replaced_os`` stands below ``_files`` alone, where the changes are. Here every module of ``minibox_store`` has the
same proxy, so that a look, a listing or an opening for reading may fail as well, and so that all calls are counted.
"""

import importlib
import os
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import minibox_store
from tests.support.os_proxy import CHANGES, Call, OsProxy

# What looks at a disk without changing it, and may fail for a disk's reasons all the same.
LOOKS = frozenset({"stat", "lstat", "fstat", "listdir", "scandir", "pread", "preadv", "read", "statvfs"})
# What needs a file descriptor that is not there when too many files are open.
OPENINGS = frozenset({"open", "listdir", "scandir"})


class FailingSystem(OsProxy):
    """A proxy that remembers which calls it let fail."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: list[Call] = []

    def fail_from(self, matches: Callable[[Call], bool], number: int, *, skip: int, times: int = 1) -> None:
        """Let ``times`` of the calls that match fail with an errno, the first ``skip`` of them not."""

        def action(call: Call) -> None:
            self.failed.append(call)
            # As Python does it: an error of an open file bears no name, and one of a listing the number of the folder.
            place: tuple[object, ...] = call.paths[:1]
            if not isinstance(call.arguments[0], str):
                place = call.arguments[:1] if call.name in ("listdir", "scandir") else ()
            raise OSError(number, os.strerror(number), *place)

        self._order(matches, action, skip=skip, times=times)

    def count_of(self, matches: Callable[[Call], bool]) -> int:
        """Return how many calls match."""
        return sum(matches(call) for call in tuple(self.calls))

    def repeated(self) -> list[str]:
        """Return what has failed and was tried again with the same arguments; but for clearing away, in two places."""
        counted = Counter((call.name, call.paths, _flags(call)) for call in self.failed if call.name != "unlink")
        return [f"{name} {paths}: {times} times" for (name, paths, _), times in counted.items() if times > 1]


def is_change(call: Call) -> bool:
    """Whether a call changes something on a disk."""
    if call.name == "open":
        return bool(call.arguments[1] & (os.O_CREAT | os.O_TRUNC))
    return call.name in CHANGES


def is_look(call: Call) -> bool:
    """Whether a call looks at a disk, and changes nothing."""
    return call.name in LOOKS or (call.name == "open" and not is_change(call))


def is_opening(call: Call) -> bool:
    """Whether a call needs a further file descriptor, for reading or for writing."""
    return call.name in OPENINGS


@contextmanager
def failing_system() -> Iterator[FailingSystem]:
    """Put one proxy in the place of ``os`` in every module of the library for the block."""
    for module in pkgutil.walk_packages(minibox_store.__path__, "minibox_store."):
        importlib.import_module(module.name)  # a module that is loaded later would have the real one
    system = FailingSystem()
    with pytest.MonkeyPatch.context() as patch:
        for name, loaded in tuple(sys.modules.items()):
            if name.startswith("minibox_store.") and getattr(loaded, "os", None) is os:
                patch.setattr(loaded, "os", system)
        yield system


def _flags(call: Call) -> object:
    """Return what tells two calls about one path apart: an opening by its flags."""
    return call.arguments[1] if call.name == "open" else None
