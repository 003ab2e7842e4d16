"""What is long to tell: made and sent piece by piece, and gone from the daemon's memory when it has been sent."""

from pathlib import Path

import pytest
from starlette.responses import JSONResponse

from minibox_server.api.long_answers import encode_record
from tests.benchmarks.small_blobs import make_small_blobs
from tests.server.clients import client_of
from tests.support.daemon import Daemon, running_daemon

IMAGES = 40
LAYERS = 500
# Of each blob, beside the answer; and what the first request of its kind takes however many there are.
MOST_BYTES = 100
FIXED_BYTES = 5 << 20
STAYING_BYTES = 6 << 20


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 128, 300])
def test_what_is_encoded_piece_by_piece_is_what_is_encoded_at_once(count: int) -> None:
    fields: dict[str, object] = {"total": 5, "ü": None}
    lists: dict[str, list[object]] = {
        "many": [{"name": f"é{number}", "is": [number]} for number in range(count)],
        "none": [],
        "ö": ["]", "["],
    }
    pieces = list(encode_record(fields, lists))
    assert b"".join(pieces) == JSONResponse({**fields, **lists}).body
    assert max(map(len, pieces)) < 64 * 40


def test_a_long_answer_tells_its_length_also_to_who_asks_for_its_head_alone(tmp_path: Path) -> None:
    images = make_small_blobs(images=100, live_blobs=300, dead_blobs=0, blob_bytes=16)
    images.write(tmp_path / "data")
    client = client_of(tmp_path / "data")
    whole, head = client.get("/system/df"), client.head("/system/df")
    assert whole.headers["Content-Length"] == head.headers["Content-Length"] == str(len(whole.content))
    assert (head.status_code, head.content) == (200, b"")
    assert whole.headers["Content-Type"] == head.headers["Content-Type"] == "application/json"
    told = whole.json()
    assert list(told) == ["total_bytes", "reclaimable_bytes", "blob_count", "images", "blobs"]
    assert (len(told["images"]), len(told["blobs"])) == (100, 300)
    assert whole.content == JSONResponse(told).body


def memory_of(daemon: Daemon, field: str) -> int:
    """Return what the daemon has resident (``VmRSS``), or has had at its peak (``VmHWM``), in bytes."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def test_the_bytes_of_very_many_layers_take_little_memory_and_none_once_they_were_told(tmp_path: Path) -> None:
    blobs = make_small_blobs(images=IMAGES, live_blobs=IMAGES * (LAYERS + 2), dead_blobs=0, blob_bytes=64)
    blobs.write(tmp_path / "data")
    with running_daemon(tmp_path / "daemon", data_root=tmp_path / "data") as daemon:
        assert len(daemon.get("/images").json()) == IMAGES
        before = memory_of(daemon, "VmHWM")
        for _ in range(2):
            told = daemon.get("/system/df")
            assert told.json()["blob_count"] == len(blobs.live)
        grown = memory_of(daemon, "VmHWM") - before
        stays = memory_of(daemon, "VmRSS") - before
    assert grown - len(told.body) <= MOST_BYTES * len(blobs.live) + FIXED_BYTES, f"{grown >> 10} KiB"
    assert stays <= STAYING_BYTES, f"{stays >> 10} KiB"
