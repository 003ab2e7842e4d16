"""Random access in layers of every form, and what it relies on: indexes that may be lost, blobs that may change."""

import os
import random
import resource
import shutil
import sys
from pathlib import Path

import pytest

from minibox_store import ContentMismatch, MissingLibrary, Store
from minibox_store._moving import write_all
from minibox_store.rootfs.sidecar import Sidecars
from tests.support.compressions import FORMS, OCI_LAYER_ZSTD, half_random, layer_in
from tests.support.forks import run_forked
from tests.support.hard_layers import member
from tests.support.image_views import mode_of, sidecar_of, view_tree
from tests.support.images import BuiltImage, Layer, build_image, digest_of
from tests.support.stores import blob, mounted, open_store, put, remount, require_root
from tests.support.tars import END

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MEBIBYTE = 1024 * 1024
CONTENTS = {
    "first": b"first",
    "large": half_random(5 * MEBIBYTE // 2),
    "dir/small": b"small",
    "dir/larger": half_random(2 * MEBIBYTE, salt="other"),
    "last": b"last",
}


def image_in(form: str) -> BuiltImage:
    tar = b"".join(member(name, content=content) for name, content in CONTENTS.items()) + END
    return build_image([layer_in(form, tar)])


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    """The name of one form of layers."""
    return str(request.param)


def test_each_byte_is_found_in_whatever_form_the_layer_is(tmp_path: Path, form: str) -> None:
    put(tmp_path, image_in(form), "image:1")
    source = random.Random(form)
    for _ in ("index made now", "index kept"):
        with open_store(tmp_path).open_files("image:1") as image:
            for _ in range(60):
                name, content = source.choice(list(CONTENTS.items()))
                start, size_bytes = source.randrange(len(content) + 5), source.choice([1, 100, 70_000, MEBIBYTE])
                with image.open(name) as file:
                    file.seek(start)
                    assert file.read(size_bytes) == content[start : start + size_bytes]
            assert {name: image.read_bytes(name, limit_bytes=10 * MEBIBYTE) for name in CONTENTS} == CONTENTS


def test_a_blob_that_was_changed_in_its_place_is_an_error_and_never_other_bytes(tmp_path: Path, form: str) -> None:
    built = image_in(form)
    put(tmp_path, built, "image:1")
    store = open_store(tmp_path)
    store.open_files("image:1").close()
    path = blob(tmp_path, built.layer_digests[0])
    whole = path.read_bytes()
    path.chmod(0o600)
    refused = 0
    for at in range(7, len(whole), len(whole) // 12):
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([whole[at] ^ 0x55]))
        refused += read_all_or_refuse(store)
        path.write_bytes(whole)
    assert refused >= 10  # a byte may be one that means nothing, such as the time in a gzip header


def test_a_blob_that_was_cut_or_replaced_after_it_was_opened_is_an_error(tmp_path: Path, form: str) -> None:
    built = image_in(form)
    put(tmp_path, built, "image:1")
    path = blob(tmp_path, built.layer_digests[0])
    whole = path.read_bytes()
    path.chmod(0o600)
    store = open_store(tmp_path)
    for content in (whole[: len(whole) // 3], b"", bytes(len(whole)), os.urandom(len(whole))):
        path.write_bytes(whole)
        with store.open_files("image:1") as image:
            path.write_bytes(content)
            with pytest.raises(ContentMismatch):
                image.read_bytes("last")


@pytest.mark.parametrize("form_name", ["plain", "gzip", "zstd, seekable"])
def test_a_sidecar_with_any_byte_changed_is_made_anew(tmp_path: Path, form_name: str) -> None:
    built = image_in(form_name)
    put(tmp_path, built, "image:1")
    store = open_store(tmp_path)
    with store.open_files("image:1") as image:
        expected = view_tree(image)
    source = random.Random(7)
    for digest in (built.layer_digests[0], built.digest):
        path = sidecar_of(tmp_path, digest)
        whole = path.read_bytes()
        for at in [*range(0, 150, 17), *(source.randrange(len(whole)) for _ in range(8)), len(whole) - 1]:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            with store.open_files("image:1") as image:
                assert view_tree(image) == expected
        for kept in (0, 20, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:kept])
            with store.open_files("image:1") as image:
                assert view_tree(image) == expected
        path.write_bytes(whole + b"more")
        with store.open_files("image:1") as image:
            assert view_tree(image) == expected


@pytest.mark.parametrize("form_name", ["plain", "gzip", "zstd, seekable"])
@pytest.mark.parametrize("spoiled", [10, 100, 5000])
def test_a_disk_that_spoils_each_sidecar_keeps_nobody_from_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form_name: str, spoiled: int
) -> None:
    put(tmp_path, image_in(form_name), "image:1")
    store = open_store(tmp_path)
    with store.open_files("image:1") as image:
        expected = view_tree(image)

    def write_spoiled(descriptor: int, content: bytes) -> None:
        write_all(descriptor, content[:-spoiled] + bytes(each ^ 1 for each in content[-spoiled:]))

    monkeypatch.setattr("minibox_store.rootfs.sidecar._moving.write_all", write_spoiled)
    shutil.rmtree(tmp_path / "files")
    open_files = len(os.listdir("/proc/self/fd"))
    for _ in ("made now", "kept"):
        with store.open_files("image:1") as image:
            assert view_tree(image) == expected
    assert len(os.listdir("/proc/self/fd")) == open_files


def test_a_sidecar_of_something_else_is_made_anew(tmp_path: Path) -> None:
    first, second = (build_image([{"name": name}], salt=str(name)) for name in (b"first", b"second"))
    put(tmp_path, first, "first:1")
    put(tmp_path, second, "second:1")
    store = open_store(tmp_path)
    for name in ("first:1", "second:1"):
        store.open_files(name).close()
    for ours, theirs in ((first.layer_digests[0], second.layer_digests[0]), (first.digest, second.digest)):
        shutil.copyfile(sidecar_of(tmp_path, theirs), sidecar_of(tmp_path, ours))
        with store.open_files("first:1") as image:
            assert image.read_bytes("name") == b"first"


@pytest.mark.parametrize("kind", ["link", "FIFO", "directory"])
def test_what_is_no_file_where_a_sidecar_should_be_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    built = build_image([{"name": b"content"}])
    put(tmp_path, built, "image:1")
    store = open_store(tmp_path)
    store.open_files("image:1").close()
    for digest in (built.layer_digests[0], built.digest):
        path = sidecar_of(tmp_path, digest)
        kept = path.rename(path.with_name("kept"))
        if kind == "link":
            path.symlink_to(kept)
        elif kind == "FIFO":
            os.mkfifo(path)
        else:
            path.mkdir()
        with store.open_files("image:1") as image:
            assert image.read_bytes("name") == b"content"
        assert path.is_dir() if kind == "directory" else path.is_file() and not path.is_symlink()


def test_sidecars_are_for_the_owner_of_the_store_alone(tmp_path: Path) -> None:
    built = build_image([{"name": b"content"}])
    put(tmp_path, built, "image:1")
    open_store(tmp_path).open_files("image:1").close()
    for digest in (built.layer_digests[0], built.digest):
        assert mode_of(sidecar_of(tmp_path, digest)) == 0o600
    assert mode_of(tmp_path / "files") == 0o700


def test_a_sidecar_that_somebody_else_has_put_there_is_not_believed(tmp_path: Path) -> None:
    require_root()
    built = build_image([{"name": b"content"}])
    put(tmp_path, built, "image:1")
    store = open_store(tmp_path)
    store.open_files("image:1").close()
    path = sidecar_of(tmp_path, built.digest)
    before = path.stat().st_ino
    os.chown(path, 1234, 1234)
    store.open_files("image:1").close()
    assert (path.stat().st_ino != before, path.stat().st_uid) == (True, 0)


def test_the_index_of_a_layer_serves_all_images_that_have_it(tmp_path: Path) -> None:
    base = layer_in("gzip", member("base", content=b"base") + END)
    first, second = build_image([base, base], salt="1"), build_image([base], salt="2")
    put(tmp_path, first, "first:1")
    put(tmp_path, second, "second:1")
    store = open_store(tmp_path)
    store.open_files("first:1").close()
    sidecar = sidecar_of(tmp_path, first.layer_digests[0])
    before = sidecar.stat()
    with store.open_files("second:1") as image:
        assert image.read_bytes("base") == b"base"
    assert sidecar.stat().st_mtime_ns == before.st_mtime_ns
    assert len(list(tmp_path.glob("files/*/*"))) == 3


def test_several_processes_look_at_one_image_for_the_first_time_at_once(tmp_path: Path) -> None:
    put(tmp_path, image_in("gzip"), "image:1")

    def look() -> None:
        with open_store(tmp_path).open_files("image:1") as image:
            assert image.read_bytes("large", limit_bytes=10 * MEBIBYTE) == CONTENTS["large"]

    def begin() -> None:
        pids = []
        for _ in range(4):
            pid = os.fork()
            if not pid:
                try:
                    look()
                    os._exit(0)
                finally:
                    os._exit(1)
            pids.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4

    assert run_forked(begin, timeout_seconds=60) == 0
    assert len(list(tmp_path.glob("files/*/*"))) == 2
    look()


def test_a_store_that_cannot_be_written_shows_its_images_as_well(tmp_path: Path, form: str) -> None:
    require_root()
    with mounted(tmp_path / "disk", "size=64m") as disk:
        put(disk / "store", image_in(form), "image:1")
        remount(disk, "ro")
        with open_store(disk / "store").open_files("image:1") as image:
            assert {name: image.read_bytes(name, limit_bytes=10 * MEBIBYTE) for name in CONTENTS} == CONTENTS
        assert not (disk / "store" / "files").exists()


def test_nothing_is_left_in_the_store_of_somebody_else(tmp_path: Path) -> None:
    require_root()
    put(tmp_path / "store", image_in("plain"), "image:1")
    os.chown(tmp_path / "store", 1234, 1234)
    with open_store(tmp_path / "store").open_files("image:1") as image:
        assert image.read_bytes("last") == b"last"
    assert not (tmp_path / "store" / "files").exists()


def test_a_disk_that_is_full_keeps_nobody_from_looking(tmp_path: Path) -> None:
    require_root()
    with mounted(tmp_path / "disk", "size=32m") as disk:
        put(disk / "store", image_in("gzip"), "image:1")
        rest = os.statvfs(disk)
        (disk / "rest").write_bytes(bytes(rest.f_bavail * rest.f_frsize))
        with open_store(disk / "store").open_files("image:1") as image:
            assert image.read_bytes("last") == b"last"
        assert not list((disk / "store").glob("files/*/*"))


def test_a_large_frame_is_decoded_once_into_a_file_without_a_name(tmp_path: Path) -> None:
    content = half_random(24 * MEBIBYTE)
    tar = member("large", content=content) + member("last", content=b"last") + END
    put(tmp_path, build_image([layer_in("zstd, one frame", tar)]), "image:1")
    with open_store(tmp_path).open_files("image:1") as image, image.open("large") as file:
        kept = sorted(tmp_path.glob("files/**/*"))
        assert image.read_bytes("last") == b"last"
        unnamed = [link for link in map(read_descriptor, os.listdir("/proc/self/fd")) if link.endswith("(deleted)")]
        assert len([link for link in unnamed if link.startswith(str(tmp_path))]) == 1
        for start in (23 * MEBIBYTE, 10 * MEBIBYTE, 0, 18 * MEBIBYTE):
            file.seek(start)
            assert file.read(1000) == content[start : start + 1000]
        assert sorted(tmp_path.glob("files/**/*")) == kept
    unnamed = [link for link in map(read_descriptor, os.listdir("/proc/self/fd")) if link.endswith("(deleted)")]
    assert not [link for link in unnamed if link.startswith(str(tmp_path))]


def test_a_large_frame_is_decoded_into_a_file_though_a_decoder_stands_at_its_beginning(tmp_path: Path) -> None:
    content = half_random(24 * MEBIBYTE)
    tar = member("large", content=content) + member("last", content=b"last") + END
    put(tmp_path, build_image([layer_in("zstd, one frame", tar)]), "image:1")
    with open_store(tmp_path).open_files("image:1") as image, image.open("large") as file:
        assert file.read(1000) == content[:1000]
        assert image.read_bytes("last") == b"last"
        unnamed = [link for link in map(read_descriptor, os.listdir("/proc/self/fd")) if link.endswith("(deleted)")]
        assert len([link for link in unnamed if link.startswith(str(tmp_path))]) == 1


def test_S8_files_without_a_name_have_a_bound_together(tmp_path: Path) -> None:
    sidecars = Sidecars(str(tmp_path / "files"), most_unnamed_bytes=100)
    first, second, third = (sidecars.open_unnamed(size_bytes) for size_bytes in (60, 60, 40))
    assert second is None
    for descriptor in (first, third):
        assert descriptor is not None
        os.close(descriptor)


def test_S8_files_without_a_name_leave_half_of_the_room_to_others(tmp_path: Path) -> None:
    require_root()
    with mounted(tmp_path / "disk", "size=64m") as disk:
        sidecars = Sidecars(str(disk / "files"))
        first = sidecars.open_unnamed(20 * MEBIBYTE)
        assert first is not None
        os.posix_fallocate(first, 0, 20 * MEBIBYTE)
        assert sidecars.open_unnamed(20 * MEBIBYTE) is None
        os.close(first)


def test_what_stays_of_reading_many_layers_does_not_grow_with_them(tmp_path: Path) -> None:
    layers = []
    for number in range(10):
        tar = member(f"file{number}", content=half_random(8 * MEBIBYTE, salt=str(number))) + END
        options: dict[int, int] = {
            zstd.CompressionParameter.compression_level: 1,
            zstd.CompressionParameter.window_log: 27,
        }
        layers.append(
            Layer(content=zstd.compress(tar, options=options), media_type=OCI_LAYER_ZSTD, diff_id=digest_of(tar))
        )
    put(tmp_path, build_image(layers), "image:1")
    del layers, tar
    store = open_store(tmp_path)
    store.open_files("image:1").close()

    def read_backwards() -> None:
        with store.open_files("image:1") as image:
            before = resident_bytes()
            for number in range(10):
                for start in (15, 14, 13, 12):
                    image.read_at(image.find(f"file{number}"), start * MEBIBYTE // 2, 10)
            grown = resident_bytes() - before
        # A few decoders of 8 MiB, and the cache.
        assert grown < 110 * MEBIBYTE, grown

    assert run_forked(read_backwards, timeout_seconds=60) == 0


def resident_bytes() -> int:
    """Return how much memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_large_frame_is_read_without_room_for_it_too(tmp_path: Path) -> None:
    require_root()
    content = half_random(24 * MEBIBYTE)
    with mounted(tmp_path / "disk", "size=40m") as disk:
        tar = member("large", content=content) + member("last", content=b"last") + END
        put(disk / "store", build_image([layer_in("zstd, one frame", tar)]), "image:1")
        with open_store(disk / "store").open_files("image:1") as image, image.open("large") as file:
            for start in (23 * MEBIBYTE, 10 * MEBIBYTE, 0):
                file.seek(start)
                assert file.read(1000) == content[start : start + 1000]


@pytest.mark.parametrize(("form_name", "library"), [("gzip", "indexed_gzip"), ("zstd, seekable", "backports.zstd")])
def test_a_library_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form_name: str, library: str
) -> None:
    put(tmp_path, image_in(form_name), "image:1")
    monkeypatch.setitem(sys.modules, library, None)
    if "." in library:
        monkeypatch.delattr(sys.modules[library.split(".", maxsplit=1)[0]], library.split(".")[1], raising=False)
    with pytest.raises(MissingLibrary):
        open_store(tmp_path).open_files("image:1")


def test_an_index_of_a_large_layer_is_made_in_little_memory(tmp_path: Path) -> None:
    content = half_random(96 * MEBIBYTE)
    tar = member("large", content=content) + END
    put(tmp_path, build_image([layer_in("gzip, stored", tar)]), "image:1")
    del content, tar

    def look() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with open_store(tmp_path).open_files("image:1") as image, image.open("large") as file:
            file.seek(90 * MEBIBYTE)
            file.read(1)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 64 * 1024, f"{grown} KiB"

    assert run_forked(look, timeout_seconds=60) == 0
    size_bytes = sum(path.stat().st_size for path in tmp_path.glob("files/*/*"))
    assert size_bytes < 96 * MEBIBYTE // 50


def read_all_or_refuse(store: Store) -> bool:
    """Read all files; return whether one was refused. None may be other than it was."""
    refused = False
    with store.open_files("image:1") as image:
        for name, content in CONTENTS.items():
            try:
                found = image.read_bytes(name, limit_bytes=10 * MEBIBYTE)
            except ContentMismatch:
                refused = True
            else:
                assert found == content
    return refused


def read_descriptor(name: str) -> str:
    """Return what an open file of this process is."""
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return ""
