"""The ``os`` module as one module of the library sees it, in a test's hands: counted, failing, blocking, or the end.

It takes the place of ``os`` in ``minibox_store._files`` and ``_moving``, through which every change to a store goes
(and in ``_trees``, by which whole trees are removed). Nothing of the library is replaced: only the system below it
answers otherwise.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from minibox_store import _files, _moving, _trees
from minibox_store.rootfs import contents, directories, layer_trees, ownership, tree, unpacking, whiteouts

# What changes something on a disk: the operations at which a process may die, and at which a disk may fail.
CHANGES = frozenset(
    {
        *("open", "mkdir", "chmod", "fchmod", "link", "replace", "rename", "unlink", "rmdir"),
        *("ftruncate", "write", "pwrite", "copy_file_range", "sendfile", "fsync"),
        *("symlink", "mknod", "chown", "fchown", "utime", "setxattr", "removexattr"),
    }
)
DIED = 77
# Through which every change to a store goes; and those by which trees come and go.
MODULES = (_files, _moving)
TREE_MODULES = (_trees, contents, directories, layer_trees, ownership, tree, unpacking, whiteouts)
# By which option a function is told the open directory that its first, or second, path begins in.
_FOLDERS = (("dir_fd", "src_dir_fd"), ("dst_dir_fd",))

_WAIT_SECONDS = 60.0


class Gate:
    """A point that a thread reaches, and does not pass before somebody lets it."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._opened = threading.Event()

    def __call__(self) -> None:
        """Say that the point is reached, and wait."""
        self._reached.set()
        if not self._opened.wait(_WAIT_SECONDS):
            raise AssertionError("nobody has opened the gate")

    @property
    def is_reached(self) -> bool:
        """Whether somebody stands before the gate, or has passed it."""
        return self._reached.is_set()

    def wait(self) -> None:
        """Return once somebody stands before the gate."""
        if not self._reached.wait(_WAIT_SECONDS):
            raise AssertionError("nobody has come to the gate")

    def open(self) -> None:
        """Let everybody pass, now and later."""
        self._opened.set()


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a function of ``os``: its name, and the paths that it was about, open files by their links."""

    name: str
    paths: tuple[str, ...]
    arguments: tuple[Any, ...]


@dataclass(kw_only=True)
class _Rule:
    matches: Callable[[Call], bool]
    action: Callable[[Call], object]
    skip: int
    times: int
    behind: bool
    guard: threading.Lock = field(default_factory=threading.Lock)

    def takes(self, call: Call) -> bool:
        if not self.matches(call):
            return False
        with self.guard:
            if self.skip:
                self.skip -= 1
                return False
            self.times -= 1
            return self.times >= 0


class OsProxy:
    """All of ``os``, each call of it written down, and some of them met by what a test has ordered.

    ``path`` is always a part of a path that the call must be about, ``target`` a part of the second of two; ``skip``
    lets so many such calls pass first.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._rules: list[_Rule] = []
        self._guard = threading.Lock()
        self._changes = 0
        self._last_change = -1
        self._torn = False

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if not callable(real) or isinstance(real, type):
            return real

        def function(*arguments: Any, **options: Any) -> Any:
            return self._call(real, name, arguments, options)

        return function

    # ---- orders

    def before(
        self,
        name: str,
        action: Callable[[], object],
        *,
        path: str = "",
        target: str = "",
        skip: int = 0,
        times: int = 1,
    ) -> None:
        """Do something in the calling thread before the operation; an error that it raises is the operation's."""
        self._order(_about(name, path, target), lambda _: action(), skip=skip, times=times)

    def after(
        self,
        name: str,
        action: Callable[[], object],
        *,
        path: str = "",
        target: str = "",
        skip: int = 0,
        times: int = 1,
    ) -> None:
        """Do something in the calling thread once the operation has succeeded."""
        self._order(_about(name, path, target), lambda _: action(), skip=skip, times=times, behind=True)

    def fail(
        self, name: str, number: int, *, path: str = "", target: str = "", skip: int = 0, times: int = 1 << 60
    ) -> None:
        """Let the operation fail with an errno, and change nothing."""
        self._order(_about(name, path, target), _failing(number), skip=skip, times=times)

    def fail_change(self, position: int, number: int) -> None:
        """Let the ``position``-th change of all (from 0), whatever it is, fail with an errno."""
        self._order(_changes, _failing(number), skip=position, times=1)

    def refuse_new_files(self, number: int) -> None:
        """Let no temporary file be made any more; what is there can be opened, as on a full disk."""
        is_meant = _about("open", ".tmp")
        self._order(lambda call: is_meant(call) and _changes(call), _failing(number), skip=0, times=1 << 60)

    def block(self, name: str, *, path: str = "", target: str = "", skip: int = 0) -> Gate:
        """Let one call wait before the operation until the gate is opened."""
        gate = Gate()
        self.before(name, gate, path=path, target=target, skip=skip)
        return gate

    def die_at(self, position: int, *, torn: bool = False) -> None:
        """End the process at the ``position``-th change (from 0), before it, or in the middle of it if it writes."""
        self._last_change, self._torn = position, torn

    def _order(
        self,
        matches: Callable[[Call], bool],
        action: Callable[[Call], object],
        *,
        skip: int,
        times: int,
        behind: bool = False,
    ) -> None:
        self._rules.append(_Rule(matches=matches, action=action, skip=skip, times=times, behind=behind))

    # ---- what happened

    @property
    def changes(self) -> list[Call]:
        """The calls that change something, in order."""
        return [call for call in self.calls if _changes(call)]

    def count(self, name: str, path: str = "") -> int:
        """Return how many calls of a function were about such a path."""
        return sum(_about(name, path)(call) for call in self.calls)

    def _call(self, real: Callable[..., Any], name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        call = Call(name=name, paths=tuple(_paths(name, arguments, options)), arguments=arguments)
        changes = _changes(call)
        with self._guard:
            self.calls.append(call)
            is_last = changes and self._changes == self._last_change
            self._changes += changes
        if is_last:
            self._die(call)
        self._obey(call, behind=False)
        result = real(*arguments, **options)
        self._obey(call, behind=True)
        return result

    def _obey(self, call: Call, *, behind: bool) -> None:
        for rule in tuple(self._rules):
            if rule.behind == behind and rule.takes(call):
                rule.action(call)

    def _die(self, call: Call) -> None:
        if self._torn and call.name == "write":
            descriptor, data = call.arguments
            os.write(descriptor, memoryview(data)[: len(data) // 2])
        os._exit(DIED)


def _about(name: str, path: str, target: str = "") -> Callable[[Call], bool]:
    def matches(call: Call) -> bool:
        is_meant = call.name == name and any(path in each for each in call.paths or ("",))
        return is_meant and (not target or target in "".join(call.paths[1:]))

    return matches


def _failing(number: int) -> Callable[[Call], None]:
    def action(call: Call) -> None:
        raise OSError(number, os.strerror(number), *call.paths[:1])

    return action


def _changes(call: Call) -> bool:
    if call.name == "open":
        return bool(call.arguments[1] & (os.O_CREAT | os.O_TRUNC))
    return call.name in CHANGES


def _paths(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Iterator[str]:
    for argument, folder in zip(arguments[:2], _FOLDERS, strict=False):
        if isinstance(argument, str):
            descriptor = next((options[key] for key in folder if options.get(key) is not None), None)
            yield argument if descriptor is None else os.path.join(_opened_path(descriptor) or "", argument)
        elif isinstance(argument, int) and not isinstance(argument, bool) and name not in ("open", "mkdir", "chmod"):
            yield from filter(None, [_opened_path(argument)])


def _opened_path(descriptor: int) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return None


@contextmanager
def replaced_os(*, trees: bool = False) -> Iterator[OsProxy]:
    """Put a proxy in the place of the library's ``os`` for the block; with ``trees`` where trees come and go too."""
    proxy = OsProxy()
    with pytest.MonkeyPatch.context() as patch:
        for module in (*MODULES, *TREE_MODULES) if trees else MODULES:
            patch.setattr(module, "os", proxy)
        yield proxy


def no_hard_links(proxy: OsProxy) -> None:
    """Make it a file system without hard links."""
    proxy.fail("link", errno.EPERM)
