"""What the daemon unpacks of an image that others made and serve is what others unpack of it."""

import json
import os
import stat
from pathlib import Path

import pytest

from tests.support.daemon import running_daemon
from tests.support.images import build_image
from tests.support.layouts import write_layout
from tests.support.peers import docker_registry, run_skopeo, run_umoci
from tests.support.stores import require_root

NAME = "team/app:1"
# With whiteouts, an opaque directory, and a file that is replaced.
IMAGE = build_image(
    [
        {"etc/kept": b"k", "etc/gone": b"g", "srv/old/a": b"a", "srv/old/b": b"b", "bin/hello": b"#!/bin/sh\n"},
        {"etc/.wh.gone": b"", "srv/old/.wh..wh..opq": b"", "srv/old/new": b"n", "etc/kept": b"replaced"},
        {"var/lib/data": b"d" * 100_000, "var/empty/": b""},
    ],
    compressed=False,  # it is skopeo that compresses
)
Entry = tuple[int, int, int, int, int, bytes]


def read_tree(root: Path) -> dict[str, Entry]:
    """Return mode, owner, size, time and content of everything below a directory, by relative path."""
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        is_file = stat.S_ISREG(status.st_mode)
        content = path.read_bytes() if is_file else b""
        size_bytes = status.st_size if is_file else 0
        modified = status.st_mtime_ns
        found[path.relative_to(root).as_posix()] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            size_bytes,
            modified,
            content,
        )
    return found


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_tree_that_the_daemon_pulls_is_the_one_that_umoci_unpacks(tmp_path: Path, compression: str) -> None:
    require_root()
    write_layout(tmp_path / "source", {NAME: IMAGE})
    run_umoci("unpack", "--image", f"{tmp_path / 'source'}:{NAME}", tmp_path / "bundle")
    with docker_registry(tmp_path / "registry") as registry, running_daemon(tmp_path / "daemon") as daemon:
        reference = registry.reference("team/app", "1")
        run_skopeo(
            "copy",
            "--dest-tls-verify=false",
            "--dest-compress",
            f"--dest-compress-format={compression}",
            f"oci:{tmp_path / 'source'}:{NAME}",
            f"docker://{reference}",
        )
        with daemon.stream("POST", "/images/pull", {"image": reference}) as stream:
            lines = list(stream)
        assert lines[-1] == "[pull] Done"
        assert [line for line in lines if "extracting" in line] == [
            f"[pull] extracting layer {number}/3..." for number in (1, 2, 3)
        ]
        tree = daemon.data_root / "base_layers" / reference.replace("/", "_").replace(":", "_")
        found = read_tree(tree)
        manifest = json.loads(run_skopeo("inspect", "--raw", f"oci:{daemon.data_root}:{reference}"))
    assert {layer["mediaType"].rpartition("+")[2] for layer in manifest["layers"]} == {compression}
    assert found == read_tree(tmp_path / "bundle" / "rootfs")
    assert {name for name in found if name.startswith("srv")} == {"srv", "srv/old", "srv/old/new"}
    assert os.listdir(tree / "var" / "empty") == []
