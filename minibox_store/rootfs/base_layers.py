"""Root filesystems of whole images under ``base_layers/``, each in the place that its image's name has.

A place is a directory, and beside it a file, ``<place>.json``, that says whose tree it is and of what it was made. The
file never vouches for another tree, whatever dies when: it goes before the tree is changed, and comes once the new one
is there for good. All of that happens under one lock, which is kept until the image has its name.
"""

import errno
import os
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import attrs

from minibox_store import _files, _locks, _moving
from minibox_store._trees import OPEN_DIRECTORY, is_directory
from minibox_store.codec import BaseLayer, decode_base_layer, encode_base_layer
from minibox_store.digest import Digest
from minibox_store.errors import InvalidDocument, StoreBusy, StoreUnavailable
from minibox_store.limits import MAX_BASE_LAYER_BYTES
from minibox_store.mounts import read_mounts
from minibox_store.rootfs.image_tags import iter_places

_FILE_MODE = 0o644
_FOLDER_MODE = 0o700
_ATTEMPTS = 100


@attrs.define
class GrowingTree:
    """A directory that nobody but its maker touches: it is locked.

    Attributes:
        path: where it lies.
        file_descriptor: the open directory, whose lock is held; None where what lies there now is none.
        place: the place that it goes to, or had.
        was_seen: whether what lies there now had a place before, so that somebody may use it.
    """

    path: str
    file_descriptor: int | None
    place: str
    was_seen: bool = False


class BaseLayers:
    """The trees of one store. Safe for several threads and processes.

    Args:
        folder: where they lie.
        lock_path: the lock file of all of them.
        durable: whether a tree that has its place survives a loss of power.
        lock_timeout_seconds: how long another process is waited for.
        read_names: tells which images there are now; the place of any other is free.
    """

    def __init__(
        self,
        folder: str,
        lock_path: str,
        *,
        durable: bool,
        lock_timeout_seconds: float,
        read_names: Callable[[], Container[str]],
    ) -> None:
        self._folder = folder
        self._read_names = read_names
        self._lock_path = lock_path
        self._durable = durable
        self._lock_timeout_seconds = lock_timeout_seconds

    def find(self, name: str, manifest_digest: Digest) -> str | None:
        """Return the path of the tree that was made of this image; None where there is none."""
        for place in iter_places(name):
            layer = self._read(place)
            if layer is not None and layer.name == name:
                is_made = layer.manifest_digest == manifest_digest and self._has_tree(place)
                return self._path(place) if is_made else None
        return None

    def is_current(self, layer: BaseLayer) -> bool:
        """Whether the image has its tree, made of the very manifest and config."""
        place = self._place_of(layer.name)
        return self._read(place) == layer and self._has_tree(place)

    def keep_current(self) -> None:
        """Let a tree that was found current survive a loss of power: who put it there may have died before a sync."""
        if self._durable:
            self._sync_folder()
            _files.sync_directory(os.path.dirname(self._folder))

    def locked(self) -> AbstractContextManager[None]:
        """Keep every place as it is for the block.

        Raises:
            StoreBusy: when somebody else holds the lock for too long.
        """
        return _locks.holding_lock(
            self._lock_path, doing="putting a root filesystem in its place", timeout_seconds=self._lock_timeout_seconds
        )

    @contextmanager
    def growing(self, name: str) -> Iterator[GrowingTree]:
        """Make an empty directory beside the places; remove what lies there, then, behind the block.

        What had a place before stays, as long as somebody mounts it: under that name a collection finds it.
        """
        tree = self._begin(self._place_of(name))
        try:
            yield tree
        finally:
            # The work is done by now, or has failed already: what cannot be removed is left to a collection.
            with suppress(OSError):
                self._leave(tree)
            if tree.file_descriptor is not None:
                _locks.release(tree.file_descriptor)

    def make_durable(self, tree: GrowingTree) -> None:
        """Return when all of a tree will survive a loss of power, if anything is to."""
        if self._durable and tree.file_descriptor is not None:
            _files.sync_file_system(tree.file_descriptor)

    @contextmanager
    def putting_in_place(self, tree: GrowingTree, layer: BaseLayer) -> Iterator[None]:
        """Let a whole tree be the image's, and be so for good once the block is left without an error. Under the lock.

        With an error all is as it was before.

        Raises:
            StoreUnavailable: when something is mounted on the place.
        """
        place = self._place_of(layer.name)
        path, had_tree = self._path(place), _files.exists(self._path(place))
        self._label(tree, place)
        old = self._open_old(path)
        try:
            with self._replacing_sidecar(place) as old_sidecar:
                self._swap(tree.path, path, both=had_tree)
            try:
                self._sync_folder()
                self._write_sidecar(place, encode_base_layer(layer))
                yield
            except BaseException:
                with suppress(OSError):  # what went wrong first is what is told
                    self._remove_sidecar(place)
                    self._swap(path, tree.path, both=had_tree)
                    self._put_sidecar_back(old_sidecar, place)
                raise
        except BaseException:
            if old is not None:
                _locks.release(old)
            raise
        if old_sidecar is not None:
            with suppress(OSError):  # the image has its name by now; a collection knows what is left
                _files.remove_file(old_sidecar)
        # Let go of it while the lock of all is held: the next one to come along can lock it at once.
        if tree.file_descriptor is not None:
            _locks.release(tree.file_descriptor)
        tree.file_descriptor, tree.was_seen = old, had_tree

    @contextmanager
    def _replacing_sidecar(self, place: str) -> Iterator[str | None]:
        """Let nothing vouch for what lies in a place, before it is changed; with an error the old file is back.

        It is put aside, and not written anew: on a full disk there is no room for that.
        """
        aside = self._unfinished(f"{place}.json") if _files.exists(self._sidecar(place)) else None
        try:
            if aside is not None:
                _files.rename_file(self._sidecar(place), aside)
                self._sync_folder()
            yield aside
        except BaseException:
            with suppress(OSError):
                self._put_sidecar_back(aside, place)
            raise

    def _put_sidecar_back(self, aside: str | None, place: str) -> None:
        if aside is not None and _files.exists(aside):
            _files.rename_file(aside, self._sidecar(place))

    # ---- places

    def _path(self, place: str) -> str:
        return os.path.join(self._folder, place)

    def _sidecar(self, place: str) -> str:
        return os.path.join(self._folder, f"{place}.json")

    def _place_of(self, name: str) -> str:
        """Return the place that is an image's now, or that is free for it: also where a tree lies that is nobody's."""
        found = [(place, self._read(place)) for place in iter_places(name)]
        for place, layer in found:
            if layer is not None and layer.name == name:
                return place
        names = self._read_names() if found[0][1] is not None else ()
        for place, layer in found:
            is_free = layer is None or layer.name not in names
            if is_free and not is_directory(self._sidecar(place)):
                return place
        raise StoreUnavailable(self._path(found[0][0]), "other images have this place, and what would do instead")

    def _has_tree(self, place: str) -> bool:
        return is_directory(self._path(place))

    def _read(self, place: str) -> BaseLayer | None:
        """Return what stands beside a place; what cannot be read vouches for nothing."""
        content = self._read_bytes(place)
        try:
            return None if content is None else decode_base_layer(content, f"{place}.json")
        except InvalidDocument:
            return None

    def _read_bytes(self, place: str) -> bytes | None:
        try:
            return _files.read_whole(self._sidecar(place), MAX_BASE_LAYER_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in _files.DAMAGE:
                raise
            return None

    def _write_sidecar(self, place: str, content: bytes) -> None:
        with _files.replacing_file(self._sidecar(place), mode=_FILE_MODE, durable=self._durable) as opened:
            _moving.write_all(opened, content)

    def _remove_sidecar(self, place: str) -> None:
        if _files.exists(self._sidecar(place)):
            _files.remove_file(self._sidecar(place))
            self._sync_folder()

    def _sync_folder(self) -> None:
        if self._durable:
            _files.sync_directory(self._folder)

    # ---- trees

    def _begin(self, place: str) -> GrowingTree:
        made = _files.make_directory(self._folder, _FOLDER_MODE)
        if self._durable and made:
            _files.sync_directory(os.path.dirname(self._folder))
        for _ in range(_ATTEMPTS):
            path = self._unfinished(place)
            _files.make_directory(path, _FOLDER_MODE)
            # Until it is locked, a collection may take it for one that was left behind: then begin again.
            with suppress(FileNotFoundError):
                opened = os.open(path, OPEN_DIRECTORY)
                with _files.closing_on_error(opened):
                    if _locks.try_lock(opened, path):
                        return GrowingTree(path, opened, place)
                os.close(opened)
        raise StoreBusy(self._folder, None, None, "collecting")

    def _unfinished(self, place: str) -> str:
        return os.path.join(self._folder, f".{place}.{_files.fresh_name()}.tmp")

    def _label(self, tree: GrowingTree, place: str) -> None:
        """See to it that a tree is called after the place it goes to: what lies there now gets its name.

        An overlay tells by which path it was mounted, and not what of: by its name a collection knows the place that an
        old tree had, and leaves it alone as long as anything was mounted from there.
        """
        if tree.place != place:
            path = self._unfinished(place)
            _files.rename_file(tree.path, path)
            tree.path, tree.place = path, place

    def _open_old(self, path: str) -> int | None:
        """Lock what lies in a place, if it is a directory, so that no collection takes it before it is sure to go."""
        try:
            opened = os.open(path, OPEN_DIRECTORY)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return None
        with _files.closing_on_error(opened):
            _locks.try_lock(opened, path)
        return opened

    def _swap(self, source: str, target: str, *, both: bool) -> None:
        try:
            if both:
                folder = os.open(self._folder, OPEN_DIRECTORY)
                try:
                    _files.exchange_trees(os.path.basename(source), os.path.basename(target), dir_fd=folder)
                finally:
                    os.close(folder)
            else:
                _files.rename_file(source, target)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise StoreUnavailable(target, "something is mounted on it") from error
            raise

    def _leave(self, tree: GrowingTree) -> None:
        if not _files.exists(tree.path):
            return
        if tree.was_seen:
            mounts = read_mounts()
            if mounts.doubts or any(map(mounts.who_mounts, (self._path(tree.place), tree.path))):
                return
        _files.remove_tree(tree.path)
