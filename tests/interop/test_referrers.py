"""Real registries, and other tools, see what was pushed to refer to something; and what they have is found again."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import minibox_store
from tests.support.images import SBOM, BuiltImage, build_artifact, build_image, build_index
from tests.support.invariants import check_invariants, stored
from tests.support.layouts import read_layout_blobs
from tests.support.peers import DockerRegistry, docker_registry, push_image, run_skopeo, run_umoci
from tests.support.registries import quick_client
from tests.support.stores import open_store, put

IMAGE = build_image()
INDEX = build_index([IMAGE, build_image(platform="linux/arm64")])
SIGNED = build_artifact(IMAGE.root, annotations={"org.example.by": "alice"})
BILL = build_artifact(IMAGE.root, kind=SBOM, content=b"bill")
SIGNED_BILL = build_artifact(BILL.root, content=b"of the bill")
OLD_FORM = build_artifact(INDEX.root, kind=None, content=b"of the index")
ALONG = [SIGNED, BILL, SIGNED_BILL, OLD_FORM]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Yield a registry without the referrers API, to which an image was pushed, and all that refers to it."""
    folder = tmp_path_factory.mktemp("registry")
    with docker_registry(folder) as running:
        push_image(running, "team/app", "1", INDEX)
        for number, image in enumerate(ALONG):
            put(folder / "store", image, f"artifact:{number}")
            reference = running.reference("team/app", digest=image.digest)
            open_store(folder / "store").push(f"artifact:{number}", reference, client=quick_client())
        yield running


def digests(*images: BuiltImage) -> list[str]:
    return sorted(image.digest for image in images)


def test_skopeo_reads_the_list_that_a_push_has_left_and_all_that_it_names(
    tmp_path: Path, registry: DockerRegistry
) -> None:
    tag = IMAGE.digest.replace(":", "-")
    place = f"docker://{registry.host}/team/app:{tag}"
    listed = json.loads(run_skopeo("inspect", "--raw", "--tls-verify=false", place))
    assert [each["digest"] for each in listed["manifests"]] == [SIGNED.digest, BILL.digest]
    assert [each["artifactType"] for each in listed["manifests"]][1] == SBOM
    assert listed["manifests"][0]["annotations"] == {"org.example.by": "alice"}
    for artifact in (SIGNED, BILL):
        source = f"docker://{registry.host}/team/app@{artifact.digest}"
        assert json.loads(run_skopeo("inspect", "--raw", "--tls-verify=false", source)) == artifact.document()


def test_what_refers_to_an_image_is_found_where_a_registry_lists_nothing(registry: DockerRegistry) -> None:
    reference = registry.reference("team/app", digest=IMAGE.digest)
    found = minibox_store.referrers(reference, client=quick_client())
    assert [str(each.descriptor.digest) for each in found] == [SIGNED.digest, BILL.digest]
    assert found[0].annotations == {"org.example.by": "alice"}
    (bill,) = minibox_store.referrers(reference, artifact_type=SBOM, client=quick_client())
    assert str(bill.descriptor.digest) == BILL.digest
    (of_index,) = minibox_store.referrers(registry.reference("team/app", "1"), client=quick_client())
    assert str(of_index.descriptor.digest) == OLD_FORM.digest
    assert minibox_store.referrers(registry.reference("team/app", digest=SIGNED.digest), client=quick_client()) == ()


def test_a_whole_index_comes_with_all_that_refers_to_it_and_goes_with_it(
    tmp_path: Path, registry: DockerRegistry
) -> None:
    store = open_store(tmp_path / "store")
    store.pull(registry.reference("team/app", "1"), name="app:1", platform=None, referrers=True, client=quick_client())
    found = store.referrers("app:1")
    assert sorted(str(each.descriptor.digest) for each in found) == digests(*ALONG)
    assert stored(tmp_path / "store") == {digest for image in (INDEX, *ALONG) for digest in image.blobs}
    store.remove("app:1")
    store.prune()
    assert stored(tmp_path / "store") == set()
    check_invariants(tmp_path / "store")


def test_other_tools_read_a_store_that_keeps_what_refers_to_an_image(tmp_path: Path, registry: DockerRegistry) -> None:
    root = tmp_path / "store"
    reference = registry.reference("team/app", "1")
    open_store(root).pull(reference, name="app", referrers=True, client=quick_client())
    run_skopeo("copy", "--preserve-digests", f"oci:{root}:app", f"oci:{tmp_path / 'copied'}:app")
    assert read_layout_blobs(tmp_path / "copied") == IMAGE.blobs
    assert run_umoci("ls", "--layout", root).split() == ["app"]
    run_umoci("gc", "--layout", root)
    assert stored(root) >= {digest for image in (IMAGE, SIGNED, BILL, SIGNED_BILL) for digest in image.blobs}


def test_a_push_takes_along_what_a_pull_has_brought(tmp_path: Path, registry: DockerRegistry) -> None:
    store = open_store(tmp_path / "store")
    store.pull(registry.reference("team/app", "1"), name="app:1", platform=None, referrers=True, client=quick_client())
    target = registry.reference("team/pushed", "1")
    store.push("app:1", target, referrers=True, client=quick_client())
    for subject, expected in ((IMAGE, [SIGNED, BILL]), (BILL, [SIGNED_BILL]), (INDEX, [OLD_FORM])):
        reference = registry.reference("team/pushed", digest=subject.digest)
        found = minibox_store.referrers(reference, client=quick_client())
        assert sorted(str(each.descriptor.digest) for each in found) == digests(*expected)
    assert fetched(tmp_path / "fetched", target) == INDEX.blobs


def fetched(folder: Path, reference: str) -> dict[str, bytes]:
    """Return what skopeo gets for a reference."""
    flags = ("--all", "--preserve-digests", "--src-tls-verify=false")
    run_skopeo("copy", *flags, f"docker://{reference}", f"oci:{folder}:x")
    return read_layout_blobs(folder)


def test_a_copy_takes_along_what_refers_to_an_image(registry: DockerRegistry) -> None:
    source, target = registry.reference("team/app", "1"), registry.reference("team/copied", "1")
    minibox_store.copy(source, target, referrers=True, client=quick_client())
    for subject, expected in ((IMAGE, [SIGNED, BILL]), (BILL, [SIGNED_BILL]), (INDEX, [OLD_FORM])):
        reference = registry.reference("team/copied", digest=subject.digest)
        found = minibox_store.referrers(reference, client=quick_client())
        assert sorted(str(each.descriptor.digest) for each in found) == digests(*expected)
