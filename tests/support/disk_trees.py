"""What is promised of trees that lie on a modelled disk: each is whole, and what vouches for one stands beside it.

A tree is compared in all: types, contents, modes, owners, times, attributes and hard links.
"""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from tests.support.disk_model import Tree

_SIDECAR = re.compile(r"(store/base_layers/[^./][^/]*)\.json")
_LAYER = re.compile(r"store/extracted/[0-9a-f]{64}")


def form_of(tree: Tree | None) -> object:
    """Return what is equal for equal trees, whatever the numbers of their files; None where there is no tree."""
    if tree is None:
        return None
    first: dict[int, str] = {}
    files = {
        (path, first.setdefault(file.node, path), file.kind, file.mode, file.content, file.details)
        for path, file in sorted(tree.files.items())
    }
    return frozenset(files), frozenset(tree.folders.items())


@dataclass(frozen=True)
class WholeTrees:
    """What trees may be: those of folders that were at rest, with nothing lost.

    Attributes:
        rests: the folders.
        paths: where else than in a store a tree is that is promised.
    """

    rests: tuple[Tree, ...]
    paths: tuple[str, ...]

    def iter_breaches(self, left: Tree, *, returned: bool) -> Iterator[str]:
        """Yield what is wrong with a disk; where the work has ``returned``, all is as in the last of the folders."""
        for path in sorted({*self.paths, *filter(_LAYER.fullmatch, left.folders)}):
            found = form_of(left.below(path))
            if found not in [form_of(rest.below(path)) for rest in self.rests]:
                yield f"{path} is no whole tree"
            if returned and path in self.paths and found != form_of(self.rests[-1].below(path)):
                yield f"{path} is not the tree that was promised"
        for path in self._sidecars(left):
            if form_of(left.below(path)) not in self._vouched(_digest_beside(left, path)):
                yield f"{path}.json vouches for what is not there"
        if returned:
            missing = {*self._sidecars(self.rests[-1])} - {*self._sidecars(left)}
            yield from (f"{path}.json is missing" for path in sorted(missing))
            both = {*self._sidecars(self.rests[-1])} - missing
            yield from (
                f"{path}.json is the old one"
                for path in sorted(both)
                if _digest_beside(left, path) != _digest_beside(self.rests[-1], path)
            )

    @staticmethod
    def _sidecars(tree: Tree) -> Iterator[str]:
        found = map(_SIDECAR.fullmatch, tree.files)
        return (each[1] for each in found if each is not None)

    def _vouched(self, digest: str) -> Collection[object]:
        """Return the trees that were made of a manifest."""
        return [
            form_of(rest.below(path))
            for rest in self.rests
            for path in self._sidecars(rest)
            if _digest_beside(rest, path) == digest
        ]


def _digest_beside(tree: Tree, path: str) -> str:
    return str(json.loads(tree.files[f"{path}.json"].content)["manifest_digest"])
