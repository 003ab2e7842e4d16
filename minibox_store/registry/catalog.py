"""What a registry lists: its repositories, and the tags of one; page by page, as far as it leads.

Nothing of it is trusted. Of a link to the next page only path and query are used, so that no list leads to another
host; a list has an end, whatever the registry says.

Spec: OCI distribution-spec 1.1, "Listing Tags"; distribution project, "Listing Repositories"; RFC 8288, section 3.
"""

import re
from collections.abc import Iterator

from minibox_store.codec import decode_names
from minibox_store.errors import RegistryError
from minibox_store.registry.transport import Request, Transport
from minibox_store.registry.urls import InvalidUrl, Url

# What registries are asked for at most, and what several of them give at most.
_PAGE_NAMES = 1000
# Some know no pages.
_PAGE_BYTES = 16 * 1024 * 1024
_MOST_NAMES = 1_000_000
# Who sees some names alone may get pages without any in between.
_MOST_EMPTY_PAGES = 1000
# How a registry refuses a page that is larger than it gives any; it does not say how large that is.
_TOO_LARGE = "PAGINATION_NUMBER_INVALID"
# Nexus and others name pages by where they are behind a proxy, or before one.
_BEFORE_API = re.compile(r"\A[^?]*?(?=/v2/)")
_VALUE = r'"(?:[^"\\]|\\.)*+"|[^\s;,"]*+'
_PARAMETER = re.compile(rf';[ \t]*+(?P<name>[^\s;,="<>]*+)(?:[ \t]*+=[ \t]*+(?P<value>{_VALUE}))?+')
_LINK = re.compile(rf'<([^<>]*)>((?:[ \t]*+;[ \t]*+[^\s;,="<>]*+(?:[ \t]*+=[ \t]*+(?:{_VALUE}))?+)*+)')


def iter_tags(transport: Transport, repository: str) -> Iterator[str]:
    """Yield the tags of a repository, in the registry's order.

    Raises:
        ManifestUnknown: when there is no such repository.
        InvalidDocument: when what comes is no list of names.
        RegistryError: when the registry refuses, fails, or never ends.
    """
    return _iter_names(transport, f"/v2/{repository}/tags/list?n={_PAGE_NAMES}", "tags")


def iter_repositories(transport: Transport) -> Iterator[str]:
    """Yield the repositories of a registry, in its order; many registries tell nobody.

    Raises:
        InvalidDocument, RegistryError: as :func:`iter_tags`.
    """
    return _iter_names(transport, f"/v2/_catalog?n={_PAGE_NAMES}", "repositories")


def _iter_names(transport: Transport, target: str, key: str) -> Iterator[str]:
    count, empty_pages, seen = 0, 0, set[str]()
    while target not in seen:
        seen.add(target)
        try:
            reply = transport.read(Request(target=target), _PAGE_BYTES)
        except RegistryError as refused:
            if len(seen) > 1 or _TOO_LARGE not in refused.codes:
                raise
            target = target.partition("?")[0]
            continue
        names = decode_names(reply.content, key, limit_bytes=_PAGE_BYTES)
        count += len(names)
        empty_pages += not names
        if count > _MOST_NAMES or empty_pages > _MOST_EMPTY_PAGES:
            most = f"{_MOST_NAMES} names" if names else f"{_MOST_EMPTY_PAGES} pages without a name"
            raise RegistryError("GET", Url(transport.registry, target).shown, None, (), f"it lists more than {most}")
        yield from names
        following = next_target(Url(transport.registry, target), reply.link)
        # A last page without a name may lead to where it is, or to where the list was.
        if following is None or (not names and following in seen):
            return
        target = following
    raise RegistryError("GET", Url(transport.registry, target).shown, None, (), "its list leads back to where it was")


def next_target(url: Url, link: str | None) -> str | None:
    """Return path and query of the page behind the one at ``url``; None where that was the last.

    >>> next_target(Url.parse("https://a.example/v2/_catalog?n=1"), '</v2/_catalog?n=1&last=b>; rel="next"')
    '/v2/_catalog?n=1&last=b'
    """
    found = next(filter(_leads_on, _LINK.finditer(link or "")), None)
    if found is None:
        return None
    try:
        return _BEFORE_API.sub("", url.join(found[1]).target, count=1)
    except InvalidUrl as error:
        raise RegistryError("GET", url.shown, None, (), f"the address of its next page is refused: {error}") from None


def _leads_on(link: re.Match[str]) -> bool:
    """Whether one of the relations of a link is ``next``; of several parameters ``rel`` the first counts."""
    named = (each["value"] or "" for each in _PARAMETER.finditer(link[2]) if each["name"].lower() == "rel")
    return "next" in next(named, "").strip('"').lower().split()
