"""What was made of a store's images, and goes with them: the second half of a collection.

- ``lazy/`` and ``cache/``, by digest: a FUSE mount goes when its image or layer is gone, or its server is dead; what is
  no mount when its digest is gone. A directory whose digest is alive stays: somebody may be about to mount there.
- ``extracted/``, by digest: a tree, or a link, whose layer is gone and that nothing mounts.
- ``base_layers/``, by tag: a tree whose image has no name any more, that nothing mounts, that nobody works in, and that
  no container speaks of; with the file beside it.
- ``files/``, by digest: the index of a layer that is gone.

Nothing is judged by what cannot be read: it stays, and the report says so.
"""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

from minibox_store import _files
from minibox_store._mount_views import Mount
from minibox_store.codec import BaseLayer, decode_base_layer
from minibox_store.collecting import Ledger, Living
from minibox_store.digest import HEX_LENGTHS
from minibox_store.errors import InvalidDocument, InvalidReference
from minibox_store.limits import MAX_BASE_LAYER_BYTES
from minibox_store.mounts import read_mounts
from minibox_store.reference import Reference
from minibox_store.reports.removals import Removal
from minibox_store.rootfs.container_names import CannotTell, ContainerNames
from minibox_store.rootfs.image_tags import image_tag, iter_places
from minibox_store.rootfs.removing import UNFINISHED, Folder
from minibox_store.rootfs.unmounting import ask_server, unmount

_HEX = re.compile("[0-9a-f]+")
_LENGTHS = frozenset(HEX_LENGTHS.values())
_SUFFIX = re.compile("-([0-9a-f]{64}|[0-9a-f]{12})$")
_SIDECAR = ".json"
_GONE = "its image or layer is gone"


def sweep_trees(living: Living, ledger: Ledger) -> None:
    """Remove what was made of images that are gone, and tell it; of a dry run, tell what would go.

    Raises:
        StoreError: when what is alive could not be found out any more; what was removed is told by then.
    """
    sweeps: dict[str, Callable[[Living, Folder], None]] = {
        "lazy": _sweep_mounts,
        "cache": _sweep_mounts,
        "extracted": _sweep_extracted,
        "base_layers": lambda living, folder: _BaseLayerSweep(living, folder).run(),
        **dict.fromkeys((f"files/{name}" for name in (*HEX_LENGTHS, "cache")), _sweep_indexes),
    }
    for name, sweep in sweeps.items():
        with Folder.opening(ledger, living.root, name, durable=living.durable) as folder:
            if folder is not None:
                sweep(living, folder)


def _is_digest(entry: str) -> bool:
    return len(entry) in _LENGTHS and _HEX.fullmatch(entry) is not None


# ---- lazy/ and cache/


def _sweep_mounts(living: Living, folder: Folder) -> None:
    table = read_mounts()
    for entry in folder.iter_entries():
        # Nothing of a mount is looked at before its server is known to answer.
        mounts = table.mounts_at(folder.path(entry))
        if not _is_digest(entry):
            if not mounts:
                folder.remove_unfinished(entry, lock=nullcontext)
        elif mounts:
            _sweep_mount(living, folder, entry, mounts)
        elif not living.has(entry):
            _remove_tree(living, folder, entry, "mount point")


def _sweep_mount(living: Living, folder: Folder, entry: str, mounts: tuple[Mount, ...]) -> None:
    reason = _GONE
    if living.has(entry):
        state = ask_server(folder.path(entry)) if mounts[-1].is_fuse else "answers"
        if state == "silent":
            folder.keep(entry, "its server does not answer")
        if state != "dead":
            return
        reason = "its server is dead"
    if not all(mount.is_fuse for mount in mounts):
        folder.keep(entry, "something is mounted there, and it is no FUSE mount")
        return
    used = read_mounts().who_mounts(folder.path(entry), but={mount.device for mount in mounts})
    if used is not None:
        folder.keep(entry, used)
        return
    with folder.telling(entry), living.standing_still():
        # Another server may have come where a dead one was: numbers do not tell, for they are used again.
        if living.has(entry) if reason == _GONE else ask_server(folder.path(entry)) != "dead":
            return
        for _ in mounts:
            if not folder.ledger.dry_run:
                unmount(folder.path(entry), dir_fd=folder.opened)
            folder.ledger.removed.append(_empty_removal(folder, entry, "mount", reason))
        if not folder.ledger.dry_run:
            _files.remove_directory(entry, dir_fd=folder.opened)
            if _files.exists(folder.path(entry)):
                folder.fail(entry, "it was mounted over something")
                return
        folder.ledger.removed.append(_empty_removal(folder, entry, "mount point", reason))


def _empty_removal(folder: Folder, entry: str, kind: str, reason: str) -> Removal:
    return Removal(kind=kind, path=folder.relative(entry), size_bytes=0, reason=reason)


# ---- extracted/


def _sweep_extracted(living: Living, folder: Folder) -> None:
    for entry in folder.iter_entries():
        if not _is_digest(entry):
            folder.remove_unfinished(entry, lock=nullcontext)
        elif not living.has(entry):
            _remove_tree(living, folder, entry, "extracted layer")


def _remove_tree(living: Living, folder: Folder, entry: str, kind: str) -> None:
    folder.remove(
        entry,
        kind,
        _GONE,
        lock=living.standing_still,
        is_doomed=lambda: not living.has(entry) and not folder.stays_mounted(entry),
    )


# ---- base_layers/


class _BaseLayerSweep:
    """The trees of whole images: each is an image's by the file beside it, or by how it is called."""

    def __init__(self, living: Living, folder: Folder) -> None:
        self._living = living
        self._folder = folder
        self._known_names: frozenset[str] = frozenset()
        self._tags: frozenset[str] = frozenset()

    def run(self) -> None:
        entries = self._folder.entries()
        for entry in self._folder.iter_entries(entries):
            if UNFINISHED.fullmatch(entry):
                self._folder.remove_unfinished(entry, lock=self._living.holding_base_layers)
            elif not entry.startswith(".") and self._is_tree(entry):
                self._sweep_tree(entry)
        for entry in self._folder.iter_entries(entries):
            if entry.endswith(_SIDECAR) and stat.S_ISREG(self._folder.mode(entry)):
                self._sweep_sidecar(entry)

    def _is_tree(self, entry: str) -> bool:
        mode = self._folder.mode(entry)
        if entry.endswith(_SIDECAR) and self._folder.mode(entry.removesuffix(_SIDECAR)):
            return stat.S_ISDIR(mode)  # a link says whose the tree beside it is, and cannot be read
        return stat.S_ISDIR(mode) or stat.S_ISLNK(mode)

    def _sweep_tree(self, entry: str) -> None:
        with self._folder.telling(entry):
            if self._is_needed(entry):
                return
            self._folder.remove(
                entry,
                "base layer",
                "its image is no longer in the index",
                lock=self._living.holding_base_layers,
                is_doomed=lambda: not self._is_needed(entry) and not self._is_used(entry),
                besides=partial(self._remove_sidecar_of, entry),
            )

    def _is_needed(self, entry: str) -> bool:
        """Whether an image has the tree.

        Raises:
            OSError: when the file beside it cannot be read: nobody knows whose it is then.
        """
        layer = self._read_sidecar(entry)
        names = self._living.names()
        if layer is not None:
            return layer.name in names
        if names != self._known_names:
            self._known_names, self._tags = names, frozenset(_tags(names))
        return entry in self._tags or self._has_suffix(entry)

    def _has_suffix(self, entry: str) -> bool:
        """Whether a tree is called by what tells the name of an image from another one of the same tag.

        It is nobody's where the image has another place by now: a pull that died had it, and the next one has not.
        """
        suffix = _SUFFIX.search(entry)
        return suffix is not None and any(
            _digest_of(name).startswith(suffix[1]) and not self._has_place(name, entry) for name in self._known_names
        )

    def _has_place(self, name: str, but: str) -> bool:
        layers = (self._read_sidecar(place) for place in iter_places(name) if place != but and self._is_tree(place))
        return any(layer is not None and layer.name == name for layer in layers)

    def _read_sidecar(self, entry: str) -> BaseLayer | None:
        sidecar = entry + _SIDECAR
        mode = self._folder.mode(sidecar)
        if not mode or stat.S_ISDIR(mode):
            return None  # a directory is the tree of an image whose tag ends like that
        try:
            return decode_base_layer(_files.read_whole(self._folder.path(sidecar), MAX_BASE_LAYER_BYTES), sidecar)
        except FileNotFoundError:
            return None
        except InvalidDocument as error:
            raise OSError(errno.EINVAL, f"nobody knows whose it is: {error}") from error
        except OSError as error:
            raise OSError(error.errno, f"nobody knows whose it is: {sidecar}: {error.strerror}") from error

    def _is_used(self, entry: str) -> bool:
        """Whether somebody uses a tree that is no image's, or may; it is told who."""
        folder = self._folder
        mounts = read_mounts()
        if folder.stays_mounted(entry, mounts):
            return True
        if (user := self._living.who_opens(folder.path(entry))) is not None:
            folder.keep(entry, user)
            return True
        layer = self._read_sidecar(entry)
        tags = {entry, *_tags(frozenset() if layer is None else frozenset([layer.name]))}
        try:
            if ContainerNames(os.path.realpath(folder.root), mounts.points()).has(tags):
                folder.keep(entry, "the state of a container speaks of it")
                return True
        except CannotTell as problem:
            folder.fail(entry, f"a container may be made of it: {problem}")
            return True
        return False

    def _remove_sidecar_of(self, entry: str) -> None:
        sidecar = entry + _SIDECAR
        if stat.S_ISREG(self._folder.mode(sidecar)):
            self._folder.remove_file(sidecar, "sidecar", "its tree is gone", lock=nullcontext)

    def _sweep_sidecar(self, sidecar: str) -> None:
        """Remove what stands beside no tree, if it is what a pull writes there."""
        entry = sidecar.removesuffix(_SIDECAR)

        def is_stale() -> bool:
            return not self._folder.mode(entry) and self._reads_as_sidecar(entry)

        if is_stale():
            self._folder.remove_file(
                sidecar, "sidecar", "its tree is gone", lock=self._living.holding_base_layers, is_doomed=is_stale
            )

    def _reads_as_sidecar(self, entry: str) -> bool:
        try:
            return self._read_sidecar(entry) is not None
        except OSError:
            return False


def _tags(names: frozenset[str]) -> Iterator[str]:
    """Yield what the trees of images may be called by programs that write no file beside them, however they spell."""
    for name in names:
        for spelling in _spellings(name):
            yield image_tag(spelling)


def _spellings(name: str) -> Iterator[str]:
    yield name
    try:
        reference = Reference.parse(name)
    except InvalidReference:
        return
    yield from (str(reference), reference.familiar())


def _digest_of(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


# ---- files/


def _sweep_indexes(living: Living, folder: Folder) -> None:
    for entry in folder.iter_entries():
        if stat.S_ISDIR(folder.mode(entry)):
            continue
        if UNFINISHED.fullmatch(entry):
            # Indexes are written under no lock: whoever writes one has it open.
            user = living.who_may_open(folder.path(entry))
            if user is None:
                folder.remove_unfinished(entry, lock=nullcontext)
            else:
                folder.keep(entry, user)
        elif _is_digest(entry) and not living.has(entry):
            is_gone = partial(_is_gone, living, entry)
            folder.remove_file(entry, "sidecar", "its layer is gone", lock=living.standing_still, is_doomed=is_gone)


def _is_gone(living: Living, entry: str) -> bool:
    return not living.has(entry)
