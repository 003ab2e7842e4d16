"""A state machine over the store: whatever is done to it, in whatever order, it does what a dict would do.

After each step what always holds of a store is checked by other means, and two Store objects, of which one has slept
through most of it, list the same images.
"""

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from minibox_store import ContentMismatch, ImageNotFound, InvalidArchive, InvalidReference, RegistryError, Store
from tests.support.archives import members_of, pack, read_archive
from tests.support.images import BuiltImage, build_image, build_index, random_layer
from tests.support.invariants import check_invariants, read_names, stored
from tests.support.os_proxy import no_hard_links, replaced_os
from tests.support.snapshots import snapshot
from tests.support.sources import BreakingSource, MovingImages, memory_of, root_of
from tests.support.stores import blob, layer_of, open_store

SHARED = random_layer(4096, salt="shared")
AMD64 = build_image([SHARED, {"a": b"amd64"}], salt="1")
ARM64 = build_image([SHARED, {"a": b"arm64"}], salt="1", platform="linux/arm64")
IMAGES = {
    "one": AMD64,
    "layers shared with one": build_image([SHARED, {"b": b"other"}], salt="2"),
    "docker": build_image(docker=True, salt="3"),
    "sha512": build_image(algorithm="sha512", salt="4"),
    "index over one": build_index([AMD64, ARM64], attestations=True),
    "nested index": build_index([AMD64], nested=2),
    "no layers": build_image([], salt="5"),
}
BLOBS = {digest: content for image in IMAGES.values() for digest, content in image.blobs.items()}
# The names of one group spell the same reference.
SAME = [
    ["alpine", "alpine:latest", "docker.io/library/alpine:latest"],
    ["quay.io/team/app:1"],
    ["localhost:5000/a/b/c", "localhost:5000/a/b/c:latest"],
    ["No-Reference!"],
]
GROUP_OF = {name: number for number, group in enumerate(SAME) for name in group}
CUT = RegistryError("GET", "https://example.org/", None, (), "the line was cut")

Archive = tuple[Path, str, BuiltImage]

names = st.sampled_from(sorted(GROUP_OF))
images = st.sampled_from(sorted(IMAGES)).map(IMAGES.__getitem__)
either = st.integers(0, 1)


class StoreMachine(RuleBasedStateMachine):
    """The model: names, and the blobs that lie in the store, needed or not."""

    archives: Bundle[Archive] = Bundle("archives")

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        # In memory, where there is some: hundreds of stores come and go.
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
        self._stack.callback(shutil.rmtree, self.folder)
        self.root = self.folder / "store"
        self.names: dict[str, BuiltImage] = {}
        self.blobs: dict[str, int] = {}
        self.partials: dict[str, int] = {}
        self.stores: list[Store] = []

    def teardown(self) -> None:
        self._stack.close()

    @initialize(links=st.booleans())
    def begin(self, links: bool) -> None:
        """Choose whether the file system has hard links, for good."""
        system = self._stack.enter_context(replaced_os())
        if not links:
            no_hard_links(system)
        self.links = links
        self.stores = [open_store(self.root), open_store(self.root)]

    # ---- the model

    def meant(self, name: str) -> str | None:
        """Return the name in the model that a name means."""
        if name in self.names:
            return name
        alike = [other for other in self.names if GROUP_OF[other] == GROUP_OF[name]]
        return alike[0] if len(alike) == 1 else None

    def hold(self, image: BuiltImage) -> None:
        fetched = image.blobs.keys() - self.blobs.keys()
        self.blobs.update({digest: len(content) for digest, content in image.blobs.items()})
        self.partials = {digest: size for digest, size in self.partials.items() if digest not in fetched}

    def needed(self) -> set[str]:
        return {digest for image in self.names.values() for digest in image.blobs}

    # ---- what can be done

    @rule(which=either, name=names, image=images)
    def import_one(self, which: int, name: str, image: BuiltImage) -> None:
        result = self.stores[which].import_image(memory_of({"x": image}), "x", as_name=name)
        assert (result.name, str(result.digest), result.damaged) == (name, image.digest, False)
        self.names[name] = image
        self.hold(image)

    @rule(which=either, name=names, image=st.sampled_from(["one", "docker", "sha512"]).map(IMAGES.__getitem__))
    def import_a_lie(self, which: int, name: str, image: BuiltImage) -> None:
        layer = image.layer_digests[0]
        if layer in self.blobs or self.partials.get(layer):
            return  # a leaf that is there is not asked for, nor the beginning of one
        source = memory_of({"x": image.corrupted(layer)})
        with pytest.raises(ContentMismatch, match=layer):
            self.stores[which].import_image(source, "x", as_name=name)
        self.came_in(image, layer)
        assert layer not in self.partials

    @rule(
        which=either,
        name=names,
        image=st.sampled_from(["one", "docker", "sha512"]).map(IMAGES.__getitem__),
        bytes_=st.integers(0, 60),
    )
    def import_half(self, which: int, name: str, image: BuiltImage, bytes_: int) -> None:
        layer = layer_of(image)
        if str(layer.digest) in self.blobs:
            return
        # Each try goes on with what the last one left; this one must not come to the end.
        rest_bytes = layer.size_bytes - self.partials.get(str(layer.digest), 0)
        source = BreakingSource(memory_of({"x": image}), [layer.digest], CUT, after_bytes=min(bytes_, rest_bytes - 1))
        with pytest.raises(RegistryError, match="cut"):
            self.stores[which].import_image(MovingImages(source, [root_of(image)]), "x", as_name=name)
        digest = str(layer.digest)
        before_bytes = self.partials.get(digest, 0)
        self.came_in(image, digest)
        assert self.partials.get(digest, 0) >= before_bytes

    def came_in(self, image: BuiltImage, but: str) -> None:
        """Take note of the verified blobs, and of the beginnings of others, that a failed import has left."""
        new = stored(self.root) - self.blobs.keys()
        assert new <= image.blobs.keys() - {but, image.digest}
        self.blobs.update({digest: len(image.blobs[digest]) for digest in new})
        before, self.partials = self.partials, {}
        for path in (self.root / "ingest" / "partial").iterdir():
            digest, content = path.name.replace("-", ":", 1), path.read_bytes()
            assert digest in before or digest in image.blobs
            assert BLOBS[digest].startswith(content)
            self.partials[digest] = len(content)
        assert before.keys() - self.partials.keys() <= new | {but}

    @rule(target=archives, which=either, name=names)
    def save(self, which: int, name: str) -> Archive | MultipleResults[Archive]:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.tar"
        meant = self.meant(name)
        if meant is None:
            with pytest.raises(ImageNotFound):
                self.stores[which].save(name, path)
            assert not path.exists()
            return multiple()
        image = self.names[meant]
        saved = self.stores[which].save(name, path)
        assert (saved.name, str(saved.digest)) == (meant, image.digest)
        assert read_archive(path.read_bytes()) == (meant, image.digest, image.blobs)
        return path, meant, image

    @rule(target=archives, name=names, image=images)
    def receive(self, name: str, image: BuiltImage) -> Archive:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.tar"
        path.write_bytes(pack(members_of(image, name)))
        return path, name, image

    @rule(which=either, archive=archives, rename=st.none() | names)
    def load(self, which: int, archive: Archive, rename: str | None) -> None:
        path, name, image = archive
        (loaded,) = self.stores[which].load(path, names=(lambda _: rename) if rename else None)
        assert (loaded.name, str(loaded.digest)) == (rename or name, image.digest)
        self.names[rename or name] = image
        self.blobs.update({digest: len(content) for digest, content in image.blobs.items()})

    @rule(which=either, archive=consumes(archives), cut=st.integers(1, 2000))
    def load_half(self, which: int, archive: Archive, cut: int) -> None:
        path, _, _ = archive
        # Behind the last byte that is not zero there may be nothing but the padding of the tar.
        path.write_bytes(path.read_bytes().rstrip(b"\0")[:-cut])
        self.stores[which].info()
        before = snapshot(self.root) if self.root.exists() else None
        with pytest.raises(InvalidArchive):
            self.stores[which].load(path)
        assert before in (None, snapshot(self.root))

    @rule(which=either, name=names, new_name=names)
    def tag(self, which: int, name: str, new_name: str) -> None:
        meant = self.meant(name)
        if meant is None:
            with pytest.raises(ImageNotFound):
                self.stores[which].tag(name, new_name)
            return
        assert self.stores[which].tag(name, new_name).name == new_name
        self.names[new_name] = self.names[meant]

    @rule(which=either, name=names)
    def tag_badly(self, which: int, name: str) -> None:
        with pytest.raises(InvalidReference):
            self.stores[which].tag(name, f"{name}/../x")

    @rule(which=either, name=names)
    def remove(self, which: int, name: str) -> None:
        meant = self.meant(name)
        if meant is None:
            with pytest.raises(ImageNotFound):
                self.stores[which].remove(name)
            return
        assert self.stores[which].remove(name) == meant
        del self.names[meant]

    @rule(which=either, name=names)
    def untag(self, which: int, name: str) -> None:
        if name not in self.names:
            with pytest.raises(ImageNotFound):
                self.stores[which].untag(name)
            return
        image = self.names.pop(name)
        left = sorted(other for other, held in self.names.items() if held.digest == image.digest)
        assert self.stores[which].untag(name) == tuple(left)

    @rule(which=either, dry_run=st.booleans())
    def prune(self, which: int, dry_run: bool) -> None:
        dead = {digest: size for digest, size in self.blobs.items() if digest not in self.needed()}
        before = snapshot(self.root) if self.root.exists() else {}
        report = self.stores[which].prune(dry_run=dry_run)
        assert {each.path for each in report.removed if each.kind == "blob"} == {
            str(blob(Path(), digest)) for digest in dead
        }
        assert report.blobs_removed == len(dead)
        assert report.bytes_freed == sum(dead.values()) + sum(self.partials.values())
        assert (report.errors, report.absent) == ((), ())
        if dry_run:
            assert (snapshot(self.root) if self.root.exists() else {}) == before
        else:
            self.blobs = {digest: size for digest, size in self.blobs.items() if digest not in dead}
            self.partials = {}

    @rule(which=either)
    def reopen(self, which: int) -> None:
        self.stores[which] = open_store(self.root)

    # ---- what must be so after each step

    @invariant()
    def the_invariants_hold(self) -> None:
        check_invariants(self.root)

    @invariant()
    def the_names_are_those_of_the_model(self) -> None:
        assert read_names(self.root) == {name: image.digest for name, image in self.names.items()}

    @invariant()
    def the_blobs_are_those_of_the_model(self) -> None:
        assert stored(self.root) == self.blobs.keys()

    @invariant()
    def every_store_object_lists_the_model(self) -> None:
        for store in self.stores:
            listed = store.images()
            assert [image.name for image in listed] == sorted(self.names)
            assert all(str(image.digest) == self.names[image.name].digest for image in listed)
            assert not any(image.damaged for image in listed)
            assert store.images() is listed


def test_a_store_does_what_a_dict_would_do() -> None:
    run_state_machine_as_test(
        StoreMachine, settings=settings(settings.default, max_examples=60, stateful_step_count=25, deadline=None)
    )
    assert GROUP_OF["alpine"] == GROUP_OF["docker.io/library/alpine:latest"]
