"""Empty files, of which a store may be full once the power has gone: to look at them again costs no time."""

import os
import time
from pathlib import Path

import pytest

from minibox_store import Digest, Store, StoreDamaged
from minibox_store.layout import settling
from tests.support.images import build_image
from tests.support.layouts import write_layout
from tests.support.stores import blob

LONG_AGO = (1.0, 1.0)
MOST_SECONDS = 10.0


def test_of_a_store_full_of_empty_documents_none_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "_PAUSE_SECONDS", 2.0)
    images = {f"app:{number}": build_image(salt=str(number)) for number in range(10)}
    write_layout(tmp_path, images)
    for image in images.values():
        path = blob(tmp_path, image.digest)
        path.chmod(0o600)
        path.write_bytes(b"")
        os.utime(path, LONG_AGO)
    store = Store(tmp_path, durability="none", settle_seconds=60.0)
    start = time.monotonic()
    assert all(image.damaged for image in store.images())
    with pytest.raises(StoreDamaged):
        store.repository("app").find(Digest.parse("sha256:" + "0" * 64))
    assert sum(finding.is_damage for finding in store.verify()) == len(images)
    assert time.monotonic() - start < MOST_SECONDS
