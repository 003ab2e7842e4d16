"""What an archive's tables of contents may cost, and that no two readers see different images in them."""

import io
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from minibox_store import Store
from tests.support.archive_forms import FORMS, both_parts, oci_index, pack_parts, replaced
from tests.support.archives import pack
from tests.support.images import BuiltImage, build_image, digest_of
from tests.support.loads import holds, refused, store_with_something

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


def test_S6_tables_that_call_each_other_s_images_by_their_names_are_refused(store: Store) -> None:
    one, two = IMAGE, build_image(salt="other", compressed=False)
    parts = {part.name: part for name, image in {"a:1": one, "b:1": two}.items() for part in both_parts(image, name)}
    entries = [json.loads(oci_index(image, name))["manifests"][0] for name, image in (("a:1", one), ("b:1", two))]
    index = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()

    def archive(names: dict[str, BuiltImage]) -> bytes:
        docker = [json.loads(both_table(image, name))[0] for name, image in names.items()]
        tables = {"index.json": index, "manifest.json": json.dumps(docker).encode()}
        return pack_parts([replace(part, content=tables.get(name, part.content)) for name, part in parts.items()])

    sentence = refused(store, archive({"docker.io/library/b:1": one, "a:1": two}))
    assert "index.json and manifest.json call different images 'docker.io/library/b:1'" in sentence
    store.load(io.BytesIO(archive({"docker.io/library/a:1": one, "b:1": two, "c:1": two})))
    assert holds(store, {"a:1": one, "b:1": two})


def both_table(image: BuiltImage, name: str) -> bytes:
    """Return manifest.json as an archive that is both has it."""
    return next(part.content for part in both_parts(image, name) if part.name == "manifest.json")
