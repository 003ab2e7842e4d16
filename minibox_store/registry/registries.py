"""The rules for registries that are on the machine: the file that ``MINIBOX_REGISTRIES`` names, and no other.

Who sets it means it: a file that is not there is an error, where an unset variable says that there are no rules.
"""

import errno
import os
from collections.abc import Mapping

from minibox_store._file_errors import path_errors, path_text
from minibox_store._files import read_whole
from minibox_store.errors import InvalidDocument
from minibox_store.registry.environment import process_environment, registries_path
from minibox_store.registry_rules import RegistryRules


def machine_rules(environment: Mapping[str, str] | None = None) -> RegistryRules:
    """Return the rules that the environment names; that of this process where it is None.

    Raises:
        InvalidPath, InvalidDocument: as :func:`read_registries_file`.
    """
    path = registries_path(process_environment() if environment is None else environment)
    return RegistryRules() if path is None else read_registries_file(path)


def read_registries_file(path: str | os.PathLike[str]) -> RegistryRules:
    """Return the rules that a file has.

    Raises:
        InvalidPath: when it cannot be read.
        InvalidDocument: when it is no such file; it names the place in it.
    """
    from minibox_store.codec.registries_file import REGISTRIES_FILE_BYTES, decode_registries_file  # and so TOML

    name = path_text("path", path)
    with path_errors(name):
        try:
            content = read_whole(os.path.realpath(name), REGISTRIES_FILE_BYTES)
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise InvalidDocument("", f"it is larger than {REGISTRIES_FILE_BYTES} bytes", name) from None
            raise
    return decode_registries_file(content, name)
