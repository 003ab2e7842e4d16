"""A file that takes the room of another one: what it becomes, in which order, and what an error leaves."""

import os
from pathlib import Path

import pytest

from minibox_store.layout.spares import replacing_file_by
from tests.support.os_proxy import replaced_os
from tests.support.snapshots import snapshot


@pytest.fixture
def spare(tmp_path: Path) -> Path:
    """A file in a folder of its own, beside one that is to be replaced."""
    (tmp_path / "it").write_bytes(b"before")
    spare = tmp_path / "folder" / "spare"
    spare.parent.mkdir()
    spare.write_bytes(b"longer than what comes")
    spare.chmod(0o640)
    return spare


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_in_the_room_of_another_has_nothing_of_it_and_is_synced_at_each_step(
    durable: bool, spare: Path, tmp_path: Path
) -> None:
    inode = spare.stat().st_ino
    with replaced_os() as system:
        place = str(tmp_path / "it")
        with replacing_file_by(str(spare), place, folder=str(tmp_path), mode=0o600, durable=durable) as new:
            os.write(new, b"after")
        names = [call.name for call in system.changes]
        synced = [call.paths[0] for call in system.changes if call.name == "fsync"]
    status = (tmp_path / "it").stat()
    assert ((tmp_path / "it").read_bytes(), status.st_mode & 0o777, status.st_ino) == (b"after", 0o600, inode)
    assert sorted(snapshot(tmp_path)) == ["folder", "it"]
    if durable:
        assert names == ["replace", "fsync", "ftruncate", "fchmod", "fsync", "replace", "fsync"]
        assert (synced[0], synced[-1]) == (str(spare.parent), str(tmp_path))
    else:
        assert names == ["replace", "ftruncate", "fchmod", "replace"]


@pytest.mark.parametrize("error", [KeyError(), KeyboardInterrupt()])
def test_an_error_leaves_what_was_there_and_neither_the_spare_file_nor_half_of_another(
    error: BaseException, spare: Path, tmp_path: Path
) -> None:
    def work() -> None:
        place = str(tmp_path / "it")
        with replacing_file_by(str(spare), place, folder=str(tmp_path), mode=0o600, durable=True) as new:
            os.write(new, b"after")
            raise error

    with pytest.raises(type(error)):
        work()
    assert (tmp_path / "it").read_bytes() == b"before"
    assert sorted(snapshot(tmp_path)) == ["folder", "it"]
