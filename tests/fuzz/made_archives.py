"""Archives that a fuzzer makes of good ones: members dropped, doubled, moved, renamed, linked, and with other content.

Bytes alone would never get past a digest. So where content is changed its name and all that names it is changed too,
when the fuzzer says so: then a document that nobody would write has the digest that it is called by. Nothing here knows
``minibox_store``.
"""

import re
from typing import Protocol

from tests.fuzz.mending import mended
from tests.support.archive_forms import FORMS, Part, Parts, pack_parts
from tests.support.hostile_archives import FORMS_READ, HEX, tiny_image
from tests.support.images import BuiltImage, build_image, build_index, digest_of

NAMES = ["app:1", "team/app:2", "quay.io/team/app:1.0"]
_INDEX = build_index([tiny_image(), build_image([], platform="linux/arm64")])
_POOL: dict[str, list[Parts]] = {}
_MEMBER_NAMES = [
    *("oci-layout", "index.json", "manifest.json", "repositories", "meta.json", "./index.json", "blobs/", "../x"),
    *(
        f"blobs/sha256/{HEX}",
        f"blobs/sha512/{HEX}{HEX}",
        f"{HEX}.json",
        f"{HEX}.tar",
        f"{HEX}/layer.tar",
        f"{HEX}/json",
    ),
    *(f"{HEX}/VERSION", f"sha256:{HEX}", f"{HEX}.tar.gz", f"blobs/sha256/{HEX}.index.json", "."),
]
_TOKENS = [
    *(b"null", b"-1", b"[]", b"{}", b'""', b"1e999", b"true", b'"a"', b"9007199254740993", b"\\u0000", b"\\ud800"),
    *(b'"manifests":[],', b'"layers":[],', b'"config":null,', b'"subject":{},', b'"mediaType":"",', b"[" * 99, b","),
    *(b"application/vnd.oci.image.index.v1+json", b"application/vnd.oci.image.manifest.v1+json", HEX.encode()),
    *(b"application/vnd.docker.distribution.manifest.v2+json", b'"schemaVersion":1,', b"../../etc/passwd"),
    *(b'"org.opencontainers.image.ref.name":"b:1",', b'"io.containerd.image.name":"c:1",', b'"urls":["http://x"],'),
    *(b"RepoTags", b"Layers", b"Config"),
]
_DIGITS = re.compile(r"[0-9a-f]{64}")
_FLAGS = [b"0", b"1", b"2", b"5", b"\0", b"7", b"3", b"6", b"x", b"g", b"L", b"K", b"S"]


class Choices(Protocol):
    """What a fuzzer's bytes are taken for."""

    def ConsumeIntInRange(self, least: int, most: int) -> int: ...  # atheris calls it so
    def ConsumeBytes(self, count: int) -> bytes: ...
    def ConsumeBool(self) -> bool: ...


def made(choices: Choices) -> bytes:
    """Return an archive; the same choices give the same."""
    forms = _pools(FORMS_READ[choices.ConsumeIntInRange(0, len(FORMS_READ) - 1)])
    parts = list(forms[choices.ConsumeIntInRange(0, len(forms) - 1)])
    for _ in range(choices.ConsumeIntInRange(0, 6)):
        if not parts:
            break
        at = choices.ConsumeIntInRange(0, len(parts) - 1)
        change = _CHANGES[choices.ConsumeIntInRange(0, len(_CHANGES) - 1)]
        parts = change(parts, at, choices)
    archive = pack_parts(parts)
    if choices.ConsumeIntInRange(0, 3):
        return archive
    start = choices.ConsumeIntInRange(0, len(archive))
    piece = choices.ConsumeBytes(choices.ConsumeIntInRange(0, 16))
    changed = archive[:start] + piece + archive[start + len(piece) :]
    return mended(changed[: choices.ConsumeIntInRange(0, len(changed))] if choices.ConsumeBool() else changed)


def _pools(form: str) -> list[Parts]:
    if form not in _POOL:
        images: list[tuple[BuiltImage, str]] = [(tiny_image(), NAMES[0]), (build_image(compressed=False), NAMES[1])]
        if "docker" not in form and form != "both":
            images.append((_INDEX, NAMES[2]))
        _POOL[form] = [FORMS[form](image, name) for image, name in images]
    return _POOL[form]


def _drop(parts: Parts, at: int, choices: Choices) -> Parts:
    return parts[:at] + parts[at + 1 :]


def _double(parts: Parts, at: int, choices: Choices) -> Parts:
    return [*parts, parts[at]] if choices.ConsumeBool() else [parts[at], *parts]


def _move(parts: Parts, at: int, choices: Choices) -> Parts:
    rest = _drop(parts, at, choices)
    to = choices.ConsumeIntInRange(0, len(rest))
    return [*rest[:to], parts[at], *rest[to:]]


def _rename(parts: Parts, at: int, choices: Choices) -> Parts:
    return _put(parts, at, Part(_name(parts, choices), parts[at].content, parts[at].flag, parts[at].link))


def _link(parts: Parts, at: int, choices: Choices) -> Parts:
    flag = _FLAGS[choices.ConsumeIntInRange(0, len(_FLAGS) - 1)]
    target = _name(parts, choices)
    content = b"" if flag in b"123456" else parts[at].content
    return _put(parts, at, Part(parts[at].name, content, flag, f"../{target}" if choices.ConsumeBool() else target))


def _resize(parts: Parts, at: int, choices: Choices) -> Parts:
    part = parts[at]
    return _put(parts, at, Part(part.name, part.content, part.flag, part.link, choices.ConsumeBytes(12).ljust(12)))


def _rewrite(parts: Parts, at: int, choices: Choices) -> Parts:
    """Change content, and its name and all that names it too where the fuzzer says so."""
    old = parts[at].content
    start = choices.ConsumeIntInRange(0, len(old))
    end = start + choices.ConsumeIntInRange(0, 32)
    token = _TOKENS[choices.ConsumeIntInRange(0, len(_TOKENS) - 1)]
    new = old[:start] + (token if choices.ConsumeBool() else choices.ConsumeBytes(8)) + old[end:]
    changed = _put(parts, at, Part(parts[at].name, new, parts[at].flag, parts[at].link))
    return _relinked(changed, at, old) if choices.ConsumeIntInRange(0, 3) else changed


def _insert(parts: Parts, at: int, choices: Choices) -> Parts:
    content = _TOKENS[choices.ConsumeIntInRange(0, len(_TOKENS) - 1)]
    return [*parts[:at], Part(_name(parts, choices), content), *parts[at:]]


_CHANGES = [_rewrite, _rewrite, _rewrite, _drop, _double, _move, _rename, _link, _resize, _insert]


def _put(parts: Parts, at: int, part: Part) -> Parts:
    return [*parts[:at], part, *parts[at + 1 :]]


def _name(parts: Parts, choices: Choices) -> str:
    names = [*_MEMBER_NAMES, *(part.name for part in parts)]
    return names[choices.ConsumeIntInRange(0, len(names) - 1)]


def _relinked(parts: Parts, at: int, old: bytes, depth: int = 0) -> Parts:
    """Return the members in which what named ``old`` by its digest names what the member at ``at`` has become."""
    was, new = digest_of(old).partition(":")[2], parts[at].content
    becomes = digest_of(new).partition(":")[2]
    if was == becomes or depth > 4:
        return parts
    sized = re.compile(rb'("digest":"sha256:%s","size":)%d' % (was.encode(), len(old)))
    result = list(parts)
    for number, part in enumerate(parts):
        content = sized.sub(rb"\g<1>%d" % len(new), part.content).replace(was.encode(), becomes.encode())
        name, link = part.name.replace(was, becomes), part.link.replace(was, becomes)
        result[number] = Part(name, content if number != at else new, part.flag, link, part.size)
    for number, part in enumerate(parts):
        if number != at and result[number].content != part.content and _DIGITS.search(part.name):
            result = _relinked(result, number, part.content, depth + 1)
    return result
