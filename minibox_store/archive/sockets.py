"""The plain socket behind a file of a program's own: by it a wait for the peer can be watched, and be ended."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket


def socket_of(raw: object) -> "socket.socket | None":
    """Return the socket that a file without a buffer is of; None where there is none, or it speaks TLS."""
    if "socket" not in sys.modules:  # nobody has one
        return None
    import socket

    peer = getattr(raw, "_sock", None) if type(raw) is socket.SocketIO else None
    return peer if type(peer) is socket.socket and peer.fileno() >= 0 else None
