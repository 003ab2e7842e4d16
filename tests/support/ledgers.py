"""What a store must say of the names that one worker alone writes, kept so that it outlives the worker's death.

Nothing here knows ``minibox_store``. A ledger is a file of lines; each says all that a name may stand for from then on:
one thing once a write has been acknowledged, or has been found not to have happened; several while it is under way.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.images import BuiltImage
from tests.support.layouts import blob_path

Possible = frozenset[str | None]

ABSENT: Possible = frozenset({None})


class Ledger:
    """The names that one worker writes, with the digests that each may stand for; None where it may be absent.

    Args:
        path: the file; what an earlier worker has written to it counts.
    """

    def __init__(self, path: Path) -> None:
        self._possible: dict[str, Possible] = {}
        # Who was killed while it wrote has left half a line: that line was never said, and nothing was begun under it.
        said = path.read_bytes() if path.exists() else b""
        for line in said[: said.rfind(b"\n") + 1].splitlines():
            name, digests = json.loads(line)
            self._possible[name] = frozenset(digests)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, os.lseek(self._file, said.rfind(b"\n") + 1, os.SEEK_SET))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    @property
    def standing(self) -> dict[str, str]:
        """The names that surely stand for one image, and which."""
        only = {name: next(iter(possible)) for name, possible in self._possible.items() if len(possible) == 1}
        return {name: digest for name, digest in only.items() if digest is not None}

    def may_be(self, name: str) -> Possible:
        """Return what a name may stand for."""
        return self._possible.get(name, ABSENT)

    def begin(self, name: str, *digests: str | None) -> None:
        """Say, before a write, what the name may stand for besides from now on."""
        self._say(name, self.may_be(name) | frozenset(digests))

    def settle(self, name: str, digest: str | None) -> None:
        """Say what the name stands for, once that is known."""
        self._say(name, frozenset({digest}))

    def settle_all(self, names: Mapping[str, str]) -> None:
        """Take the names of the store for what became of the writes that nobody acknowledged.

        Raises:
            AssertionError: when one of them is what it cannot be.
        """
        self.check(names)
        for name, possible in list(self._possible.items()):
            if len(possible) > 1:
                self.settle(name, names.get(name))

    def breaches(self, names: Mapping[str, str]) -> list[str]:
        """Return a sentence for each of the worker's names that is not what it must be."""
        return [
            f"{name} stands for {names.get(name)}, and not for {' or '.join(sorted(map(str, possible)))}"
            for name, possible in self._possible.items()
            if names.get(name) not in possible
        ]

    def check(self, names: Mapping[str, str]) -> None:
        """Fail with every breach."""
        breaches = self.breaches(names)
        assert not breaches, "\n".join(["a name was lost or changed:", *breaches])

    def _say(self, name: str, possible: Possible) -> None:
        line = json.dumps([name, sorted(possible, key=str)]).encode() + b"\n"
        assert os.write(self._file, line) == len(line)
        self._possible[name] = possible


def check_whole(root: Path, image: BuiltImage) -> None:
    """Fail unless a store holds every byte of an image that a name stands for."""
    breaches = list(_iter_broken(root, image))
    assert not breaches, "\n".join([f"{image.digest} has a name, and is not whole:", *breaches])


def _iter_broken(root: Path, image: BuiltImage) -> Iterator[str]:
    for digest, content in image.blobs.items():
        try:
            found = blob_path(root, digest).read_bytes()
        except FileNotFoundError:
            yield f"{digest} is missing"
            continue
        if found != content:
            yield f"{digest} is another"
