"""The end that is a repository of a registry, over urllib3: images are pulled from it, and pushed to it.

The only part of the program that opens sockets to others.
"""

from minibox_store.registry.certificates import CertificateFolders, Certificates, CertificatesSource
from minibox_store.registry.client import RegistryClient
from minibox_store.registry.credentials import Credentials, CredentialsSource
from minibox_store.registry.logins import login, logout
from minibox_store.registry.machine_credentials import MachineCredentials
from minibox_store.registry.mirrors import MirroredRepository
from minibox_store.registry.proxies import Proxies
from minibox_store.registry.registries import read_registries_file
from minibox_store.registry.repository import RegistryRepository
from minibox_store.registry.target import RepositoryTarget

__all__ = [
    "CertificateFolders",
    "Certificates",
    "CertificatesSource",
    "Credentials",
    "CredentialsSource",
    "MachineCredentials",
    "MirroredRepository",
    "Proxies",
    "RegistryClient",
    "RegistryRepository",
    "RepositoryTarget",
    "login",
    "logout",
    "read_registries_file",
]
