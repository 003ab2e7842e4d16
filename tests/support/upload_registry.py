"""A registry in memory that takes uploads, strictly by the specification, and as oddly as a test wants it.

Spec: OCI distribution-spec 1.1, "Push"; what is scripted over it goes before.
"""

import json
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import parse_qs, urlencode

from tests.support.answers import Answer, Request, Scripted, registry_error
from tests.support.certificates import Certificate
from tests.support.images import INDEX_TYPES, OCI_INDEX, BuiltImage, Document, digest_of
from tests.support.scripted_registry import ScriptedRegistry
from tests.support.wire import read_body, read_head

_UPLOADS = re.compile(r"/v2/(?P<repository>.+)/blobs/uploads/(?P<upload>[^/]*)")
_BLOB = re.compile(r"/v2/(?P<repository>.+)/blobs/(?P<digest>[^/]+)")
_MANIFEST = re.compile(r"/v2/(?P<repository>.+)/manifests/(?P<name>[^/]+)")
_TAGS = re.compile(r"/v2/(?P<repository>.+)/tags/list")
_STALLING_BYTES = 16 << 20
_REFERRERS = re.compile(r"/v2/(?P<repository>.+)/referrers/(?P<digest>[^/]+)")
_CHUNK = re.compile(r"(\d+)-(\d+)")


@dataclass
class Upload:
    """One that was begun: what came of it, and at which request it was cut."""

    repository: str
    content: bytearray = field(default_factory=bytearray)


class UploadRegistry(ScriptedRegistry):
    """A registry that images can be pushed to; its attributes are what a test may make odd.

    Attributes:
        authorization: what every request must carry; None for nothing.
        challenge: what answers a request without it.
        cuts: for each of the next bodies of uploads, after how many bytes the line is cut; None for not at all.
        keeps_cut: whether what came before a cut stays in the upload.
        forgets_cut: whether an upload that was cut is unknown afterwards.
        largest_body_bytes: what is larger is refused with 413.
        refuses_unread: whether it says so before it has read any of that, and goes on to read nothing.
        interim: what it says to each request with a body before it reads that.
        stalls: until then nothing is read of what is larger than what a line holds.
        least_chunk_bytes: what OCI-Chunk-Min-Length says; a smaller chunk that is not the last is refused.
        most_taken_bytes: of a chunk no more is taken, and Range says so.
        takes_whole: whether a PUT may have the whole blob in it.
        mounts: whether blobs are taken from other repositories.
        location: what Location says of an upload, with ``{path}`` for the path.
        knows_subjects: whether it says OCI-Subject, and lists what refers to something.
        page_names: how many names a list has at most before it leads to the next page.
        deletes_tags: whether a tag alone may be deleted.
        refuses: what it answers to a request instead; None for what it would answer.
    """

    def __init__(self, *, certificate: Certificate | None = None, hostname: str = "127.0.0.1") -> None:
        super().__init__(certificate=certificate, hostname=hostname)
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.uploads: dict[str, Upload] = {}
        self.authorization: str | None = None
        self.challenge = 'Basic realm="uploads"'
        self.cuts: list[int | None] = []
        self.keeps_cut = True
        self.forgets_cut = False
        self.largest_body_bytes: int | None = None
        self.refuses_unread = False
        self.interim = b""
        self.stalls: threading.Event | None = None
        self._unread: set[int] = set()
        self.least_chunk_bytes: int | None = None
        self.most_taken_bytes: int | None = None
        self.takes_whole = True
        self.mounts = True
        self.location = "{path}"
        self.knows_subjects = True
        self.needs_all_layers = False
        self.page_names = 1000
        self.deletes_tags = True
        self.refuses: Callable[[Request], Answer | None] = lambda _: None
        self.body_bytes = 0

    def holds(self, repository: str, image: BuiltImage) -> bool:
        """Whether every blob of an image is there, byte for byte."""
        found = {digest: content for (where, digest), content in self.blobs.items() if where == repository}
        found |= {name: content for (where, name), (_, content) in self.manifests.items() if where == repository}
        return image.blobs.items() <= found.items()

    def put(self, repository: str, *images: BuiltImage, tag: str | None = None) -> None:
        """Let it have images, however they came there, the last one under a tag."""
        for image in images:
            for digest, content in image.blobs.items():
                if digest in image.document_digests:
                    self.manifests[repository, digest] = (image.media_types[digest], content)
                else:
                    self.blobs[repository, digest] = content
        if tag is not None:
            self.manifests[repository, tag] = self.manifests[repository, images[-1].digest]

    def tag(self, repository: str, tag: str) -> str | None:
        """Return the digest that a tag stands for."""
        found = self.manifests.get((repository, tag))
        return None if found is None else digest_of(found[1])

    def sent(self, *methods: str) -> list[str]:
        """Return the requests that came, by these methods, as method and path."""
        return [f"{each.method} {each.path}" for each in self.requests if not methods or each.method in methods]

    def _read(self, stream: BinaryIO, client_port: int) -> Request | None:
        if client_port in self._unread and self.stalls is not None:
            self.wait_while_held(self.stalls)
            return None
        if client_port in self._unread:
            # It stays open, and nobody looks at what comes, until the client has left.
            if b" HTTP/1.1\r\n" in stream.read():
                self._note_problem("a request follows one that was not sent to its end")
            return None
        request = read_head(stream, client_port)
        if request is None:
            return None
        length = int(request.header("Content-Length") or 0)
        if self.refuses_unread and self.largest_body_bytes is not None and length > self.largest_body_bytes:
            self._unread.add(client_port)
            return request
        if self.stalls is not None and request.method == "PUT" and length > _STALLING_BYTES:
            with self._changed:
                self.requests.append(request)
                self._changed.notify_all()
            self.wait_while_held(self.stalls)
            return None
        with self._changed:
            is_upload = request.method in ("PUT", "PATCH") and _UPLOADS.fullmatch(request.path)
            cut = self.cuts.pop(0) if is_upload and length and self.cuts else None
        if cut is not None and cut < length:
            self._cut(request, stream.read(cut))
            return None
        if self.interim and request.method in ("PUT", "PATCH"):
            with self._changed:
                (connection,) = (each for each in self._connections if each.getpeername()[1] == client_port)
            connection.sendall(self.interim)
            self.pause(0.05)
        request.body = read_body(stream, request)
        with self._changed:
            self.body_bytes += len(request.body)
        return request

    def _cut(self, request: Request, content: bytes) -> None:
        with self._changed:
            self.body_bytes += len(content)
            self.requests.append(request)
            found = _UPLOADS.fullmatch(request.path)
            assert found is not None
            if self.forgets_cut:
                self.uploads.pop(found["upload"], None)
            elif self.keeps_cut and found["upload"] in self.uploads:
                self.uploads[found["upload"]].content += content

    def _choose(self, request: Request) -> Scripted:
        same = [listed for listed in self._listed if listed.has_same_target(request)]
        if any(listed.header_problem(request) is None and not listed.is_used_up for listed in same):
            return super()._choose(request)
        if self.authorization is not None and request.header("Authorization") != self.authorization:
            headers = {"WWW-Authenticate": self.challenge}
            return registry_error(401, "UNAUTHORIZED", "authentication required", headers=headers)
        if (refusal := self.refuses(request)) is not None:
            return refusal
        if request.path == "/v2/":
            return Answer(body=b"{}")
        if found := _TAGS.fullmatch(request.path):
            known = [
                name for repository, name in self.manifests if repository == found["repository"] and ":" not in name
            ]
            return self._answer_list(request, "tags", known)
        if request.path == "/v2/_catalog":
            return self._answer_list(request, "repositories", {repository for repository, _ in self.manifests})
        if found := _UPLOADS.fullmatch(request.path):
            if found["upload"]:
                return self._go_on(request, found["repository"], found["upload"])
            return self._begin(request, found["repository"])
        if found := _BLOB.fullmatch(request.path):
            return self._answer_blob(request, (found["repository"], found["digest"]))
        if found := _REFERRERS.fullmatch(request.path):
            return self._answer_referrers(request, found["repository"], found["digest"])
        if found := _MANIFEST.fullmatch(request.path):
            return self._answer_manifest(request, found["repository"], found["name"])
        return super()._choose(request)

    # ---- uploads

    def _begin(self, request: Request, repository: str) -> Answer:
        if request.method != "POST" or request.header("Content-Length") != "0":
            return registry_error(405, "UNSUPPORTED")
        asked = dict(request.query)
        source = self.blobs.get((asked.get("from", ""), asked.get("mount", "")))
        if self.mounts and source is not None:
            self.blobs[repository, asked["mount"]] = source
            return Answer(status=201, headers={"Location": f"/v2/{repository}/blobs/{asked['mount']}"})
        name = f"upload-{len(self.uploads)}-{len(self.requests)}"
        self.uploads[name] = Upload(repository)
        least = {} if self.least_chunk_bytes is None else {"OCI-Chunk-Min-Length": str(self.least_chunk_bytes)}
        return Answer(status=202, headers={**self._state(name), **least})

    def _state(self, name: str) -> dict[str, str]:
        upload = self.uploads[name]
        path = f"/v2/{upload.repository}/blobs/uploads/{name}?_state=at-{len(upload.content)}"
        return {"Location": self.location.format(path=path), "Range": f"0-{max(0, len(upload.content) - 1)}"}

    def _go_on(self, request: Request, repository: str, name: str) -> Answer:
        upload = self.uploads.get(name)
        if upload is None or upload.repository != repository:
            return registry_error(404, "BLOB_UPLOAD_UNKNOWN")
        query = parse_qs(request.target.partition("?")[2])
        if request.method == "GET":
            return Answer(status=204, headers=self._state(name))
        if query.get("_state") != [f"at-{len(upload.content)}"]:
            return registry_error(404, "BLOB_UPLOAD_INVALID", "the state is another one")
        length = int(request.header("Content-Length") or 0)
        if self.largest_body_bytes is not None and length > self.largest_body_bytes:
            return Answer(status=413, body=b"<html>too large</html>")
        if request.method == "PATCH":
            return self._patch(request, upload, name)
        if request.method != "PUT":
            return registry_error(405, "UNSUPPORTED")
        return self._finish(request, upload, name, query)

    def _patch(self, request: Request, upload: Upload, name: str) -> Answer:
        found = _CHUNK.fullmatch(request.header("Content-Range") or "")
        start = len(upload.content)
        if found is None or (int(found[1]), int(found[2])) != (start, start + len(request.body) - 1):
            return registry_error(416, "BLOB_UPLOAD_INVALID", headers=self._state(name))
        upload.content += request.body[: self.most_taken_bytes]
        return Answer(status=202, headers=self._state(name))

    def _finish(self, request: Request, upload: Upload, name: str, query: dict[str, list[str]]) -> Answer:
        if request.body and not upload.content and not self.takes_whole:
            return registry_error(405, "UNSUPPORTED")
        content, digest = bytes(upload.content) + request.body, query["digest"][0]
        if digest_of(content, digest.partition(":")[0]) != digest:
            return registry_error(400, "DIGEST_INVALID")
        del self.uploads[name]
        self.blobs[upload.repository, digest] = content
        location = f"/v2/{upload.repository}/blobs/{digest}"
        return Answer(status=201, headers={"Location": location, "Docker-Content-Digest": digest})

    # ---- what is there

    def _answer_blob(self, request: Request, key: tuple[str, str]) -> Answer:
        content = self.blobs.get(key)
        if content is None:
            return registry_error(404, "BLOB_UNKNOWN")
        return Answer(headers={"Docker-Content-Digest": key[1]}, body=content)

    def _answer_list(self, request: Request, key: str, names: Iterable[str]) -> Answer:
        asked = dict(request.query)
        rest = sorted(name for name in names if name > asked.get("last", ""))
        page = rest[: min(int(asked.get("n", "1000")), self.page_names)]
        headers = {"Content-Type": "application/json"}
        if len(page) < len(rest):
            headers["Link"] = f'<{request.path}?{urlencode({"last": page[-1], "n": len(page)})}>; rel="next"'
        return Answer(headers=headers, body=json.dumps({key: page}).encode())

    def _answer_referrers(self, request: Request, repository: str, subject: str) -> Answer:
        if not self.knows_subjects:
            return Answer(status=404, headers={"Content-Type": "text/plain"}, body=b"404 page not found")
        found = {}
        for (where, name), (media_type, content) in self.manifests.items():
            document = json.loads(content)
            if where == repository and ":" in name and document.get("subject", {}).get("digest") == subject:
                kind = document.get("artifactType") or document.get("config", {}).get("mediaType")
                listed = {"mediaType": media_type, "digest": name, "size": len(content)}
                typed = {"artifactType": kind} if kind else {}
                found[name] = {**listed, **typed, "annotations": document.get("annotations", {})}
        asked = dict(request.query)
        rest = [entry for name, entry in sorted(found.items()) if name > asked.get("last", "")]
        page = rest[: self.page_names]
        headers = {"Content-Type": OCI_INDEX}
        if len(page) < len(rest):
            headers["Link"] = f'<{request.path}?{urlencode({"last": page[-1]["digest"]})}>; rel="next"'
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": page}
        return Answer(headers=headers, body=json.dumps(document).encode())

    def _delete(self, repository: str, name: str) -> Answer:
        if (repository, name) not in self.manifests:
            return registry_error(404, "MANIFEST_UNKNOWN")
        if ":" not in name and not self.deletes_tags:
            return registry_error(405, "UNSUPPORTED")
        going = (
            {name}
            if ":" not in name
            else {each for where, each in self.manifests if where == repository and self.tag(repository, each) == name}
        )
        for each in going:
            del self.manifests[repository, each]
        return Answer(status=202)

    def _answer_manifest(self, request: Request, repository: str, name: str) -> Answer:
        if request.method == "DELETE":
            return self._delete(repository, name)
        if request.method != "PUT":
            found = self.manifests.get((repository, name))
            if found is None:
                return registry_error(404, "MANIFEST_UNKNOWN")
            headers = {"Content-Type": found[0], "Docker-Content-Digest": digest_of(found[1])}
            return Answer(headers=headers, body=found[1])
        media_type = request.header("Content-Type") or ""
        document = json.loads(request.body)
        if document.get("mediaType", media_type) != media_type:
            return registry_error(400, "MANIFEST_INVALID", "the types do not agree")
        missing = [each for each in self._needed(document, media_type) if not self._has(repository, each)]
        if missing:
            return registry_error(400, "MANIFEST_BLOB_UNKNOWN", f"{missing[0]} is missing")
        digest = digest_of(request.body, name.partition(":")[0] if ":" in name else "sha256")
        if ":" in name and name != digest:
            return registry_error(400, "DIGEST_INVALID")
        self.manifests[repository, name] = (media_type, request.body)
        self.manifests[repository, digest] = (media_type, request.body)
        headers = {"Location": f"/v2/{repository}/manifests/{digest}", "Docker-Content-Digest": digest}
        if "subject" in document and self.knows_subjects:
            headers["OCI-Subject"] = document["subject"]["digest"]
        return Answer(status=201, headers=headers)

    def _needed(self, document: Document, media_type: str) -> list[str]:
        if media_type in INDEX_TYPES:
            return [each["digest"] for each in document["manifests"]]
        layers = [each for each in document["layers"] if self.needs_all_layers or "urls" not in each]
        return [each["digest"] for each in (document["config"], *layers)]

    def _has(self, repository: str, digest: str) -> bool:
        return (repository, digest) in self.blobs or (repository, digest) in self.manifests
