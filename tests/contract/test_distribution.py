"""What the distribution-spec demands of a registry, each demand once, in its four categories.

Asked of the daemon, and of docker-registry, so that a test which understands the specification otherwise than others
do is seen. Each heading names the section; the version is 1.1.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.daemon import running_daemon
from tests.support.distribution import ABSENT, OCTETS, Answer, DistributionClient, next_page, with_query
from tests.support.images import (
    DOCKER_MANIFEST,
    EMPTY,
    OCI_INDEX,
    OCI_MANIFEST,
    OLD_SIGNATURE,
    SBOM,
    SIGNATURE,
    BuiltImage,
    build_artifact,
    build_image,
    build_index,
    digest_of,
    encode_document,
)
from tests.support.peers import docker_registry

OURS, DOCKER = "minibox", "docker-registry 2.8"
FIRST, SECOND = b"the first part, ", b"and the second"
BOTH = FIRST + SECOND

# What docker-registry 2.8, which is older than the specification's version 1.1, does not do, or does otherwise.
LEFT_OUT = {
    "test_pull_blobs_a_range_beyond_the_end_is_not_satisfiable": "it announces a body with its 416, and sends none",
    "test_push_single_post_a_blob_is_taken": "it begins an upload instead, which the section allows",
    "test_push_chunks_one_out_of_order_is_refused_and_the_upload_goes_on": "it does not look at Content-Range",
    "test_push_chunks_a_last_one_out_of_order_is_refused_and_the_upload_goes_on": "it does not look at Content-Range",
    "test_push_chunks_a_range_that_is_none_or_not_of_these_bytes_is_refused": "it does not look at Content-Range",
    "test_push_chunks_the_state_is_told_at_any_location_that_was_given": "it knows the last location alone",
    "test_push_manifests_what_is_no_image_is_refused": "it refuses it by other codes",
    "test_push_manifests_more_is_refused_as_too_large": "it refuses it by 400",
    "test_push_manifests_blobs_of_sha512_are_kept_by_that": "it keeps manifests by sha256 alone",
    "test_push_subject_is_taken_and_named_whether_it_is_there_or_not": "it knows no subject, which is of 1.1",
    "test_tags_are_listed_in_order": "it lists tags in no order",
    "test_tags_are_in_order_whatever_their_case": "it lists tags in no order",
    "test_tags_are_listed_so_many_at_once_after_the_last_one": "it lists all tags always",
    "test_tags_of_the_next_page_are_linked_to": "it lists all tags always",
    "test_tags_none_are_listed_where_none_are_asked_for": "it lists all tags always",
    "test_referrers_are_listed_with_their_types_and_annotations": "referrers are of 1.1",
    "test_referrers_of_one_type_are_listed_and_the_answer_says_so": "referrers are of 1.1",
    "test_referrers_of_what_is_not_there_are_an_empty_list_until_one_is": "referrers are of 1.1",
    "test_referrers_of_another_repository_are_not_listed": "referrers are of 1.1",
    "test_referrers_that_have_a_tag_are_listed_once": "referrers are of 1.1",
    "test_referrers_are_gone_once_they_are_deleted": "referrers are of 1.1",
    "test_referrers_of_what_is_no_digest_are_refused": "referrers are of 1.1",
    "test_delete_tag_takes_that_tag_alone": "it refuses to delete tags, which the section allows",
    "test_delete_blob_that_an_image_needs_is_refused_and_after_the_image_is_not": "it takes the blob from the image",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "registry" in metafunc.fixturenames:
        kinds = [each for each in (OURS, DOCKER) if each == OURS or metafunc.function.__name__ not in LEFT_OUT]
        metafunc.parametrize("registry", kinds, indirect=True, scope="module")


@pytest.fixture(scope="module")
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DistributionClient]:
    folder = tmp_path_factory.mktemp("registry")
    if request.param == OURS:
        with running_daemon(folder) as daemon:
            yield DistributionClient(host=daemon.host)
    else:
        with docker_registry(folder) as running:
            yield DistributionClient(host=running.host)


@pytest.fixture
def repository(registry: DistributionClient) -> str:
    return registry.new_repository()


@pytest.fixture
def image() -> BuiltImage:
    return build_image(salt="distribution")


def manifest_of(registry: DistributionClient, repository: str, **fields: Any) -> bytes:
    """Return a manifest without layers, whose config is pushed."""
    config = registry.push_blob(repository, b"{}")
    descriptor = {"mediaType": EMPTY, "digest": config, "size": 2}
    return encode_document(
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor, "layers": [], **fields}
    )


def listed(answer: Answer) -> dict[str, dict[str, Any]]:
    """Return the descriptors of a list of referrers, by digest."""
    assert answer.status == 200, answer
    assert answer.headers["content-type"] == OCI_INDEX
    document = answer.json()
    assert (document["schemaVersion"], document["mediaType"]) == (2, OCI_INDEX)
    found = {str(each["digest"]): each for each in document["manifests"]}
    assert len(found) == len(document["manifests"])
    return found


def test_each_test_that_is_left_out_for_a_registry_is_here() -> None:
    assert set(LEFT_OUT) <= set(globals())


# ---- Determining Support


def test_the_base_says_that_this_is_a_registry(registry: DistributionClient) -> None:
    assert registry.get("/v2/").status == 200


# ---- Pull: Pulling manifests


def test_pull_manifests_a_manifest_is_given_by_tag_and_by_digest_with_its_bytes_type_and_digest(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    registry.push_image(repository, image, "1")
    for reference in ("1", image.digest):
        answer = registry.get(f"/v2/{repository}/manifests/{reference}")
        assert (answer.status, answer.body) == (200, image.blobs[image.digest])
        assert answer.headers["content-type"] == OCI_MANIFEST
        assert answer.headers["docker-content-digest"] == image.digest


def test_pull_manifests_an_index_and_each_of_its_manifests_is_given(
    registry: DistributionClient, repository: str
) -> None:
    index = build_index([build_image(), build_image(platform="linux/arm64", docker=True)])
    registry.push_image(repository, index, "1")
    for digest in index.document_digests:
        answer = registry.get(f"/v2/{repository}/manifests/{digest}")
        assert (answer.status, answer.body) == (200, index.blobs[digest])
        assert answer.headers["content-type"] == index.media_types[digest]


def test_pull_manifests_one_that_is_not_in_the_repository_is_not_found(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    other = registry.new_repository()
    registry.push_image(other, image, "1")
    registry.push_image(repository, build_image(salt="another"), "1")
    for reference in ("2", ABSENT, image.digest):
        answer = registry.get(f"/v2/{repository}/manifests/{reference}")
        assert (answer.status, answer.codes) == (404, ["MANIFEST_UNKNOWN"])


def test_pull_manifests_a_repository_that_is_not_there_is_not_found(registry: DistributionClient) -> None:
    for target in ("manifests/1", f"manifests/{ABSENT}", f"blobs/{ABSENT}", "tags/list"):
        answer = registry.get(f"/v2/team/nowhere/{target}")
        assert answer.status == 404
        assert answer.codes


@pytest.mark.parametrize("words", ["a", "a.b/c_d/e-f", "a__b", "a--b", "1/2", "a" * 100 + "/" + "b" * 100])
def test_pull_manifests_a_name_is_what_the_grammar_allows(
    registry: DistributionClient, image: BuiltImage, words: str
) -> None:
    repository = registry.new_repository(words)
    registry.push_image(repository, image, "1")
    assert registry.get(f"/v2/{repository}/manifests/1").body == image.blobs[image.digest]
    assert registry.get(f"/v2/{repository}/blobs/{image.config_digest}").status == 200


@pytest.mark.parametrize("name", ["A", "a..b", "a.", "-a", "a___b", "a%20b", "a%00b"])
def test_pull_manifests_a_name_is_nothing_else(registry: DistributionClient, name: str) -> None:
    for method, target in (("GET", "manifests/1"), ("PUT", "manifests/1"), ("POST", "blobs/uploads/")):
        answer = registry.request(method, f"/v2/{name}/{target}", body=b"{}" if method == "PUT" else None)
        assert answer.status in (400, 404), (method, answer)


def test_pull_manifests_a_tag_is_what_the_grammar_allows(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    tags = ["_", "A", "1.0-rc_2", "x" * 128]
    registry.push_image(repository, image, *tags)
    for tag in tags:
        assert registry.get(f"/v2/{repository}/manifests/{tag}").status == 200
    for tag in ("-a", ".a", "x" * 129, "a+b", "a%2fb"):
        answer = registry.put_manifest(repository, tag, image.blobs[image.digest], OCI_MANIFEST)
        assert answer.status in (400, 404), tag
    assert sorted(registry.tags(repository)) == sorted(tags)


# ---- Pull: Pulling blobs


def test_pull_blobs_a_blob_is_given_with_its_bytes_and_digest(registry: DistributionClient, repository: str) -> None:
    for content in (BOTH, b"", bytes(range(256)) * 5000):
        digest = registry.push_blob(repository, content)
        answer = registry.get(f"/v2/{repository}/blobs/{digest}")
        assert (answer.status, answer.body) == (200, content)
        assert answer.headers["docker-content-digest"] == digest


def test_pull_blobs_one_that_is_not_in_the_repository_is_not_found(
    registry: DistributionClient, repository: str
) -> None:
    registry.push_blob(repository, FIRST)
    elsewhere = registry.push_blob(registry.new_repository(), b"of another repository")
    for digest in (ABSENT, "sha512:" + "0" * 128, elsewhere):
        answer = registry.get(f"/v2/{repository}/blobs/{digest}")
        assert (answer.status, answer.codes) == (404, ["BLOB_UNKNOWN"])


@pytest.mark.parametrize("digest", ["sha256:abc", "sha256:" + "g" * 64, "sha256:", "md5:" + "0" * 32, "latest"])
def test_pull_blobs_what_is_no_digest_is_refused(registry: DistributionClient, repository: str, digest: str) -> None:
    registry.push_blob(repository, FIRST)
    for method in ("GET", "HEAD", "DELETE"):
        assert registry.request(method, f"/v2/{repository}/blobs/{digest}").status in (400, 404, 405)


def test_pull_blobs_one_range_is_given(registry: DistributionClient, repository: str) -> None:
    digest = registry.push_blob(repository, BOTH)
    for said, content in (("0-4", BOTH[:5]), ("5-", BOTH[5:]), ("-6", BOTH[-6:])):
        answer = registry.get(f"/v2/{repository}/blobs/{digest}", Range=f"bytes={said}")
        assert (answer.status, answer.body) == (206, content)
        begin = BOTH.index(content)
        assert answer.headers["content-range"] == f"bytes {begin}-{begin + len(content) - 1}/{len(BOTH)}"


def test_pull_blobs_a_range_beyond_the_end_is_not_satisfiable(registry: DistributionClient, repository: str) -> None:
    digest = registry.push_blob(repository, BOTH)
    answer = registry.get(f"/v2/{repository}/blobs/{digest}", Range=f"bytes={len(BOTH)}-")
    assert (answer.status, answer.headers["content-range"]) == (416, f"bytes */{len(BOTH)}")


# ---- Pull: Checking if content exists in the registry


def test_pull_exists_head_says_what_get_says_without_a_body(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    registry.push_image(repository, image, "1")
    for target in ("manifests/1", f"manifests/{image.digest}", f"blobs/{image.config_digest}"):
        head, get = registry.head(f"/v2/{repository}/{target}"), registry.get(f"/v2/{repository}/{target}")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == str(len(get.body))
        for name in ("content-type", "content-length", "docker-content-digest", "etag"):
            assert head.headers.get(name) == get.headers.get(name), name


def test_pull_exists_what_is_not_there_is_not_found(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    registry.push_image(repository, image, "1")
    for target in ("manifests/2", f"manifests/{ABSENT}", f"blobs/{ABSENT}"):
        answer = registry.head(f"/v2/{repository}/{target}")
        assert (answer.status, answer.body) == (404, b"")


# ---- Push: POST then PUT


def test_push_post_then_put_an_upload_has_a_location_of_its_own_and_ends_at_the_blobs(
    registry: DistributionClient, repository: str
) -> None:
    locations = [registry.start_upload(repository) for _ in range(2)]
    assert locations[0] != locations[1]
    for location, content in zip(locations, (FIRST, SECOND), strict=True):
        digest = digest_of(content)
        answer = registry.close_upload(location, digest, content)
        assert answer.status == 201
        assert registry.get(registry.target_of(answer)).body == content
        assert answer.headers["docker-content-digest"] == digest


def test_push_post_then_put_a_blob_comes_without_a_length_too(registry: DistributionClient, repository: str) -> None:
    location, digest = registry.start_upload(repository), digest_of(BOTH)
    target = with_query(location, digest=digest)
    answer = registry.request("PUT", target, body=iter([FIRST, SECOND]), headers={"Content-Type": OCTETS})
    assert answer.status == 201
    assert registry.get(f"/v2/{repository}/blobs/{digest}").body == BOTH


def test_push_post_then_put_what_is_there_already_may_be_pushed_again(
    registry: DistributionClient, repository: str
) -> None:
    for _ in range(2):
        digest = registry.push_blob(repository, BOTH)
    assert registry.get(f"/v2/{repository}/blobs/{digest}").body == BOTH


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_push_post_then_put_bytes_of_another_digest_are_refused_and_not_kept(
    registry: DistributionClient, repository: str, algorithm: str
) -> None:
    digest = digest_of(FIRST, algorithm)
    answer = registry.close_upload(registry.start_upload(repository), digest, SECOND)
    assert (answer.status, answer.codes) == (400, ["DIGEST_INVALID"])
    for absent in (digest, digest_of(SECOND), digest_of(SECOND, algorithm)):
        assert registry.head(f"/v2/{repository}/blobs/{absent}").status == 404


@pytest.mark.parametrize(
    "digest", ["", "sha256", "sha256:abc", "sha256:" + "G" * 64, "md5:" + "0" * 32, "sha256:../../index.json"]
)
def test_push_post_then_put_what_is_no_digest_is_refused(
    registry: DistributionClient, repository: str, digest: str
) -> None:
    answer = registry.close_upload(registry.start_upload(repository), digest, FIRST)
    assert (answer.status, answer.codes) == (400, ["DIGEST_INVALID"])


def test_push_post_then_put_an_end_without_a_digest_is_refused(registry: DistributionClient, repository: str) -> None:
    answer = registry.request("PUT", registry.start_upload(repository), body=FIRST, headers={"Content-Type": OCTETS})
    assert (answer.status, answer.codes) == (400, ["DIGEST_INVALID"])


# ---- Push: Single POST


def test_push_single_post_a_blob_is_taken_or_an_upload_begins(registry: DistributionClient, repository: str) -> None:
    digest = digest_of(BOTH)
    target = f"/v2/{repository}/blobs/uploads/?digest={digest}"
    answer = registry.request("POST", target, body=BOTH, headers={"Content-Type": OCTETS})
    assert answer.status in (201, 202)
    if answer.status == 202:
        answer = registry.close_upload(registry.target_of(answer), digest, BOTH)
    assert registry.get(registry.target_of(answer)).body == BOTH


def test_push_single_post_a_blob_is_taken(registry: DistributionClient, repository: str) -> None:
    target = f"/v2/{repository}/blobs/uploads/?digest="
    assert registry.request("POST", target + digest_of(BOTH), body=BOTH).status == 201
    wrong = registry.request("POST", target + digest_of(FIRST), body=BOTH)
    assert (wrong.status, wrong.codes) == (400, ["DIGEST_INVALID"])
    malformed = registry.request("POST", target + "sha256:abc", body=BOTH)
    assert (malformed.status, malformed.codes) == (400, ["DIGEST_INVALID"])


# ---- Push: Pushing a blob in chunks


def test_push_chunks_each_is_answered_by_where_the_next_goes_and_what_has_come(
    registry: DistributionClient, repository: str
) -> None:
    location = registry.start_upload(repository)
    for first, chunk in ((0, FIRST), (len(FIRST), SECOND)):
        answer = registry.patch(location, chunk, first)
        assert answer.status == 202
        assert answer.headers["range"] == f"0-{first + len(chunk) - 1}"
        location = registry.target_of(answer)
    answer = registry.close_upload(location, digest_of(BOTH))
    assert answer.status == 201
    assert registry.get(registry.target_of(answer)).body == BOTH


def test_push_chunks_the_last_one_may_come_with_the_end(registry: DistributionClient, repository: str) -> None:
    location = registry.target_of(registry.patch(registry.start_upload(repository), FIRST, 0))
    said = f"{len(FIRST)}-{len(BOTH) - 1}"
    assert registry.close_upload(location, digest_of(BOTH), SECOND, Content_Range=said).status == 201
    assert registry.get(f"/v2/{repository}/blobs/{digest_of(BOTH)}").body == BOTH


def test_push_chunks_one_may_be_a_single_byte(registry: DistributionClient, repository: str) -> None:
    location = registry.target_of(registry.patch(registry.start_upload(repository), BOTH[:-1], 0))
    answer = registry.patch(location, BOTH[-1:], len(BOTH) - 1)
    assert (answer.status, answer.headers["range"]) == (202, f"0-{len(BOTH) - 1}")
    assert registry.close_upload(registry.target_of(answer), digest_of(BOTH)).status == 201


def test_push_chunks_one_without_a_range_goes_to_the_end_as_docker_sends_it(
    registry: DistributionClient, repository: str
) -> None:
    location = registry.start_upload(repository)
    for chunk in (FIRST, SECOND):
        answer = registry.request("PATCH", location, body=iter([chunk]), headers={"Content-Type": OCTETS})
        assert answer.status == 202
        location = registry.target_of(answer)
    assert registry.close_upload(location, digest_of(BOTH)).status == 201
    assert registry.get(f"/v2/{repository}/blobs/{digest_of(BOTH)}").body == BOTH


def test_push_chunks_one_out_of_order_is_refused_and_the_upload_goes_on(
    registry: DistributionClient, repository: str
) -> None:
    location = registry.start_upload(repository)
    assert registry.patch(location, SECOND, len(FIRST)).status == 416
    location = registry.target_of(registry.patch(location, FIRST, 0))
    for first in (0, len(FIRST) - 1, len(FIRST) + 1):
        answer = registry.patch(location, SECOND, first)
        assert answer.status == 416
    status = registry.get(location)
    assert (status.status, status.headers["range"]) == (204, f"0-{len(FIRST) - 1}")
    location = registry.target_of(registry.patch(registry.target_of(status), SECOND, len(FIRST)))
    assert registry.close_upload(location, digest_of(BOTH)).status == 201
    assert registry.get(f"/v2/{repository}/blobs/{digest_of(BOTH)}").body == BOTH


def test_push_chunks_a_last_one_out_of_order_is_refused_and_the_upload_goes_on(
    registry: DistributionClient, repository: str
) -> None:
    location = registry.target_of(registry.patch(registry.start_upload(repository), FIRST, 0))
    said = f"{len(FIRST) + 1}-{len(BOTH)}"
    assert registry.close_upload(location, digest_of(BOTH), SECOND, Content_Range=said).status == 416
    assert registry.get(location).headers["range"] == f"0-{len(FIRST) - 1}"


@pytest.mark.parametrize("said", ["bytes 0-15/*", "0-", "-15", "15-0", "a-b", "0-15/16", "0-1", "0-99"])
def test_push_chunks_a_range_that_is_none_or_not_of_these_bytes_is_refused(
    registry: DistributionClient, repository: str, said: str
) -> None:
    location = registry.start_upload(repository)
    headers = {"Content-Type": OCTETS, "Content-Range": said}
    answer = registry.request("PATCH", location, body=FIRST, headers=headers)
    assert answer.status in (400, 416), answer
    assert answer.codes
    assert registry.close_upload(location, digest_of(FIRST), FIRST).status == 201


def test_push_chunks_the_state_of_an_upload_is_told(registry: DistributionClient, repository: str) -> None:
    location = registry.target_of(registry.patch(registry.start_upload(repository), FIRST, 0))
    status = registry.get(location)
    assert (status.status, status.body) == (204, b"")
    assert status.headers["range"] == f"0-{len(FIRST) - 1}"
    assert registry.patch(registry.target_of(status), SECOND, len(FIRST)).status == 202


def test_push_chunks_the_state_is_told_at_any_location_that_was_given(
    registry: DistributionClient, repository: str
) -> None:
    locations = [registry.start_upload(repository)]
    fresh = registry.get(locations[0])
    assert fresh.status == 204
    assert fresh.headers["range"].startswith("0-")
    for first, chunk in ((0, FIRST), (len(FIRST), SECOND)):
        locations.append(registry.target_of(registry.patch(locations[0], chunk, first)))
    for location in locations:
        status = registry.get(location)
        assert status.status == 204
        assert status.headers["range"] == f"0-{len(BOTH) - 1}"
        assert registry.target_of(status)


def test_push_chunks_an_upload_that_is_unknown_ended_or_of_another_repository_is_refused(
    registry: DistributionClient, repository: str
) -> None:
    ended = registry.start_upload(repository)
    assert registry.close_upload(ended, digest_of(FIRST), FIRST).status == 201
    going = registry.start_upload(repository)
    other = registry.new_repository()
    unknown = f"/v2/{repository}/blobs/uploads/00000000-0000-4000-8000-000000000000"
    for location in (ended, unknown, going.replace(repository, other)):
        for answer in (registry.patch(location, FIRST, 0), registry.close_upload(location, digest_of(FIRST), FIRST)):
            assert answer.status in (400, 404), location
            assert set(answer.codes) <= {"BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID", "NAME_UNKNOWN"}
    assert registry.close_upload(going, digest_of(FIRST), FIRST).status == 201


def test_push_chunks_an_upload_may_be_given_up(registry: DistributionClient, repository: str) -> None:
    location = registry.target_of(registry.patch(registry.start_upload(repository), FIRST, 0))
    assert registry.delete(location).status == 204
    assert registry.get(location).codes == ["BLOB_UPLOAD_UNKNOWN"]
    assert registry.head(f"/v2/{repository}/blobs/{digest_of(FIRST)}").status == 404


# ---- Push: Mounting a blob from another repository


def test_push_mount_a_blob_of_another_repository_is_here_then(registry: DistributionClient, repository: str) -> None:
    other = registry.new_repository()
    digest = registry.push_blob(other, BOTH)
    answer = registry.post_upload(repository, mount=digest, **{"from": other})
    assert answer.status == 201
    assert registry.target_of(answer).startswith(f"/v2/{repository}/blobs/")
    assert registry.get(registry.target_of(answer)).body == BOTH


def test_push_mount_what_an_image_of_another_repository_has_is_mounted_and_makes_an_image_here(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    other = registry.new_repository()
    registry.push_image(other, image, "1")
    for digest in (image.config_digest, *image.layer_digests):
        assert registry.post_upload(repository, mount=digest, **{"from": other}).status == 201
    assert registry.put_manifest(repository, "1", image.blobs[image.digest], OCI_MANIFEST).status == 201


@pytest.mark.parametrize("case", ["no such blob", "no such repository", "not in that one"])
def test_push_mount_what_cannot_be_mounted_begins_an_upload(
    registry: DistributionClient, repository: str, case: str
) -> None:
    other = registry.new_repository()
    registry.push_blob(other, FIRST)
    elsewhere = registry.push_blob(registry.new_repository(), b"in a third repository")
    digest = elsewhere if case == "not in that one" else ABSENT
    origin = "team/nowhere" if case == "no such repository" else other
    answer = registry.post_upload(repository, mount=digest, **{"from": origin})
    assert answer.status == 202
    assert registry.head(f"/v2/{repository}/blobs/{digest}").status == 404
    assert registry.close_upload(registry.target_of(answer), digest_of(BOTH), BOTH).status == 201


def test_push_mount_without_from_mounts_the_blob_or_begins_an_upload(
    registry: DistributionClient, repository: str
) -> None:
    digest = registry.push_blob(registry.new_repository(), BOTH)
    answer = registry.post_upload(repository, mount=digest)
    assert answer.status in (201, 202)
    if answer.status == 202:
        answer = registry.close_upload(registry.target_of(answer), digest, BOTH)
    assert registry.get(registry.target_of(answer)).body == BOTH


def test_push_mount_of_nothing_begins_an_upload(registry: DistributionClient, repository: str) -> None:
    assert registry.post_upload(repository, **{"from": registry.new_repository()}).status == 202


@pytest.mark.parametrize("digest", ["sha256:abc", "md5:" + "0" * 32, "latest"])
def test_push_mount_of_what_is_no_digest_mounts_nothing(
    registry: DistributionClient, repository: str, digest: str
) -> None:
    other = registry.new_repository()
    registry.push_blob(other, FIRST)
    answer = registry.post_upload(repository, mount=digest, **{"from": other})
    assert answer.status in (202, 400)
    assert answer.status == 202 or answer.codes == ["DIGEST_INVALID"]


# ---- Push: Pushing Manifests


def test_push_manifests_by_tag_or_digest_is_answered_by_where_it_is(
    registry: DistributionClient, repository: str
) -> None:
    content = manifest_of(registry, repository, annotations={"by": "tag or digest"})
    digest = digest_of(content)
    for reference in ("1", digest):
        answer = registry.put_manifest(repository, reference, content, OCI_MANIFEST)
        assert answer.status == 201
        assert answer.headers["docker-content-digest"] == digest
        assert registry.get(registry.target_of(answer)).body == content


def test_push_manifests_by_digest_alone_is_given_by_that_and_has_no_tag(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    registry.push_image(repository, image)
    assert registry.get(f"/v2/{repository}/manifests/{image.digest}").body == image.blobs[image.digest]
    assert registry.get(f"/v2/{repository}/blobs/{image.layer_digests[0]}").status == 200
    assert registry.get(f"/v2/{repository}/tags/list").status in (200, 404)


def test_push_manifests_the_very_bytes_are_kept(registry: DistributionClient, repository: str) -> None:
    document = json.loads(manifest_of(registry, repository))
    for number, content in enumerate(
        (json.dumps(document, indent=7).encode(), json.dumps(document, sort_keys=True).encode() + b" \n\t\r\n")
    ):
        assert registry.put_manifest(repository, str(number), content, OCI_MANIFEST).status == 201
        assert registry.get(f"/v2/{repository}/manifests/{number}").body == content


def test_push_manifests_a_tag_is_moved_and_the_earlier_manifest_is_there_by_digest(
    registry: DistributionClient, repository: str
) -> None:
    earlier, later = build_image(salt="earlier"), build_image(salt="later")
    registry.push_image(repository, earlier, "1")
    registry.push_image(repository, later, "1")
    assert registry.get(f"/v2/{repository}/manifests/1").body == later.blobs[later.digest]
    assert registry.get(f"/v2/{repository}/manifests/{earlier.digest}").body == earlier.blobs[earlier.digest]
    assert registry.get(f"/v2/{repository}/blobs/{earlier.layer_digests[0]}").status == 200


def test_push_manifests_bytes_of_another_digest_are_refused(registry: DistributionClient, repository: str) -> None:
    content = manifest_of(registry, repository)
    answer = registry.put_manifest(repository, ABSENT, content, OCI_MANIFEST)
    assert (answer.status, answer.codes) == (400, ["DIGEST_INVALID"])
    assert registry.head(f"/v2/{repository}/manifests/{digest_of(content)}").status == 404


@pytest.mark.parametrize("missing", ["config", "layer"])
def test_push_manifests_one_that_names_a_blob_which_is_not_there_is_refused(
    registry: DistributionClient, repository: str, image: BuiltImage, missing: str
) -> None:
    absent = image.config_digest if missing == "config" else image.layer_digests[1]
    for digest in {image.config_digest, *image.layer_digests} - {absent}:
        registry.push_blob(repository, image.blobs[digest])
    # What another repository has is not here, whoever knows its digest.
    registry.push_blob(registry.new_repository(), image.blobs[absent])
    answer = registry.put_manifest(repository, "1", image.blobs[image.digest], OCI_MANIFEST)
    assert 400 <= answer.status < 500
    assert set(answer.codes) == {"MANIFEST_BLOB_UNKNOWN"}
    assert registry.head(f"/v2/{repository}/manifests/1").status == 404


def test_push_manifests_an_index_that_names_a_manifest_which_is_not_there_is_refused(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    index = build_index([image])
    answer = registry.put_manifest(repository, "1", index.blobs[index.digest], OCI_INDEX)
    assert 400 <= answer.status < 500
    assert set(answer.codes) == {"MANIFEST_BLOB_UNKNOWN"}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000], ids=["nothing", "cut", "a list", "no UTF-8", "deep"]
)
def test_push_manifests_what_is_no_document_is_refused(
    registry: DistributionClient, repository: str, content: bytes
) -> None:
    registry.push_blob(repository, FIRST)
    answer = registry.put_manifest(repository, "1", content, OCI_MANIFEST)
    assert (answer.status, answer.codes) == (400, ["MANIFEST_INVALID"])


@pytest.mark.parametrize(
    "content", [b"{}", b'{"schemaVersion":2}', b'{"schemaVersion":2,"config":{},"layers":[]}', b'{"schemaVersion":1}']
)
def test_push_manifests_what_is_no_image_is_refused(
    registry: DistributionClient, repository: str, content: bytes
) -> None:
    registry.push_blob(repository, FIRST)
    answer = registry.put_manifest(repository, "1", content, OCI_MANIFEST)
    assert (answer.status, answer.codes) == (400, ["MANIFEST_INVALID"])


@pytest.mark.parametrize("said", [OCI_INDEX, DOCKER_MANIFEST, "application/json", "text/html"])
def test_push_manifests_one_that_says_it_is_of_another_type_is_refused(
    registry: DistributionClient, repository: str, said: str
) -> None:
    answer = registry.put_manifest(repository, "1", manifest_of(registry, repository), said)
    assert (answer.status, answer.codes) == (400, ["MANIFEST_INVALID"])


def test_push_manifests_parameters_of_the_type_are_passed_over(registry: DistributionClient, repository: str) -> None:
    content = manifest_of(registry, repository)
    answer = registry.put_manifest(repository, "1", content, f"{OCI_MANIFEST}; charset=utf-8")
    assert answer.status == 201
    assert registry.get(f"/v2/{repository}/manifests/1").headers["content-type"] == OCI_MANIFEST


def test_push_manifests_the_type_is_that_of_the_request_where_the_manifest_names_none(
    registry: DistributionClient, repository: str
) -> None:
    document = json.loads(manifest_of(registry, repository))
    del document["mediaType"]
    assert registry.put_manifest(repository, "1", encode_document(document), OCI_MANIFEST).status == 201
    assert registry.get(f"/v2/{repository}/manifests/1").headers["content-type"] == OCI_MANIFEST


def test_push_manifests_nearly_four_mebibytes_are_taken(registry: DistributionClient, repository: str) -> None:
    content = manifest_of(registry, repository, annotations={"filler": "x" * (4 * 1024 * 1024 - 1000)})
    assert registry.put_manifest(repository, "1", content, OCI_MANIFEST).status == 201
    assert registry.get(f"/v2/{repository}/manifests/1").body == content


def test_push_manifests_more_is_refused_as_too_large(registry: DistributionClient, repository: str) -> None:
    content = manifest_of(registry, repository, annotations={"filler": "x" * (4 * 1024 * 1024)})
    answer = registry.put_manifest(repository, "1", content, OCI_MANIFEST)
    assert answer.status == 413
    assert answer.codes


def test_push_manifests_blobs_of_sha512_are_kept_by_that(registry: DistributionClient, repository: str) -> None:
    image = build_image(algorithm="sha512", salt="512")
    answer = registry.push_image(repository, image)
    assert answer.headers["docker-content-digest"] == image.digest
    for digest, content in image.blobs.items():
        kind = "manifests" if digest == image.digest else "blobs"
        given = registry.get(f"/v2/{repository}/{kind}/{digest}")
        assert (given.status, given.body) == (200, content)
        assert given.headers["docker-content-digest"] == digest


def test_push_blobs_of_sha512_are_kept_by_that(registry: DistributionClient, repository: str) -> None:
    digest = registry.push_blob(repository, BOTH, "sha512")
    location = registry.target_of(registry.patch(registry.start_upload(repository), FIRST, 0))
    assert registry.close_upload(location, digest_of(FIRST, "sha512")).status == 201
    assert registry.get(f"/v2/{repository}/blobs/{digest}").body == BOTH
    assert registry.get(f"/v2/{repository}/blobs/{digest_of(FIRST, 'sha512')}").body == FIRST


# ---- Push: Pushing Manifests with Subject


def test_push_subject_is_taken_and_named_whether_it_is_there_or_not(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    artifact = build_artifact(image.root)
    answer = registry.push_image(repository, artifact)
    assert answer.headers["oci-subject"] == image.digest
    registry.push_image(repository, image, "1")
    later = registry.push_image(repository, build_artifact(image.root, content=b"later"))
    assert later.headers["oci-subject"] == image.digest
    index = build_index([image], subject=image.root)
    assert registry.push_image(repository, index).headers["oci-subject"] == image.digest


def test_push_subject_is_not_named_where_there_is_none(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    assert "oci-subject" not in registry.push_image(repository, image, "1").headers


# ---- Content Discovery: Listing Tags


def test_tags_are_listed_in_order(registry: DistributionClient, repository: str, image: BuiltImage) -> None:
    registry.push_image(repository, image, "b", "10", "9", "a1", "a")
    assert registry.tags(repository) == ["10", "9", "a", "a1", "b"]


def test_tags_are_in_order_whatever_their_case(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    registry.push_image(repository, image, "b", "C", "a", "B", "_")
    assert registry.tags(repository) == ["_", "a", "B", "b", "C"]
    assert registry.tags(repository, last="B") == ["b", "C"]
    assert registry.tags(repository, last="A") == ["a", "B", "b", "C"]


def test_tags_are_listed_so_many_at_once_after_the_last_one(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    registry.push_image(repository, image, *"abcde")
    assert registry.tags(repository, n="2") == ["a", "b"]
    assert registry.tags(repository, n="2", last="b") == ["c", "d"]
    assert registry.tags(repository, n="2", last="d") == ["e"]
    assert registry.tags(repository, n="9", last="e") == []
    assert registry.tags(repository, n="2", last="") == ["a", "b"]
    assert registry.tags(repository, n="5") == list("abcde")
    assert registry.tags(repository, last="c") == ["d", "e"]
    assert registry.tags(repository, last="bb") == ["c", "d", "e"]


def test_tags_of_the_next_page_are_linked_to(registry: DistributionClient, repository: str, image: BuiltImage) -> None:
    registry.push_image(repository, image, *"abcde")
    seen: list[str] = []
    target: str | None = f"/v2/{repository}/tags/list?n=2"
    for _ in range(4):
        if target is None:
            break
        answer = registry.get(target)
        assert answer.status == 200
        seen += answer.json()["tags"]
        target = next_page(answer, target)
    assert (seen, target) == (list("abcde"), None)


def test_tags_none_are_listed_where_none_are_asked_for(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    registry.push_image(repository, image, "a", "b")
    answer = registry.get(f"/v2/{repository}/tags/list?n=0")
    assert (answer.status, answer.json()["tags"]) == (200, [])
    assert "link" not in answer.headers


# ---- Content Discovery: Listing Referrers


def test_referrers_are_listed_with_their_types_and_annotations(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    registry.push_image(repository, image, "1")
    signature = build_artifact(image.root, kind=SIGNATURE, annotations={"org.example.by": "signer"})
    old = build_artifact(image.root, kind=None, content=b"old", annotations={"org.example.by": "old signer"})
    index = build_index([build_image(salt="of an index")], subject=image.root)
    bystander = build_artifact(build_image(salt="bystander").root)
    for each in (signature, old, index, bystander):
        registry.push_image(repository, each)
    found = listed(registry.referrers(repository, image.digest))
    assert set(found) == {signature.digest, old.digest, index.digest}
    assert found[signature.digest] == {
        **signature.root,
        "artifactType": SIGNATURE,
        "annotations": {"org.example.by": "signer"},
    }
    assert found[old.digest] == {
        **old.root,
        "artifactType": OLD_SIGNATURE,
        "annotations": {"org.example.by": "old signer"},
    }
    assert "artifactType" not in found[index.digest]
    assert {key: found[index.digest][key] for key in index.root} == index.root
    assert not found[index.digest].get("annotations")


def test_referrers_of_one_type_are_listed_and_the_answer_says_so(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    registry.push_image(repository, image, "1")
    artifacts = {kind: build_artifact(image.root, kind=kind) for kind in (SIGNATURE, SBOM, None)}
    for artifact in artifacts.values():
        registry.push_image(repository, artifact)
    for kind, said in ((SIGNATURE, SIGNATURE), (SBOM, SBOM), (None, OLD_SIGNATURE)):
        answer = registry.referrers(repository, image.digest, artifactType=said)
        assert set(listed(answer)) == {artifacts[kind].digest}
        assert answer.headers["oci-filters-applied"] == "artifactType"
    nothing = registry.referrers(repository, image.digest, artifactType="application/x+y")
    assert listed(nothing) == {}
    assert nothing.headers["oci-filters-applied"] == "artifactType"
    assert "oci-filters-applied" not in registry.referrers(repository, image.digest).headers


def test_referrers_of_what_is_not_there_are_an_empty_list_until_one_is(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    assert listed(registry.referrers(repository, ABSENT)) == {}
    registry.push_blob(repository, FIRST)
    assert listed(registry.referrers(repository, ABSENT)) == {}
    artifact = build_artifact(image.root)
    registry.push_image(repository, artifact)
    assert set(listed(registry.referrers(repository, image.digest))) == {artifact.digest}
    registry.push_image(repository, image, "1")
    assert set(listed(registry.referrers(repository, image.digest))) == {artifact.digest}
    assert registry.get(f"/v2/{repository}/manifests/{artifact.digest}").status == 200


def test_referrers_of_another_repository_are_not_listed(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    other = registry.new_repository()
    for each in (repository, other):
        registry.push_image(each, image, "1")
    registry.push_image(other, build_artifact(image.root))
    assert listed(registry.referrers(repository, image.digest)) == {}
    assert len(listed(registry.referrers(other, image.digest))) == 1


def test_referrers_that_have_a_tag_are_listed_once(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    registry.push_image(repository, image, "1")
    artifact = build_artifact(image.root)
    registry.push_image(repository, artifact)
    registry.push_image(repository, artifact, "signature", "another-tag")
    assert set(listed(registry.referrers(repository, image.digest))) == {artifact.digest}


def test_referrers_are_gone_once_they_are_deleted(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    registry.push_image(repository, image, "1")
    artifact = build_artifact(image.root)
    registry.push_image(repository, artifact)
    assert registry.delete(f"/v2/{repository}/manifests/{artifact.digest}").status == 202
    assert listed(registry.referrers(repository, image.digest)) == {}
    assert registry.get(f"/v2/{repository}/manifests/1").status == 200


@pytest.mark.parametrize("digest", ["sha256:abc", "sha256:" + "g" * 64, "md5:" + "0" * 32, "latest"])
def test_referrers_of_what_is_no_digest_are_refused(
    registry: DistributionClient, repository: str, image: BuiltImage, digest: str
) -> None:
    registry.push_image(repository, image, "1")
    answer = registry.referrers(repository, digest)
    assert answer.status == 400
    assert answer.codes


# ---- Content Management: Deleting tags


def test_delete_tag_takes_that_tag_alone(registry: DistributionClient, repository: str, image: BuiltImage) -> None:
    registry.push_image(repository, image, "1", "2")
    assert registry.delete(f"/v2/{repository}/manifests/1").status == 202
    assert registry.get(f"/v2/{repository}/manifests/1").status == 404
    assert registry.get(f"/v2/{repository}/manifests/2").status == 200
    assert registry.tags(repository) == ["2"]
    again = registry.delete(f"/v2/{repository}/manifests/1")
    assert (again.status, again.codes) == (404, ["MANIFEST_UNKNOWN"])


def test_delete_tag_is_done_or_refused_as_unsupported(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    registry.push_image(repository, image, "1")
    answer = registry.delete(f"/v2/{repository}/manifests/1")
    assert answer.status in (202, 400, 405)
    assert registry.get(f"/v2/{repository}/manifests/1").status == (404 if answer.status == 202 else 200)


# ---- Content Management: Deleting Manifests


def test_delete_manifest_takes_it_and_every_tag_of_it(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    other = build_image(salt="that stays")
    registry.push_image(repository, image, "1", "2")
    registry.push_image(repository, other, "3")
    assert registry.delete(f"/v2/{repository}/manifests/{image.digest}").status == 202
    for reference in ("1", "2", image.digest):
        assert registry.get(f"/v2/{repository}/manifests/{reference}").status == 404
    assert registry.tags(repository) == ["3"]
    again = registry.delete(f"/v2/{repository}/manifests/{image.digest}")
    assert (again.status, again.codes) == (404, ["MANIFEST_UNKNOWN"])


def test_delete_manifest_leaves_other_repositories_alone(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    other = registry.new_repository()
    for each in (repository, other):
        registry.push_image(each, image, "1")
    assert registry.delete(f"/v2/{repository}/manifests/{image.digest}").status == 202
    assert registry.get(f"/v2/{other}/manifests/1").body == image.blobs[image.digest]
    assert registry.get(f"/v2/{other}/blobs/{image.layer_digests[0]}").status == 200


def test_delete_manifest_that_has_no_tag(registry: DistributionClient, repository: str, image: BuiltImage) -> None:
    registry.push_image(repository, image)
    assert registry.delete(f"/v2/{repository}/manifests/{image.digest}").status == 202
    assert registry.get(f"/v2/{repository}/manifests/{image.digest}").status == 404


def test_delete_manifest_and_push_it_again(registry: DistributionClient, repository: str, image: BuiltImage) -> None:
    registry.push_image(repository, image, "1")
    assert registry.delete(f"/v2/{repository}/manifests/{image.digest}").status == 202
    registry.push_image(repository, image, "1")
    assert registry.get(f"/v2/{repository}/manifests/1").body == image.blobs[image.digest]


def test_delete_manifest_of_a_repository_that_is_not_there_is_not_found(registry: DistributionClient) -> None:
    answer = registry.delete(f"/v2/team/nowhere/manifests/{ABSENT}")
    assert answer.status == 404
    assert answer.codes


# ---- Content Management: Deleting Blobs


def test_delete_blob_takes_it_from_that_repository(registry: DistributionClient, repository: str) -> None:
    other = registry.new_repository()
    for each in (repository, other):
        digest = registry.push_blob(each, BOTH)
    assert registry.delete(f"/v2/{repository}/blobs/{digest}").status == 202
    assert registry.get(f"/v2/{repository}/blobs/{digest}").status == 404
    assert registry.get(f"/v2/{other}/blobs/{digest}").body == BOTH
    assert registry.push_blob(repository, BOTH) == digest
    assert registry.get(f"/v2/{repository}/blobs/{digest}").body == BOTH


def test_delete_blob_that_is_not_there_is_not_found(registry: DistributionClient, repository: str) -> None:
    registry.push_blob(repository, FIRST)
    answer = registry.delete(f"/v2/{repository}/blobs/{ABSENT}")
    assert (answer.status, answer.codes) == (404, ["BLOB_UNKNOWN"])


def test_delete_blob_that_an_image_needs_is_refused_and_after_the_image_is_not(
    registry: DistributionClient, repository: str, image: BuiltImage
) -> None:
    registry.push_image(repository, image, "1")
    target = f"/v2/{repository}/blobs/{image.layer_digests[0]}"
    assert registry.delete(target).status == 405
    assert registry.get(target).status == 200
    assert registry.delete(f"/v2/{repository}/manifests/{image.digest}").status == 202
    assert registry.delete(target).status in (202, 404)
    assert registry.get(target).status == 404
