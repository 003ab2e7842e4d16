"""What an archive's tables of contents may cost, and that no two readers see different images in them."""

import json
import time
from pathlib import Path

import pytest

from minibox_store import Store
from tests.support.archives import pack
from tests.support.images import digest_of
from tests.support.loads import refused, store_with_something

HEX = "0123456789abcdef" * 4


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_with_something(tmp_path / "store")


@pytest.mark.parametrize(("layers", "names"), [(400_000, 20_000), (1, 50_000)])
def test_S10_many_names_of_an_image_of_many_layers_cost_no_more_than_their_bytes(
    layers: int, names: int, store: Store
) -> None:
    config = digest_of(b"{}").partition(":")[2]
    image = {"Config": f"{config}.json", "RepoTags": None, "Layers": [*[""] * (layers - 1), f"{HEX}/layer.tar"]}
    repositories = {"a": {str(number): HEX for number in range(names)}}
    content = [(f"{config}.json", b"{}")]
    content += [("manifest.json", json.dumps([image]).encode()), ("repositories", json.dumps(repositories).encode())]
    archive = pack(content)
    started = time.process_time()
    refused(store, archive)
    assert time.process_time() - started < 10
