"""The end that is a repository of a registry, over urllib3: images are pulled from it.

The only part of the program that opens sockets to others.
"""

from minibox_store.registry.client import RegistryClient
from minibox_store.registry.credentials import Credentials
from minibox_store.registry.repository import RegistryRepository

__all__ = ["Credentials", "RegistryClient", "RegistryRepository"]
