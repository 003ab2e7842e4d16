"""Clients that go away at the moment at which they are refused: the others are told no later for it."""

import logging
import socket
import struct
import time

import pytest
from starlette.types import Receive, Scope, Send

from tests.server.clients import read_reply
from tests.server.serving import serving

IDLE_SECONDS = 0.5
LATE = b"POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc"


async def reading(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass


def reset(connection: socket.socket) -> None:
    """Break a connection off."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("sent", [LATE, b"\0\r\n\r\n"])
def test_who_goes_while_he_is_told_that_he_is_refused_keeps_nobody_from_being_told(
    sent: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutdown = socket.socket.shutdown
    told: list[socket.socket] = []

    def shut_down_late(ours: socket.socket, how: int) -> None:
        """End a connection as the system does when its client has broken it off since the last thing was sent."""
        monkeypatch.undo()
        assert read_reply(hasty).status in (400, 408)
        reset(hasty)
        told.append(ours)
        shutdown(ours, how)

    monkeypatch.setattr(socket.socket, "shutdown", shut_down_late)
    with caplog.at_level(logging.ERROR), serving(reading, idle_seconds=IDLE_SECONDS) as port:
        hasty, patient = (socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(2))
        hasty.sendall(sent)
        time.sleep(0.05)
        patient.sendall(LATE)
        with patient:
            assert read_reply(patient).status == 408
    assert told
    assert not caplog.records
