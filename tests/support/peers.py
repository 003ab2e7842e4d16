"""Real parts to test against: a registry, and tools of other projects that read and write the same formats.

Each has its own folder, environment and port of 127.0.0.1, so that neither the machine's settings nor another
test can change what it does.
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit, urlunsplit

import pytest

from tests.support.answers import basic_credentials
from tests.support.images import BuiltImage
from tests.support.processes import plain_environment, read_log, running, wait_until

if TYPE_CHECKING:
    from tests.support.certificates import Certificate

_RUN_SECONDS = 60.0


class PeerFailed(Exception):
    """A tool ended with an error; the message is what it wrote to stderr."""


def require_peer(name: str) -> str:
    """Return the path of a program; without it the test is skipped.

    Where MINIBOX_REQUIRE_PEERS is 1 it fails instead: a run that promises these tests must not pass without them.
    """
    path = shutil.which(name)
    if path is not None:
        return path
    if os.environ.get("MINIBOX_REQUIRE_PEERS") == "1":
        pytest.fail(f"{name} is not installed, and MINIBOX_REQUIRE_PEERS=1 wants it", pytrace=False)
    pytest.skip(f"{name} is not installed")


@dataclass(frozen=True, kw_only=True)
class DockerRegistry:
    """A running registry of the distribution project.

    Attributes:
        host: ``127.0.0.1:port``, as it stands in references.
        url: Its base URL, without a slash at its end.
        pid: The process.
        storage: The folder in which it keeps everything.
        log: The file to which it writes.
        certificate: What it presents; None where it speaks plain HTTP.
    """

    host: str
    url: str
    pid: int
    storage: Path
    log: Path
    certificate: "Certificate | None"

    def reference(self, repository: str, tag: str | None = None, *, digest: str | None = None) -> str:
        """Return the image reference of something that this registry holds."""
        return f"{self.host}/{repository}" + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")

    def read_log(self) -> str:
        """Return what it has written so far."""
        return read_log(self.log)


@contextlib.contextmanager
def docker_registry(
    folder: Path,
    *,
    users: Mapping[str, str] | None = None,
    tokens: Mapping[str, str] | None = None,
    certificate: "Certificate | None" = None,
    mirror_of: str | None = None,
    layers_at: str | None = None,
) -> Iterator[DockerRegistry]:
    """Run docker-registry with its data in ``folder``, which may hold those of an earlier run.

    Args:
        folder: Made when it is missing.
        users: Passwords by name, asked for by a Basic challenge; when None everybody may do everything.
        tokens: Its settings for bearer tokens, as :meth:`TokenSigner.settings` gives them; instead of ``users``.
        certificate: Serve TLS with it; to clients that prove themselves alone, where it names who vouches for them.
        mirror_of: The URL of a registry whose images it fetches when they are asked for, and keeps.
        layers_at: The addresses that layers may lie at, as a regular expression; when None there are none.
    """
    program = require_peer("docker-registry")
    folder.mkdir(parents=True, exist_ok=True)
    storage, config, log = folder / "storage", folder / "config.yml", folder / "log"
    # JSON is YAML, and needs no writer of its own.
    settings = _registry_config(folder, storage, users, certificate)
    if tokens is not None:
        settings["auth"] = {"token": dict(tokens)}
    if mirror_of is not None:
        settings["proxy"] = {"remoteurl": mirror_of}
    if layers_at is not None:
        settings["validation"] = {"manifests": {"urls": {"allow": [layers_at]}}}
    config.write_text(json.dumps(settings))
    environment = plain_environment(folder)
    with running([program, "serve", str(config)], environment=environment, log=log, folder=folder) as process:
        # It binds port 0 and says which one it was given: no other process can take the port in between.
        wait_until(lambda: _listening_port(log) is not None, process, log=log)
        host = f"127.0.0.1:{_listening_port(log)}"
        wait_until(lambda: _answers(host, certificate), process, log=log)
        url = f"{'https' if certificate else 'http'}://{host}"
        yield DockerRegistry(host=host, url=url, pid=process.pid, storage=storage, log=log, certificate=certificate)


def push_image(
    registry: DockerRegistry,
    repository: str,
    tag: str,
    image: BuiltImage,
    *,
    credentials: tuple[str, str] | None = None,
) -> None:
    """Push ``image`` as it is: also what skopeo would convert or refuse, such as nested indexes.

    Raises:
        PeerFailed: when the registry refuses a request.

    Spec: OCI distribution-spec 1.1, section "Push".
    """
    headers = {"Authorization": basic_credentials(*credentials)} if credentials else {}
    with contextlib.closing(_connection(registry.host, registry.certificate)) as connection:
        documents = image.document_digests
        for digest, content in image.blobs.items():
            if digest not in documents:
                location = _send(connection, "POST", f"/v2/{repository}/blobs/uploads/", headers)
                target = f"{location}{'&' if '?' in location else '?'}{urlencode({'digest': digest})}"
                _send(connection, "PUT", target, {**headers, "Content-Type": "application/octet-stream"}, content)
        for digest in documents:
            for name in (digest, tag) if digest == image.digest else (digest,):
                typed = {**headers, "Content-Type": image.media_types[digest]}
                _send(connection, "PUT", f"/v2/{repository}/manifests/{name}", typed, image.blobs[digest])


def run_skopeo(*arguments: str | Path, timeout_seconds: float = _RUN_SECONDS) -> str:
    """Run skopeo with settings of its own, and return its stdout.

    Plain HTTP needs ``--src-tls-verify=false`` (or ``--dest-…``, or ``--tls-verify=false`` for inspect), another
    authority ``--src-cert-dir`` with :attr:`Certificate.authorities`.

    Raises:
        PeerFailed: with its stderr.
    """
    with tempfile.TemporaryDirectory(prefix="skopeo-") as home:
        return run_peer(skopeo_command(Path(home), *arguments), skopeo_environment(Path(home)), timeout_seconds)


def skopeo_command(home: Path, *arguments: str | Path) -> list[str]:
    """Return a command line of skopeo that ignores the machine's policy and registries, for benchmarks to run."""
    registries = home / "registries.d"
    registries.mkdir(parents=True, exist_ok=True)
    settings = ["--insecure-policy", "--registries.d", str(registries), "--tmpdir", str(home)]
    return [require_peer("skopeo"), *settings, *map(str, arguments)]


def skopeo_environment(home: Path) -> dict[str, str]:
    """Return the environment that belongs to :func:`skopeo_command`."""
    registries = home / "registries.conf"
    registries.write_text("")
    return {
        **plain_environment(home),
        "CONTAINERS_REGISTRIES_CONF": str(registries),
        "XDG_RUNTIME_DIR": str(home),
        "XDG_DATA_HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        # As root it would remember blobs machine-wide by host, and ports come back: a later run would then
        # believe in blobs of a registry that is long gone.
        "_CONTAINERS_ROOTLESS_UID": "1000",
    }


def run_umoci(*arguments: str | Path, timeout_seconds: float = _RUN_SECONDS) -> str:
    """Run umoci, and return its stdout.

    Raises:
        PeerFailed: with its stderr.
    """
    with tempfile.TemporaryDirectory(prefix="umoci-") as home:
        command = [require_peer("umoci"), *map(str, arguments)]
        return run_peer(command, plain_environment(Path(home)), timeout_seconds)


def run_peer(command: list[str], environment: Mapping[str, str], timeout_seconds: float = _RUN_SECONDS) -> str:
    """Run a program of another project, and return its stdout.

    Raises:
        PeerFailed: with its stderr.
    """
    done = subprocess.run(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=timeout_seconds,
    )
    if done.returncode != 0:
        shown = " ".join(command)
        raise PeerFailed(f"{shown}: status {done.returncode}\n{done.stderr.decode(errors='replace')}")
    return done.stdout.decode()


def _registry_config(
    folder: Path, storage: Path, users: Mapping[str, str] | None, certificate: "Certificate | None"
) -> dict[str, object]:
    http_settings: dict[str, object] = {"addr": "127.0.0.1:0"}
    if certificate is not None:
        tls: dict[str, object] = {"certificate": str(certificate.chain), "key": str(certificate.key)}
        if certificate.client_authority is not None:
            tls["clientcas"] = [str(certificate.client_authority)]
        http_settings["tls"] = tls
    config: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "info"},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        "http": http_settings,
    }
    if users is not None:
        passwords = folder / "htpasswd"
        lines = [
            run_peer([require_peer("htpasswd"), "-Bbn", *item], plain_environment(folder), 10) for item in users.items()
        ]
        passwords.write_text("".join(line.strip() + "\n" for line in lines))
        config["auth"] = {"htpasswd": {"realm": "test registry", "path": str(passwords)}}
    return config


def _listening_port(log: Path) -> int | None:
    match = re.search(r"listening on 127\.0\.0\.1:(\d+)", read_log(log))
    return int(match[1]) if match else None


def _connection(host: str, certificate: "Certificate | None") -> http.client.HTTPConnection:
    if certificate is None:
        return http.client.HTTPConnection(host, timeout=10)
    return http.client.HTTPSConnection(host, timeout=10, context=certificate.client_context())


def _answers(host: str, certificate: "Certificate | None") -> bool:
    with contextlib.closing(_connection(host, certificate)) as connection:
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status in (200, 401)
        except OSError:
            return False


def _send(
    connection: http.client.HTTPConnection, method: str, target: str, headers: Mapping[str, str], body: bytes = b""
) -> str:
    """Send a request that must succeed, and return its Location without scheme and host."""
    connection.request(method, target, body=body, headers=dict(headers))
    with connection.getresponse() as response:
        told = response.read().decode(errors="replace")
        if response.status not in (201, 202):
            raise PeerFailed(f"{method} {target}: status {response.status}\n{told}")
        location = urlsplit(response.headers["Location"])
        return urlunsplit(("", "", location.path, location.query, ""))
