"""Archives that nobody may load, through the API: one line says why, the store is as it was, and no body is read."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from starlette.testclient import TestClient

from tests.server.clients import client_of, sentence_of
from tests.support.archive_forms import FORMS
from tests.support.hostile_archives import ATTACKS, FORMS_READ, IMAGE, NAME, good_archive
from tests.support.hostile_contents import CONTENTS
from tests.support.images import build_image
from tests.support.invariants import check_invariants
from tests.support.snapshots import snapshot
from tests.support.stores import put

KEPT = build_image(salt="kept")
# The library is tried with every attack; here it is seen that each kind of them is answered as it should be.
STEP = 11
MOST_BODY_BYTES = 64 * 1024


@pytest.fixture
def data_root(tmp_path: Path) -> Iterator[Path]:
    """A store with an image, which keeps every rule whatever a test has done."""
    put(tmp_path / "data", KEPT, "kept:1")
    yield tmp_path / "data"
    check_invariants(tmp_path / "data")


def load(client: TestClient, path: Path, **request: object) -> tuple[int, str]:
    """Return the status and the one line of the answer."""
    response = client.post(f"/images/load?{urlencode({'path': path})}", **request)  # type: ignore[arg-type]  # httpx2's
    return response.status_code, sentence_of(response)


@pytest.mark.parametrize("form", FORMS_READ)
def test_S4_S6_S10_S15_S16_an_attack_through_the_api_is_answered_with_one_line(
    form: str, data_root: Path, tmp_path: Path
) -> None:
    archives = [build(FORMS[form](IMAGE, NAME)) for build in list(ATTACKS.values())[::STEP]]
    archives += [build() for build in list(CONTENTS.get(form, {}).values())[::STEP]]
    file = tmp_path / "image.tar"
    with client_of(data_root) as client:
        before = snapshot(data_root)
        for archive in archives:
            file.write_bytes(archive)
            status, line = load(client, file)
            assert status == 422
            assert line.startswith(f"invalid archive {str(file)!r}")
            assert line.isprintable()
        assert snapshot(data_root) == before
        file.write_bytes(good_archive(form))
        assert load(client, file) == (200, f"Loaded image {NAME} from {file}")


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="path"\r\n\r\n/etc/passwd\r\n',
        ),
        ("application/x-www-form-urlencoded", b"path=/etc/passwd&"),
        ("application/json", b'{"path": "/etc/passwd"}'),
    ],
)
def test_S22_a_load_reads_no_form_however_many_fields_it_has(
    kind: str, field: bytes, data_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "image.tar").write_bytes(good_archive("minibox"))
    field = (
        b'--x\r\nContent-Disposition: form-data; name="path"\r\n\r\n/etc/passwd\r\n' if "x;" in kind else b"path=/x&"
    )
    body = (field * (MOST_BODY_BYTES // len(field)))[:MOST_BODY_BYTES]
    with client_of(data_root) as client:
        answer = load(client, tmp_path / "image.tar", content=body, headers={"Content-Type": kind})
        assert answer == (200, f"Loaded image {NAME} from {tmp_path / 'image.tar'}")
        too_much = load(client, tmp_path / "image.tar", content=body + b"x", headers={"Content-Type": kind})
        assert too_much[0] == 413


def test_S22_a_load_sends_no_file_and_knows_no_range(data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(good_archive("minibox"))
    ranges = {"Range": "bytes=" + ",".join(f"{number}-" for number in range(1000))}
    with client_of(data_root) as client:
        assert load(client, tmp_path / "image.tar", headers=ranges)[0] == 200
        names = [image["name"] for image in json.loads(client.get("/images", headers=ranges).content)]
        assert names == ["kept:1", NAME]
