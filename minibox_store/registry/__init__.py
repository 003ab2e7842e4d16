"""The end that is a repository of a registry, over urllib3: images are pulled from it, and pushed to it.

The only part of the program that opens sockets to others. Each name is loaded when it is first used: who pulls needs
nothing of what pushes, of logins, or of mirrors.
"""

from typing import TYPE_CHECKING

from minibox_store.lazy import load_name

if TYPE_CHECKING:
    from minibox_store.registry.certificates import CertificateFolders as CertificateFolders
    from minibox_store.registry.certificates import Certificates as Certificates
    from minibox_store.registry.certificates import CertificatesSource as CertificatesSource
    from minibox_store.registry.client import RegistryClient as RegistryClient
    from minibox_store.registry.credentials import Credentials as Credentials
    from minibox_store.registry.credentials import CredentialsSource as CredentialsSource
    from minibox_store.registry.logins import login as login
    from minibox_store.registry.logins import logout as logout
    from minibox_store.registry.machine_credentials import MachineCredentials as MachineCredentials
    from minibox_store.registry.mirrors import MirroredRepository as MirroredRepository
    from minibox_store.registry.proxies import Proxies as Proxies
    from minibox_store.registry.registries import read_registries_file as read_registries_file
    from minibox_store.registry.repository import RegistryRepository as RegistryRepository
    from minibox_store.registry.target import RepositoryTarget as RepositoryTarget

_HOMES = {
    "CertificateFolders": "certificates",
    "Certificates": "certificates",
    "CertificatesSource": "certificates",
    "Credentials": "credentials",
    "CredentialsSource": "credentials",
    "MachineCredentials": "machine_credentials",
    "MirroredRepository": "mirrors",
    "Proxies": "proxies",
    "RegistryClient": "client",
    "RegistryRepository": "repository",
    "RepositoryTarget": "target",
    "login": "logins",
    "logout": "logins",
    "read_registries_file": "registries",
}

__all__ = list(_HOMES)  # a list, made from the one table


def __getattr__(name: str) -> object:
    return load_name(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return __all__
