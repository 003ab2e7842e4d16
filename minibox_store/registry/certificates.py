"""Certificates for single registries, where Docker and Podman keep them: a folder ``certs.d/HOST[:PORT]`` for each.

In such a folder each ``*.crt`` holds authorities, in PEM, that are trusted besides the system's; ``NAME.cert`` and
``NAME.key`` are what we prove ourselves with. The name is that of the references: ``registry.example:443`` is another
folder than ``registry.example``. Of several folders for one registry the first that is there counts alone, so that a
user's own stands for the machine's.

Spec: containers-certs.d(5); Docker, "Verify repository client with certificates".
"""

import os
from collections.abc import Iterable, Mapping
from typing import Protocol

import attrs

from minibox_store._file_errors import absolute_path
from minibox_store.errors import InvalidArgument, InvalidPath
from minibox_store.kinds import check_kind, several
from minibox_store.values import Value

_AUTHORITY = ".crt"
_CLIENT = ".cert"
_KEY = ".key"


def _absolute(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple([absolute_path(each, "authorities") for each in several("authorities", paths)])


def _absolute_pair(paths: tuple[str, str] | None) -> tuple[str, str] | None:
    if paths is None:
        return None
    if not isinstance(paths, tuple) or len(paths) != 2:
        raise InvalidArgument("client", paths, "it is no pair of a certificate and its key")
    return absolute_path(paths[0], "client"), absolute_path(paths[1], "client")


@attrs.frozen(kw_only=True, repr=False)
class Certificates(Value):
    """What is known of one registry, as paths of files in PEM; they are read when it is first connected to.

    Paths that are relative are so to the working directory as it is when this is made.

    Attributes:
        authorities: who may vouch for it besides those that the system trusts.
        client: a certificate of ours with its chain, and the key, without a password; None where none is wanted.

    Raises:
        InvalidPath: on construction, for what no path can be.
        InvalidArgument: on construction, for one path in the place of several, and whatever else is none of these.
    """

    authorities: tuple[str, ...] = attrs.field(default=(), converter=_absolute)
    client: tuple[str, str] | None = attrs.field(default=None, converter=_absolute_pair)


class CertificatesSource(Protocol):
    """Where a client looks for certificates, each time that it connects."""

    def find(self, host: str, /) -> Certificates | None:
        """Return what is known of ``host[:port]``, as references name it; None where nothing is.

        Raises:
            InvalidPath: when something is there that cannot be used.
        """


@attrs.frozen(repr=False)
class KnownCertificates(Value):
    """Certificates that the program has itself, by ``host[:port]``."""

    known: Mapping[str, Certificates] = attrs.field(factory=dict)

    @classmethod
    def of(cls, known: Mapping[str, Certificates] | None) -> "KnownCertificates":
        """Return those of a mapping; none where it is None.

        Raises:
            InvalidArgument: for what is no mapping of them.
        """
        for host, each in (known or {}).items():
            check_kind("certificates", host, str)
            check_kind("certificates", each, Certificates)
        return cls(dict(known or {}))

    def find(self, host: str, /) -> Certificates | None:
        """Return those for exactly this host and port, in whatever case they are written."""
        return next((found for name, found in self.known.items() if name.lower() == host.lower()), None)


class CertificateFolders:
    """Folders like ``/etc/docker/certs.d``, in the order in which they are searched; none needs to be there."""

    def __init__(self, *folders: str | os.PathLike[str]) -> None:
        self.folders = tuple(absolute_path(folder, "folders") for folder in folders)

    def find(self, host: str, /) -> Certificates | None:
        """Return what the first folder for ``host[:port]`` holds; one that may not be looked into is passed over.

        Of several client certificates the first by name is taken.

        Raises:
            InvalidPath: when a certificate has no key, or a key no certificate.
        """
        if not host or "/" in host or "\0" in host or host.startswith("."):
            return None
        for folder in self.folders:
            path = os.path.join(folder, host)
            try:
                names = sorted(os.listdir(path))
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue
            except OSError as error:
                raise InvalidPath(path, (error.strerror or str(error)).lower()) from error
            return _found(path, names)
        return None


def _found(folder: str, names: list[str]) -> Certificates:
    authorities = [os.path.join(folder, name) for name in names if name.endswith(_AUTHORITY)]
    clients = [_client(folder, name, names) for name in names if name.endswith((_CLIENT, _KEY))]
    # A link that leads nowhere is passed over, as others do: the registry's own certificate then shows what is missing.
    readable = tuple(path for path in authorities if os.path.exists(path))
    return Certificates(authorities=readable, client=clients[0] if clients else None)


def _client(folder: str, name: str, names: list[str]) -> tuple[str, str]:
    """Return certificate and key, of which ``name`` is the one or the other."""
    stem = name.rpartition(".")[0]
    for wanted, what in ((stem + _CLIENT, "its certificate"), (stem + _KEY, "its key")):
        if wanted not in names:
            hint = "; an authority would be named *.crt" if wanted.endswith(_KEY) else ""
            raise InvalidPath(os.path.join(folder, name), f"{what}, {wanted}, is not beside it{hint}")
    return os.path.join(folder, stem + _CLIENT), os.path.join(folder, stem + _KEY)
