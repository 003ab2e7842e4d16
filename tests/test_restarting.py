"""Decoders that begin in the middle: at any bit of a deflate stream, at any frame, to the same end."""

import gzip
import io
import zlib
from collections.abc import Iterator

import pytest

from minibox_store.decompressing import Compression
from minibox_store.protocols import BlobStream
from minibox_store.rootfs.places import find_places
from minibox_store.rootfs.restarting import EMPTY_BLOCKS, GzipDecoder, Place, open_decoder
from tests.support.compressions import FORMS, half_random, layer_in


class _Content:
    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def readinto(self, buffer: memoryview, /) -> int:
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()


def places_of(content: bytes, compression: Compression, tar: bytes) -> tuple[list[Place], Iterator[bytes]]:
    def open_at(offset: int) -> BlobStream:
        return _Content(content[offset:])

    return find_places(compression, open_at, input_bytes=len(content), output_bytes=len(tar))


@pytest.mark.parametrize("bits", range(8))
def test_a_block_without_content_of_each_number_of_bits_is_none_to_zlib(bits: int) -> None:
    count, value = EMPTY_BLOCKS[bits]
    assert count % 8 == bits
    # Behind it a last block of fixed codes, which begins at whatever bit that is.
    last = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_FIXED)
    content = last.compress(b"content") + last.flush()
    joined = value | int.from_bytes(content, "little") << count
    inflater = zlib.decompressobj(-15)
    assert inflater.decompress(joined.to_bytes((count + 7) // 8 + len(content), "little")) == b"content"
    assert inflater.eof


@pytest.mark.parametrize("form", FORMS)
def test_from_each_place_the_rest_is_decoded_and_nothing_else(form: str) -> None:
    tar = half_random(7_500_000)
    content = layer_in(form, tar).content

    def open_at(offset: int) -> BlobStream:
        return _Content(content[offset:])

    compression: Compression = "none" if form == "plain" else "zstd" if form.startswith("zstd") else "gzip"
    places, windows = places_of(content, compression, tar)
    assert places[0] == Place(0, 0)
    if form not in ("plain", "zstd, one frame", "gzip, fixed codes"):
        assert len(places) > 3
    for place, window in zip(places, windows, strict=True):
        decoder = open_decoder(compression, open_at, place, window)
        assert decoder.position == place.output_offset
        rest = b"".join(iter(lambda: decoder.read(1_000_000), b""))  # noqa: B023  # used up before the next turn
        assert rest == tar[place.output_offset :]
        assert decoder.position == len(tar)


def test_places_at_every_bit_are_met() -> None:
    tar = half_random(60_000_000, salt="bits")
    places, _ = places_of(layer_in("gzip", tar).content, "gzip", tar)
    assert len({place.bits for place in places}) > 4


def test_there_are_so_many_places_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minibox_store.rootfs.places._MOST_PLACES", 4)
    tar = half_random(20_000_000)
    places, _ = places_of(layer_in("gzip", tar).content, "gzip", tar)
    assert 2 <= len(places) <= 5


def test_S8_members_without_number_give_no_more_places_than_blocks_do(monkeypatch: pytest.MonkeyPatch) -> None:
    tar = half_random(8_000_000)
    content = b"".join(gzip.compress(tar[at : at + 1000], 1, mtime=0) for at in range(0, len(tar), 1000))
    places, windows = places_of(content, "gzip", tar)
    assert 3 <= len(places) <= 4
    for place, window in zip(places, windows, strict=True):
        decoder = GzipDecoder(lambda offset: _Content(content[offset:]), place, window)
        assert decoder.read(1000) == tar[place.output_offset :][:1000]
    # To keep one for each of them for a while takes memory too.
    monkeypatch.setattr("minibox_store.rootfs.places._MOST_MEMBERS", 7000)
    places, windows = places_of(content, "gzip", tar)
    assert (places, list(windows)) == ([Place(0, 0)], [b""])


def test_a_decoder_gives_nothing_for_what_is_no_stream() -> None:
    for place in (Place(0, 0), Place(100, 3, 5), Place(100, 10_000, 1)):
        assert GzipDecoder(lambda offset: _Content(b"\xff" * 50), place).read(10) == b""
