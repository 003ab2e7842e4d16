"""The corpus of archives that nobody may load, in code: each attack is what it makes of a good archive's members.

These are made on an archive of every form. The name of each begins with the row of the table of attacks that it belongs
to. Nothing here knows ``minibox_store``.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.support.archive_forms import FORMS, Part, Parts, pack_parts, replaced
from tests.support.images import OCI_LAYER, BuiltImage, Layer, build_image, build_layer, digest_of
from tests.support.tars import BLOCK, END, GNU, base256, extension, negative_base256, pax, pax_record, raw_header

NAME = "quay.io/team/app:1.0"
HEX = "0123456789abcdef" * 4
BLOB = f"blobs/sha256/{HEX}"
_SHARED = build_layer({"etc/hostname": b"minibox\n"}, compressed=False)
# The last layer is the first once more, so that an older docker-archive has a link between its members.
IMAGE = build_image([_SHARED, build_layer({"srv/data": b"data\n" * 100}, compressed=False), _SHARED])
OTHER = build_image(salt="other", compressed=False)

# The forms that are read.
FORMS_READ = list(FORMS)

Attack = Callable[[Parts], bytes]


def good_archive(form: str, image: BuiltImage = IMAGE, name: str = NAME) -> bytes:
    """Return an archive that nothing is wrong with."""
    return pack_parts(FORMS[form](image, name))


def tiny_image() -> BuiltImage:
    """Return an image whose documents and only layer fill a block each, but for some bytes."""
    layer = Layer(content=b"x" * 490, media_type=OCI_LAYER, diff_id=digest_of(b"x" * 490))
    config: dict[str, Any] = {
        "created": None,
        "config": {"Labels": {"filler": "x" * 270}},
        "history": [],
    }
    return build_image([layer], config=config, annotations={"filler": "x" * 60})


def tiny_parts(form: str) -> Parts:
    """Return the members of an archive of that image."""
    return FORMS[form](tiny_image(), "app:1")


def front(*added: Part) -> Attack:
    """Return the attack of members in front of the others."""
    return lambda parts: pack_parts([*added, *parts])


def behind(*added: Part) -> Attack:
    """Return the attack of members behind the others."""
    return lambda parts: pack_parts([*parts, *added])


_VERIFIED = re.compile(r"blobs/sha256/[0-9a-f]{64}|[0-9a-f]{64}(\.json|\.tar|/layer\.tar)")
_ESCAPING = [
    *("../x", "../../etc/passwd", "/etc/passwd", "..", "/", "./../x", "././index.json", "//index.json", "/index.json"),
    *("blobs/../../x", "blobs/sha256/../../../x", f"blobs/sha256/../{HEX}", f"/{BLOB}", f"../{BLOB}", f"x/{BLOB}"),
    *(f"blobs//sha256/{HEX}", f"blobs/./sha256/{HEX}", f"{BLOB}/x", f"blobs\\sha256\\{HEX}", "manifest.json/../x"),
    *(
        f"../{HEX}/layer.tar",
        f"{HEX}/../layer.tar",
        f"/{HEX}.tar",
        f"../{HEX}.json",
        f"{HEX}/../../x",
        f"./../{HEX}.tar",
    ),
]
_UNKNOWN = [
    *(
        "x",
        "etc/passwd",
        "INDEX.JSON",
        "meta.json.txt",
        "layer.tar",
        "manifest.json\n",
        "a\nb",
        "\x1b[2J",
        "é",
        "blobs",
    ),
    *(f"{HEX}/layer.tar/x", f"{HEX}/layer.tar2", f"{HEX}/VERSION/x", f"{HEX}.tar.xz", f"{HEX}.JSON", "oci-layout/x"),
    *(f"Blobs/sha256/{HEX}", f"blobs/SHA256/{HEX}", "index.json.index.json", f"sha256:{HEX}/x", HEX),
]
_NO_DIGESTS = [HEX[1:], HEX + "0", HEX.upper(), HEX[:-1] + "g", HEX[:-1] + "٣", HEX[:-1] + " ", f"sha256:{HEX}", "x"]
_SPECIAL = {
    "a symlink out": (b"2", "/etc/passwd"),
    "a symlink upwards": (b"2", "../../../../etc/passwd"),
    "a hard link out": (b"1", "/etc/passwd"),
    "a hard link upwards": (b"1", "../../../etc/passwd"),
    "a symlink to itself": (b"2", "."),
    "a character device": (b"3", ""),
    "a block device": (b"4", ""),
    "a FIFO": (b"6", ""),
}
_CONTROL = ["oci-layout", "index.json", "manifest.json", "repositories", "meta.json"]
_LINKED = [*_CONTROL, BLOB, f"{HEX}.json", f"{HEX}/layer.tar", f"{HEX}.tar", f"{HEX}/json", "x"]


def _path_max_chain() -> Parts:
    """Return the members of CVE-2025-4517: links that lead out once the path is longer than the system resolves."""
    step, parts, path = "d" * 247, [], ""
    for letter in "abcdefghijklmnop":
        parts += [Part(f"{path}{step}", flag=b"5"), Part(f"{path}{letter}", flag=b"2", link=step)]
        path += f"{step}/"
    link = "/".join("abcdefghijklmnop") + "/" + "l" * 254
    escape = f"{link}/../../../../../../../../etc"
    return [*parts, Part(link, flag=b"2", link="../" * 16), Part("escape", flag=b"2", link=escape), Part("escape/x")]


def _twice(parts: Parts) -> bytes:
    control = next(part for part in parts if part.name in _CONTROL)
    return pack_parts([*parts, Part(control.name, control.content)])


def _dotted_twice(parts: Parts) -> bytes:
    control = next(part for part in parts if part.name in _CONTROL)
    return pack_parts([*parts, Part(f"./{control.name}", control.content)])


def verified_parts(parts: Parts) -> Parts:
    """Return the members whose content is what something else in the archive promises: configs, layers, manifests."""
    return [part for part in parts if part.content and _VERIFIED.fullmatch(part.name)]


def _changed(change: Callable[[bytes], bytes], number: int, parts: Parts) -> bytes:
    found = verified_parts(parts)
    chosen = found[number % len(found)]
    return pack_parts(replaced(parts, chosen.name, change(chosen.content)))


def _wrong_copy(parts: Parts) -> bytes:
    return pack_parts([*parts, Part(verified_parts(parts)[0].name, b"other")])


def _lacking(number: int, parts: Parts) -> bytes:
    found = verified_parts(parts)
    return pack_parts([part for part in parts if part is not found[number % len(found)]])


def _without_control(parts: Parts) -> bytes:
    return pack_parts([part for part in parts if part.name not in _CONTROL])


def _blocks(blocks: bytes) -> Attack:
    return lambda parts: blocks + pack_parts(parts)


def _ending(end: bytes) -> Attack:
    return lambda parts: pack_parts(parts)[: -len(END)] + end


def _header(**fields: Any) -> bytes:
    return raw_header(BLOB.encode(), **fields)


_LIES: dict[str, Callable[[bytes], bytes]] = {
    "short": lambda content: content[:-1],
    "empty": lambda content: b"",
    "long": lambda content: content + b"x",
    "other": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
}
_RECORDS = {
    "a record of length zero": b"0 path=b\n",
    "a record of length zero in many digits": b"00000000000000000000 path=b\n",
    "a negative record": b"-9 path=b\n",
    "a record of digits alone": b"1" * 100_000,
    "a record that claims 300 MiB": b"314572800 path=b\n",
    "a record that ends inside another": b"12 path=b\n12 path=c\n",
    "a record without an end": b"9 path=bb",
    "a NUL in a path": pax_record(b"path", b"a\0b"),
    "a size that is no number": pax_record(b"size", b"-1"),
    "a size of 2**63": pax_record(b"size", b"%d" % 2**63),
    "a size of a thousand digits": pax_record(b"size", b"9" * 1000),
    "another size than the header's": pax_record(b"size", b"512"),
    "a path that leads out": pax_record(b"path", b"../../etc/passwd"),
    "another character set": pax_record(b"hdrcharset", b"EBCDIC"),
}
_SIZES: dict[str, int | bytes] = {
    "a negative size": negative_base256(-2048, 12),
    "a negative size of one block": negative_base256(-512, 12),
    "a size of 4 EiB": base256(1 << 62, 12),
    "a size of 90 bits": b"\x80" + b"\xff" * 11,
    "a size in another base": b"\x81" + bytes(11),
    "a size beyond the end": 1 << 24,
    "a size of 8 TiB and a byte": base256((1 << 43) + 1, 12),
    "an octal 8": b"00000000008\0",
    "an octal with a sign": b"-0000000001\0",
    "an octal with a prefix": b"0o000000001\0",
    "an octal with an underscore": b"0000000_001\0",
    "an octal behind a NUL": b"\0" + b"0000000001\0",
}
_ENDS = {
    "a byte behind the end": END + b"x",
    "a byte far behind the end": END + bytes(100_000) + b"x",
    "another archive behind the end": END + _header() + END,
    "one zero block alone": bytes(BLOCK) + _header() + END,
    "one zero block at the end": bytes(BLOCK),
    "no end": b"",
    "seventeen mebibytes of zeros": END + bytes(17 << 20),
    "half a block": END[:-BLOCK] + bytes(100),
    "a header of 0xff": b"\xff" * BLOCK + END,
    "an extension and nothing": pax([(b"comment", b"x")]) + END,
}
_SPARSE = {
    "sparse, as old GNU has it": raw_header(BLOB.encode(), flag=b"S", magic=GNU),
    "sparse 0.0": pax([(b"GNU.sparse.size", b"1"), (b"GNU.sparse.numblocks", b"0")]) + _header(),
    "sparse 0.1": pax([(b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.size", b"1")]) + _header(),
    "sparse 1.0": pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")]) + _header(),
    "sparse under another name": pax([(b"GNU.sparse.name", b"index.json")]) + _header(),
}
_EXTENSIONS = {
    "two PAX headers": pax([(b"path", b"b")]) * 2 + _header(),
    "a PAX header and a long name": pax([]) + extension(b"L", b"b\0") + _header(),
    "two long names": extension(b"L", b"b\0") * 2 + _header(),
    "an empty long name": extension(b"L", b"\0") + _header(),
    "nine global headers": pax([], flag=b"g") * 9 + _header(),
    "a global path": pax([(b"path", b"x")], flag=b"g") + _header(),
    "a global size": pax([(b"size", b"1")], flag=b"g") + _header(),
    "a long name that claims 300 MiB": raw_header(flag=b"L", size=300 << 20),
    "a PAX header that claims 4 EiB": raw_header(flag=b"x", size=base256(1 << 62, 12)),
    "a PAX header of a negative size": raw_header(flag=b"x", size=negative_base256(-2048, 12)),
    "a long link of one byte too many": raw_header(flag=b"K", size=(1 << 20) + 1),
    "an unknown type": _header(flag=b"Z"),
    "a volume label": _header(flag=b"V", magic=GNU),
    "an unknown format": _header(magic=b"ustar\0\0\0"),
    "a directory with data": raw_header(b"blobs/", flag=b"5", size=512) + bytes(BLOCK),
    "a file with a directory's name": raw_header(b"index.json/"),
    "no name": raw_header(b""),
    "a NUL in the name": raw_header(b"index.json\0/../x"),
    "a NUL in the prefix": raw_header(b"x", prefix=b"blobs\0sha256"),
}

ATTACKS: dict[str, Attack] = {
    **{f"S15 the name {name!r} in front": front(Part(name, b"content")) for name in _ESCAPING},
    **{f"S15 the name {name!r} behind": behind(Part(name, b"content")) for name in _ESCAPING},
    **{f"S15 the directory {name!r}": front(Part(name, flag=b"5")) for name in ("..", "../", "/", "/etc", "a/../..")},
    **{f"S15 the unknown member {name!r}": behind(Part(name, b"content")) for name in _UNKNOWN},
    **{f"S4 the digest {text!r}": front(Part(f"blobs/sha256/{text}", b"content")) for text in _NO_DIGESTS},
    **{f"S4 the algorithm {name}": front(Part(f"blobs/{name}/{HEX}", b"x")) for name in ("md5", "sha1", "sha512", "é")},
    **{
        f"S15 S16 {what} called {name}": behind(Part(name, flag=flag, link=link))
        for what, (flag, link) in _SPECIAL.items()
        for name in _LINKED
    },
    "S11 the chain of links that is longer than a path": lambda parts: pack_parts([*_path_max_chain(), *parts]),
    "S11 a link, and a member through it": front(Part("blobs", flag=b"2", link="/etc"), Part("blobs/x", b"content")),
    "S11 a directory that becomes a link": behind(Part("blobs/sha256", flag=b"2", link="/tmp")),
    "S6 a blob that is not what its name says": behind(Part(BLOB, b"content")),
    "S6 an empty blob that is not what its name says": front(Part(BLOB)),
    "S6 a config that is not what its name says": behind(Part(f"{HEX}.json", b"{}")),
    "S6 a wrong copy behind a right one": _wrong_copy,
    "S6 a control member twice": _twice,
    "S6 a control member twice, with a dot": _dotted_twice,
    "S6 nothing that says what there is": _without_control,
    "S6 nothing at all": lambda parts: END,
    **{f"S6 the member {number} lacks": partial(_lacking, number) for number in range(4)},
    **{
        f"S6 the member {number} is {lie}": partial(_changed, change, number)
        for lie, change in _LIES.items()
        for number in range(4)
    },
    **{f"S10 {what}": _blocks(_header(size=size)) for what, size in _SIZES.items()},
    **{f"S10 {what}, at the end": _ending(_header(size=size)) for what, size in _SIZES.items()},
    **{f"S10 {what}": _blocks(extension(b"x", body) + _header()) for what, body in _RECORDS.items()},
    **{f"S10 {what}": _blocks(blocks) for what, blocks in (_SPARSE | _EXTENSIONS).items()},
    **{f"S10 {what}": _ending(end) for what, end in _ENDS.items()},
}
