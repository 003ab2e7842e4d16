"""What the environment says: where credentials, certificates and rules lie, which proxies there are, what helpers see.

The only module of the library that reads the process's environment.
"""

import os
import pwd
from collections.abc import Mapping, Sequence

import attrs

from minibox_store._file_errors import absolute_path
from minibox_store.values import Value


@attrs.frozen(kw_only=True, repr=False)
class AuthPaths(Value):
    """Where credentials lie, as absolute paths; nothing needs to be there.

    Attributes:
        named: the file that REGISTRY_AUTH_FILE names; it stands for those of ``containers``.
        docker: Docker's ``config.json``; None where there is no home.
        containers: the ``auth.json`` files of Podman, Buildah and Skopeo, the first goes before the second.
    """

    named: str | None
    docker: str | None
    containers: tuple[str, ...]

    @property
    def in_order(self) -> tuple[str, ...]:
        """The order in which they are searched: what was named, then Docker's, then the usual ones of containers."""
        return tuple(path for path in (self.named, self.docker, *self.containers) if path is not None)


def process_environment() -> dict[str, str]:
    """Return the environment of this process, as it is now."""
    return dict(os.environ)


def auth_paths(environment: Mapping[str, str]) -> AuthPaths:
    """Return where credentials lie; a variable that is empty counts as not set.

    Spec: Docker's command line reference, "Configuration files"; containers-auth.json(5).
    """
    home = environment.get("HOME") or _home()
    docker = environment.get("DOCKER_CONFIG") or _below(home, ".docker")
    named = environment.get("REGISTRY_AUTH_FILE") or None
    runtime = environment.get("XDG_RUNTIME_DIR") or f"/run/containers/{os.getuid()}"
    # Without a session there is no such folder, and root's own takes its place.
    runtime_file = "containers/auth.json" if environment.get("XDG_RUNTIME_DIR") else "auth.json"
    settings = environment.get("XDG_CONFIG_HOME") or _below(home, ".config")
    usual = (_below(runtime, runtime_file), _below(settings, "containers/auth.json"))
    return AuthPaths(
        named=None if named is None else absolute_path(named),
        docker=_below(docker, "config.json"),
        containers=() if named is not None else tuple(path for path in usual if path is not None),
    )


def certificate_folders(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the ``certs.d`` folders, as absolute paths: the user's before the machine's, Podman's before Docker's.

    Docker's of a user are those of an engine that runs without root, and of Docker Desktop.

    Spec: containers-certs.d(5); Docker, "Verify repository client with certificates".
    """
    home = environment.get("HOME") or _home()
    settings = environment.get("XDG_CONFIG_HOME") or _below(home, ".config")
    of_user = (
        _below(settings, "containers/certs.d"),
        _below(home, ".config/containers/certs.d"),
        _below(settings, "docker/certs.d"),
        _below(home, ".docker/certs.d"),
    )
    found = [path for path in of_user if path is not None]
    return tuple(dict.fromkeys((*found, "/etc/containers/certs.d", "/etc/docker/certs.d")))


def registries_path(environment: Mapping[str, str]) -> str | None:
    """Return the absolute path of the file of registries, None where there is none to be read."""
    named = environment.get("MINIBOX_REGISTRIES")
    return absolute_path(named) if named else None


def proxy_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what ``Proxies`` is made of; the spelling in upper case goes first, and one that is empty is not set.

    HTTP_PROXY does not count in a CGI program: there it is what a request says in a header ``Proxy``.

    Spec: golang.org/x/net/http/httpproxy; CVE-2016-5385 and its kind.
    """
    is_cgi = bool(environment.get("REQUEST_METHOD"))
    names = {
        "http": ("http_proxy",) if is_cgi else ("HTTP_PROXY", "http_proxy"),
        "https": ("HTTPS_PROXY", "https_proxy"),
        "no_proxy": ("NO_PROXY", "no_proxy"),
    }
    return {
        meaning: next(filter(None, (environment.get(name) for name in spellings)), "")
        for meaning, spellings in names.items()
    }


def helper_environment(environment: Mapping[str, str], program_path: Sequence[str]) -> dict[str, str]:
    """Return what a credential helper sees: all but this project's own settings, one of which is a token."""
    seen = {name: value for name, value in environment.items() if not name.startswith("MINIBOX_")}
    return {**seen, "PATH": os.pathsep.join(program_path)}


def _below(folder: str | None, name: str) -> str | None:
    return None if folder is None else absolute_path(os.path.join(folder, name))


def _home() -> str | None:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir or None
    except KeyError:
        return None
