"""Where the daemon listens: sockets that it opens itself, or that whoever started it has opened.

A unix socket is for this user alone from its first moment on, and takes the place of another one only where that is
ours and nobody listens there any more. It is made and taken away under a lock, a file beside it that nobody else can
open: what others can open, they can hold. What was inherited is held to the same rule as what is opened: an address
that others can reach needs a token.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from typing import Any

import attrs

from minibox_server.activation import FIRST_DESCRIPTOR
from minibox_server.hosts import is_loopback
from minibox_server.settings import Settings, SettingsError, check_protection
from minibox_store import one_line

LOGGER = logging.getLogger("minibox_server")

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
                with _holding_lock(path, _LAST_LOCK_SECONDS):
                    if _identity(path) == made:
                        os.unlink(path)
            except OSError as error:
                LOGGER.warning("the socket %s cannot be taken away: %s", one_line(path), error.strerror)
        for each in self.sockets:
            each.close()


def listen(settings: Settings, inherited: int = 0, *, lock_seconds: float = _LOCK_SECONDS) -> Listening:
    """Return what listens: so many sockets that were inherited, or those of the settings.

    For the lock of a unix socket, which another daemon has while it begins or ends, it waits so long.

    Raises:
        SettingsError: when the address cannot be had, or what was inherited may not be served.
    """
    if inherited:
        sockets = [_adopt(FIRST_DESCRIPTOR + number, settings) for number in range(inherited)]
        return Listening(sockets, inherited=True)
    try:
        if settings.socket_path is not None:
            opened = _listen_on_path(settings.socket_path, lock_seconds)
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


def _listen_on_path(path: str, lock_seconds: float) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _holding_lock(path, lock_seconds):
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


@contextlib.contextmanager
def _holding_lock(path: str, patience_seconds: float) -> Iterator[None]:
    """Keep other daemons from making or taking away the socket of a path: two could take each other's.

    Raises:
        OSError: when the lock cannot be had, or not in that time; its sentence names the file.
    """
    lock = f"{path}.lock"
    deadline = time.monotonic() + patience_seconds
    while (descriptor := _try_lock(lock)) is None:
        if time.monotonic() > deadline:
            problem = f"another process holds its lock {one_line(lock)}: wait for it, or end it (fuser tells which)"
            raise OSError(errno.EBUSY, problem)
        time.sleep(_ATTEMPT_SECONDS)
    try:
        yield
    finally:
        # It goes while it is held: who waits for it finds that it has lost its name, and makes another one.
        with contextlib.suppress(OSError):
            if _is_named(descriptor, lock):
                os.unlink(lock)
        os.close(descriptor)


def _try_lock(lock: str) -> int | None:
    """Return the open file of a lock that is ours now, None where somebody else has it.

    Raises:
        OSError: when it cannot be opened, or is not this user's alone.
    """
    try:
        descriptor = _open_lock(lock)
    except FileExistsError:
        return None  # somebody has made it since it was looked for
    except OSError as error:
        raise OSError(error.errno, f"its lock {one_line(lock)} cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            problem = f"its lock {one_line(lock)} is no file of this user alone: see whose it is, and remove it"
            raise OSError(errno.EEXIST, problem)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_named(descriptor, lock):
            return descriptor
    except BlockingIOError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _open_lock(lock: str) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(lock, flags)
    except FileNotFoundError:
        return os.open(lock, flags | os.O_CREAT | os.O_EXCL, 0o600)


def _is_named(descriptor: int, lock: str) -> bool:
    status = os.fstat(descriptor)
    return _identity(lock) == (status.st_dev, status.st_ino)


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
