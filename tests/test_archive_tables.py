"""What an archive's tables of contents may cost, and that no two readers see different images in them."""

import io
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from minibox_store import Limits, Store
from tests.support.archive_forms import (
    FORMS,
    MARKER,
    REFERENCE_NAME,
    Part,
    both_parts,
    oci_index,
    pack_parts,
    replaced,
)
from tests.support.archives import blob_name, pack
from tests.support.images import OCI_INDEX, OCI_MANIFEST, BuiltImage, build_image, digest_of, encode_document
from tests.support.loads import holds, refused, store_with_something

HEX = "0123456789abcdef" * 4
IMAGE = build_image(compressed=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_with_something(tmp_path / "store")


def for_many_values(store: Store) -> Store:
    """Return the same store, for tables of more values than usual ones may have."""
    return Store(store.root, durability="none", limits=Limits(document_values=1 << 20))


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
    assert " values" not in refused(for_many_values(store), archive)
    assert time.process_time() - started < 10


def naming_absent(count: int, salt: str) -> bytes:
    """Return an index of so many manifests that nobody has."""
    manifests = [
        {"mediaType": OCI_MANIFEST, "digest": digest_of(str(number).encode()), "size": 100} for number in range(count)
    ]
    return encode_document(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests, "annotations": {"salt": salt}}
    )


def layout_of(documents: dict[str, bytes], docker: bytes) -> bytes:
    """Return an OCI archive of indexes by name, in which docker's table says something too."""
    entries = [
        {
            "mediaType": OCI_INDEX,
            "digest": digest_of(content),
            "size": len(content),
            "annotations": {REFERENCE_NAME: name.partition("#")[0]},
        }
        for name, content in documents.items()
    ]
    index = encode_document({"schemaVersion": 2, "manifests": entries})
    tables = [Part("oci-layout", MARKER), Part("index.json", index), Part("manifest.json", docker)]
    return pack_parts([*tables, *(Part(blob_name(digest_of(each)), each) for each in documents.values())])


@pytest.mark.parametrize(("roots", "manifests"), [(1, 1000), (500, 1)])
def test_S10_what_docker_calls_an_image_a_million_times_is_looked_up_once(
    roots: int, manifests: int, store: Store
) -> None:
    documents = {f"a:1#{number}": naming_absent(manifests, str(number)) for number in range(roots)}
    # In the midst, so that whoever looks for it comes to half of them from either end.
    digest = digest_of(documents[f"a:1#{roots // 2}"]) if roots > 1 else digest_of(str(manifests // 2).encode())
    config = blob_name(digest)
    image = {"Config": config, "RepoTags": ["a:1"] * 100_000, "Layers": []}
    archive = layout_of(documents, json.dumps([image]).encode())
    started = time.process_time()
    assert " values" not in refused(for_many_values(store), archive)
    assert time.process_time() - started < 10


def test_S10_two_tables_are_not_held_against_each_other_for_more_documents_than_may_come_in(store: Store) -> None:
    documents = {f"a:{number}": naming_absent(3, str(number)) for number in range(2)}
    archive = layout_of(documents, b"[]")
    narrow = Store(store.root, durability="none", limits=Limits(documents=7))
    assert refused(narrow, archive) == "invalid archive: its images have more than 7 documents together"
    size_bytes = sum(len(content) + 300 for content in documents.values())
    for most_bytes, problem in ((size_bytes - 1, "documents of more than"), (size_bytes, "it lacks")):
        narrow = Store(store.root, durability="none", limits=Limits(archive_document_bytes=most_bytes))
        assert problem in refused(narrow, archive)


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
