"""A registry as a client that knows nothing but the distribution-spec meets it: requests, and the steps of a push.

Spec: OCI distribution-spec 1.1, sections "Pull", "Push", "Content Discovery" and "Content Management".
"""

import contextlib
import http.client
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

from tests.support.images import DOCUMENT_TYPES, BuiltImage, digest_of

OCTETS = "application/octet-stream"
ABSENT = "sha256:" + "0" * 64

# What the specification knows, and what docker's client meets beside it.
ERROR_CODES = frozenset(
    [
        *("BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN"),
        *("MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED"),
        *("DENIED", "UNSUPPORTED", "TOOMANYREQUESTS", "TAG_INVALID", "RANGE_INVALID", "PAGINATION_NUMBER_INVALID"),
    ]
)
# A client says which it can read: docker-registry gives an OCI manifest to no other.
ACCEPTED = ", ".join([*DOCUMENT_TYPES, "*/*"])


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the decoded body."""
        return json.loads(self.body)

    @property
    def codes(self) -> list[str]:
        """The codes of an error; its document has the form that the specification gives."""
        found = [str(each["code"]) for each in self.json()["errors"]]
        assert found
        assert set(found) <= ERROR_CODES, found
        return found


@dataclass(frozen=True, kw_only=True)
class DistributionClient:
    """Asks one registry, over a connection of its own each time.

    Attributes:
        host: ``127.0.0.1:port``.
        headers: what every request carries.
    """

    host: str
    headers: Mapping[str, str] = field(default_factory=dict)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def request(
        self,
        method: str,
        target: str,
        *,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float = 30.0,
    ) -> Answer:
        """Send a request; a body that is no bytes goes in chunks of Transfer-Encoding, without a length."""
        with contextlib.closing(http.client.HTTPConnection(self.host, timeout=timeout_seconds)) as connection:
            chunked = body is not None and not isinstance(body, bytes)
            every = {
                "Accept": ACCEPTED,
                **self.headers,
                **({"Transfer-Encoding": "chunked"} if chunked else {}),
                **(headers or {}),
            }
            # A body that is too large is refused before it has all been sent.
            with contextlib.suppress(BrokenPipeError):
                connection.request(method, target, body=body, headers=every, encode_chunked=chunked)
            with connection.getresponse() as response:
                items = {name.lower(): value for name, value in response.getheaders()}
                return Answer(status=response.status, headers=items, body=response.read())

    def get(self, target: str, **headers: str) -> Answer:
        """Send a GET; a header is named with ``_`` in place of ``-``."""
        return self.request("GET", target, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def get_for(self, target: str, seconds: float) -> Answer:
        """Send a GET, and hang up after so long."""
        return self.request("GET", target, timeout_seconds=seconds)

    def head(self, target: str) -> Answer:
        """Send a HEAD."""
        return self.request("HEAD", target)

    def delete(self, target: str) -> Answer:
        """Send a DELETE."""
        return self.request("DELETE", target)

    def new_repository(self, words: str = "team/app") -> str:
        """Return the name of a repository that nobody has used yet."""
        return f"{words}-{next(self._numbers)}"

    # ---- a push, step by step

    def start_upload(self, repository: str, **query: str) -> str:
        """Begin an upload, and return its location."""
        answer = self.post_upload(repository, **query)
        assert answer.status == 202, answer
        return self.target_of(answer)

    def post_upload(self, repository: str, **query: str) -> Answer:
        """Send the POST with which an upload begins, or a mount."""
        target = f"/v2/{repository}/blobs/uploads/" + (f"?{urlencode(query)}" if query else "")
        return self.request("POST", target, headers={"Content-Length": "0"})

    def patch(self, location: str, content: bytes, first: int, last: int | None = None) -> Answer:
        """Send a chunk that is said to begin at ``first``."""
        last = first + len(content) - 1 if last is None else last
        headers = {"Content-Type": OCTETS, "Content-Range": f"{first}-{last}"}
        return self.request("PATCH", location, body=content, headers=headers)

    def close_upload(self, location: str, digest: str, content: bytes = b"", **headers: str) -> Answer:
        """Send the PUT that ends an upload."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        target = with_query(location, digest=digest)
        return self.request("PUT", target, body=content, headers={"Content-Type": OCTETS, **named})

    def push_blob(self, repository: str, content: bytes, algorithm: str = "sha256") -> str:
        """Push a blob in one piece, and return its digest."""
        digest = digest_of(content, algorithm)
        answer = self.close_upload(self.start_upload(repository), digest, content)
        assert answer.status == 201, answer
        return digest

    def put_manifest(self, repository: str, reference: str, content: bytes, media_type: str) -> Answer:
        """Send a manifest."""
        target = f"/v2/{repository}/manifests/{reference}"
        return self.request("PUT", target, body=content, headers={"Content-Type": media_type})

    def push_image(self, repository: str, image: BuiltImage, *tags: str) -> Answer:
        """Push an image, children first, by its digest or under each of these tags; return the last answer."""
        documents = image.document_digests
        for digest, content in image.blobs.items():
            if digest not in documents:
                self.push_blob(repository, content, digest.partition(":")[0])
        for digest in documents:
            for reference in tags or (digest,) if digest == image.digest else (digest,):
                answer = self.put_manifest(repository, reference, image.blobs[digest], image.media_types[digest])
                assert answer.status == 201, answer
        return answer

    def target_of(self, answer: Answer) -> str:
        """Return where the Location of an answer leads, on this host: it may be absolute, or a path."""
        location = answer.headers["location"]
        found = urlsplit(urljoin(f"http://{self.host}/", location))
        assert found.netloc == self.host, location
        return found.path + (f"?{found.query}" if found.query else "")

    def tags(self, repository: str, **query: str) -> list[str]:
        """Return a page of tags."""
        target = f"/v2/{repository}/tags/list" + (f"?{urlencode(query)}" if query else "")
        answer = self.get(target)
        assert answer.status == 200, answer
        assert answer.json()["name"] == repository
        # docker-registry says of a repository without tags that they are null.
        return answer.json()["tags"] or []

    def referrers(self, repository: str, digest: str, **query: str) -> Answer:
        """Ask what refers to a manifest."""
        return self.get(f"/v2/{repository}/referrers/{digest}" + (f"?{urlencode(query)}" if query else ""))


def with_query(location: str, **query: str) -> str:
    """Return a location, which may have a query of its own, with these parameters behind it."""
    return f"{location}{'&' if '?' in location else '?'}{urlencode(query)}"


def next_page(answer: Answer, target: str) -> str | None:
    """Return where the next page is, by the Link header of RFC 8288; None where there is none."""
    if "link" not in answer.headers:
        return None
    match = re.fullmatch(r'<([^<>]*)>; *rel="next"', answer.headers["link"])
    assert match is not None, answer.headers["link"]
    return str(urljoin(target, match[1]))
