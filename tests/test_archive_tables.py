"""What an archive's tables of contents may cost, and that no two readers see different images in them."""

import json
import time
from pathlib import Path

import pytest

from minibox_store import Store
from tests.support.archive_forms import FORMS, pack_parts, replaced
from tests.support.archives import pack
from tests.support.images import build_image, digest_of
from tests.support.loads import refused, store_with_something

HEX = "0123456789abcdef" * 4
IMAGE = build_image(compressed=False)


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


def other_key(content: bytes, key: str, value: object) -> bytes:
    """Return a document in whose first object with that key it stands once more, in other letters."""
    again = json.dumps(value).encode()
    return content.replace(
        f'"{key}":'.encode(), b'"' + key.swapcase().encode() + b'":' + again + f',"{key}":'.encode(), 1
    )


@pytest.mark.parametrize(
    ("form", "table", "key"),
    [
        *(("OCI", "index.json", key) for key in ("manifests", "digest", "size", "mediaType", "annotations")),
        *(("docker", "manifest.json", key) for key in ("Config", "Layers", "RepoTags")),
    ],
)
def test_S5_S6_a_table_that_spells_a_key_in_other_letters_is_refused(
    form: str, table: str, key: str, store: Store
) -> None:
    parts = FORMS[form](IMAGE, "app:1")
    content = next(part.content for part in parts if part.name == table)
    changed = other_key(content, key, None)
    assert changed != content
    sentence = refused(store, pack_parts(replaced(parts, table, changed)))
    assert f"it spells {key} in other letters" in sentence
