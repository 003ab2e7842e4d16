"""Images of all that is hard in layers, unpacked by umoci and by this project: the same tree, entry by entry.

Where umoci does otherwise than the specification has it, what it does is written down here with the reason.
"""

import functools
import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.forks import run_forked
from tests.support.hard_layers import CASES, image_of
from tests.support.layouts import write_layout
from tests.support.peers import require_peer, run_umoci
from tests.support.processes import plain_environment
from tests.support.stores import open_store, require_root
from tests.support.trees import TreeEntry, read_tree, tree_differences

_NOBODY = 65534
_RECORD = "user.rootlesscontainers"
_UID, _GID = 0x08, 0x10  # protobuf's keys: fields 1 and 2, each a varint
_NOTHING = 2**32 - 1
_LONG = "/".join(["a-directory-with-a-rather-long-name"] * 8)
# PAX deletes what an earlier header said by a value of no length. umoci's reader takes the record of an empty xattr for
# that; but no header has said anything before, and GNU tar writes and reads an empty xattr so.
_EMPTY_XATTR = {("marked/empty", "xattrs")}
# umoci leaves the time of its own work on a directory of which it has removed something by a whiteout in it, and on
# the directories that it makes because no member names them. A directory has the time that its entry says, or none.
_WORKING_TIMES = {
    "a whiteout behind what the same layer has": ["etc/below"],
    "a marker behind the content of its own layer": ["etc/below"],
    "opaque directories in one another": ["etc", "etc/below"],
    "long names by GNU": [".", *(_LONG[: 36 * count - 1] for count in range(1, 9))],
    "members without parents": [".", "a/b", "a/x"],
}
# What becomes of a device that a user may not make: umoci keeps its owner, as of a file; here it is written down what
# it was, as containers/storage does.
_DEVICES_OF_A_USER = {"devices and FIFOs": {("dev/disk", "xattrs"), ("dev/large", "xattrs")}}
_DIFFERENCES = {
    "xattrs": _EMPTY_XATTR,
    **{case: {(path, "mtime_nanoseconds") for path in paths} for case, paths in _WORKING_TIMES.items()},
}


@pytest.mark.parametrize("case", CASES)
def test_umoci_unpacks_the_same(tmp_path: Path, case: str) -> None:
    require_root()
    write_layout(tmp_path / "store", {"app:1": image_of(CASES[case])})
    run_umoci("raw", "unpack", "--image", f"{tmp_path / 'store'}:app:1", tmp_path / "umoci")
    open_store(tmp_path / "store").unpack("app:1", tmp_path / "ours")
    assert_differences(read_tree(tmp_path / "ours"), read_tree(tmp_path / "umoci"), _DIFFERENCES.get(case, set()))


def test_a_bundle_of_umoci_has_the_same_root_filesystem(tmp_path: Path) -> None:
    require_root()
    case = "another kind over each kind"
    write_layout(tmp_path / "store", {"app:1": image_of(CASES[case])})
    run_umoci("unpack", "--image", f"{tmp_path / 'store'}:app:1", tmp_path / "bundle")
    open_store(tmp_path / "store").unpack("app:1", tmp_path / "ours")
    assert_differences(read_tree(tmp_path / "ours"), read_tree(tmp_path / "bundle/rootfs"), set())


@pytest.mark.parametrize("case", CASES)
def test_umoci_unpacks_the_same_for_a_user(case: str) -> None:
    require_root()
    # pytest's own folders are closed to other users.
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        write_layout(home / "store", {"app:1": image_of(CASES[case])})
        for path in (home, *home.rglob("*")):
            os.chown(path, _NOBODY, _NOBODY)
        unpack_rootless(home)
        assert run_forked(functools.partial(unpack_as_user, home)) == 0
        # Read by root: a user cannot look into all that is his.
        ours, umoci = (with_read_records(read_tree(home / name)) for name in ("ours", "umoci"))
        assert_differences(ours, umoci, _DIFFERENCES.get(case, set()) | _DEVICES_OF_A_USER.get(case, set()))


def assert_differences(ours: dict[str, TreeEntry], umoci: dict[str, TreeEntry], expected: set[tuple[str, str]]) -> None:
    """Fail unless the trees differ in what is expected, and there alone."""
    differences = tree_differences(ours, umoci)
    told = "\n".join(map(str, differences))
    assert {(each.path, each.what) for each in differences} == expected, told


def with_read_records(tree: dict[str, TreeEntry]) -> dict[str, TreeEntry]:
    """Return a tree in which the records of owners stand as ``uid:gid``.

    Where an owner is root, as the user is inside, umoci says that there is nothing to be changed, and this project 0.
    """
    return {
        path: replace(entry, xattrs={**entry.xattrs, _RECORD: read_record(entry.xattrs[_RECORD])})
        if _RECORD in entry.xattrs
        else entry
        for path, entry in tree.items()
    }


def read_record(message: bytes) -> bytes:
    """Return what a record says: two numbers of protobuf's, each 0 where it is missing, or where it says nothing."""
    numbers = {_UID: 0, _GID: 0}
    rest = iter(message)
    for key in rest:
        value, shift = 0, 0
        while (byte := next(rest)) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
        numbers[key] = value | byte << shift
    return b"%d:%d" % tuple(0 if numbers[key] == _NOTHING else numbers[key] for key in (_UID, _GID))


def unpack_rootless(home: Path) -> None:
    command = [require_peer("umoci"), "raw", "unpack", "--rootless", "--image", f"{home}/store:app:1", f"{home}/umoci"]
    done = subprocess.run(
        command,
        user=_NOBODY,
        group=_NOBODY,
        extra_groups=[],
        env=plain_environment(home),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def unpack_as_user(home: Path) -> None:
    """Unpack as a user, in a process of its own."""
    os.setgroups([])
    os.setgid(_NOBODY)
    os.setuid(_NOBODY)
    open_store(home / "store").unpack("app:1", home / "ours")
