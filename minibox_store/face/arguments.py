"""What the arguments of a store's calls may be: each is refused before anything begins, in a sentence that names it."""

import os
from typing import TYPE_CHECKING, Literal

from minibox_store._file_errors import absolute_path, path_text
from minibox_store.errors import InvalidArgument, InvalidPath
from minibox_store.kinds import check_secret
from minibox_store.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from minibox_store.registry import RegistryClient

Durability = Literal["full", "none"]
Verify = Literal["size", "content"]
PullPolicy = Literal["always", "if-newer", "if-missing"]

# How many blobs a verify and a repair read at once.
DEFAULT_READERS = 2


def is_durable(durability: Durability) -> bool:
    """Return whether changes are to survive a loss of power."""
    if durability not in ("full", "none"):
        raise InvalidArgument("durability", durability, "it is neither 'full' nor 'none'")
    return durability == "full"


def is_content(verify: Verify) -> bool:
    """Return whether blobs that are there are to be read before they are relied on."""
    if verify not in ("size", "content"):
        raise InvalidArgument("verify", verify, "it is neither 'size' nor 'content'")
    return verify == "content"


def check_pull_policy(policy: PullPolicy) -> PullPolicy:
    """Return ``policy``, if there is such a one."""
    if policy not in ("always", "if-newer", "if-missing"):
        raise InvalidArgument("policy", policy, "it is none of 'always', 'if-newer' and 'if-missing'")
    return policy


def known_client(
    client: "RegistryClient | None", *, limits: Limits = DEFAULT_LIMITS, private_addresses: bool = True
) -> "RegistryClient":
    """Return how registries are spoken to; where that is None, as the machine is set up for."""
    from minibox_store.registry import RegistryClient

    if client is None:
        return RegistryClient.for_machine(limits=limits, private_addresses=private_addresses)
    check_secret("client", client, RegistryClient)
    return client


def absolute_root(root: str | os.PathLike[str]) -> str:
    """Return the absolute path of a store's folder."""
    path = path_text("root", root)
    if not path:
        raise InvalidPath(path, "a store's folder needs a name")
    return absolute_path(path)
