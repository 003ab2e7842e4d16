"""Ways to ask the daemon: its application in this process, and raw bytes over a socket."""

import json
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx2
from starlette.applications import Starlette
from starlette.testclient import TestClient

from minibox_server.app import create_app
from minibox_server.openapi import describe_api
from minibox_server.settings import Settings
from tests.support.described import Description, description_of

BASE_URL = "http://127.0.0.1:8080"
TOKEN = "0123456789abcdefghijkl"
_PIECE_BYTES = 64 * 1024


def client_of(
    data_root: Path, *, headers: dict[str, str] | None = None, is_held: bool = True, **settings: Any
) -> TestClient:
    """Return a client of the application over this store, asking as the machine's own user does.

    Each answer is held to the description that the application gives of itself, unless ``is_held`` says otherwise.
    """
    app = create_app(Settings(data_root=str(data_root), **settings))
    client = TestClient(app, base_url=BASE_URL, headers=headers, raise_server_exceptions=False)
    if is_held:
        hold_to_description(client, app)
    return client


def hold_to_description(client: TestClient, app: Starlette) -> Description:
    """Let each answer that a client gets fail its test where the description of an application does not allow it."""
    described = describe_api(app.state.endpoints, version="0")
    description = description_of(json.dumps(described))

    def hold(response: httpx2.Response) -> None:
        response.read()
        path = unquote(response.request.url.raw_path.partition(b"?")[0].decode("ascii"))
        method, headers = response.request.method, response.headers.multi_items()
        description.check(method, path, response.status_code, headers, response.content)

    client.event_hooks = {"response": [hold]}
    return description


def sentence_of(response: httpx2.Response) -> str:
    """Return the one line that an error in text is."""
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text.endswith("\n")
    assert response.text.count("\n") == 1
    return response.text[:-1]


def code_of(response: httpx2.Response) -> str:
    """Return the code of an error of the distribution API."""
    [error] = response.json()["errors"]
    assert error["message"]
    return str(error["code"])


@dataclass(frozen=True, kw_only=True)
class RawReply:
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes


def exchange(port: int, data: bytes, *, timeout_seconds: float = 60.0) -> RawReply:
    """Send bytes over a connection of their own, and return the answer once its whole body, or the end, has come."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_seconds) as connection:
        connection.sendall(data)
        return read_reply(connection)


def read_reply(connection: socket.socket) -> RawReply:
    """Return the first answer that comes over a connection; what comes behind it is passed over."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _receive(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    match = re.fullmatch(r"HTTP/1\.1 (\d{3}) .+", lines[0])
    assert match is not None, lines[0]
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
    length = int(headers.get("content-length", "0"))
    while len(body) < length:
        body += _receive(connection)
    return RawReply(status=int(match[1]), headers=headers, body=body[:length])


def blobs_open(pid: int, seconds: float = 60.0) -> int:
    """Return how many blobs a process holds open, once that is none or the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        links = []
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                links.append(str(link.readlink()))
            except FileNotFoundError:
                continue
        count = sum("/blobs/" in link for link in links)
        if count == 0 or time.monotonic() > deadline:
            return count
        time.sleep(0.05)


def _receive(connection: socket.socket) -> bytes:
    piece = connection.recv(_PIECE_BYTES)
    if not piece:
        raise EOFError("the connection ended")
    return piece
