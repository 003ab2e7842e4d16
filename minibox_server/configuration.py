"""What ``--check-config`` says: everything that is wrong with the settings, or what they are; never a secret."""

import importlib.metadata
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import attrs

from minibox_server.listening import listen
from minibox_server.settings import Settings, SettingsError, check_registries, parse_settings, read_variables
from minibox_server.tls import open_context
from minibox_store import Store, StoreError, one_line

_PROTECTION = ("MINIBOX_API_TOKEN", "MINIBOX_ALLOW_ANONYMOUS", "MINIBOX_HTTP_ADDR")


@attrs.frozen(kw_only=True)
class Configuration:
    """What was found.

    Attributes:
        problems: each a sentence: with one of them the daemon does not start, or not do what it is there for.
        notes: what is no fault, and worth knowing.
        settings: what is set; None where it could not be read.
        registries: the file of the rules for registries; None where there is none.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    settings: Settings | None
    registries: str | None

    @property
    def text(self) -> str:
        """All of it, a line for each."""
        lines = [f"wrong: {problem}" for problem in self.problems]
        if not self.problems and self.settings is not None:
            lines = [f"{name}: {value}" for name, value in _describe(self.settings, self.registries).items()]
        lines.extend(f"note: {note}" for note in self.notes)
        return "".join(f"{one_line(line)}\n" for line in lines)


def check_configuration() -> Configuration:
    """Return what is wrong with what this process's environment says; nothing is changed, and nothing is served."""
    environment = read_variables()
    settings, problems = parse_all(environment)
    registries = environment.get("MINIBOX_REGISTRIES") or None
    problems.extend(_problems_of(check_registries))
    notes: list[str] = []
    if settings is not None:
        problems.extend(_problems_of(partial(open_context, settings)))
        problems.extend(_check_data_root(settings.data_root))
        problems.extend(_check_prefixes(settings.archive_prefixes, environment))
        notes.extend(_note_address(settings))
    return Configuration(problems=tuple(problems), notes=tuple(notes), settings=settings, registries=registries)


def parse_all(environment: Mapping[str, str]) -> tuple[Settings | None, list[str]]:
    """Return the settings, and a sentence for each variable that is wrong; what is wrong counts as not set.

    >>> settings, problems = parse_all({"MINIBOX_UNPACK": "maybe", "MINIBOX_ALLOWED_HOSTS": "a/b"})
    >>> len(problems)
    2
    """
    remaining = dict(environment)
    problems: list[str] = []
    while True:
        try:
            return parse_settings(remaining), problems
        except SettingsError as error:
            sentence = str(error)
            problems.append(sentence)
            # A token that is missing is missing for an address.
            named = [name for name in remaining if name in sentence and remaining[name]]
            if "others can reach" in sentence:
                named = [name for name in _PROTECTION if remaining.get(name)]
            if not named:
                return None, problems
            for name in named:
                del remaining[name]


def version() -> str:
    """Return the version of this program."""
    try:
        return importlib.metadata.version("minibox-store")
    except importlib.metadata.PackageNotFoundError:
        return "that is not installed"


def _describe(settings: Settings, registries: str | None) -> dict[str, str]:
    return {
        "version": version(),
        "address": settings.address,
        "TLS": "no" if settings.tls_certificate is None else f"with the certificate {settings.tls_certificate}",
        "store": settings.data_root,
        "token": "none is needed" if settings.token is None else "one is needed",
        "further hosts": ", ".join(name for name, _ in settings.allowed_hosts) or "none",
        "archives below": ", ".join(settings.archive_prefixes),
        "pulls unpack": "yes" if settings.unpack else "no",
        "rules for registries": registries or "none",
        "upstream of /v2/": settings.upstream or "none",
        "log": settings.log_format,
        "ready with": f"{settings.ready_free_bytes} bytes free",
        "limits of each process": f"{settings.max_connections} connections, {settings.max_requests} requests, "
        f"{settings.max_pulls} pulls, {settings.idle_seconds:g} s for a client that keeps still",
    }


def _problems_of(check: Callable[[], object]) -> Iterator[str]:
    try:
        check()
    except SettingsError as error:
        yield str(error)


def _check_data_root(root: str) -> Iterator[str]:
    try:
        status = os.stat(root)
    except FileNotFoundError:
        above = os.path.dirname(root)
        while not os.path.exists(above):
            above = os.path.dirname(above)
        if not os.access(above, os.W_OK | os.X_OK):
            yield f"MINIBOX_DATA_ROOT: {root} is not there, and cannot be made in {above}"
        return
    except OSError as error:
        yield f"MINIBOX_DATA_ROOT: {root} cannot be read: {error.strerror}"
        return
    if not stat.S_ISDIR(status.st_mode):
        yield f"MINIBOX_DATA_ROOT: {root} is no folder"
    elif status.st_uid != os.geteuid():
        yield f"MINIBOX_DATA_ROOT: {root} belongs to user {status.st_uid}, and this is user {os.geteuid()}"
    elif not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        yield f"MINIBOX_DATA_ROOT: {root} cannot be written to"
    else:
        try:
            Store(root).images()
        except StoreError as error:
            yield f"MINIBOX_DATA_ROOT: {error}"


def _check_prefixes(prefixes: tuple[str, ...], environment: Mapping[str, str]) -> Iterator[str]:
    # Those that nobody has chosen need not all be there.
    for prefix in prefixes if environment.get("MINIBOX_ARCHIVE_PREFIXES") else ():
        if not os.path.isdir(prefix):
            yield f"MINIBOX_ARCHIVE_PREFIXES: {prefix} is no folder"


def _note_address(settings: Settings) -> Iterator[str]:
    """Say whether the address can be had now: where the daemon runs already, it has it."""
    if settings.socket_path is not None:
        folder = os.path.dirname(settings.socket_path)
        if not os.access(folder, os.W_OK | os.X_OK):
            yield f"no socket can be made in {folder}, as it is now"
        return
    try:
        listen(settings).close()
    except SettingsError as error:
        yield str(error)
