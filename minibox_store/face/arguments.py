"""What the arguments of a store's calls may be: each is refused before anything begins, in a sentence that names it."""

import os
from typing import Literal

from minibox_store._file_errors import absolute_path
from minibox_store.errors import InvalidArgument, InvalidPath

Durability = Literal["full", "none"]
Verify = Literal["size", "content"]
PullPolicy = Literal["always", "if-newer", "if-missing"]


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


def checked_seconds(name: str, seconds: float) -> float:
    """Return a time to wait, called ``name``, if it is one: a wait for what is no number would have no end."""
    if not seconds >= 0:
        raise InvalidArgument(name, seconds, "it is no time, or less than nothing")
    return seconds


def absolute_root(root: str | os.PathLike[str]) -> str:
    """Return the absolute path of a store's folder."""
    path = os.fspath(root)
    if not isinstance(path, str):
        raise InvalidArgument("root", root, "it is no text")
    if not path:
        raise InvalidPath(path, "a store's folder needs a name")
    return absolute_path(path)
