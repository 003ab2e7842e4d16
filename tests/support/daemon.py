"""The daemon as its users meet it: a process of its own, asked over HTTP, ended by SIGTERM."""

import contextlib
import functools
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.support.processes import (
    ProcessFailed,
    end_process,
    free_port,
    plain_environment,
    read_log,
    running,
    wait_until,
)

DAEMON_COMMAND = (sys.executable, "-m", "minibox_server")

_PROJECT = Path(__file__).parents[2]
# The contract gives running requests 10 s after SIGTERM; the rest is for a busy machine.
_END_SECONDS = 60.0
_START_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A whole answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    def json(self) -> Any:
        """Return the decoded body."""
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """An answer whose body is read as it comes."""

    status: int
    headers: dict[str, str]
    response: http.client.HTTPResponse

    def __iter__(self) -> Iterator[str]:
        """Yield each line without its newline, as soon as it is there."""
        for line in self.response:
            yield line.decode().rstrip("\n")


@dataclass(kw_only=True)
class Daemon:
    """A running daemon, and after the ``with`` block what is left of it.

    Attributes:
        port: The port of 127.0.0.1 that it listens on.
        data_root: Its DataRoot.
        token: Sent with each request unless the request says otherwise.
        process: The process.
        log: The file with all that it writes.
        obeyed_sigterm: Whether it ended in time when it was told to; None while it runs.
    """

    port: int
    data_root: Path
    token: str | None
    process: subprocess.Popen[bytes]
    log: Path
    obeyed_sigterm: bool | None = field(default=None)

    @property
    def host(self) -> str:
        """``127.0.0.1:port``, as it stands in references and in the Host header."""
        return f"127.0.0.1:{self.port}"

    @property
    def exit_status(self) -> int | None:
        """The exit status, negative for the signal that ended it; None while it runs."""
        return self.process.poll()

    def read_log(self) -> str:
        """Return what the daemon has written to stdout and stderr so far."""
        return read_log(self.log)

    def get(self, path: str, **query: str) -> Reply:
        """Send a GET with these parameters."""
        return self.request("GET", path, query)

    def post(self, path: str, **query: str) -> Reply:
        """Send a POST with these parameters and no body, as the command-line client does."""
        return self.request("POST", path, query)

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        with_token: bool = True,
        timeout_seconds: float = 30.0,
    ) -> Reply:
        """Send a request over a connection of its own, and return the whole answer.

        A list of pairs may repeat a parameter; ``with_token=False`` leaves out what proves who asks.
        """
        with self.stream(
            method,
            path,
            query,
            headers=headers,
            body=body,
            with_token=with_token,
            timeout_seconds=timeout_seconds,
        ) as stream:
            return Reply(status=stream.status, headers=stream.headers, body=stream.response.read())

    @contextlib.contextmanager
    def stream(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        with_token: bool = True,
        timeout_seconds: float = 30.0,
    ) -> Iterator[Stream]:
        """Send a request, and give the answer as soon as its headers are there; leaving early hangs up."""
        credentials = {"Authorization": f"Bearer {self.token}"} if self.token and with_token else {}
        target = path + (f"?{urlencode(query)}" if query else "")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_seconds)
        with contextlib.closing(connection):
            connection.request(method, target, body=body, headers={**credentials, **(headers or {})})
            with connection.getresponse() as response:
                items = {name.lower(): value for name, value in response.getheaders()}
                yield Stream(status=response.status, headers=items, response=response)


@contextlib.contextmanager
def running_daemon(
    folder: Path,
    *,
    data_root: Path | None = None,
    token: str | None = None,
    environment: Mapping[str, str] | None = None,
    command: Sequence[str] = DAEMON_COMMAND,
    timeout_seconds: float = 60.0,
    end_seconds: float = _END_SECONDS,
) -> Iterator[Daemon]:
    """Run the daemon on a free port of 127.0.0.1 until the block ends, and then end it by SIGTERM.

    Args:
        folder: For its home and its log.
        data_root: MINIBOX_DATA_ROOT, by default ``folder/data``; the daemon makes it.
        token: MINIBOX_API_TOKEN.
        environment: Further variables, such as MINIBOX_ARCHIVE_PREFIXES; nothing else of this process is passed on.
        command: What is run.
        timeout_seconds: How long it may take to answer ``GET /ping``.
        end_seconds: How long it may take to end.

    Raises:
        ProcessFailed: when it does not come to answer, or must be killed in the end; with its log.
    """
    root = data_root or folder / "data"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "daemon.log"
    with contextlib.ExitStack() as stack:
        for attempt in range(_START_ATTEMPTS):
            port = free_port()
            variables = daemon_environment(folder, port=port, data_root=root, token=token, extra=environment)
            process = stack.enter_context(
                running(command, environment=variables, log=log, folder=folder, end_seconds=end_seconds)
            )
            daemon = Daemon(port=port, data_root=root, token=token, process=process, log=log)
            try:
                wait_until(functools.partial(_pings, daemon), process, log=log, timeout_seconds=timeout_seconds)
            except ProcessFailed as error:
                # Between choosing a port and binding it another process may have come first.
                if "address already in use" in str(error).lower() and attempt + 1 < _START_ATTEMPTS:
                    continue
                raise
            break
        try:
            yield daemon
        finally:
            daemon.obeyed_sigterm = end_process(process, timeout_seconds=end_seconds)
    if not daemon.obeyed_sigterm:
        raise ProcessFailed(f"the daemon did not end within {end_seconds} s of SIGTERM:\n{daemon.read_log()}")


def run_daemon_to_its_end(
    folder: Path,
    *,
    environment: Mapping[str, str],
    command: Sequence[str] = DAEMON_COMMAND,
    timeout_seconds: float = 60.0,
) -> tuple[int, str]:
    """Run a daemon that should refuse to start, and return its exit status and what it wrote.

    Raises:
        ProcessFailed: when it runs on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "daemon.log"
    variables = daemon_environment(folder, port=free_port(), data_root=folder / "data", token=None, extra=environment)
    with running(command, environment=variables, log=log, folder=folder) as process:
        try:
            status = process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise ProcessFailed(f"the daemon runs, and should not:\n{read_log(log)}") from error
    return status, read_log(log)


def daemon_environment(
    folder: Path, *, port: int, data_root: Path, token: str | None, extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the whole environment of a daemon; ``extra`` goes over everything."""
    return {
        **plain_environment(folder),
        "PYTHONPATH": str(_PROJECT),
        "PYTHONUNBUFFERED": "1",
        "MINIBOX_HTTP_ADDR": f"127.0.0.1:{port}",
        "MINIBOX_DATA_ROOT": str(data_root),
        **({"MINIBOX_API_TOKEN": token} if token is not None else {}),
        **(extra or {}),
    }


def _pings(daemon: Daemon) -> bool:
    try:
        return daemon.request("GET", "/ping", timeout_seconds=2).status == 200
    except (OSError, http.client.HTTPException):
        return False
