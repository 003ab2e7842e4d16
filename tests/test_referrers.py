"""Lists of what refers to an image, as registries give them: in pages, under tags, odd, wrong, or not at all."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import minibox_store
from minibox_store import Referrer
from minibox_store.archive import ArchiveFile
from minibox_store.cancellation import Cancellation
from minibox_store.copying import copy_image
from minibox_store.documents import Descriptor
from minibox_store.errors import (
    Cancelled,
    InvalidArgument,
    InvalidDocument,
    InvalidReference,
    ManifestUnknown,
    RateLimited,
    RegistryError,
)
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.platforms import Platform
from minibox_store.registry_rules import Mirror, RegistryRule
from tests.support.answers import Answer, Scripted, redirect, registry_error
from tests.support.images import (
    OCI_INDEX,
    OLD_SIGNATURE,
    SBOM,
    SIGNATURE,
    BuiltImage,
    build_artifact,
    build_image,
    build_index,
)
from tests.support.registries import open_mirrored, open_repository, quick_client
from tests.support.sources import memory_of, root_of
from tests.support.upload_registry import UploadRegistry
from tests.support.waiting import SOON_SECONDS

IMAGE = build_image()
INDEX = build_index([IMAGE])
SIGNED = build_artifact(IMAGE.root, annotations={"org.example.by": "alice"})
OLD_FORM = build_artifact(IMAGE.root, kind=None, content=b"old form")
BILL = build_artifact(IMAGE.root, kind=SBOM, content=b"bill")
EVERY = [SIGNED, OLD_FORM, BILL]
LIST = f"/v2/team/app/referrers/{IMAGE.digest}"
TAG = IMAGE.digest.replace(":", "-")


@pytest.fixture
def registry() -> Iterator[UploadRegistry]:
    with UploadRegistry() as running:
        running.put("team/app", *EVERY, IMAGE, tag="1")
        yield running


def find(registry: UploadRegistry, **options: Any) -> tuple[Referrer, ...]:
    return minibox_store.referrers(registry.reference("team/app", "1"), **{"client": quick_client(), **options})


def digests(found: tuple[Referrer, ...]) -> list[str]:
    return sorted(str(each.descriptor.digest) for each in found)


def page(*listed: dict[str, Any], link: str | None = None, media_type: str = OCI_INDEX) -> Answer:
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(listed)}
    headers = {"Content-Type": media_type, **({"Link": link} if link else {})}
    return Answer(headers=headers, body=json.dumps(document).encode())


def answer(registry: UploadRegistry, *answers: Scripted, target: str = LIST) -> None:
    registry.allow("GET", target, *answers)


def all_of(*images: BuiltImage) -> list[str]:
    return sorted(image.digest for image in images)


# What there is


def test_each_says_what_it_is_and_what_it_refers_to(registry: UploadRegistry) -> None:
    found = {str(each.descriptor.digest): each for each in find(registry)}
    assert found.keys() == set(all_of(*EVERY))
    assert {str(each.subject) for each in found.values()} == {IMAGE.digest}
    kinds = {SIGNED.digest: SIGNATURE, OLD_FORM.digest: OLD_SIGNATURE, BILL.digest: SBOM}
    assert {digest: each.artifact_type for digest, each in found.items()} == kinds
    assert found[SIGNED.digest].annotations == {"org.example.by": "alice"}
    descriptor = found[BILL.digest].descriptor
    assert descriptor == Descriptor(
        media_type=BILL.media_type, digest=root_of(BILL).digest, size_bytes=BILL.root["size"], artifact_type=SBOM
    )


@pytest.mark.parametrize("page_names", [1, 2, 3])
def test_a_list_in_pages_is_read_to_its_end(registry: UploadRegistry, page_names: int) -> None:
    registry.page_names = page_names
    assert digests(find(registry)) == all_of(*EVERY)
    assert len([each for each in registry.sent() if "/referrers/" in each]) == -(-len(EVERY) // page_names)


@pytest.mark.parametrize("kind", [SIGNATURE, SBOM, OLD_SIGNATURE, "other"])
def test_of_one_type_what_is_listed_as_another_is_not_read(registry: UploadRegistry, kind: str) -> None:
    expected = [image for image, its in zip(EVERY, (SIGNATURE, OLD_SIGNATURE, SBOM), strict=True) if its == kind]
    assert digests(find(registry, artifact_type=kind)) == all_of(*expected)
    read = [each for each in registry.sent() if "/manifests/sha256:" in each]
    assert len(read) == len(expected)


def test_a_type_that_a_list_makes_up_does_not_count(registry: UploadRegistry) -> None:
    answer(registry, page({**SIGNED.root, "artifactType": SBOM}, BILL.root))
    assert digests(find(registry, artifact_type=SBOM)) == [BILL.digest]
    assert {each.artifact_type for each in find(registry)} == {SIGNATURE, SBOM}


def test_nothing_refers_to_what_nothing_refers_to(registry: UploadRegistry) -> None:
    registry.put("team/app", build_image(salt="alone"), tag="alone")
    for registry.knows_subjects in (True, False):
        assert minibox_store.referrers(registry.reference("team/app", "alone"), client=quick_client()) == ()


def test_what_is_asked_for_has_to_be_there(registry: UploadRegistry) -> None:
    with pytest.raises(ManifestUnknown):
        minibox_store.referrers(registry.reference("team/app", "other"), client=quick_client())
    with pytest.raises(InvalidReference):
        minibox_store.referrers("Not A Reference", client=quick_client())


# Registries without lists


@pytest.mark.parametrize(
    "refusal",
    [
        *(registry_error(status, "UNSUPPORTED") for status in (400, 404, 405, 406, 501)),
        Answer(status=404, headers={"Content-Type": "text/plain"}, body=b"404 page not found"),
        redirect("/-/v2/packages/container/package/team%2Fapp%2Freferrers%2Fsha256", status=303),
        Answer(headers={"Content-Type": "text/html"}, body=b"<html>welcome</html>"),
        Answer(headers={"Content-Type": "application/json"}, body=b"{}"),
    ],
    ids=["400", "404", "405", "406", "501", "plain 404", "GHCR", "a page for people", "something else"],
)
def test_where_a_registry_makes_no_lists_what_is_under_the_tag_counts(
    registry: UploadRegistry, refusal: Answer
) -> None:
    answer(registry, refusal)
    assert find(registry) == ()
    registry.manifests["team/app", TAG] = (OCI_INDEX, page(SIGNED.root, BILL.root).body)
    assert digests(find(registry)) == all_of(SIGNED, BILL)


@pytest.mark.parametrize("status", [401, 403, 500, 429])
def test_a_registry_that_refuses_or_fails_is_no_registry_without_lists(registry: UploadRegistry, status: int) -> None:
    registry.manifests["team/app", TAG] = (OCI_INDEX, page(SIGNED.root).body)
    answer(registry, registry_error(status, "DENIED"))
    with pytest.raises(RateLimited if status == 429 else RegistryError):
        find(registry)


def test_a_list_under_the_tag_is_read_within_the_limits_of_the_client(registry: UploadRegistry) -> None:
    registry.knows_subjects = False
    annotations = {str(number): "" for number in range(DEFAULT_LIMITS.document_values)}
    listed = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [SIGNED.root], "annotations": annotations}
    registry.manifests["team/app", TAG] = (OCI_INDEX, json.dumps(listed).encode())
    client = quick_client(limits=Limits(document_values=1 << 18))
    assert digests(find(registry, client=client)) == [SIGNED.digest]


def test_a_copy_with_its_referrers_is_made_within_the_limits_of_the_client(registry: UploadRegistry) -> None:
    many = {str(number): "" for number in range(DEFAULT_LIMITS.document_values)}
    image = build_image(annotations=many)
    signed = build_artifact(image.root, annotations=many)
    registry.put("team/app", signed, image, tag="1")
    client = quick_client(limits=Limits(document_values=1 << 18))
    assert digests(find(registry, client=client)) == [signed.digest]
    source, place = registry.reference("team/app", "1"), registry.reference("team/copied", "1")
    minibox_store.copy(source, place, platform=Platform.parse("linux/amd64"), referrers=True, client=client)
    assert all(registry.holds("team/copied", each) for each in (image, signed))


def test_what_stands_under_the_tag_and_is_no_list_is_an_error(registry: UploadRegistry) -> None:
    registry.knows_subjects = False
    registry.put("team/app", SIGNED, tag=TAG)
    with pytest.raises(InvalidDocument, match="no list of referrers"):
        find(registry)


@pytest.mark.parametrize("subject", [IMAGE, INDEX], ids=["manifest", "index"])
def test_gitlab_takes_the_tag_of_a_list_for_the_digest_of_what_it_is_about(
    registry: UploadRegistry, subject: BuiltImage
) -> None:
    registry.knows_subjects = False
    registry.put("team/app", subject, tag="1")
    registry.put("team/app", subject, tag=subject.digest.replace(":", "-"))
    with open_repository(registry.reference("team/app", "1")) as repository:
        assert repository.referrers(root_of(subject)) == ()


# Lists that lie


def test_what_refers_to_something_else_or_is_gone_is_left_out(registry: UploadRegistry) -> None:
    other = build_artifact(build_image(salt="other").root)
    registry.put("team/app", other)
    gone = build_artifact(IMAGE.root, content=b"gone")
    layer = {"mediaType": "application/octet-stream", "digest": SIGNED.layer_digests[0], "size": 6}
    answer(registry, page(other.root, gone.root, IMAGE.root, layer, SIGNED.root, SIGNED.root))
    assert digests(find(registry)) == [SIGNED.digest]


@pytest.mark.parametrize("size", [0, BILL.root["size"] - 1, BILL.root["size"] + 1])
def test_a_wrong_size_is_an_error(registry: UploadRegistry, size: int) -> None:
    answer(registry, page({**BILL.root, "size": size}))
    with pytest.raises(minibox_store.StoreError, match=BILL.digest):
        find(registry)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"schemaVersion":2,"manifests":[{"digest":"x"}]}', b"{" * 9999])
def test_a_list_that_is_none_is_an_error(registry: UploadRegistry, body: bytes) -> None:
    answer(registry, Answer(headers={"Content-Type": OCI_INDEX}, body=body))
    with pytest.raises(InvalidDocument):
        find(registry)


def test_a_list_of_more_than_4_mib_is_not_read_to_its_end(registry: UploadRegistry) -> None:
    answer(registry, Answer(headers={"Content-Type": OCI_INDEX}, body=bytes(5 << 20)))
    with pytest.raises(InvalidDocument, match="larger than 4194304 bytes"):
        find(registry)


def test_pages_that_lead_in_a_circle_or_nowhere_end(registry: UploadRegistry) -> None:
    answer(registry, page(SIGNED.root, link=f'<{LIST}>; rel="next"'))
    with pytest.raises(RegistryError, match="does not come to an end"):
        find(registry)
    answer(registry, page(link=f'<{LIST}>; rel="next"'))
    assert find(registry) == ()


def test_a_page_with_nothing_on_it_leads_on(registry: UploadRegistry) -> None:
    answer(registry, page(link=f'<{LIST}?last=a>; rel="next"'))
    answer(registry, page(SIGNED.root), target=f"{LIST}?last=a")
    assert digests(find(registry)) == [SIGNED.digest]


@pytest.mark.parametrize("listed", [[SIGNED.root], []], ids=["listed", "empty"])
def test_pages_without_end_are_left(registry: UploadRegistry, listed: list[dict[str, Any]]) -> None:
    for number in range(300):
        link = f'<{LIST}?at={number + 1}>; rel="next"'
        answer(registry, page(*listed, link=link), target=f"{LIST}?at={number}" if number else LIST)
    with pytest.raises(RegistryError, match="does not come to an end"):
        find(registry)
    assert len(registry.requests) < 270


def test_large_pages_without_end_are_left_sooner_s7(registry: UploadRegistry) -> None:
    large = {**SIGNED.root, "annotations": {"org.example.long": "x" * 4_000_000}}
    for number in range(10):
        link = f'<{LIST}?at={number + 1}>; rel="next"'
        answer(registry, page(large, link=link), target=f"{LIST}?at={number}" if number else LIST)
    with pytest.raises(RegistryError, match="does not come to an end"):
        find(registry)
    assert len([request for request in registry.requests if "/referrers/" in request.path]) == 5


def test_a_page_on_another_host_is_not_asked_for(registry: UploadRegistry) -> None:
    with UploadRegistry() as other:
        answer(registry, page(SIGNED.root, link=f'<http://{other.host}{LIST}?last=a>; rel="next"'))
        answer(registry, page(BILL.root), target=f"{LIST}?last=a")
        assert digests(find(registry)) == all_of(SIGNED, BILL)
        assert other.requests == []


def test_a_later_page_that_fails_is_an_error_and_no_registry_without_lists(registry: UploadRegistry) -> None:
    answer(registry, page(SIGNED.root, link=f'<{LIST}?last=a>; rel="next"'))
    answer(registry, registry_error(404, "NOT_FOUND"), target=f"{LIST}?last=a")
    with pytest.raises(RegistryError):
        find(registry)


def test_more_than_1024_documents_are_not_read(registry: UploadRegistry) -> None:
    listed = [{**SIGNED.root, "digest": f"sha256:{number:064x}"} for number in range(1100)]
    answer(registry, page(*listed))
    with pytest.raises(InvalidDocument, match="more than 1024 documents are said to refer to it"):
        find(registry)
    assert len(registry.requests) < 1030


def test_a_cancel_ends_it_within_a_second(registry: UploadRegistry) -> None:
    cancellation, release = Cancellation(), threading.Event()

    def stall(_: object) -> Answer:
        cancelling.start()
        release.wait(60)
        return page()

    cancelling = threading.Timer(0.1, cancellation.cancel)
    answer(registry, stall)
    began = time.monotonic()
    try:
        with pytest.raises(Cancelled):
            find(registry, cancellation=cancellation)
        assert time.monotonic() - began < SOON_SECONDS
    finally:
        release.set()
        cancelling.join()


# Mirrors


def test_a_mirror_that_lists_something_serves_and_one_that_fails_does_not_hide_what_it_stands_for(
    registry: UploadRegistry,
) -> None:
    with UploadRegistry() as mirror:
        rule = RegistryRule(prefix=registry.host, mirrors=(Mirror(location=mirror.host),))
        with open_mirrored(registry.reference("team/app", "1"), rule) as opened:
            mirror.allow("GET", LIST, page(BILL.root), registry_error(403, "DENIED"), page())
            assert [str(each.digest) for each in opened.referrers(root_of(IMAGE))] == [BILL.digest]
            for _ in range(2):
                found = [str(each.digest) for each in opened.referrers(root_of(IMAGE))]
                assert sorted(found) == all_of(*EVERY)
            answer(registry, registry_error(403, "DENIED"))
            with pytest.raises(RegistryError):
                opened.referrers(root_of(IMAGE))


# Copies


def test_a_copy_has_what_refers_to_the_image_before_it_has_the_tag(registry: UploadRegistry) -> None:
    with UploadRegistry() as target:
        place = target.reference("team/copied", "1")
        minibox_store.copy(registry.reference("team/app", "1"), place, referrers=True, client=quick_client())
        puts = target.sent("PUT")
        assert puts[-1] == "PUT /v2/team/copied/manifests/1"
        assert f"PUT /v2/team/copied/manifests/{IMAGE.digest}" not in puts
        assert all(target.holds("team/copied", each) for each in (IMAGE, *EVERY))
        assert digests(minibox_store.referrers(place, client=quick_client())) == all_of(*EVERY)
        minibox_store.copy(registry.reference("team/app", "1"), target.reference("a/b", "1"), client=quick_client())
        assert not any(target.holds("a/b", each) for each in EVERY)


def test_only_a_target_that_keeps_referrers_may_be_given_any(tmp_path: Path) -> None:
    target = ArchiveFile(str(tmp_path / "a.tar"), durable=False)
    images = memory_of({"a:1": IMAGE})
    with pytest.raises(InvalidArgument, match="referrers"):
        copy_image(images, target, root_of(IMAGE), ["a:1"], referrers=[root_of(SIGNED)])
    assert list(tmp_path.iterdir()) == []
