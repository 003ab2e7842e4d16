"""What must hold of a store that lies on a modelled disk, looked up in memory: thousands of disks in a second.

The same rules as :mod:`tests.support.invariants` has for real folders, those that a loss of power can break.
"""

import functools
import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from tests.support.disk_model import Tree

_NAME = "org.opencontainers.image.ref.name"
_BLOB = re.compile(r"store/blobs/([a-z0-9]+)/([0-9a-f]{64,128})")
_GENERATION = re.compile(r"store/history/[0-9]{10}\.json")


def names_on(tree: Tree) -> dict[str, str]:
    """Return the digest that each name of the store stands for."""
    named = [entry for entry in _entries(tree) if _NAME in entry.get("annotations", {})]
    return {entry["annotations"][_NAME]: entry["digest"] for entry in named}


def iter_disk_breaches(
    tree: Tree, *, unsound: Collection[str] = (), only: Collection[str] | None = None
) -> Iterator[str]:
    """Yield what is wrong.

    Args:
        tree: the disk; the store is its folder ``store``.
        unsound: digests of blobs that were wrong before, and may be still, or be moved away.
        only: the names that matter, where it is not all; nor do blobs that nothing reaches, and the history, then.
    """
    if "store/index.json" not in tree.files:
        if any(_BLOB.fullmatch(path) for path in tree.files):
            yield "index.json is missing beside blobs"
        return
    marker = tree.files.get("store/oci-layout")
    if marker is None or json.loads(marker.content) != {"imageLayoutVersion": "1.0.0"}:
        yield "oci-layout is missing, or says something else"
    for path, file in tree.files.items():
        if _GENERATION.fullmatch(path) and only is None:
            json.loads(file.content)
        found = _BLOB.fullmatch(path) if only is None else None
        if found and f"{found[1]}:{found[2]}" not in unsound and digest_of(file.content, found[1]) != found[2]:
            yield f"{path}: its content is another"
    for entry in _entries(tree):
        if only is None or entry.get("annotations", {}).get(_NAME) in only:
            yield from _breaches_below(tree, entry, unsound)


def _entries(tree: Tree) -> list[dict[str, Any]]:
    index = tree.files.get("store/index.json")
    return [] if index is None else list(_parsed(index.content)["manifests"])


def _breaches_below(tree: Tree, descriptor: Mapping[str, Any], unsound: Collection[str]) -> Iterator[str]:
    algorithm, _, encoded = descriptor["digest"].partition(":")
    file = tree.files.get(f"store/blobs/{algorithm}/{encoded}")
    if file is None or digest_of(file.content, algorithm) != encoded:
        if descriptor["digest"] not in unsound:
            what = "missing" if file is None else "wrong"
            yield f"{descriptor['digest']} is {what}, and a name reaches it"
    elif descriptor["mediaType"].endswith(("manifest.v1+json", "index.v1+json")):
        document = _parsed(file.content)
        below = [*document.get("manifests", ()), *document.get("layers", ())]
        for child in [*below, document["config"]] if "config" in document else below:
            yield from _breaches_below(tree, child, unsound)


@functools.lru_cache(maxsize=4096)
def digest_of(content: bytes, algorithm: str) -> str:
    """Return the digest of a content, each computed once."""
    return hashlib.new(algorithm, content).hexdigest()


@functools.lru_cache(maxsize=1024)
def _parsed(content: bytes) -> Any:
    return json.loads(content)
