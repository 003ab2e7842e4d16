"""What this project tells of an image, skopeo and umoci tell too."""

import json
from pathlib import Path
from typing import Any

import pytest

from minibox_store import Platform, Store
from tests.support.images import BuiltImage, build_image, build_index
from tests.support.layouts import write_layout
from tests.support.peers import run_skopeo, run_umoci

CONFIG: dict[str, Any] = {
    "author": "A. Maker",
    "config": {
        "User": "1000",
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "Env": ["PATH=/bin", "EMPTY="],
        "Entrypoint": ["/bin/hello"],
        "Cmd": ["--world"],
        "Volumes": {"/var/data": {}},
        "WorkingDir": "/srv",
        "Labels": {"stage": "test"},
        "StopSignal": "SIGINT",
    },
    "history": [
        {"created": "2024-01-01T00:00:00Z", "created_by": "ADD a", "comment": "first"},
        {"created": "2024-01-02T00:00:00Z", "created_by": "ENV EMPTY=", "empty_layer": True},
        {"created": "2024-01-03T00:00:00Z", "created_by": "ADD b", "author": "B"},
    ],
}
IMAGE = build_image([{"a": b"1"}, {"b": b"2"}], config=CONFIG)
NAMED = {"app:1": IMAGE, "bare:1": build_image([{"c": b"3"}], config={"config": None, "history": None})}


@pytest.mark.parametrize("name", NAMED)
def test_skopeo_says_the_same_of_a_config(tmp_path: Path, name: str) -> None:
    write_layout(tmp_path, NAMED)
    said = json.loads(run_skopeo("inspect", "--config", f"oci:{tmp_path}:{name}"))
    (manifest,) = Store(tmp_path).inspect(name).manifests
    config = manifest.config
    assert config is not None
    execution = said.get("config", {})
    assert (config.author, config.created) == (said.get("author"), said["created"])
    assert (config.user, config.working_dir) == (execution.get("User"), execution.get("WorkingDir"))
    assert config.stop_signal == execution.get("StopSignal")
    for found, key in ((config.env, "Env"), (config.entrypoint, "Entrypoint"), (config.cmd, "Cmd")):
        assert list(found) == execution.get(key, [])
    assert config.exposed_ports == tuple(sorted(execution.get("ExposedPorts", {})))
    assert config.volumes == tuple(sorted(execution.get("Volumes", {})))
    assert config.labels == execution.get("Labels", {})
    assert [str(each.diff_id) for each in manifest.layers] == said["rootfs"]["diff_ids"]
    keys = ("created", "created_by", "author", "comment")
    told = [tuple(step.get(key) for key in keys) for step in said.get("history", [])]
    assert [(each.created, each.created_by, each.author, each.comment) for each in config.history] == told


def test_umoci_gives_each_step_of_a_history_the_same_layer(tmp_path: Path) -> None:
    write_layout(tmp_path, NAMED)
    said = json.loads(run_umoci("stat", "--image", f"{tmp_path}:app:1", "--json"))["history"]
    found = Store(tmp_path).history("app:1")
    assert [each.created_by for each in found] == [step["created_by"] for step in said]
    layers = [(step["layer"] or {}).get("digest") for step in said]
    assert [str(each.layer.digest) if each.layer else None for each in found] == layers


@pytest.mark.parametrize("platform", ["linux/arm64", "linux/amd64"])
def test_skopeo_chooses_the_same_config_of_an_index(tmp_path: Path, platform: str) -> None:
    images: list[BuiltImage] = [build_image(platform=each, salt=each) for each in ("linux/arm64", "linux/amd64")]
    write_layout(tmp_path, {"app:1": build_index(images)})
    architecture = platform.partition("/")[2]
    said = json.loads(run_skopeo("--override-arch", architecture, "inspect", "--config", f"oci:{tmp_path}:app:1"))
    (manifest,) = Store(tmp_path).inspect("app:1", platform=Platform.parse(platform)).manifests
    assert manifest.config is not None
    assert manifest.config.labels == said["config"]["Labels"] == {"salt": platform}
