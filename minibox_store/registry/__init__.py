"""The end that is a repository of a registry, over urllib3: images are pulled from it.

The only part of the program that opens sockets to others.
"""

from minibox_store.registry.certificates import CertificateFolders, Certificates, CertificatesSource
from minibox_store.registry.client import RegistryClient
from minibox_store.registry.credentials import Credentials, CredentialsSource
from minibox_store.registry.logins import login, logout
from minibox_store.registry.machine_credentials import MachineCredentials
from minibox_store.registry.proxies import Proxies
from minibox_store.registry.repository import RegistryRepository

__all__ = [
    "CertificateFolders",
    "Certificates",
    "CertificatesSource",
    "Credentials",
    "CredentialsSource",
    "MachineCredentials",
    "Proxies",
    "RegistryClient",
    "RegistryRepository",
    "login",
    "logout",
]
