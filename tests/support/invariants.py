"""What always holds of a store, whatever was done to it or broke off: checked with nothing but json and hashlib.

Nothing here knows ``minibox_store``. The rules are those of README.md, "What the store promises".
"""

import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_DOCUMENTS = {
    "application/vnd.oci.image.index.v1+json": "manifests",
    "application/vnd.docker.distribution.manifest.list.v2+json": "manifests",
    "application/vnd.oci.image.manifest.v1+json": "layers",
    "application/vnd.docker.distribution.manifest.v2+json": "layers",
}
_HEX = {"sha256": re.compile("[0-9a-f]{64}"), "sha512": re.compile("[0-9a-f]{128}")}
_LOCKS = {"store.lock", "store.turn", "prune.lock", "life.lock", "base_layers.lock"}
# What interrupted work may leave for whoever goes on with it.
_KEPT = {"partial", "uploads", "pushed"}
_GENERATION = re.compile(r"[0-9]{10}\.json")
_NAME = "org.opencontainers.image.ref.name"


def check_invariants(
    root: Path, *, leftovers: bool = False, absent_manifests: bool = False, history_behind: bool = False
) -> None:
    """Fail with every breach that is found.

    Args:
        root: the store; one that has not been made yet keeps every rule.
        leftovers: whether unfinished work of processes that have ended may lie about.
        absent_manifests: whether manifests below an index may be missing.
        history_behind: whether index.json may say what no generation says yet: another tool wrote it, or a process died
            right behind it, and nothing has changed it since.
    """
    breaches = list(iter_breaches(root, absent_manifests=absent_manifests))
    breaches += _breaches_of_history(root, behind=leftovers or history_behind)
    breaches += [f"{path}: somebody holds its lock" for path in held_locks(root)]
    breaches += [f"{path}: this process has it open" for path in open_files(root)]
    if not leftovers:
        breaches += [f"{path}: was left behind" for path in find_leftovers(root)]
    assert not breaches, "\n".join(["", *breaches])


def iter_breaches(root: Path, *, absent_manifests: bool = False) -> Iterator[str]:
    """Yield what is wrong with the layout: files, names and graphs."""
    if not (root / "index.json").exists():
        if any((root / "blobs").glob("*/*")):
            yield "index.json: it is missing beside blobs"
        return
    if (root / "oci-layout").exists():
        marker = json.loads((root / "oci-layout").read_bytes())
        if marker.get("imageLayoutVersion") != "1.0.0":
            yield f"oci-layout: {marker}"
    else:
        yield "oci-layout: it is missing"
    yield from _breaches_of_blobs(root)
    for entry in read_index(root)["manifests"]:
        where = entry.get("annotations", {}).get(_NAME, "an entry without a name")
        yield from _breaches_of_graph(root, entry, where, absent_manifests, is_root=True)


def read_index(root: Path) -> dict[str, Any]:
    """Return index.json; it must be whole at every moment."""
    index = json.loads((root / "index.json").read_bytes())
    assert type(index) is dict
    assert index["schemaVersion"] == 2
    assert type(index["manifests"]) is list
    return index


def read_names(root: Path) -> dict[str, str]:
    """Return the digest that each name stands for; no name may stand twice."""
    if not (root / "index.json").exists():
        return {}
    entries = [entry for entry in read_index(root)["manifests"] if _NAME in entry.get("annotations", {})]
    names = [entry["annotations"][_NAME] for entry in entries]
    assert len(names) == len(set(names)), f"a name stands twice: {names}"
    return dict(zip(names, (entry["digest"] for entry in entries), strict=True))


def reachable(root: Path) -> set[str]:
    """Return the digest of every blob that an entry of index.json reaches and that is there."""
    found: set[str] = set()
    todo = [] if not (root / "index.json").exists() else list(read_index(root)["manifests"])
    while todo:
        descriptor = todo.pop()
        path = _blob(root, descriptor["digest"])
        if path.exists():
            found.add(descriptor["digest"])
            todo.extend(_children(path, descriptor["mediaType"]))
    return found


def stored(root: Path) -> set[str]:
    """Return the digests that the names of the files below ``blobs/`` spell."""
    return {
        f"{path.parent.name}:{path.name}"
        for path in (root / "blobs").glob("*/*")
        if path.parent.name in _HEX and _HEX[path.parent.name].fullmatch(path.name)
    }


def find_leftovers(root: Path) -> list[str]:
    """Return what unfinished work has left: in ``ingest/`` all but locks and what goes on, and files half written."""
    ingest = root / "ingest"
    found = [path for path in ingest.glob("*") if path.name not in _LOCKS and path.name not in _KEPT]
    found += [path for path in [*root.glob(".*"), *root.glob("history/.*")] if path.name.endswith(".tmp")]
    return sorted(path.relative_to(root).as_posix() for path in found)


def held_locks(root: Path) -> list[str]:
    """Return the locks and partials of a store that somebody holds now."""
    found = []
    # Walked by os.walk, which bears that a folder goes while it is looked at.
    paths = (Path(folder, name) for folder, _, names in os.walk(root / "ingest") for name in names)
    for path in sorted(paths):
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                continue
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue  # a transaction has ended meanwhile
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found.append(path.relative_to(root).as_posix())
        finally:
            os.close(descriptor)
    return found


def open_files(root: Path) -> list[str]:
    """Return the files below ``root`` that this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith(f"{root.resolve()}/"):
            found.append(target)
    return sorted(found)


def generations(root: Path) -> list[Path]:
    """Return the generations of index.json, the oldest first."""
    return sorted(path for path in (root / "history").glob("*") if _GENERATION.fullmatch(path.name))


def _breaches_of_history(root: Path, *, behind: bool) -> Iterator[str]:
    for path in generations(root):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or stat.S_IMODE(status.st_mode) != 0o600:
            yield f"history/{path.name}: it is no file of its own for its owner alone"
        json.loads(path.read_bytes())
    if generations(root) and not behind:
        if len(generations(root)) > 10:
            yield f"history/: there are {len(generations(root))} generations"
        if generations(root)[-1].read_bytes() != (root / "index.json").read_bytes():
            yield f"history/{generations(root)[-1].name}: it is not what index.json says"


def _breaches_of_blobs(root: Path) -> Iterator[str]:
    for digest in sorted(stored(root)):
        path = _blob(root, digest)
        if not stat.S_ISREG(path.lstat().st_mode):
            yield f"{digest}: it is not a regular file"
        elif _digest_of(path, digest) != digest:
            yield f"{digest}: its content is another"


def _breaches_of_graph(
    root: Path, descriptor: dict[str, Any], where: str, absent_manifests: bool, *, is_root: bool
) -> Iterator[str]:
    digest, path = descriptor["digest"], _blob(root, descriptor["digest"])
    is_document = descriptor["mediaType"] in _DOCUMENTS
    if not path.exists():
        if not (is_document and absent_manifests and not is_root):
            yield f"{where}: {digest} is missing"
        return
    if path.stat().st_size != descriptor["size"]:
        yield f"{where}: {digest} has {path.stat().st_size} bytes, and not {descriptor['size']}"
        return
    for child in _children(path, descriptor["mediaType"]):
        yield from _breaches_of_graph(root, child, where, absent_manifests, is_root=False)


def _children(path: Path, media_type: str) -> list[dict[str, Any]]:
    if media_type not in _DOCUMENTS:
        return []
    document = json.loads(path.read_bytes())
    below = list(document.get(_DOCUMENTS[media_type]) or ())
    return [document["config"], *below] if _DOCUMENTS[media_type] == "layers" else below


def _blob(root: Path, digest: str) -> Path:
    algorithm, _, encoded = digest.partition(":")
    return root / "blobs" / algorithm / encoded


def _digest_of(path: Path, like: str) -> str:
    algorithm = like.partition(":")[0]
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
