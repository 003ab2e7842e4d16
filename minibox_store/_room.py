"""How much room a file system has, and whether something will fit: asked before it is begun."""

import os

from minibox_store.errors import StoreFull


def check_room(path: str | int, needed_bytes: int, *, name: str) -> None:
    """Return if so many bytes fit where ``path`` lies, as far as can be told: others may fill it meanwhile.

    Args:
        path: something that exists on the file system, or an open file.
        needed_bytes: of the content alone.
        name: how an error calls the place.

    Raises:
        StoreFull: with both figures.
    """
    if needed_bytes <= 0:
        return
    status = os.statvfs(path)
    if not status.f_blocks:
        return  # the file system does not say
    free_blocks = status.f_bfree if os.geteuid() == 0 else status.f_bavail
    free_bytes = free_blocks * status.f_frsize
    if needed_bytes > free_bytes:
        raise StoreFull(name, needed_bytes, free_bytes)
