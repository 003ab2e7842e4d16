"""Layers with all that is hard in them, member by member, as values: each case is the layers of one image.

The members are written by hand, so that each says exactly what the case is about. Nothing here knows
``minibox_store``.

Spec: OCI image-spec 1.1, layer.md.
"""

import gzip
import os
from collections.abc import Mapping, Sequence

from tests.support.images import OCI_LAYER_GZIP, BuiltImage, Layer, build_image, digest_of
from tests.support.tars import END, GNU, USTAR, extension, padded, pax, raw_header

SECOND = 10**9
MTIME = 1_500_000_000 * SECOND
OPAQUE = ".wh..wh..opq"
# cap_net_raw=ep, as setcap writes it.
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")

_FLAGS = {
    "file": b"0",
    "hard link": b"1",
    "link": b"2",
    "character device": b"3",
    "block device": b"4",
    "directory": b"5",
    "FIFO": b"6",
}
_LARGEST_ID = 8**7 - 1
_LARGEST_TIME = 8**11 - 1
_LONGEST_NAME_BYTES = 100


def member(
    name: str,
    kind: str = "file",
    content: bytes = b"",
    *,
    mode: int | None = None,
    uid: int = 0,
    gid: int = 0,
    mtime: int = MTIME,
    target: str = "",
    device: tuple[int, int] = (0, 0),
    xattrs: Mapping[str, bytes] | None = None,
    gnu: bool = False,
) -> bytes:
    """Return one member: its header, with extensions for what has no room in it, and its content.

    Args:
        name: bytes that are no UTF-8 as ``os.fsdecode`` gives them.
        kind: ``file``, ``directory``, ``link``, ``hard link``, ``FIFO``, ``character device`` or ``block device``.
        content: of a file.
        mode: 0755 for a directory, 0777 for a link and 0644 for the rest when None.
        uid: the owner.
        gid: the group.
        mtime: in nanoseconds since the epoch.
        target: of a link.
        device: major and minor number.
        xattrs: by name.
        gnu: long names by GNU's extensions instead of PAX records.
    """
    raw_name, raw_target = os.fsencode(name), os.fsencode(target)
    records: list[tuple[bytes, bytes]] = []
    before = b""
    for flag, key, value in ((b"K", b"linkpath", raw_target), (b"L", b"path", raw_name)):
        if gnu and len(value) > _LONGEST_NAME_BYTES:
            before += extension(flag, value + b"\0", magic=GNU)
        elif not gnu and (len(value) > _LONGEST_NAME_BYTES or not value.isascii()):
            records.append((key, value))
    for key, number in ((b"uid", uid), (b"gid", gid)):
        if number > _LARGEST_ID:
            records.append((key, b"%d" % number))
    if mtime % SECOND or not 0 <= mtime // SECOND <= _LARGEST_TIME:
        records.append((b"mtime", _decimal(mtime)))
    records += [(b"SCHILY.xattr." + key.encode(), value) for key, value in (xattrs or {}).items()]
    usual = {"directory": 0o755, "link": 0o777}.get(kind, 0o644)
    header = raw_header(
        raw_name[:_LONGEST_NAME_BYTES],
        flag=_FLAGS[kind],
        size=len(content),
        mode=b"%07o\0" % (usual if mode is None else mode),
        uid=b"%07o\0" % (uid if uid <= _LARGEST_ID else 0),
        gid=b"%07o\0" % (gid if gid <= _LARGEST_ID else 0),
        mtime=b"%011o\0" % min(max(mtime // SECOND, 0), _LARGEST_TIME),
        link=raw_target[:_LONGEST_NAME_BYTES],
        magic=GNU if gnu else USTAR,
        device=b"%07o\0" % device[0],
        minor=b"%07o\0" % device[1],
    )
    return before + (pax(records) if records else b"") + header + padded(content)


def folder(name: str, **options: int) -> bytes:
    """Return a directory."""
    return member(f"{name}/", "directory", **options)  # type: ignore[arg-type]  # none of the options is a mapping


def whiteout(name: str) -> bytes:
    """Return the whiteout of a path."""
    parent, _, last = name.rpartition("/")
    return member(f"{parent}/.wh.{last}" if parent else f".wh.{last}", mode=0)


def opaque(name: str) -> bytes:
    """Return the marker of an opaque directory."""
    return member(f"{name}/{OPAQUE}", mode=0)


def layer_of(members: Sequence[bytes]) -> Layer:
    """Return a gzip layer of these members."""
    tar = b"".join(members) + END
    return Layer(content=gzip.compress(tar, mtime=0), media_type=OCI_LAYER_GZIP, diff_id=digest_of(tar))


def image_of(layers: Sequence[Sequence[bytes]]) -> BuiltImage:
    """Return an image of layers of these members, the lowest first."""
    return build_image([layer_of(members) for members in layers])


def _decimal(nanoseconds: int) -> bytes:
    """Return a time as PAX spells it: a decimal number of seconds."""
    sign, seconds = ("-" if nanoseconds < 0 else ""), abs(nanoseconds)
    return f"{sign}{seconds // SECOND}.{seconds % SECOND:09}".rstrip("0").rstrip(".").encode()


_LOWER = [
    folder("etc"),
    member("etc/hosts", content=b"127.0.0.1"),
    member("etc/passwd", content=b"root"),
    folder("etc/below"),
    member("etc/below/deep", content=b"deep"),
]
_LONG = "/".join(["a-directory-with-a-rather-long-name"] * 8)
_MAJORITY = [folder(_LONG[: 36 * count - 1]) for count in range(1, 9)]

# The layers of one image for each case, the lowest first.
CASES: dict[str, list[list[bytes]]] = {
    "nothing at all": [[]],
    "empty layers between others": [[], _LOWER, [], [], [member("other")], []],
    "the root itself": [[member("./", "directory", mode=0o1711, uid=7, gid=8, mtime=MTIME + 5)], [member("./file")]],
    "modes": [
        [
            folder("sticky", mode=0o1777),
            folder("grouped", mode=0o2750, gid=50),
            folder("closed", mode=0),
            member("closed/inside", content=b"in"),
            member("setuid", content=b"x", mode=0o4755, uid=1000, gid=1000),
            member("setgid", content=b"x", mode=0o2755, gid=1000),
            member("all", mode=0o7777, uid=1),
            member("none", mode=0),
        ]
    ],
    "owners": [
        [
            folder("home", uid=1000, gid=1000),
            member("home/large", uid=8**7, gid=2**31 + 1),
            member("home/largest", uid=2**32 - 3, gid=2**32 - 2),
            member("home/link", "link", target="nowhere", uid=12, gid=13),
            member("home/queue", "FIFO", uid=14, gid=15),
        ]
    ],
    "times": [
        [
            folder("times", mtime=MTIME + 1),
            member("times/nanoseconds", mtime=MTIME + 123_456_789),
            member("times/epoch", mtime=0),
            member("times/before", mtime=-1_500_000_000),
            member("times/long-before", mtime=-86_400 * 365 * 30 * SECOND),
            member("times/far", mtime=8_589_934_592 * SECOND),
            member("times/link", "link", target="epoch", mtime=MTIME + 7),
            member("times/queue", "FIFO", mtime=MTIME + 8),
        ]
    ],
    "the time of a directory with members behind it": [
        [folder("one", mtime=MTIME + 1), member("one/a"), member("one/b")],
        [member("one/c"), whiteout("one/a")],
    ],
    "xattrs": [
        [
            folder("marked"),
            member("marked/user", content=b"x", xattrs={"user.one": b"1", "user.binary": b"\0=\n\xff"}),
            member("marked/empty", content=b"x", xattrs={"user.empty": b""}),
            member("marked/trusted", content=b"x", xattrs={"trusted.one": b"1"}),
            member("marked/capable", content=b"x", mode=0o755, uid=5, xattrs={"security.capability": CAPABILITY}),
            member("marked/below/", "directory", xattrs={"user.of-a-directory": b"d"}),
            member("marked/link", "link", target="user", xattrs={"trusted.of-a-link": b"l"}),
        ]
    ],
    "a directory again, with other xattrs": [
        [member("again/", "directory", xattrs={"user.first": b"1", "user.both": b"1"})],
        [member("again/", "directory", mode=0o700, uid=3, xattrs={"user.both": b"2"})],
    ],
    "devices and FIFOs": [
        [
            folder("dev"),
            member("dev/null", "character device", device=(1, 3), mode=0o666),
            member("dev/disk", "block device", device=(8, 1), mode=0o660, gid=6),
            member("dev/large", "block device", device=(259, 70_000), mode=0o600),
            member("dev/queue", "FIFO", mode=0o622),
        ],
        [member("dev/null", content=b"a file now"), member("dev/queue", "FIFO", mode=0o600)],
    ],
    "whiteouts": [
        _LOWER,
        [whiteout("etc/hosts"), whiteout("etc/below"), whiteout("not/there"), whiteout("etc/nor-this")],
    ],
    "a whiteout of what the same layer has": [
        _LOWER,
        [whiteout("etc/hosts"), member("etc/hosts", content=b"new"), member("etc/passwd", content=b"new")],
    ],
    "a whiteout behind what the same layer has": [
        _LOWER,
        [member("etc/hosts", content=b"new"), whiteout("etc/hosts"), folder("etc/below"), whiteout("etc/below")],
    ],
    "a whiteout and what comes again in a later layer": [_LOWER, [whiteout("etc")], [folder("etc"), member("etc/new")]],
    "an opaque directory": [_LOWER, [folder("etc"), opaque("etc")]],
    "an opaque directory with content of its own": [
        _LOWER,
        [folder("etc"), opaque("etc"), member("etc/new", content=b"n"), folder("etc/below"), member("etc/below/new")],
    ],
    "a marker behind the content of its own layer": [
        _LOWER,
        [folder("etc"), member("etc/new", content=b"n"), folder("etc/below"), member("etc/below/new"), opaque("etc")],
    ],
    "opaque directories in one another": [
        _LOWER,
        [opaque("etc"), member("etc/a"), opaque("etc/below"), member("etc/below/b"), opaque("etc")],
    ],
    "an opaque directory that is not below": [_LOWER, [folder("srv"), opaque("srv"), member("srv/a")]],
    "another kind over each kind": [
        [
            *_LOWER,
            member("file", content=b"f"),
            member("link-to-file", "link", target="file"),
            member("link-to-directory", "link", target="etc"),
            member("full/", "directory"),
            member("full/inside", content=b"in"),
            member("queue", "FIFO"),
        ],
        [
            member("file", "directory"),
            member("file/now-inside"),
            member("link-to-file", content=b"no longer a link"),
            member("link-to-directory/", "directory", mode=0o700),
            member("link-to-directory/inside", content=b"in"),
            member("full", content=b"a file now"),
            member("queue", "link", target="file"),
        ],
    ],
    "links": [
        [
            folder("a"),
            member("a/absolute", "link", target="/etc/passwd"),
            member("a/upwards", "link", target="../../../etc/passwd"),
            member("a/to-a-link", "link", target="absolute"),
            member("a/to-itself", "link", target="to-itself"),
            member("a/long", "link", target=f"{_LONG}/{'t' * 150}"),
        ],
        [member("a/absolute", "link", target="elsewhere")],
    ],
    "hard links": [
        [
            folder("a"),
            member("a/first", content=b"shared", mode=0o640, uid=9, xattrs={"user.of-all": b"1"}),
            member("a/second", "hard link", target="a/first", mode=0o640, uid=9),
            member("third", "hard link", target="./a/second", mode=0o640, uid=9),
            member("link", "link", target="a/first"),
            member("fourth", "hard link", target="link", mode=0o777),
            member("queue", "FIFO"),
            member("fifth", "hard link", target="queue"),
        ],
    ],
    "hard links to lower layers": [
        [folder("a"), member("a/first", content=b"shared"), member("a/kept", content=b"kept")],
        [member("a/second", "hard link", target="a/first"), member("a/kept", "hard link", target="a/first")],
        [whiteout("a/first"), member("a/third", "hard link", target="a/second")],
    ],
    "one name of several replaced": [
        [member("first", content=b"shared"), member("second", "hard link", target="first")],
        [member("second", content=b"by itself")],
    ],
    "long names by PAX": [
        [*_MAJORITY, member(f"{_LONG}/{'x' * 255}", content=b"long"), member("n" * 101, content=b"101")],
        [whiteout("n" * 101), member(f"{_LONG}/hard", "hard link", target=f"{_LONG}/{'x' * 255}")],
    ],
    "long names by GNU": [
        [member(f"{_LONG}/{'x' * 255}", content=b"long", gnu=True), member("n" * 101, content=b"101", gnu=True)],
        [member("l", "link", target=f"{_LONG}/{'x' * 255}", gnu=True)],
    ],
    "names of other bytes": [
        [
            member("grüße", content=b"utf-8"),
            member(os.fsdecode(b"not \xff utf-8 \xfe"), content=b"bytes"),
            member("new\nline", content=b"n"),
            member(" spaces ", content=b"s"),
            member("back\\slash:comma,", content=b"b"),
            member("link", "link", target=os.fsdecode(b"to \xff")),
        ],
        [whiteout(os.fsdecode(b"not \xff utf-8 \xfe")), member("grüße", content=b"again")],
    ],
    "members without parents": [
        [member("a/b/c", content=b"c", uid=4)],
        [member("a/x/y", content=b"y"), member("a/", "directory", mode=0o700, uid=5, gid=6)],
    ],
    "members through a linked parent": [
        [folder("real"), member("linked", "link", target="real"), member("linked/inside", content=b"through")],
        [member("linked/second", content=b"later"), member("absolute", "link", target="/real/../real")],
        [member("absolute/third", content=b"third"), member("linked/below/", "directory", mode=0o700)],
    ],
    "through a link that leads above the root": [
        [member("up", "link", target="../../../../real"), folder("real")],
        [member("up/inside", content=b"clipped")],
    ],
    "names with dots and slashes": [
        [member("./a/", "directory"), member("./a/./b", content=b"b"), member("/a//c", content=b"c")],
    ],
    "the same name again in one layer": [
        [
            member("a", content=b"first"),
            member("a", content=b"second", mode=0o600),
            folder("d"),
            folder("d", mode=0o700),
        ],
    ],
}
