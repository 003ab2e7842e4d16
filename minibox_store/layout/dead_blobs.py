"""What lies under ``blobs/`` and is not alive: blobs, and what other programs keep beside the layers that they were.

Most blobs are alive, and are passed over before anything is asked about them.
"""

import os
import time
from collections.abc import Callable, Container, Iterator
from contextlib import suppress

from minibox_store import _files, _moving
from minibox_store.collecting import StoredBlob
from minibox_store.digest import HEX_LENGTHS, is_hexadecimal
from minibox_store.layout.ages import Youth, age_seconds
from minibox_store.layout.paths import LayoutPaths

SIDECAR = ".index.json"


class DeadBlobs:
    """The files of one store that are not alive.

    Args:
        paths: where the store lies.
        live_names: what the files of the blobs that are alive are called.
        youth: takes note of how new each is, where that counts.
        check: called before each is asked about; it may raise.

    Attributes:
        sidecars: the path of each sidecar of a layer that is not alive, once all blobs were listed.
    """

    def __init__(self, paths: LayoutPaths, live_names: Container[str], youth: Youth, check: Callable[[], None]) -> None:
        self.sidecars: list[str] = []
        self._paths = paths
        self._live_names = live_names
        self._youth = youth
        self._check = check

    def iter_blobs(self) -> Iterator[StoredBlob]:
        """Yield each blob that is not alive; what has another name than a blob is none."""
        now_seconds = time.time()
        spares_new = self._youth.keep_newer_than_seconds > 0
        live_names = self._live_names
        for algorithm, length in HEX_LENGTHS.items():
            folder = f"blobs/{algorithm}"
            for entry in _iter_opened(self._paths.blobs(algorithm)):
                name = entry.name
                if name in live_names:
                    continue
                if len(name) != length:
                    if algorithm == "sha256" and self._is_dead_sidecar(entry, length):
                        self.sidecars.append(f"{folder}/{name}")
                elif is_hexadecimal(name) and not entry.is_dir(follow_symlinks=False):
                    self._check()
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if spares_new:
                        self._youth.note(f"{folder}/{name}", status)
                    yield folder, name, status.st_size, age_seconds(status, now_seconds)

    def _is_dead_sidecar(self, entry: os.DirEntry[str], length: int) -> bool:
        layer = entry.name.removesuffix(SIDECAR)
        is_sidecar = layer != entry.name and len(layer) == length and is_hexadecimal(layer)
        return is_sidecar and layer not in self._live_names and not entry.is_dir(follow_symlinks=False)


def _iter_opened(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a folder, which stays open meanwhile: to ask about an entry then takes no way from the root."""
    with (
        suppress(FileNotFoundError),
        _files.opened_directory(folder) as opened,
        _moving.naming_errors(folder),
        os.scandir(opened) as entries,
    ):
        yield from entries
