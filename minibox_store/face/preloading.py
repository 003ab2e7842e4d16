"""Reading all of the library at once, for programs that fork: what is read before is read for all of their children."""

import importlib
import pkgutil
from contextlib import suppress

import minibox_store


def preload() -> None:
    """Import every module of the library, which are otherwise imported when they are first needed.

    For a program that forks processes, which share the memory of what it has imported, and for one that would rather
    wait at its start. Optional libraries are imported as far as they are installed, and load: what one raises, such as
    OSError for want of a library of the system, is raised again where it is needed.
    """
    for module in pkgutil.walk_packages(minibox_store.__path__, f"{minibox_store.__name__}."):
        with suppress(Exception):  # of an optional library, which is named where it is needed
            importlib.import_module(module.name)
