"""What the one who started this process has given it, and how it is told how the daemon is.

Spec: sd_listen_fds(3), sd_notify(3).
"""

import logging
import os
import re
import socket
from collections.abc import Mapping

import attrs

from minibox_server.settings import take_variables

LOGGER = logging.getLogger("minibox_server")

# The first descriptor that is handed over.
FIRST_DESCRIPTOR = 3


@attrs.frozen(kw_only=True)
class Activation:
    """What a process was started with.

    Attributes:
        sockets: how many sockets were opened for it; the first of them is ``FIRST_DESCRIPTOR``.
        notified: the address of the socket at which somebody wants to know how it is; None where nobody does.
    """

    sockets: int = 0
    notified: str | None = None

    @property
    def descriptors(self) -> range:
        """The descriptors of these sockets."""
        return range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + self.sockets)

    def notify(self, state: str) -> None:
        """Send a line such as ``READY=1``; where nobody wants to know, or listens, that is no error."""
        if self.notified is None:
            return
        # Theirs may be abstract: it is not ours to choose, and nothing that is sent is a secret.
        address = f"\0{self.notified[1:]}" if self.notified.startswith("@") else self.notified
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
            sending.setblocking(False)
            try:
                sending.connect(address)
                sending.sendall(state.encode())
            except OSError as error:
                LOGGER.warning("cannot tell who started the daemon %s: %s", state, error.strerror)


def take_activation() -> Activation:
    """Return what this process was started with; what it starts itself has none of it."""
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET")
    return parse_activation(take_variables(*names), os.getpid())


def parse_activation(environment: Mapping[str, str], pid: int) -> Activation:
    """Return what the process of this id was given; what is meant for another one is not.

    >>> parse_activation({"LISTEN_PID": "7", "LISTEN_FDS": "2"}, 7).sockets
    2
    >>> parse_activation({"LISTEN_PID": "7", "LISTEN_FDS": "2"}, 8).sockets
    0
    """
    count = environment.get("LISTEN_FDS", "")
    is_meant = environment.get("LISTEN_PID") == str(pid) and re.fullmatch("[0-9]{1,3}", count) is not None
    return Activation(sockets=int(count) if is_meant else 0, notified=environment.get("NOTIFY_SOCKET") or None)
