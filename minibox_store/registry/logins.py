"""Login and logout: what Docker's ``config.json`` says of a registry, changed in one step.

Credentials are written only once the registry has taken them. Where the file names a helper for the registry, the
secret goes to the helper, and the file gets the empty entry by which tools know of it. All else in the file stays.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile

from minibox_store._file_errors import path_errors
from minibox_store._files import make_directories, replacing_file
from minibox_store._locks import release, try_lock
from minibox_store._moving import write_all
from minibox_store.codec.auth_files import AuthEntry, decode_auth_file, encode_auth_file
from minibox_store.errors import InvalidArgument, StoreBusy
from minibox_store.kinds import check_secret
from minibox_store.reference import DOCKER_HUB
from minibox_store.registry.client import RegistryClient
from minibox_store.registry.credential_keys import (
    DOCKER_HUB_KEY,
    hosts_of,
    matching_keys,
    parse_registry,
    place_of,
    server_names,
)
from minibox_store.registry.credentials import Credentials
from minibox_store.registry.machine_credentials import MachineCredentials, helpers_for, read_auth_content

# Longer than the helper of another login may take.
_LOCK_SECONDS = 60.0


def login(
    registry: str,
    credentials: Credentials,
    *,
    client: RegistryClient | None = None,
    machine: MachineCredentials | None = None,
) -> None:
    """Prove credentials to a registry, and keep them where Docker, Podman and this library find them.

    Args:
        registry: as references name it: ``docker.io``, ``localhost:5000``; a URL of it will do.
        credentials: a user and a password, or an identity token.
        client: how the registry is spoken to; its own credentials are not used.
        machine: whose ``config.json`` is written; that of this process's user where it is None.

    Raises:
        InvalidReference: when ``registry`` is none.
        InvalidArgument: for credentials that are none, of which nothing is shown; and where there is no ``config.json``
            to be had, without a home.
        RegistryBlocked: when a rule of the client blocks all of it.
        AuthenticationRefused: when the registry, or its token server, refuses the credentials.
        RegistryError: when it cannot be reached or fails.
        InvalidDocument, InvalidPath: when ``config.json`` is none, or cannot be read or written.
        CredentialHelperFailed: when a helper is to keep them and fails.
        StoreBusy: when another login or logout takes longer than a minute.

    Guarantees: nothing is written unless all went well. The file is the old or the new one at every moment, has mode
        0600, its owner stays, and so does whatever else stood in it, but what other names of the same registry would
        go before. A registry that lets everybody in proves nothing, and takes them.
    """
    domain = parse_registry(registry)
    machine = _known(machine)
    client = RegistryClient.for_machine() if client is None else client
    check_secret("client", client, RegistryClient)
    client.check_credentials(domain, credentials)
    token = credentials.refresh_token
    password = credentials.password if token is None else ""
    entry = AuthEntry(username=credentials.username, password=password, identity_token=token)
    key = DOCKER_HUB_KEY if domain == DOCKER_HUB else domain

    def written(content: bytes, path: str) -> bytes:
        file = decode_auth_file(content, path)
        helpers, added = helpers_for(file, domain), entry
        if helpers:
            machine.programs.write(helpers[0], server_names(domain)[0], entry)
            added = AuthEntry()
        # What would be found before this, and was kept for the same registry under another of its names.
        before = takewhile(lambda each: each != key, matching_keys(dict.fromkeys((*file.auths, key)), domain, ""))
        return encode_auth_file(content, path, without=before, added={key: added})

    _change(machine, written)


def logout(registry: str, *, machine: MachineCredentials | None = None) -> bool:
    """Forget the credentials for a registry; return whether Docker's ``config.json``, or its helpers, had some.

    Those for single repositories stay, and so does what lies in the containers' ``auth.json``.

    Args:
        registry: as references name it.
        machine: whose ``config.json`` is written; that of this process's user where it is None.

    Raises:
        InvalidReference: when ``registry`` is none.
        InvalidDocument, InvalidPath: when ``config.json`` is none, or cannot be read or written.
        CredentialHelperFailed: when a helper is to forget them and fails.
        StoreBusy: as :func:`login`.
    """
    domain, machine = parse_registry(registry), _known(machine)
    found: list[bool] = []

    def written(content: bytes, path: str) -> bytes:
        file = decode_auth_file(content, path)
        keys = [key for key in file.auths if place_of(key) in hosts_of(domain)]
        for helper in helpers_for(file, domain):
            found.extend([machine.programs.erase(helper, server) for server in server_names(domain)])
        found.append(any(file.auths[key] for key in keys))
        return encode_auth_file(content, path, without=keys) if keys else content

    if machine.paths.docker is not None and os.path.exists(machine.paths.docker):
        _change(machine, written)
    return any(found)


def _known(machine: MachineCredentials | None) -> MachineCredentials:
    machine = MachineCredentials() if machine is None else machine
    check_secret("machine", machine, MachineCredentials)
    return machine


def _change(machine: MachineCredentials, written: Callable[[bytes, str], bytes]) -> None:
    """Replace ``config.json`` by what ``written`` makes of it; where that is the same, leave it alone."""
    shown = machine.paths.docker
    if shown is None:
        raise InvalidArgument(
            "DOCKER_CONFIG", None, "it is not set, and there is no home in which config.json would lie"
        )
    # A link to where the file really is stays a link.
    path = os.path.realpath(shown)
    folder = os.path.dirname(path)
    with path_errors(folder):
        make_directories(folder)
    with _locked(folder):
        content = read_auth_content(shown)
        new = written(content or b"", shown)
        if new == content:
            return
        with path_errors(shown), replacing_file(path, mode=0o600, durable=True) as descriptor:
            write_all(descriptor, new)
            _keep_owner(descriptor, path)


def _keep_owner(descriptor: int, path: str) -> None:
    """Let a file belong to whom that at ``path`` does: root may log in for a user, who is to read it after that."""
    with suppress(FileNotFoundError, PermissionError):
        before, now = os.stat(path), os.fstat(descriptor)
        if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid):
            os.fchown(descriptor, before.st_uid, before.st_gid)


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Hold the lock of the folder itself, by which two changes at once lose neither; no file is left for it."""
    with path_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + _LOCK_SECONDS
    try:
        while not try_lock(descriptor, folder):
            if time.monotonic() > deadline:
                raise StoreBusy(folder, None, None, "login")
            time.sleep(0.01)
        yield
    finally:
        release(descriptor)
