"""The file in which a process leaves what documents say for the next one, so that a large store need not be read again.

It is a help and no more. It is believed of an image only where every file of its documents has the very state in which
it was read and verified. Whoever looks for a blob learns from it which images need not be read, and reads the others.
One that is lost, damaged, of another version, not ours to read, or that somebody else may have written, is as good as
none, and nothing is said of one that cannot be written. No lock is needed: it is replaced in one step, and the last one
wins.
"""

import errno
import os
import stat
from collections.abc import Collection
from contextlib import suppress

import attrs

from minibox_store import _files, _moving, _signatures
from minibox_store.codec import SummaryTable, decode_summaries, encode_summaries
from minibox_store.errors import InvalidDocument
from minibox_store.layout.paths import LayoutPaths
from minibox_store.limits import MAX_LISTING_BYTES
from minibox_store.reports.summaries import ImageSummary

_MODE = 0o600


def read_cache(paths: LayoutPaths, limit_bytes: int = MAX_LISTING_BYTES) -> SummaryTable:
    """Return what an earlier process left, if that is not larger than it is worth; never raises."""
    try:
        # Who could put another one there between this and the reading could do so with index.json too.
        status = os.lstat(paths.listing)
        if status.st_uid != os.stat(paths.root).st_uid or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return SummaryTable()
        return decode_summaries(_files.read_whole(paths.listing, min(limit_bytes, MAX_LISTING_BYTES)))
    except (OSError, InvalidDocument):
        return SummaryTable()


def is_current(paths: LayoutPaths, summary: ImageSummary) -> bool:
    """Whether every file of a summary is as it was when it was read."""
    files = [(paths.blob(digest), state) for digest, state in summary.files]
    return _signatures.are_unchanged(files, strictly=not summary.is_complete)


def write_cache(paths: LayoutPaths, summaries: Collection[ImageSummary]) -> None:
    """Leave these summaries, and no others, for the next process; never raises.

    Nothing is written where the store belongs to another user, or where it would be more than may be read again.
    """
    with suppress(OSError):
        if os.stat(paths.root).st_uid != os.geteuid():
            return
        with _files.replacing_file(paths.listing, mode=_MODE, durable=False) as opened:
            content = encode_summaries(summaries)  # not before it is known that a file can be made at all
            if len(content) > MAX_LISTING_BYTES:  # outlines are most of it, and the rest is a help without them
                content = encode_summaries([attrs.evolve(summary, outline=None) for summary in summaries])
            if len(content) > MAX_LISTING_BYTES:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), paths.listing)
            _moving.write_all(opened, content)
