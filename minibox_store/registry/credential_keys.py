"""Which key of a file of credentials is meant for which repository: the host, then whole segments of the path.

A key is what tools have written over the years: ``quay.io``, ``quay.io/team``, ``https://quay.io``,
``https://index.docker.io/v1/``, ``localhost:5000``. It is never compared as the beginning of a text: ``quay.io`` has
nothing to say of ``quay.io.example.org``, and ``quay.io/team`` nothing of ``quay.io/teams``. A port is a part of the
host. Longer keys go first; Docker Hub goes by several hosts.
"""

import re
from collections.abc import Iterable, Iterator

from minibox_store.errors import InvalidReference
from minibox_store.reference import DOCKER_HUB, DOCKER_HUB_API, Reference
from minibox_store.sentences import without_user

DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_DOCKER_HUB_HOSTS = (DOCKER_HUB, "index.docker.io", DOCKER_HUB_API)

_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_API_PATHS = ("", "v1", "v2")


def place_of(key: str) -> str | None:
    """Return the ``host`` or ``host/path`` that a key is meant for, None where it is meant for none.

    The path of a URL says which API was spoken, and is no repository.

    >>> place_of("https://index.docker.io/v1/"), place_of("Quay.io/team"), place_of("https://quay.io/team")
    ('index.docker.io', 'quay.io/team', None)
    """
    scheme = _SCHEME.match(key)
    host, _, path = key[scheme.end() if scheme else 0 :].partition("/")
    if not host or "@" in host:
        return None
    if scheme is not None or path.endswith("/"):
        path = path.rstrip("/")
        if path in _API_PATHS:
            return host.lower()
        if scheme is not None:
            return None
    return f"{host.lower()}/{path}" if path else host.lower()


def matching_keys(keys: Iterable[str], registry: str, repository: str) -> Iterator[str]:
    """Yield the keys that are meant for a repository, the longest first.

    >>> list(matching_keys(["quay.io", "quay.io/a", "quay.io/a/b", "quay.io/ab"], "quay.io", "a/c"))
    ['quay.io/a', 'quay.io']
    """
    by_place: dict[str, list[str]] = {}
    for key in keys:
        place = place_of(key)
        if place is not None:
            by_place.setdefault(place, []).append(key)
    segments = repository.split("/") if repository else []
    for length in range(len(segments), -1, -1):
        for host in hosts_of(registry):
            place = "/".join([host, *segments[:length]])
            # What is spelled as it is meant goes before what an older tool has written.
            yield from sorted(by_place.get(place, ()), key=lambda key, place=place: key != place)


def hosts_of(registry: str) -> tuple[str, ...]:
    """Return the hosts that keys name a registry by, the most usual first.

    >>> hosts_of("docker.io")
    ('docker.io', 'index.docker.io', 'registry-1.docker.io')
    """
    registry = registry.lower()
    return _DOCKER_HUB_HOSTS if registry in (DOCKER_HUB, DOCKER_HUB_API) else (registry,)


def server_names(registry: str) -> tuple[str, ...]:
    """Return the names by which a credential helper is asked for a registry, in this order."""
    return (DOCKER_HUB_KEY, DOCKER_HUB) if registry == DOCKER_HUB else (registry,)


def parse_registry(text: str) -> str:
    """Return the registry that a person means, as references name it.

    Raises:
        InvalidReference: when it is no host with an optional port.

    >>> parse_registry("https://index.docker.io/v1/"), parse_registry("localhost:5000")
    ('docker.io', 'localhost:5000')
    """
    place = place_of(text) if isinstance(text, str) else None
    if place is None or "/" in place:
        raise InvalidReference(without_user(str(text)), "it is no registry: a host with an optional port")
    if place in hosts_of(DOCKER_HUB):
        return DOCKER_HUB
    return Reference(domain=place, repository="any/repository", tag="any").domain
