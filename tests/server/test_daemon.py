"""The daemon as a process: who may start, where it listens, and how it ends."""

import contextlib
import fcntl
import http.client
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from starlette.testclient import TestClient

from minibox_server.app import create_app
from minibox_server.listening import listen
from minibox_server.settings import Settings, parse_settings
from minibox_server.workers import Workers
from tests.server.clients import BASE_URL, TOKEN, read_reply
from tests.support.daemon import DAEMON_COMMAND, daemon_environment, run_daemon_to_its_end, running_daemon
from tests.support.images import build_image
from tests.support.layouts import read_layout_names, write_layout
from tests.support.processes import free_port, read_log, running, wait_until
from tests.support.waiting import SOON_SECONDS


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"MINIBOX_HTTP_ADDR": ":8080"}, "MINIBOX_API_TOKEN"),
        ({"MINIBOX_HTTP_ADDR": "0.0.0.0:8080", "MINIBOX_API_TOKEN": "planted-secret"}, "MINIBOX_API_TOKEN"),
        ({"MINIBOX_HTTP_ADDR": "nonsense"}, "MINIBOX_HTTP_ADDR"),
        ({"MINIBOX_HTTP_ADDR": "192.0.2.1:8080", "MINIBOX_ALLOW_ANONYMOUS": "1"}, "MINIBOX_HTTP_ADDR"),
        ({"MINIBOX_ALLOWED_HOSTS": "a/b"}, "MINIBOX_ALLOWED_HOSTS"),
        ({"MINIBOX_ARCHIVE_PREFIXES": "relative"}, "MINIBOX_ARCHIVE_PREFIXES"),
    ],
)
def test_s20_a_daemon_that_may_not_start_says_why_in_one_sentence(
    tmp_path: Path, variables: dict[str, str], named: str
) -> None:
    status, output = run_daemon_to_its_end(tmp_path, environment=variables)
    assert status == 2
    assert output.startswith("minibox-server: ")
    assert output.count("\n") == 1
    assert named in output
    assert "planted-secret" not in output
    assert not (tmp_path / "data").exists()


def test_an_address_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, output = run_daemon_to_its_end(tmp_path, environment={"MINIBOX_HTTP_ADDR": address})
    assert status == 2
    assert f"cannot listen on {address}" in output
    assert "Address already in use" in output


def test_it_says_what_it_can_be_told(tmp_path: Path) -> None:
    status, output = run_daemon_to_its_end(tmp_path, environment={}, command=[*DAEMON_COMMAND, "--help"])
    assert status == 0
    for name in ("HTTP_ADDR", "DATA_ROOT", "API_TOKEN", "ALLOW_ANONYMOUS", "ALLOWED_HOSTS", "ARCHIVE_PREFIXES"):
        assert f"MINIBOX_{name}" in output
    status, _ = run_daemon_to_its_end(tmp_path, environment={}, command=[*DAEMON_COMMAND, "--port=1"])
    assert status == 2


@contextlib.contextmanager
def listening(folder: Path, address: str, port: int, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon that listens on ``address`` until the block ends."""
    settings = {"MINIBOX_HTTP_ADDR": f"{address}:{port}", **variables}
    environment = daemon_environment(folder, port=port, data_root=folder / "data", token=TOKEN, extra=settings)
    log = folder / "daemon.log"
    with running(DAEMON_COMMAND, environment=environment, log=log, folder=folder, end_seconds=15) as process:
        wait_until(lambda: "listening on" in read_log(log), process, log=log)
        yield process
        assert process.poll() is None


def status_at(address: str, port: int, host: str) -> int:
    """Return the status of a ping to ``address`` under the name ``host``."""
    connection = http.client.HTTPConnection(address, port, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", "/ping", headers={"Host": host, "X-API-Token": TOKEN})
        return connection.getresponse().status


def own_address() -> str | None:
    """Return an address of this machine that is not loopback, None where there is none; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return None if address.startswith("127.") else address


def test_on_every_interface_it_answers_under_the_address_it_was_reached_at(tmp_path: Path) -> None:
    port = free_port()
    with listening(tmp_path, "", port):
        assert status_at("127.0.0.1", port, f"127.0.0.1:{port}") == 200
        assert status_at("127.0.0.2", port, "127.0.0.2") == 200
        assert status_at("127.0.0.1", port, "192.0.2.1") == 403
        assert status_at("127.0.0.1", port, "evil.example") == 403
        if has_ipv6():
            assert status_at("::1", port, f"[::1]:{port}") == 200
        address = own_address()
        if address is not None:
            assert status_at(address, port, f"{address}:{port}") == 200
            assert status_at("127.0.0.1", port, f"{address}:{port}") == 403


def test_it_listens_on_ipv6_alone_where_it_is_told_to(tmp_path: Path) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    port = free_port()
    with listening(tmp_path, "[::1]", port):
        assert status_at("::1", port, f"[::1]:{port}") == 200
        with pytest.raises(ConnectionRefusedError):
            status_at("127.0.0.1", port, "localhost")


def test_it_listens_under_the_name_of_this_machine_itself(tmp_path: Path) -> None:
    port = free_port()
    with listening(tmp_path, "localhost", port):
        assert status_at("127.0.0.1", port, f"localhost:{port}") == 200


def test_it_is_reached_under_the_names_that_the_operator_lists(tmp_path: Path) -> None:
    with running_daemon(tmp_path, environment={"MINIBOX_ALLOWED_HOSTS": "images.example"}) as daemon:
        assert daemon.request("GET", "/ping", headers={"Host": "images.example"}).status == 200
        assert daemon.request("GET", "/ping", headers={"Host": "other.example"}).status == 403


def test_archives_lie_only_where_the_operator_says(tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    write_layout(tmp_path / "data", {"app:1": build_image()})
    with running_daemon(tmp_path, environment={"MINIBOX_ARCHIVE_PREFIXES": f"{tmp_path}/archives"}) as daemon:
        inside, outside = tmp_path / "archives" / "a.tar", tmp_path / "a.tar"
        for path, status in ((inside, 200), (outside, 403)):
            query = {"image": "app:1", "path": str(path)}
            assert daemon.request("POST", "/images/save", query).status == status
        outside.write_bytes(inside.read_bytes())
        for path, status in ((inside, 200), (outside, 403)):
            assert daemon.request("POST", "/images/load", {"path": str(path)}).status == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_and_well_when_it_is_told_to(tmp_path: Path, number: int) -> None:
    with running_daemon(tmp_path) as daemon:
        idle = socket.create_connection(("127.0.0.1", daemon.port))
        kept = http.client.HTTPConnection("127.0.0.1", daemon.port)
        kept.request("GET", "/ping")
        assert kept.getresponse().read() == b"Daemon is running"
        begin = time.monotonic()
        daemon.process.send_signal(number)
        assert daemon.process.wait(10) == 0
        assert time.monotonic() - begin < 5
        idle.close()
        kept.close()
    assert "Traceback" not in daemon.read_log()


def test_it_ends_in_time_even_where_a_call_waits_for_a_lock_that_cannot_be_had(tmp_path: Path) -> None:
    write_layout(tmp_path / "data", {"app:1": build_image()})
    with running_daemon(tmp_path) as daemon:
        (daemon.data_root / "ingest").mkdir(exist_ok=True)
        with (daemon.data_root / "ingest" / "store.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection:
                request = f"POST /images/remove?image=app:1 HTTP/1.1\r\nHost: {daemon.host}\r\n\r\n"
                connection.sendall(request.encode())
                assert daemon.get("/images").status == 200
                begin = time.monotonic()
                daemon.process.terminate()
                reply = read_reply(connection)
            assert daemon.process.wait(60) == 0
            assert time.monotonic() - begin < SOON_SECONDS
    assert (reply.status, reply.headers["x-content-type-options"]) == (503, "nosniff")
    assert "retry-after" in reply.headers
    assert list(read_layout_names(daemon.data_root)) == ["app:1"]


def test_no_operation_begins_once_it_is_told_to_end(tmp_path: Path) -> None:
    workers = Workers()
    workers.cancel_operations()
    app = create_app(Settings(data_root=str(tmp_path / "data")), workers=workers)
    response = TestClient(app, base_url=BASE_URL).post("/images/pull?image=127.0.0.1:1/app:1")
    assert response.text == "[error] pull failed: operation was cancelled\n"


def test_two_daemons_share_a_store(tmp_path: Path) -> None:
    write_layout(tmp_path / "data", {"app:1": build_image(), "app:2": build_image(salt="2")})
    with (
        running_daemon(tmp_path / "one", data_root=tmp_path / "data") as one,
        running_daemon(tmp_path / "two", data_root=tmp_path / "data") as two,
    ):
        assert [each["name"] for each in two.get("/images").json()] == ["app:1", "app:2"]
        assert one.post("/images/remove", image="app:1").status == 200
        assert [each["name"] for each in two.get("/images").json()] == ["app:2"]
        assert two.post("/images/remove", image="app:1").status == 404


def test_the_environment_of_other_servers_changes_nothing(tmp_path: Path) -> None:
    variables = {"WEB_CONCURRENCY": "many", "FORWARDED_ALLOW_IPS": "*", "UVICORN_PORT": "1"}
    with running_daemon(tmp_path, environment=variables) as daemon:
        assert daemon.request("GET", "/ping", headers={"X-Forwarded-For": "203.0.113.9"}).status == 200
        assert "203.0.113.9" not in daemon.read_log()


@pytest.mark.parametrize("host", ["127.0.0.1", ""], ids=["one address", "every address"])
def test_what_an_answer_ends_with_waits_for_no_acknowledgement(host: str) -> None:
    with contextlib.ExitStack() as stack:
        listening, *others = listen(attrs.evolve(parse_settings({}), host=host, port=0)).sockets
        stack.enter_context(listening)
        assert not others
        listening.settimeout(5)
        address = ("127.0.0.1", listening.getsockname()[1])
        stack.enter_context(socket.create_connection(address, timeout=5))
        accepted = stack.enter_context(listening.accept()[0])
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
