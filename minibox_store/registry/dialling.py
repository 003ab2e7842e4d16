"""Sockets: which addresses may be connected to, and how everything that is open ends at once."""

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from minibox_store.latch import Latch
from minibox_store.registry.addresses import is_private, literal_address, restricted_class
from minibox_store.registry.failures import AddressBlocked, AddressRefused, LineInterrupted, ProxyFailed
from minibox_store.registry.urls import Origin
from minibox_store.values import Value

_POLL_SECONDS = 0.1


@attrs.frozen(repr=False)
class Address(Value):
    """Where a host is: a family of addresses, and what sockets of that family are connected to."""

    family: socket.AddressFamily
    sockaddr: tuple[str | int | bytes, ...]


class Network(Protocol):
    """How names become addresses, and addresses connections."""

    def resolve(self, host: str, port: int) -> Sequence[Address]:
        """Return the host's addresses, the best first."""
        ...

    def begin_connect(self, opened: socket.socket, address: Address) -> None:
        """Begin to connect a socket of the address's family that does not block; do not wait for the end of it."""
        ...


class SystemNetwork:
    """The network of the machine."""

    def resolve(self, host: str, port: int) -> Sequence[Address]:
        """Return what the system's resolver says."""
        try:
            # As bytes: of a text Python would make internationalised labels, and load their tables for it.
            found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
        except UnicodeError:
            raise socket.gaierror(socket.EAI_NONAME, "the name is no ASCII") from None
        return [Address(family, sockaddr) for family, _, _, _, sockaddr in found]

    def begin_connect(self, opened: socket.socket, address: Address) -> None:
        """Begin to connect the socket."""
        code = opened.connect_ex(address.sockaddr)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))


class OpenLines:
    """Every socket that is open, so that any thread can end what happens on all of them."""

    def __init__(self) -> None:
        # A handler of signals interrupts in the midst of what the main thread does under it.
        self._lock = threading.RLock()
        self._handles: set[socket.socket] = set()
        self._interrupted = Latch()

    def begin(self, opened: socket.socket, connect: Callable[[], None]) -> socket.socket:
        """Begin to connect a socket, and return a handle on it, to be given to :meth:`remove`.

        It is a duplicate, since TLS takes the socket itself away: shutting it down shuts down the connection, and
        no number of a closed socket, which may be somebody else's by then, is ever shut down. It is known before
        another thread can interrupt, since a shutdown has no effect on a socket that has not begun to connect. A
        handler of signals can before: whoever has the handle looks whether all is over.

        Raises:
            LineInterrupted: when all is over already.
        """
        with self._lock:
            self.check()
            connect()
            handle = opened.dup()
            self._handles.add(handle)
            return handle

    def remove(self, handle: socket.socket) -> None:
        """Forget the socket; without that the connection would outlive it."""
        with self._lock:
            self._handles.discard(handle)
            handle.close()

    def interrupt(self) -> None:
        """End, with an error, what blocks on any of the sockets, and whatever comes later."""
        with self._lock:
            self._interrupted.set()
            for handle in self._handles:
                try:
                    handle.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # it was not connected, or is no longer

    def check(self) -> None:
        """Raise :class:`LineInterrupted` if all is over."""
        if self._interrupted.is_set():
            raise LineInterrupted

    def pause(self, seconds: float) -> bool:
        """Wait, and return whether there is still something to wait for."""
        return not self._interrupted.wait(seconds)


class _LookingUp(threading.Thread):
    """Asks a network for the addresses of one host."""

    def __init__(self, network: Network, origin: Origin) -> None:
        super().__init__(name=f"looking up {origin.host}", daemon=True)
        self._network = network
        self._origin = origin
        self.found: Sequence[Address] = ()
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            self.found = self._network.resolve(self._origin.host, self._origin.port)
        except OSError as error:
            self.error = error


class Dialler:
    """Connects to the addresses that are allowed: all for the registry itself, for other hosts no restricted one.

    The registry is held to the kind of address it was first reached at, and only that kind is allowed to others: so
    a registry on this machine may redirect to this machine, and one elsewhere may not, whatever its name resolves
    to the next time.

    A proxy may be anywhere, since nobody but the program or its user names it. Behind it names are resolved by the
    proxy, and where they lead is not known here: a host that is an address by its spelling is still judged, and a
    registry that is reached by its name counts as one that is at no restricted address.

    Args:
        home: the registry.
        network: how it is reached.
        lines: where all that is opened is known.
        connect_seconds: how long connecting may take, by all addresses of a host together.
        private_addresses: whether anybody may be at a private address at all, the registry itself included.
    """

    def __init__(
        self,
        home: Origin,
        network: Network,
        lines: OpenLines,
        connect_seconds: float,
        *,
        private_addresses: bool = True,
    ) -> None:
        self._private_addresses = private_addresses
        self._home = home
        self._network = network
        self._lines = lines
        self._connect_seconds = connect_seconds
        self._home_class: str | None = None
        self._knows_home = False

    def dial(self, origin: Origin, proxy: Origin | None = None) -> tuple[socket.socket, socket.socket, Address]:
        """Return a connected socket, its handle among the open lines, and where it leads.

        Args:
            origin: whom it is for.
            proxy: whom it leads to instead.

        Raises:
            AddressBlocked: when it has none but private ones, and nobody may be at such a one.
            AddressRefused: when no address of the host is allowed.
            ProxyFailed: when the proxy cannot be connected to.
            OSError: when none can be connected to in time.
        """
        deadline = time.monotonic() + self._connect_seconds
        self._lines.check()
        if proxy is not None:
            literal = literal_address(origin.host)
            self._check_private(origin, [] if literal is None else [literal])
            if not self._may_be_at(origin, _class_by_spelling(origin)):
                raise _refused(origin)
            return self._dial_proxy(proxy, deadline)
        found = self._resolve(origin, deadline)
        self._check_private(origin, [str(address.sockaddr[0]) for address in found])
        if not self._private_addresses:
            found = [address for address in found if not is_private(str(address.sockaddr[0]))]
        kinds = [restricted_class(str(address.sockaddr[0])) for address in found]
        allowed = [address for address, kind in zip(found, kinds, strict=True) if self._may_be_at(origin, kind)]
        if found and not allowed:
            raise _refused(origin)
        return self._dial_any(allowed, deadline)

    def _check_private(self, origin: Origin, addresses: Sequence[str]) -> None:
        if addresses and not self._private_addresses and all(map(is_private, addresses)):
            raise AddressBlocked(origin.host)

    def _dial_proxy(self, proxy: Origin, deadline: float) -> tuple[socket.socket, socket.socket, Address]:
        try:
            return self._dial_any(self._resolve(proxy, deadline), deadline)
        except LineInterrupted:
            raise
        except OSError as error:
            raise ProxyFailed.because(str(proxy), error) from error

    def _resolve(self, origin: Origin, deadline: float) -> Sequence[Address]:
        """Look a name up in a thread of its own, since nothing ends what the system's resolver does.

        Where its servers are silent it may go on for half a minute; the thread is left to that.
        """
        if literal_address(origin.host) is not None:
            return self._network.resolve(origin.host, origin.port)
        looking_up = _LookingUp(self._network, origin)
        looking_up.start()
        while looking_up.is_alive():
            self._lines.check()
            left = deadline - time.monotonic()
            if left <= 0:
                raise socket.gaierror(socket.EAI_AGAIN, "no answer came in time")
            looking_up.join(min(left, _POLL_SECONDS))
        if looking_up.error is not None:
            raise looking_up.error
        return looking_up.found

    def _dial_any(self, addresses: Sequence[Address], deadline: float) -> tuple[socket.socket, socket.socket, Address]:
        first_error: OSError | None = None
        for position, address in enumerate(addresses):
            # The time is shared, so that a dead first address leaves some for the second.
            seconds = (deadline - time.monotonic()) / (len(addresses) - position)
            try:
                return self._open(address, max(seconds, 0.001))
            except LineInterrupted:
                raise
            except OSError as error:
                first_error = first_error or error
        raise first_error or OSError("the host has no address")

    def reached(self, origin: Origin, address: Address | None) -> None:
        """Take note that a host was reached, at an address that proved to be its own by TLS where that is spoken.

        Args:
            origin: the host.
            address: None where a proxy leads to it.
        """
        if origin == self._home and not self._knows_home:
            known = restricted_class(str(address.sockaddr[0])) if address is not None else _class_by_spelling(origin)
            self._home_class, self._knows_home = known, True

    @property
    def knows_home(self) -> bool:
        """Whether the registry was reached: before that no host may be at a restricted address but itself."""
        return self._knows_home

    def _may_be_at(self, origin: Origin, kind: str | None) -> bool:
        is_first = origin == self._home and not self._knows_home
        return kind is None or is_first or (self._knows_home and kind == self._home_class)

    def _open(self, address: Address, timeout_seconds: float) -> tuple[socket.socket, socket.socket, Address]:
        opened = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            opened.setblocking(False)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            handle = self._lines.begin(opened, lambda: self._network.begin_connect(opened, address))
            try:
                self._lines.check()
                _finish_connect(opened, timeout_seconds)
                self._lines.check()
            except BaseException:
                self._lines.remove(handle)
                raise
        except BaseException:
            opened.close()
            raise
        opened.settimeout(timeout_seconds)
        return opened, handle, address


def _class_by_spelling(origin: Origin) -> str | None:
    literal = literal_address(origin.host)
    return None if literal is None else restricted_class(literal)


def _refused(origin: Origin) -> AddressRefused:
    return AddressRefused(f"{origin.host} is at an address of this machine or its network, and the registry is not")


def _finish_connect(opened: socket.socket, timeout_seconds: float) -> None:
    waiting = select.poll()
    waiting.register(opened, select.POLLOUT)
    if not waiting.poll(timeout_seconds * 1000):
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    code = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
