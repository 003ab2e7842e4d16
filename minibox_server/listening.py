"""Where the daemon listens: sockets that it opens itself, or that whoever started it has opened.

A unix socket is for this user alone from its first moment on, and takes the place of another one only where that is
ours and nobody listens there any more. What was inherited is held to the same rule as what is opened: an address that
others can reach needs a token.
"""

import errno
import fcntl
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from minibox_server.hosts import is_loopback
from minibox_server.settings import Settings, SettingsError, check_protection
from minibox_store import one_line

LOGGER = logging.getLogger("minibox_server")

# The first descriptor that is handed over. Spec: sd_listen_fds(3).
_FIRST_DESCRIPTOR = 3
_LOCK_SECONDS = 5.0
# The daemon has ten seconds to end, and its requests have had most of them.
_LAST_LOCK_SECONDS = 1.0
_ATTEMPT_SECONDS = 0.02
_PRIVATE = 0o177
_CREDENTIALS = struct.Struct("iII")


@attrs.define
class Listening:
    """Sockets that listen.

    Attributes:
        sockets: each of them.
        inherited: whether whoever started the daemon has opened them, and keeps them.
        places: each of our own unix sockets, by path, with the device and the inode that it was made as.
    """

    sockets: list[socket.socket]
    inherited: bool = False
    places: dict[str, tuple[int, int]] = attrs.field(factory=dict)

    @property
    def is_reached_by_others(self) -> bool:
        """Whether one of the sockets is for other machines too."""
        return any(each.family != socket.AF_UNIX and not is_loopback(each.getsockname()[0]) for each in self.sockets)

    def describe(self) -> str:
        """Return the addresses, as people write them."""
        return ", ".join(describe_address(each) for each in self.sockets)

    def shared(self) -> "Listening":
        """Return the same sockets for a process that does not keep them: what is in the file system stays."""
        return Listening(self.sockets, self.inherited)

    def close(self) -> None:
        """Close the sockets, and take away those of the file system that are still ours.

        What cannot be taken away stays, and is said: the daemon ends all the same, and in time.
        """
        places, self.places = self.places, {}
        for path, made in places.items():
            try:
                with _holding_folder(path, _LAST_LOCK_SECONDS):
                    if _identity(path) == made:
                        os.unlink(path)
            except OSError as error:
                LOGGER.warning("the socket %s cannot be taken away: %s", one_line(path), error.strerror)
        for each in self.sockets:
            each.close()


def listen(settings: Settings, inherited: int = 0) -> Listening:
    """Return what listens: so many sockets that were inherited, or those of the settings.

    Raises:
        SettingsError: when the address cannot be had, or what was inherited may not be served.
    """
    if inherited:
        sockets = [_adopt(_FIRST_DESCRIPTOR + number, settings) for number in range(inherited)]
        return Listening(sockets, inherited=True)
    try:
        if settings.socket_path is not None:
            opened = _listen_on_path(settings.socket_path)
            return Listening([opened], places={settings.socket_path: _identity(settings.socket_path) or (0, 0)})
        return Listening(_listen_on_address(settings))
    except (OSError, UnicodeError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise SettingsError(f"cannot listen on {settings.address} (MINIBOX_HTTP_ADDR): {problem}") from error


def describe_address(listening: socket.socket) -> str:
    """Return where a socket listens, as people write it."""
    address = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return one_line(f"unix:{os.fsdecode(address)}")
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def peer_of(connection: socket.socket) -> tuple[str, int] | None:
    """Return which user, and which process, has connected to a unix socket; None where it is another one."""
    if connection.family != socket.AF_UNIX:
        return None
    pid, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return f"user {user}", pid


def _listen_on_address(settings: Settings) -> list[socket.socket]:
    if not settings.host:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        return [_hurried(socket.create_server(("", settings.port), family=family, dualstack_ipv6=dual))]
    found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets = [_listen(family, address) for family, _, _, _, address in found]
    if not any(sockets):
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return [each for each in sockets if each is not None]


def _listen(family: int, address: Any) -> socket.socket | None:
    try:
        return _hurried(socket.create_server(address, family=family))
    except OSError as error:
        # The other address of a name such as localhost may be of a family that this machine does not have.
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        raise


def _hurried(listening: socket.socket) -> socket.socket:
    """Let each connection that is accepted send what it has at once: asyncio does so with its own sockets alone."""
    if listening.family != socket.AF_UNIX:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _listen_on_path(path: str) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _holding_folder(path):
            _bind_privately(opened, path)
            opened.listen()
    except BaseException:
        opened.close()
        raise
    return opened


def _bind_privately(opened: socket.socket, path: str) -> None:
    """Bind to a path, with the mode 0600; whoever has left a socket there must be ours, and gone."""
    if _identity(path) is not None:
        _check_abandoned(path)
        os.unlink(path)
    # The mode comes with the name: a chmod would leave a moment in which everybody may connect.
    before = os.umask(_PRIVATE)
    try:
        opened.bind(path)
    finally:
        os.umask(before)


def _check_abandoned(path: str) -> None:
    """Raise OSError unless a path is a socket of this user at which nobody listens."""
    status = os.lstat(path)
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.EEXIST, "something else than a socket is there")
    if status.st_uid != os.geteuid():
        raise OSError(errno.EEXIST, "the socket that is there belongs to another user")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
        except BlockingIOError:
            pass  # its queue is full, so somebody has it
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


@contextmanager
def _holding_folder(path: str, patience_seconds: float = _LOCK_SECONDS) -> Iterator[None]:
    """Keep other daemons from making or taking away sockets in the folder of a path: two could take each other's.

    Raises:
        OSError: when there is no such folder, or another one holds it for too long.
    """
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + patience_seconds
    try:
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_ATTEMPT_SECONDS)
        yield
    finally:
        os.close(folder)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _adopt(descriptor: int, settings: Settings) -> socket.socket:
    """Return the socket that a descriptor is, if it may be served.

    Raises:
        SettingsError: when it is none that listens, or others can reach it and nothing protects it.
    """
    try:
        adopted = socket.socket(fileno=descriptor)
        is_listening = adopted.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise SettingsError(f"descriptor {descriptor}, of LISTEN_FDS, is no socket: {error.strerror}") from error
    adopted.set_inheritable(False)
    families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    if not is_listening or adopted.type != socket.SOCK_STREAM or adopted.family not in families:
        raise SettingsError(
            f"descriptor {descriptor}, of LISTEN_FDS, is no socket that listens for TCP or unix streams"
        )
    address = adopted.getsockname()
    if adopted.family != socket.AF_UNIX:
        check_protection(address[0], settings.token, anonymous=settings.anonymous)
    elif not isinstance(address, str) or not address:
        # It has no mode, and anybody could connect, from another container too.
        raise SettingsError(
            f"descriptor {descriptor}, of LISTEN_FDS, is an abstract socket, which anybody may connect to"
        )
    return _hurried(adopted)
