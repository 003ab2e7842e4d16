"""TLS: what the daemon shows and speaks, and which files it refuses."""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minibox_server.settings import SettingsError, parse_settings
from tests.support.certificates import Certificate, make_certificate
from tests.support.daemon import DAEMON_COMMAND, daemon_environment, run_daemon_to_its_end
from tests.support.images import BuiltImage, build_image, random_layer
from tests.support.layouts import write_layout
from tests.support.processes import children_in_session, end_process, free_port, read_log, running, wait_until

WAIT_SECONDS = 60.0
# Is told that the certificate was renewed in the midst of making its event loop, each process once.
_RENEW_EARLY = """
import asyncio, os, shutil, signal
from minibox_server.__main__ import main
make = asyncio.SelectorEventLoop._make_self_pipe
def renew_and_make(loop):
    for name in ("certificate.pem", "key.pem"):
        shutil.copy(f"next/{name}", name)
    os.kill(os.getpid(), signal.SIGHUP)
    make(loop)
asyncio.SelectorEventLoop._make_self_pipe = renew_and_make
main()
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def image() -> BuiltImage:
    return build_image([random_layer(3 * 1024 * 1024)])


class TlsDaemon:
    """A daemon that speaks TLS with the files of its folder, which are copies."""

    process: subprocess.Popen[bytes]

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.log = folder / "daemon.log"

    def show(self, certificate: Certificate, folder: str = ".") -> None:
        """Put the certificate into the files, or into those of a folder beside them."""
        (self.folder / folder).mkdir(exist_ok=True)
        shutil.copy(certificate.chain, self.folder / folder / "certificate.pem")
        shutil.copy(certificate.key, self.folder / folder / "key.pem")
        (self.folder / folder / "key.pem").chmod(0o600)

    def ask(self, certificate: Certificate, path: str = "/ping", **headers: str) -> tuple[int, bytes]:
        """Return status and body of what is asked by somebody who trusts this certificate alone."""
        context = certificate.client_context()
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=context)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


@pytest.fixture(params=["1", "2"])
def daemon(
    tmp_path: Path, certificate: Certificate, image: BuiltImage, request: pytest.FixtureRequest
) -> Iterator[TlsDaemon]:
    """A daemon of one process, and one of two."""
    write_layout(tmp_path / "data", {"app:1": image})
    with running_tls(tmp_path, certificate, *DAEMON_COMMAND, f"--workers={request.param}") as daemon:
        assert daemon.ask(certificate)[0] == 200
        yield daemon


@contextlib.contextmanager
def running_tls(
    folder: Path, certificate: Certificate, *command: str, renewed: Certificate | None = None
) -> Iterator[TlsDaemon]:
    """Run a daemon that speaks TLS, beside whose certificate another one may lie ready; give it once it listens."""
    daemon = TlsDaemon(folder, free_port())
    daemon.show(certificate)
    if renewed is not None:
        daemon.show(renewed, "next")
    variables = {"MINIBOX_TLS_CERTIFICATE": "certificate.pem", "MINIBOX_TLS_KEY": "key.pem"}
    environment = daemon_environment(folder, port=daemon.port, data_root=folder / "data", token=None, extra=variables)
    with running(command, environment=environment, log=daemon.log, folder=folder, end_seconds=15) as process:
        wait_until(lambda: "listening on" in read_log(daemon.log), process, log=daemon.log)
        daemon.process = process
        yield daemon
        assert end_process(process, timeout_seconds=10)
        assert "Traceback" not in read_log(daemon.log)


def test_it_speaks_tls_and_nothing_older_than_1_2(
    daemon: TlsDaemon, certificate: Certificate, image: BuiltImage
) -> None:
    layer = str(image.document()["layers"][0]["digest"])
    assert daemon.ask(certificate, f"/v2/app/blobs/{layer}") == (200, image.blobs[layer])
    assert daemon.ask(certificate, f"/v2/app/blobs/{layer}", Range="bytes=5-9") == (206, image.blobs[layer][5:10])
    own, other = f"https://127.0.0.1:{daemon.port}", f"http://127.0.0.1:{daemon.port}"
    assert daemon.ask(certificate, Origin=own)[0] == 200
    assert daemon.ask(certificate, Origin=other)[0] == 403, "the page came by another way"
    for oldest, newest in ((ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2), (ssl.TLSVersion.TLSv1_3,) * 2):
        assert handshake(daemon.port, certificate, oldest, newest) == newest.name.replace("_", ".")
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"HTTP" not in connection.recv(1000), "nothing is said in plain text"


def handshake(port: int, certificate: Certificate, oldest: ssl.TLSVersion, newest: ssl.TLSVersion) -> str | None:
    """Return which version is spoken, checking that a cipher of forward secrecy is."""
    context = certificate.client_context()
    context.minimum_version, context.maximum_version = oldest, newest
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
        context.wrap_socket(connection, server_hostname="localhost") as opened,
    ):
        cipher = opened.cipher()
        assert cipher is not None
        assert cipher[0].startswith(("TLS_", "ECDHE-"))
        return opened.version()


def test_a_certificate_that_was_renewed_is_shown_once_it_is_told_so(
    daemon: TlsDaemon, certificate: Certificate, tmp_path: Path
) -> None:
    renewed = make_certificate(tmp_path / "renewed")
    (tmp_path / "key.pem").write_text("no key")
    os.kill(daemon.process.pid, signal.SIGHUP)
    deadline = time.monotonic() + WAIT_SECONDS
    while "the certificate stays what it was" not in read_log(daemon.log):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert daemon.ask(certificate)[0] == 200
    daemon.show(renewed)
    os.kill(daemon.process.pid, signal.SIGHUP)
    check_all_show(daemon, renewed)


def check_all_show(daemon: TlsDaemon, certificate: Certificate) -> None:
    """Raise AssertionError unless each process comes to show it: ten connections in a row are shown it."""
    shown, deadline = 0, time.monotonic() + WAIT_SECONDS
    while shown < 10:
        assert time.monotonic() < deadline
        try:
            shown = shown + 1 if daemon.ask(certificate)[0] == 200 else 0
        except (ssl.SSLCertVerificationError, ConnectionError):
            shown = 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_one_that_was_renewed_while_the_daemon_began_is_shown_too(
    tmp_path: Path, certificate: Certificate, workers: str
) -> None:
    renewed = make_certificate(tmp_path / "renewed")
    command = (sys.executable, "-c", _RENEW_EARLY, f"--workers={workers}")
    with running_tls(tmp_path, certificate, *command, renewed=renewed) as daemon:
        check_all_show(daemon, renewed)


@pytest.mark.parametrize("daemon", ["2"], indirect=True)
def test_a_process_that_takes_the_place_of_another_one_shows_what_was_read_last(
    daemon: TlsDaemon, tmp_path: Path
) -> None:
    renewed = make_certificate(tmp_path / "renewed")
    daemon.show(renewed)
    os.kill(daemon.process.pid, signal.SIGHUP)
    check_all_show(daemon, renewed)
    (tmp_path / "key.pem").write_text("no key")  # what is read now would be refused
    before = children_in_session(daemon.process.pid)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(children_in_session(daemon.process.pid) - before) == 2, daemon.process, log=daemon.log)
    check_all_show(daemon, renewed)


def test_what_is_no_certificate_and_its_key_is_named_and_nothing_is_served(
    tmp_path: Path, certificate: Certificate
) -> None:
    other = make_certificate(tmp_path / "other")
    readable, encrypted = tmp_path / "readable.pem", tmp_path / "encrypted.pem"
    shutil.copy(certificate.key, readable)
    readable.chmod(0o644)
    encrypted.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
    encrypted.chmod(0o600)
    os.mkfifo(tmp_path / "fifo")
    for chain, key, named in (
        (certificate.chain, other.key, "key values mismatch"),
        (tmp_path / "missing", certificate.key, "MINIBOX_TLS_CERTIFICATE: "),
        (certificate.chain, tmp_path / "missing", "MINIBOX_TLS_KEY: "),
        (certificate.chain, readable, "everybody on this machine may read"),
        (certificate.chain, encrypted, "no certificate and its key"),
        (certificate.key, certificate.key, "no certificate and its key"),
        (certificate.chain, tmp_path / "fifo", "no regular file"),
    ):
        variables = {"MINIBOX_TLS_CERTIFICATE": str(chain), "MINIBOX_TLS_KEY": str(key)}
        status, output = run_daemon_to_its_end(tmp_path, environment=variables)
        assert (status, output.count("\n")) == (2, 1), output
        assert named in output


@pytest.mark.parametrize("name", ["CERTIFICATE", "KEY"])
def test_one_of_the_two_files_alone_is_not_enough(name: str) -> None:
    with pytest.raises(SettingsError, match=f"MINIBOX_TLS_{name} is set"):
        parse_settings({f"MINIBOX_TLS_{name}": "/etc/minibox.pem"})
