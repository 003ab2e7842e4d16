"""How long the work on one layer may take: one clock, which is looked at wherever that may be long, and moved here."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from minibox_store import Digest, InvalidArchive, UnpackLimits
from minibox_store.documents import Descriptor
from minibox_store.protocols import BlobStream
from minibox_store.rootfs.layer_index import build_layer_index
from minibox_store.rootfs.layers import LayerSource
from minibox_store.rootfs.sidecar import Sidecars
from tests.support.compression import opened
from tests.support.compressions import half_random, layer_in
from tests.support.hard_layers import image_of, member, whiteout
from tests.support.os_proxy import OsProxy
from tests.support.sources import descriptor_for
from tests.support.stores import layer_of, open_store, put
from tests.support.tars import END

LIMITS = UnpackLimits(seconds=50)


class Clock:
    """The module ``time`` as what counts a layer's time sees it: it stands still, or goes on with each question."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seconds_per_question = 0.0

    def monotonic(self) -> float:
        """Return what time it is."""
        self.now += self.seconds_per_question
        return self.now

    def go_on(self) -> None:
        """Let a second pass."""
        self.now += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("minibox_store.rootfs.decoding.time", found)
    return found


@pytest.mark.parametrize("number", [0, 1])
def test_S24_the_time_of_who_puts_a_layer_over_others_counts(tmp_path: Path, clock: Clock, number: int) -> None:
    many, few = [member(f"d/{number}") for number in range(100)], [whiteout("d/1")]
    image = image_of([few, many] if number else [many, few])
    put(tmp_path, image, "image:1")
    store = open_store(tmp_path)
    store.open_files("image:1", limits=LIMITS).close()
    (tmp_path / "files" / image.digest.replace(":", "/")).unlink()  # with its layers' indexes there, they are put over
    clock.seconds_per_question = 1
    layer = layer_of(image, number).digest
    with pytest.raises(InvalidArchive, match=f"layer {layer} takes longer than 50 seconds, which is the limit"):
        store.open_files("image:1", limits=LIMITS)
    store.open_files("image:1", limits=UnpackLimits(seconds=110)).close()


def test_S24_the_time_of_removing_what_a_whiteout_hides_counts(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_of([[member(f"d/{number}") for number in range(100)], [whiteout("d")]])
    put(tmp_path / "store", image, "image:1")
    proxy = OsProxy()
    proxy.before("unlink", clock.go_on, times=100)
    monkeypatch.setattr("minibox_store.rootfs.directories.os", proxy)
    layer = layer_of(image, 1).digest
    with pytest.raises(InvalidArchive, match=f"layer {layer} takes longer than 50 seconds, which is the limit"):
        open_store(tmp_path / "store").unpack("image:1", tmp_path / "tree", limits=LIMITS)
    assert proxy.count("unlink") == 51


def test_S24_the_time_of_who_reads_counts_where_all_was_decoded_before_it_was_over(clock: Clock) -> None:
    tar = member("a") + END
    with opened(tar, tar, LIMITS) as layer:
        assert layer.read(512) == tar[:512]
        clock.now += 51
        for _ in range(2):
            with pytest.raises(InvalidArchive, match="takes longer than 50 seconds"):
                layer.read(1)
            with pytest.raises(InvalidArchive, match="takes longer than 50 seconds"):
                layer.readinto(bytearray(1))


class _SlowAtLast:
    """A source of one blob that is given at once where it is read first, and then takes a second for each piece."""

    def __init__(self, content: bytes, clock: Clock) -> None:
        self._content = content
        self._clock = clock
        self._is_slow = False

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        is_slow, self._is_slow = self._is_slow, True
        return _Pieces(self._content[offset:], self._clock, is_slow=is_slow)


class _Pieces:
    def __init__(self, content: bytes, clock: Clock, *, is_slow: bool) -> None:
        self._content = content
        self._clock = clock
        self._is_slow = is_slow

    def readinto(self, buffer: memoryview, /) -> int:
        if self._is_slow:
            self._clock.go_on()
        count = min(len(buffer), len(self._content), 64 * 1024)
        buffer[:count], self._content = self._content[:count], self._content[count:]
        return count

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture(params=["", "under a debugger"])
def _traced(request: pytest.FixtureRequest) -> Iterator[None]:
    """With a debugger Python notices what the code of a library in C does while an error passes it."""
    before = sys.gettrace()
    sys.settrace((lambda *_: None) if request.param else before)
    yield
    sys.settrace(before)


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize("form", ["gzip", "zstd, seekable"])
def test_S24_the_time_of_finding_where_a_layer_can_be_entered_counts(clock: Clock, form: str) -> None:
    tar = member("a", content=half_random(8_000_000)) + END
    content = layer_in(form, tar).content
    layer = LayerSource(
        descriptor=descriptor_for(content, "application/octet-stream"),
        diff_id=Digest.of(tar),
        source=_SlowAtLast(content, clock),
    )
    with pytest.raises(InvalidArchive, match="takes longer than 5 seconds, which is the limit"):
        build_layer_index(layer, Sidecars(None), UnpackLimits(seconds=5))
    build_layer_index(layer, Sidecars(None), UnpackLimits(seconds=1000)).close()
