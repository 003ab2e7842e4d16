"""Names of a package that are loaded when they are first used, so that nobody waits for what he does not need.

A package has a table of its names, with the module below it that each comes from, and hands ``__getattr__`` on to here.

Spec: PEP 562.
"""

import importlib
import sys
from collections.abc import Mapping


def load_name(package: str, homes: Mapping[str, str], name: str) -> object:
    """Return what a package calls by a name, and let it have that from now on.

    Args:
        package: its dotted name.
        homes: the module below it, dotted, that each name comes from.
        name: what is asked for.

    Raises:
        AttributeError: when the table has no such name.
    """
    home = homes.get(name)
    if home is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"{package}.{home}"), name)
    setattr(sys.modules[package], name, found)
    return found
