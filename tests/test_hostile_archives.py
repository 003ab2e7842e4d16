"""Archives that nobody may load, in every form: refused in one sentence, and nothing is left.

Each is tried as a file, as a pipe, and compressed.

The corpus is code: ``tests.support.hostile_archives`` and ``tests.support.hostile_contents``.
"""

import gzip
import io
import lzma
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from minibox_store import InvalidArchive, Limits, Store
from minibox_store.limits import DEFAULT_LIMITS, TarLimits
from tests.support.archive_forms import FORMS, Part, pack_parts
from tests.support.archives import blob_name, piped
from tests.support.compression import MEBIBYTE, grows_by_less_than, gzipped, zstd_frames
from tests.support.hostile_archives import ATTACKS, BLOB, FORMS_READ, HEX, IMAGE, NAME, good_archive
from tests.support.hostile_contents import CONTENTS
from tests.support.images import build_image, digest_of
from tests.support.invariants import check_invariants, reachable, read_names, stored
from tests.support.snapshots import snapshot
from tests.support.stores import open_store, put
from tests.support.tars import END, Endless, Joined, extension, pax, raw_header
from tests.support.trials import DEEP

KEPT = build_image(salt="kept")
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": partial(gzip.compress, compresslevel=1),
    "zstd": zstd_frames,
    "xz": lzma.compress,
}
MOST_SECONDS = 10.0
MOST_BYTES = 24 << 20  # a document of 4 MiB is held several times while it is decoded
MOST_CHARACTERS = 1000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with an image, beside which nothing else lies. No test changes it, and each sees to that."""
    folder = tmp_path_factory.mktemp("around") / "store"
    put(folder, KEPT, "kept:1")
    yield folder
    check_invariants(folder)
    assert read_names(folder) == {"kept:1": KEPT.digest}
    assert stored(folder) == set(KEPT.blobs)


def assert_refused(root: Path, archive: bytes | BinaryIO | str) -> str:
    """Return the sentence with which a load is refused, in time, after seeing that nothing has changed anywhere."""
    before = snapshot(root.parent)
    begin = time.monotonic()
    with pytest.raises(InvalidArchive) as caught:
        open_store(root).load(io.BytesIO(archive) if isinstance(archive, bytes) else archive)
    assert time.monotonic() - begin < MOST_SECONDS
    assert snapshot(root.parent) == before
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert len(sentence) < MOST_CHARACTERS
    return sentence


def assert_refused_everywhere(root: Path, archive: bytes, file: Path) -> None:
    """See that an archive is refused as a file, and as a pipe, plain or compressed: which of them, its bytes decide."""
    file.write_bytes(archive)
    assert_refused(root, str(file))
    ways = (bytes, *COMPRESSIONS.values())
    for way in ways if DEEP else (ways[zlib.crc32(archive) % len(ways)],):
        with piped(way(archive)) as pipe:
            assert_refused(root, pipe)


@pytest.mark.parametrize("form", FORMS_READ)
def test_what_is_attacked_is_read_where_nothing_is_wrong_with_it(form: str, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    (tmp_path / "image.tar").write_bytes(good_archive(form))
    (from_file,) = store.load(tmp_path / "image.tar")
    store.remove(NAME)
    for compress in (bytes, *COMPRESSIONS.values()):
        with piped(compress(good_archive(form))) as pipe:
            (from_pipe,) = store.load(pipe)
        assert from_file == from_pipe
        if compress is not lzma.compress:
            store.remove(NAME)
    assert from_file.name == NAME
    blobs = {IMAGE.config_digest, *IMAGE.layer_digests, str(from_file.digest)}
    assert stored(tmp_path / "store") == reachable(tmp_path / "store") == blobs
    if "docker" not in form:
        assert str(from_file.digest) == IMAGE.digest
    check_invariants(tmp_path / "store")


def two_forms_for_each(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return each name with two of the forms, so that each form gets as many; with all of them in a deep run."""
    forms = list(FORMS_READ)
    taken = len(forms) if DEEP else 2
    return [(forms[(at + step) % len(forms)], name) for at, name in enumerate(names) for step in range(taken)]


@pytest.mark.parametrize(("form", "name"), two_forms_for_each(ATTACKS))
def test_S4_S6_S10_S11_S15_S16_an_attack_on_an_archive_of_any_form_is_refused(
    form: str, name: str, root: Path, tmp_path: Path
) -> None:
    assert_refused_everywhere(root, ATTACKS[name](FORMS[form](IMAGE, NAME)), tmp_path / "image.tar")


@pytest.mark.parametrize(
    ("form", "name"), [(form, name) for form, attacks in CONTENTS.items() if form in FORMS_READ for name in attacks]
)
def test_S4_S5_S6_S16_S26_contents_that_lie_are_refused(form: str, name: str, root: Path, tmp_path: Path) -> None:
    assert_refused_everywhere(root, CONTENTS[form][name](), tmp_path / "image.tar")


# ---- streams that have no end, or whose end nobody could wait for

ENDLESS: dict[str, Callable[[], Endless]] = {
    "a name that claims 300 MiB": lambda: Endless(raw_header(flag=b"L", size=300 << 20)),
    "a PAX header that claims 1 GiB": lambda: Endless(raw_header(flag=b"x", size=1 << 30), b"1" * 512),
    "records of digits": lambda: Endless(extension(b"x", b"1" * (1 << 20))),
    "global headers": lambda: Endless(b"", pax([], flag=b"g")),
    "PAX headers": lambda: Endless(b"", pax([])),
    "long names": lambda: Endless(b"", extension(b"L", b"a\0")),
    "zeros behind the end": lambda: Endless(END),
    "0xff": lambda: Endless(b"", b"\xff" * 512),
    "blobs that are wrong": lambda: Endless(b"", Part(BLOB, b"x").encode()),
}


class Forward:
    """Two streams, one behind the other, neither of which can seek."""

    def __init__(self, *streams: Endless | BinaryIO) -> None:
        self._streams = streams

    def read(self, size: int, /) -> bytes:
        return next((piece for stream in self._streams if (piece := stream.read(size))), b"")


@pytest.mark.parametrize("form", FORMS_READ)
@pytest.mark.parametrize("name", ENDLESS)
def test_S10_a_stream_without_end_is_refused_after_a_little_of_it(form: str, name: str, root: Path) -> None:
    members = b"".join(part.encode() for part in FORMS[form](IMAGE, NAME))
    for beginning in (b"", members):
        stream = ENDLESS[name]()
        assert_refused(root, cast("BinaryIO", Forward(io.BytesIO(beginning), stream)))
        assert stream.given_bytes < 32 << 20


@pytest.mark.parametrize("form", FORMS_READ)
def test_S8_S10_no_attack_takes_more_memory_than_a_good_archive_may(form: str, root: Path, tmp_path: Path) -> None:
    archives = [build(FORMS[form](IMAGE, NAME)) for build in ATTACKS.values()]
    archives += [build() for build in CONTENTS.get(form, {}).values()]
    files = [tmp_path / str(number) for number in range(len(archives))]
    for file, archive in zip(files, archives, strict=True):
        file.write_bytes(archive)
    archives.clear()

    def load_each() -> None:
        store = open_store(root)
        for file in files:
            with file.open("rb") as opened, pytest.raises(InvalidArchive):
                store.load(cast("BinaryIO", Forward(opened)))
            with pytest.raises(InvalidArchive):
                store.load(file)
        for endless in ENDLESS.values():
            with pytest.raises(InvalidArchive):
                store.load(cast("BinaryIO", endless()))

    assert grows_by_less_than(MOST_BYTES, load_each)


# ---- more than anybody needs

BOMBS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "gzip of several members": lambda tar: gzipped(*(tar[at : at + MEBIBYTE] for at in range(0, len(tar), MEBIBYTE))),
    "zstd": zstd_frames,
    "xz": partial(lzma.compress, preset=1),
}
BOMB_BYTES = 64 * MEBIBYTE
# What is decompressed is bounded before anybody knows its form: one stands for all, but for a deep run.
BOMBED_FORMS = FORMS_READ if DEEP else ["both"]


@pytest.mark.parametrize("place", ["a blob", "a config", "the zeros behind the end"])
@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("form", BOMBED_FORMS)
def test_S8_an_archive_that_is_a_bomb_is_refused_by_its_ratio_in_little_memory(
    form: str, bomb: str, place: str, root: Path, tmp_path: Path
) -> None:
    parts, zeros = FORMS[form](IMAGE, NAME), bytes(BOMB_BYTES)
    if place == "the zeros behind the end":
        archive = pack_parts(parts) + zeros
    else:
        archive = pack_parts([*parts, Part(BLOB if place == "a blob" else f"{HEX}.json", zeros)])
    file = tmp_path / "bomb"
    file.write_bytes(BOMBS[bomb](archive))
    del archive, zeros
    limits = Limits(archive_ratio_floor_bytes=4 * MEBIBYTE, tar=TarLimits(padding_bytes=2 * BOMB_BYTES))
    before = snapshot(root.parent)

    def load_it() -> None:
        store = Store(root, durability="none", limits=limits)
        for way in ("a file", "a pipe"):
            with file.open("rb") as opened, pytest.raises(InvalidArchive) as caught:
                store.load(file if way == "a file" else cast("BinaryIO", Forward(opened)))
            assert "compressed" in str(caught.value) or place == "a config"

    assert grows_by_less_than(MOST_BYTES, load_it)
    assert snapshot(root.parent) == before


@pytest.mark.parametrize("form", FORMS_READ)
@pytest.mark.parametrize("second", COMPRESSIONS)
def test_S8_what_is_compressed_twice_is_no_archive(form: str, second: str, root: Path) -> None:
    for first in COMPRESSIONS.values():
        assert_refused(root, COMPRESSIONS[second](first(good_archive(form))))


# How many are taken of each is the usual limit; of what is stored one by one, which takes longer, a lower one.
# One member over and over is tried in test_archive_bombs.
TINY: dict[str, tuple[Limits, Callable[[int], Part]]] = {
    "sidecars": (DEFAULT_LIMITS, lambda number: Part(f"{number:064x}/VERSION", b"1.0")),
    "blobs of one digest": (Limits(archive_members=10_000), lambda number: Part(blob_name(digest_of(b"")))),
}


@pytest.mark.timeout(150)
@pytest.mark.parametrize("tiny", TINY)
def test_S8_S10_a_million_tiny_members_are_refused_in_bounded_time_and_memory(tiny: str, root: Path) -> None:
    limits, member = TINY[tiny]

    def members() -> Iterator[bytes]:
        for number in range(1_000_000):
            yield member(number).encode()
        raise AssertionError("all of them were read")

    def load_them() -> None:
        with pytest.raises(InvalidArchive, match="members"):
            Store(root, durability="none", limits=limits).load(cast("BinaryIO", Joined(members())))

    before = snapshot(root.parent)
    assert grows_by_less_than(MOST_BYTES, load_them, timeout_seconds=120)
    assert snapshot(root.parent) == before
