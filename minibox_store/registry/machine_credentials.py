"""The credentials that are already on the machine, as Docker and Podman keep them.

They are looked for in this order, and the first that fits is taken:

1. what the program itself has (``explicit``);
2. the file that ``REGISTRY_AUTH_FILE`` names: who sets it means it;
3. Docker's ``config.json``, in ``DOCKER_CONFIG`` or ``~/.docker``;
4. the containers' ``auth.json``, in ``$XDG_RUNTIME_DIR/containers`` (``/run/containers/UID`` where that is not set),
   then in ``$XDG_CONFIG_HOME/containers`` or ``~/.config/containers``; neither where ``REGISTRY_AUTH_FILE`` is set.
   What lies in a folder that this user may not look into is none of his: where root uses Podman ``/run/containers`` is
   such a folder, for every service without a session.

In a file the helper of the host goes first (``credHelpers``), then the helper for all (``credsStore``), then what
stands in the file (``auths``), the longest key before the others. A helper of the host that is ``""`` is none, and the
one for all is not asked either. Nothing is read before a registry asks who we are, and then once for each operation: a
login is seen by the next one.
"""

import errno
import os
from collections.abc import Callable, Mapping, Sequence

from minibox_store._file_errors import path_errors
from minibox_store._files import read_whole
from minibox_store.codec.auth_files import AUTH_FILE_BYTES, AuthEntry, AuthFile, decode_auth_file
from minibox_store.errors import InvalidDocument, InvalidPath
from minibox_store.kinds import check_secret, each_of
from minibox_store.registry.credential_keys import matching_keys, server_names
from minibox_store.registry.credential_programs import PROGRAM_PATH, CredentialPrograms
from minibox_store.registry.credentials import Credentials, KnownCredentials
from minibox_store.registry.environment import auth_paths, process_environment


class MachineCredentials:
    """Finds the credentials that Docker, Podman and their helpers keep for the user of this process.

    Args:
        explicit: credentials of the program itself, by registry or ``registry/path``; they go before all others.
        environment: the variables that say where files lie, and that helpers see; those of this process where it is
            None.
        program_path: the folders in which credential helpers are looked for, and nowhere else.

    Raises:
        InvalidArgument: on construction, for a text in the place of several folders, and credentials that are none.
    """

    def __init__(
        self,
        *,
        explicit: Mapping[str, Credentials] | None = None,
        environment: Mapping[str, str] | None = None,
        program_path: Sequence[str] = PROGRAM_PATH,
    ) -> None:
        environment = process_environment() if environment is None else environment
        check_secret("environment", environment, Mapping)
        self._explicit = KnownCredentials.of("explicit", explicit)
        self.paths = auth_paths(environment)
        self.programs = CredentialPrograms(environment, each_of("program_path", program_path, str))

    def find(self, registry: str, repository: str, check_interrupted: Callable[[], None], /) -> Credentials | None:
        """Return what is known for a repository, None where nothing is.

        Raises:
            InvalidDocument: when a file, or the entry that is needed, is not of the form; it names file and key.
            InvalidPath: when a file is there and cannot be read.
            CredentialHelperFailed: when a helper is needed and fails.
        """
        known = self._explicit.find(registry, repository, check_interrupted)
        if known is not None:
            return known
        for path in self.paths.in_order:
            file = self._read(path)
            entry = None if file is None else self._find_in(file, registry, repository, check_interrupted)
            if entry is not None:
                return Credentials(entry.username, entry.password, identity_token=entry.identity_token)
        return None

    def _read(self, path: str) -> AuthFile | None:
        try:
            return read_auth_file(path)
        except InvalidPath:
            if path in self.paths.containers and _is_out_of_reach(path):
                return None
            raise

    def _find_in(
        self, file: AuthFile, registry: str, repository: str, check_interrupted: Callable[[], None]
    ) -> AuthEntry | None:
        for helper in helpers_for(file, registry):
            entry = self.programs.read(helper, server_names(registry), check_interrupted)
            if entry is not None:
                return entry
        for key in matching_keys(file.auths, registry, repository):
            entry = file.entry(key)
            if entry is not None:
                return entry
        return None


def _is_out_of_reach(path: str) -> bool:
    """Whether the user may not even look whether there is such a file."""
    try:
        os.stat(path)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def helpers_for(file: AuthFile, registry: str) -> list[str]:
    """Return the helpers that a file names for a registry, its own before the one for all.

    An own one without a name says, as it does to Docker, that no helper is asked: the file itself has the secret.
    Of several spellings of the registry its own name counts.
    """
    own = [file.credential_helpers[key] for key in matching_keys(file.credential_helpers, registry, "")][:1]
    return [] if own == [""] else [*own, *([file.credentials_store] if file.credentials_store else [])]


def read_auth_file(path: str) -> AuthFile | None:
    """Return what a file of credentials says, None where there is no file.

    Raises:
        InvalidDocument: when it is none, or too large.
        InvalidPath: when it cannot be read.
    """
    content = read_auth_content(path)
    return None if content is None else decode_auth_file(content, path)


def read_auth_content(path: str) -> bytes | None:
    """Return the bytes of such a file, which may be a link to it; raises as :func:`read_auth_file`."""
    with path_errors(path):
        try:
            return read_whole(os.path.realpath(path), AUTH_FILE_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise InvalidDocument("", f"it is larger than {AUTH_FILE_BYTES} bytes", path) from None
            raise
