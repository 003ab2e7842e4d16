"""Ranges of blobs that are small enough for a test: a few MiB are a large blob then."""

import pytest

from minibox_store.layout import pieces, ranged_fetch

_KIBIBYTE, _MEBIBYTE = 1 << 10, 1 << 20


def make_pieces_small(monkeypatch: pytest.MonkeyPatch, *, most_bytes: int = 256 * _KIBIBYTE) -> None:
    """Let a blob of a MiB be worth several ranges, and a piece of it have 64 KiB to ``most_bytes``."""
    monkeypatch.setattr(ranged_fetch, "LEAST_BLOB_BYTES", _MEBIBYTE)
    for module in (ranged_fetch, pieces):
        monkeypatch.setattr(module, "LEAST_BYTES", 64 * _KIBIBYTE)
        monkeypatch.setattr(module, "MOST_BYTES", most_bytes)
