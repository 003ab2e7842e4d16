"""What is promised of trees that lie on a modelled disk: each is whole, and what vouches for one stands beside it.

A tree is compared in all: types, contents, modes, owners, times, attributes and hard links.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

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
            whole = self._forms(path)
            if found not in whole:
                yield f"{path} is no whole tree"
            if returned and path in self.paths and found != whole[-1]:
                yield f"{path} is not the tree that was promised"
        made_of = _made_of(left)
        for path, digest in made_of.items():
            found = form_of(left.below(path))
            # What the work takes away loses its tree first: what stands beside none is taken for no tree.
            is_going = found is None and path not in self._made_of_last
            if not is_going and found not in self._vouched[digest]:
                yield f"{path}.json vouches for what is not there"
        if returned:
            for path, digest in self._made_of_last.items():
                if made_of.get(path) != digest:
                    yield f"{path}.json is missing, or an old one"

    def _forms(self, path: str) -> list[object]:
        if path not in self._known:
            self._known[path] = [form_of(rest.below(path)) for rest in self.rests]
        return self._known[path]

    @cached_property
    def _known(self) -> dict[str, list[object]]:
        return {}

    @cached_property
    def _made_of_last(self) -> dict[str, str]:
        return _made_of(self.rests[-1])

    @cached_property
    def _vouched(self) -> dict[str, list[object]]:
        """The trees that were made of each manifest; None among them where a folder at rest had lost the tree."""
        found: dict[str, list[object]] = {}
        for rest in self.rests:
            for path, digest in _made_of(rest).items():
                found.setdefault(digest, []).append(form_of(rest.below(path)))
        return found


def _made_of(tree: Tree) -> dict[str, str]:
    """Return the manifest that each tree is made of, as what stands beside it says."""
    found = filter(None, map(_SIDECAR.fullmatch, tree.files))
    return {each[1]: str(json.loads(tree.files[each[0]].content)["manifest_digest"]) for each in found}
