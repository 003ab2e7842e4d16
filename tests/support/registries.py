"""Clients that lose no time, and a network of names that all lead to this machine."""

import errno
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from minibox_store.reference import Reference
from minibox_store.registry import RegistryClient, RegistryRepository
from minibox_store.registry.dialling import Address
from minibox_store.registry.mirrors import MirroredRepository
from minibox_store.registry_rules import RegistryRule

# Of a network set aside for documents: nobody lives there.
PUBLIC_ADDRESS = "203.0.113.7"


def quick_client(**options: Any) -> RegistryClient:
    """Return a client whose pauses and patience are short; ``options`` go before that."""
    return RegistryClient(**{"back_off_seconds": 0.01, "connect_seconds": 2.0, "silence_seconds": 5.0, **options})


def open_repository(reference: str, **options: Any) -> RegistryRepository:
    """Return the repository of a reference that has no mirrors, by a client of its own."""
    opened = quick_client(**options).open_repository(Reference.parse(reference))
    assert isinstance(opened, RegistryRepository)
    return opened


def open_mirrored(reference: str, rule: RegistryRule, **options: Any) -> MirroredRepository:
    """Return the repository of a reference for which a rule names mirrors, by a client of its own."""
    opened = quick_client(registries=[rule], **options).open_repository(Reference.parse(reference))
    assert isinstance(opened, MirroredRepository)
    return opened


class NamedNetwork:
    """A network in which names resolve as a test says, and every address leads to a port of 127.0.0.1.

    Args:
        addresses: for each name what it resolves to, one list for each time it is asked, the last one repeated.
        ports: for each name the port of 127.0.0.1 that is reached under it, whatever port is asked for.
    """

    def __init__(self, addresses: Mapping[str, Sequence[Sequence[str]]], ports: Mapping[str, int]) -> None:
        self._addresses = {name: list(times) for name, times in addresses.items()}
        self._ports = ports
        self._port_of: dict[int, int] = {}
        self.asked: list[str] = []
        self.connected: list[str] = []

    def resolve(self, host: str, port: int) -> Sequence[Address]:
        """Return what the name resolves to this time."""
        self.asked.append(host)
        if host not in self._addresses:
            raise socket.gaierror(socket.EAI_NONAME, "unknown name")
        times = self._addresses[host]
        found = times.pop(0) if len(times) > 1 else times[0]
        return [self._address(host, numeric) for numeric in found]

    def begin_connect(self, opened: socket.socket, address: Address) -> None:
        """Connect to the port behind the address."""
        host, numeric = str(address.sockaddr[2]), str(address.sockaddr[0])
        self.connected.append(numeric)
        code = opened.connect_ex(("127.0.0.1", self._ports[host]))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))

    def _address(self, host: str, numeric: str) -> Address:
        return Address(socket.AF_INET, (numeric, 0, host))
