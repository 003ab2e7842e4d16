"""POST /images/load with the archive in the body: whole, in pieces, cut off, refused midway; nothing is left behind."""

import contextlib
import gzip
import hashlib
import http.client
import io
import json
import socket
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server.clients import client_of, read_reply, sentence_of
from tests.server.mounts import small_disk
from tests.support.archive_forms import FORMS
from tests.support.archives import blob_name, members_of, metadata, pack
from tests.support.daemon import Daemon, running_daemon
from tests.support.hostile_archives import good_archive
from tests.support.images import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    build_image,
    digest_of,
    encode_document,
    iter_random_tar,
    random_layer,
)
from tests.support.invariants import check_invariants
from tests.support.layouts import read_layout_blobs, read_layout_names
from tests.support.snapshots import snapshot
from tests.support.stores import put
from tests.support.trials import DEEP

NAME = "app:1"
IMAGE = build_image()
KEPT = build_image(salt="kept")
ARCHIVE = pack(members_of(IMAGE, NAME))
LARGE = pack(members_of(build_image([random_layer(3 * 1024 * 1024)]), NAME))
TAR = {"Content-Type": "application/x-tar"}
JSON = {"Accept": "application/json"}
WAIT_SECONDS = 60.0


def pieces(content: bytes, size_bytes: int = 1000) -> Iterator[bytes]:
    """Yield content piece by piece, which is then sent in chunks, without a Content-Length."""
    return (content[at : at + size_bytes] for at in range(0, len(content), size_bytes))


# ---- in this process


@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_body_is_loaded_whatever_form_of_archive_it_is(form: str, tmp_path: Path) -> None:
    client = client_of(tmp_path / "data")
    for content in (good_archive(form), gzip.compress(good_archive(form))):
        answer = client.post("/images/load", content=content, headers=TAR)
        assert (answer.status_code, answer.text.split()[::3]) == (200, ["Loaded", "from"]), answer.text
        assert answer.text.endswith(" from the request\n")
    check_invariants(tmp_path / "data")


def test_a_body_in_chunks_is_loaded_as_one_of_known_length(tmp_path: Path) -> None:
    client = client_of(tmp_path / "data")
    answer = client.post("/images/load", content=pieces(ARCHIVE), headers=TAR)
    assert (answer.status_code, answer.text) == (200, f"Loaded image {NAME} from the request\n")
    assert read_layout_blobs(tmp_path / "data") == IMAGE.blobs


@pytest.mark.parametrize("kind", ["application/gzip", "application/octet-stream", "application/x-tar; x=y", None])
def test_the_type_of_the_body_says_no_more_than_that_it_is_an_archive(kind: str | None, tmp_path: Path) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = client_of(tmp_path / "data").post("/images/load", content=ARCHIVE, headers=headers)
    assert answer.text == f"Loaded image {NAME} from the request\n"


def test_a_program_that_sends_the_archive_gets_the_images_as_json(tmp_path: Path) -> None:
    client = client_of(tmp_path / "data")
    by_body = client.post("/images/load", content=ARCHIVE, headers=TAR | JSON)
    assert by_body.json() == {"images": client.get("/images").json()}
    assert by_body.headers["content-type"] == "application/json"


def test_who_names_a_file_gets_the_line_of_the_contract_whatever_it_accepts(tmp_path: Path) -> None:
    client = client_of(tmp_path / "data")
    path = tmp_path / "app.tar"
    path.write_bytes(ARCHIVE)
    loaded = client.post("/images/load", params={"path": str(path)}, headers=JSON)
    assert loaded.text == f"Loaded image {NAME} from {path}\n"
    saved = client.post("/images/save", params={"image": NAME, "path": str(path)}, headers=JSON)
    assert saved.text == f"Saved image {NAME} to {path}\n"


def test_a_program_is_told_how_a_load_goes_on_and_how_it_ends(tmp_path: Path) -> None:
    client = client_of(tmp_path / "data")
    headers = {**TAR, "Accept": "application/x-ndjson"}
    answer = client.post("/images/load", content=pieces(LARGE, 100_000), headers=headers)
    events = [json.loads(line) for line in answer.text.splitlines()]
    kinds = {each["event"] for each in events}
    assert (answer.status_code, {"resolved", "blob", "progress"} <= kinds) == (200, True)
    assert events[-1] == {"event": "result", "images": client.get("/images").json()}
    refused = client.post("/images/load", content=pieces(LARGE[:-100_000], 100_000), headers=headers)
    last = json.loads(refused.text.splitlines()[-1])
    assert (last["event"], last["status"]) == ("error", 422)
    no_archive = client.post("/images/load", content=b"no archive", headers=headers)
    assert no_archive.status_code == 422


def test_an_archive_comes_from_a_path_or_from_the_body(tmp_path: Path) -> None:
    (tmp_path / "app.tar").write_bytes(ARCHIVE)
    client = client_of(tmp_path / "data")
    both = client.post("/images/load", params={"path": str(tmp_path / "app.tar")}, content=ARCHIVE, headers=TAR)
    assert both.status_code == 400
    assert "both" in sentence_of(both)
    assert not (tmp_path / "data").exists()
    query = {"path": str(tmp_path / "app.tar")}
    assert client.post("/images/load", params=query, content=pieces(ARCHIVE), headers=TAR).status_code == 400
    # An empty body is none, however it is sent and whatever it is called.
    empty = client.post("/images/load", params=query, content=pieces(b""), headers=TAR)
    assert empty.text == f"Loaded image {NAME} from {tmp_path / 'app.tar'}\n"
    # What is no archive is passed over, as it always was, and no more of it than that.
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    passed_over = client.post("/images/load", params={"path": str(tmp_path / "app.tar")}, content=b"a", headers=form)
    assert passed_over.status_code == 200
    large = client.post("/images/load", params={"path": str(tmp_path / "app.tar")}, content=LARGE, headers=form)
    assert large.status_code == 413


@pytest.mark.parametrize(
    ("content", "kind"), [(b"", "application/x-tar"), (ARCHIVE, "application/x-www-form-urlencoded"), (b"", "")]
)
def test_without_a_path_and_without_an_archive_the_path_is_missing(content: bytes, kind: str, tmp_path: Path) -> None:
    answer = client_of(tmp_path / "data").post("/images/load", content=content, headers={"Content-Type": kind})
    assert (answer.status_code, answer.text) == (400, "missing path\n")


@pytest.fixture
def data_root(tmp_path: Path) -> Iterator[Path]:
    """A store with an image, which is as it was once the test is over."""
    put(tmp_path / "data", KEPT, "kept:1")
    before = snapshot(tmp_path / "data")
    yield tmp_path / "data"
    check_invariants(tmp_path / "data")
    assert snapshot(tmp_path / "data") == before


@pytest.mark.parametrize(
    "archive",
    [
        *(b"no archive", ARCHIVE[: len(ARCHIVE) // 2], LARGE[: len(LARGE) // 2]),
        *(LARGE[:700000] + b"x" + LARGE[700001:], gzip.compress(LARGE)[:-9]),
    ],
)
def test_what_is_no_whole_archive_is_refused_and_leaves_nothing_behind(archive: bytes, data_root: Path) -> None:
    for content in (archive, pieces(archive, 100_000)):
        answer = client_of(data_root).post("/images/load", content=content, headers=TAR)
        assert answer.status_code == 422
        assert sentence_of(answer).startswith("invalid archive")


def test_a_disk_that_becomes_full_midway_has_its_status_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 1024 * 1024):
        client = client_of(tmp_path / "small" / "data")
        for content in (LARGE, pieces(LARGE, 100_000)):
            answer = client.post("/images/load", content=content, headers=TAR)
            assert answer.status_code == 507
            assert "not enough space" in sentence_of(answer)
            assert client.get("/images").json() == []
            assert read_layout_blobs(tmp_path / "small" / "data") == {}
        check_invariants(tmp_path / "small" / "data")


# ---- over a connection


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon for all tests of this module; each leaves its store as it was."""
    with running_daemon(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon
    # Whatever has become of its clients: no thread waits for one of them.
    assert "did not end in time" not in daemon.read_log()


@pytest.fixture
def served(daemon: Daemon) -> Iterator[Daemon]:
    """The same daemon, of which nothing is left running after the test."""
    yield daemon
    names = read_layout_names(daemon.data_root) if (daemon.data_root / "index.json").exists() else {}
    for name in names:
        daemon.post("/images/remove", image=name)
    daemon.post("/system/prune")
    check_invariants(daemon.data_root)


def begin(port: int, *headers: str) -> socket.socket:
    """Send the head of a load, and return the connection."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
    lines = ["POST /images/load HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/x-tar", *headers]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def wait_for(condition: Callable[[], bool]) -> None:
    """Return once something holds; fail if it does not within the bound."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.02)


def transactions(root: Path) -> list[Path]:
    """Return what lies in ``ingest/`` and is no lock."""
    return [each for each in (root / "ingest").glob("*") if each.is_dir() and any(each.iterdir())]


def test_a_client_that_goes_away_midway_leaves_nothing_behind(served: Daemon) -> None:
    for headers in ((f"Content-Length: {len(LARGE)}",), ("Transfer-Encoding: chunked",)):
        with begin(served.port, *headers) as connection:
            half = LARGE[: len(LARGE) // 2]
            framing = b"%x\r\n" % (len(half) + 1) if "Transfer" in headers[0] else b""
            connection.sendall(framing + half)
            wait_for(lambda: bool(transactions(served.data_root)))
        wait_for(lambda: not transactions(served.data_root))
        assert served.get("/images").json() == []


def test_clients_that_go_away_leave_no_thread_that_waits(served: Daemon) -> None:
    with contextlib.ExitStack() as clients:
        for _ in range(20):  # more than may load at once
            connection = clients.enter_context(begin(served.port, f"Content-Length: {len(LARGE)}"))
            connection.sendall(LARGE[:2000])
        wait_for(lambda: len(transactions(served.data_root)) > 10)
        assert served.get("/images").status == 200
    wait_for(lambda: not transactions(served.data_root))
    answer = served.request("POST", "/images/load", headers=TAR, body=ARCHIVE)
    assert answer.text == f"Loaded image {NAME} from the request\n"


def test_a_client_that_looks_at_no_answer_before_all_is_sent_sees_the_refusal(served: Daemon) -> None:
    archive = b"no archive at all" * 1_000_000
    answer = served.request("POST", "/images/load", headers=TAR, body=archive)
    assert answer.status == 422
    assert answer.text.startswith("invalid archive")


def test_a_client_that_waits_to_be_asked_is_asked(served: Daemon) -> None:
    with begin(served.port, f"Content-Length: {len(ARCHIVE)}", "Expect: 100-continue") as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(ARCHIVE)
        assert read_reply(connection).status == 200


def test_a_connection_goes_on_after_a_load(served: Daemon) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=WAIT_SECONDS)
    with contextlib.closing(connection):
        for _ in range(3):
            connection.request("POST", "/images/load", body=ARCHIVE, headers=TAR)
            assert connection.getresponse().read() == f"Loaded image {NAME} from the request\n".encode()
        connection.request("GET", "/ping")
        assert connection.getresponse().read() == b"Daemon is running"


def half_sent(daemon: Daemon) -> socket.socket:
    """Return a connection over which half of an archive has come, which the daemon has begun to load."""
    connection = begin(daemon.port, f"Content-Length: {len(LARGE)}")
    connection.sendall(LARGE[: len(LARGE) // 2])
    wait_for(lambda: bool(transactions(daemon.data_root)))
    return connection


def test_a_client_that_stalls_is_told_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with running_daemon(tmp_path, environment={"MINIBOX_IDLE_SECONDS": "1"}) as daemon, half_sent(daemon) as stalled:
        assert read_reply(stalled).status == 408
        wait_for(lambda: not transactions(daemon.data_root))
        check_invariants(daemon.data_root)


def test_the_end_of_the_daemon_ends_a_load_that_waits_for_its_client(tmp_path: Path) -> None:
    with contextlib.ExitStack() as clients:
        with running_daemon(tmp_path) as daemon:
            clients.enter_context(half_sent(daemon))
            started = time.monotonic()
        assert time.monotonic() - started < 5  # sooner than whoever still runs is left behind
        assert "did not end in time" not in daemon.read_log()
    check_invariants(daemon.data_root)
    assert transactions(daemon.data_root) == []


@pytest.mark.skipif(not DEEP, reason="1 GiB is sent: only where MINIBOX_DEEP is 1")
def test_a_load_of_a_gibibyte_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    archive = tmp_path / "large.tar"
    write_large_archive(archive, 1024**3)
    with running_daemon(tmp_path) as daemon:
        daemon.request("POST", "/images/load", headers=TAR, body=LARGE)
        before = peak_bytes(daemon)
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=120)
        with contextlib.closing(connection), archive.open("rb") as content:
            connection.request("POST", "/images/load", body=content, headers=TAR)
            assert connection.getresponse().read() == f"Loaded image {NAME} from the request\n".encode()
        assert peak_bytes(daemon) - before < 16 * 1024 * 1024


def write_large_archive(path: Path, size_bytes: int) -> None:
    """Write an archive of an image with one large layer, which is never in memory."""
    layer = path.with_name("layer.tar")
    hashed = hashlib.sha256()
    with layer.open("wb") as file:
        for piece in iter_random_tar(size_bytes):
            hashed.update(piece)
            file.write(piece)
    digest = f"sha256:{hashed.hexdigest()}"
    config = encode_document(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest]}}
    )
    manifest = encode_document(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest_of(config), "size": len(config)},
            "layers": [{"mediaType": OCI_LAYER, "digest": digest, "size": layer.stat().st_size}],
        }
    )
    controls = {"meta.json": metadata(NAME, digest_of(manifest))}
    controls |= {blob_name(digest_of(content)): content for content in (manifest, config)}
    with tarfile.open(path, "w") as archive:
        for name, content in controls.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        archive.add(layer, blob_name(digest))
    layer.unlink()


def peak_bytes(daemon: Daemon) -> int:
    """Return the most memory that the daemon has had resident."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
