"""nginx in front of a registry: a rate for each connection, as the networks of real registries have."""

import contextlib
import http.client
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.support.peers import require_peer
from tests.support.processes import ProcessFailed, free_port, plain_environment, read_log, running, wait_until

_ATTEMPTS = 5

# One process, which keeps whatever it writes in its folder, and has no rights that the test has not.
_SETTINGS = """
daemon off;
master_process off;
pid {folder}/pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 0;
    keepalive_requests 100000;
    default_type application/octet-stream;
    tcp_nodelay on;
    {rate}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{upstream_port};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_max_temp_file_size 0;
            proxy_request_buffering off;
        }}
        {blobs}
    }}
}}
"""
# Cheaper than asking the registry for what lies on the same disk; HEAD and GET alone, so that uploads pass.
_BLOBS = """
        location ~ ^/v2/.+/blobs/(sha256|sha512):([0-9a-f]+)$ {{
            alias {folder}/$1/$2;
            add_header Docker-Content-Digest $1:$2;
            {ranges}
        }}
"""


@dataclass(frozen=True, kw_only=True)
class Nginx:
    """A running nginx.

    Attributes:
        host: ``127.0.0.1:port``, as it stands in references.
        pid: The process.
        access_log: A line for each request.
    """

    host: str
    pid: int
    access_log: Path

    def reference(self, repository: str, tag: str) -> str:
        """Return the reference of an image in the registry behind it."""
        return f"{self.host}/{repository}:{tag}"

    def count(self, part: str) -> int:
        """Return how many requests so far have a text in their line of the log."""
        return sum(part in line for line in read_log(self.access_log).splitlines())


@contextlib.contextmanager
def nginx(
    folder: Path,
    *,
    registry_host: str,
    blobs: Path | None = None,
    bytes_per_second: int | None = None,
    ranges: bool = True,
) -> Iterator[Nginx]:
    """Run nginx in front of a registry.

    Args:
        folder: Made when it is missing.
        registry_host: Where everything is asked, as ``127.0.0.1:port``.
        blobs: The ``blobs`` folder of a layout, from which blobs are served as files; the registry where it is None.
        bytes_per_second: How much one answer carries; as much as there is where it is None.
        ranges: Whether ranges of the blobs in that folder are given.
    """
    program = require_peer("nginx")
    folder.mkdir(parents=True, exist_ok=True)
    settings, log = folder / "nginx.conf", folder / "log"
    for attempt in range(_ATTEMPTS):
        port = free_port()
        static = _BLOBS.format(folder=blobs, ranges="" if ranges else "max_ranges 0;") if blobs else ""
        settings.write_text(
            _SETTINGS.format(
                folder=folder,
                port=port,
                upstream_port=int(registry_host.rpartition(":")[2]),
                rate=f"limit_rate {bytes_per_second};" if bytes_per_second else "",
                blobs=static,
            )
        )
        command = [program, "-p", os.fspath(folder), "-e", "stderr", "-c", os.fspath(settings)]
        with running(command, environment=plain_environment(folder), log=log, folder=folder) as process:
            try:
                wait_until(partial(_answers, port), process, log=log)
            except ProcessFailed:
                # Somebody else may have taken the port since it was found to be free.
                if attempt + 1 == _ATTEMPTS or "Address already in use" not in read_log(log):
                    raise
                continue
            yield Nginx(host=f"127.0.0.1:{port}", pid=process.pid, access_log=folder / "access.log")
            return


def _answers(port: int) -> bool:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status in (200, 401)
        except OSError:
            return False
