"""What everything that knows referrers promises: all that refers to a manifest, in order, and nothing else."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

from minibox_store.copying import copy_image
from minibox_store.graph import RememberingSource
from minibox_store.layout import Layout
from minibox_store.layout.reading import known_referrers
from minibox_store.memory import MemoryImages
from minibox_store.protocols import BlobSource, Referrers
from minibox_store.referring import gather_referrers
from minibox_store.registry_rules import Mirror, RegistryRule
from tests.support.images import SBOM, BuiltImage, build_artifact, build_image, build_index
from tests.support.registries import open_mirrored, open_repository
from tests.support.sources import memory_of, root_of
from tests.support.upload_registry import UploadRegistry

IMAGE = build_image()
ARM = build_image(platform="linux/arm64")
INDEX = build_index([IMAGE, ARM])
SIGNATURE = build_artifact(IMAGE.root)
BILL = build_artifact(IMAGE.root, kind=SBOM, content=b"bill")
SIGNED_BILL = build_artifact(BILL.root, content=b"of the bill")
OF_INDEX = build_artifact(INDEX.root, content=b"of the index")
OF_NOTHING = build_artifact(None, content=b"of nothing")
OF_ABSENT = build_artifact(build_image(salt="absent").root, content=b"of what is not here")
OTHERS = [SIGNATURE, BILL, SIGNED_BILL, OF_INDEX, OF_NOTHING, OF_ABSENT]
Opened = tuple[BlobSource, Referrers]


def of_memory(folder: Path) -> AbstractContextManager[Opened]:
    images = MemoryImages()
    fill(images)
    return nullcontext((images, images))


def of_layout(folder: Path) -> AbstractContextManager[Opened]:
    layout = Layout(folder / "store", durable=False)
    fill(layout)
    return nullcontext((layout, known_referrers(layout)))


def fill(target: MemoryImages | Layout) -> None:
    """Write the image with what refers to it, some of it by a name of its own, all in one transaction."""
    everything = MemoryImages()
    for image in (INDEX, *OTHERS):
        everything.blobs.update(memory_of({"x": image}).blobs)
    along = [root_of(each) for each in (SIGNATURE, BILL, SIGNED_BILL, OF_INDEX)]
    copy_image(everything, target, root_of(INDEX), ["index:1"], referrers=along)
    for number, image in enumerate((OF_NOTHING, OF_ABSENT, SIGNATURE)):
        copy_image(everything, target, root_of(image), [f"artifact:{number}"])


@contextmanager
def of_registry(folder: Path, *, knows_subjects: bool = True, is_mirrored: bool = False) -> Iterator[Opened]:
    with UploadRegistry() as registry:
        registry.knows_subjects = knows_subjects
        registry.page_names = 1
        registry.put("team/app", *OTHERS, INDEX, tag="1")
        if not knows_subjects:
            for subject, listed in ((IMAGE, [SIGNATURE, BILL]), (BILL, [SIGNED_BILL]), (INDEX, [OF_INDEX])):
                registry.put("team/app", build_index(listed_of(listed)), tag=subject.digest.replace(":", "-"))
        reference = registry.reference("team/app", "1")
        if is_mirrored:
            with UploadRegistry() as mirror:
                mirror.put("team/app", INDEX, tag="1")
                rule = RegistryRule(prefix=registry.host, mirrors=(Mirror(location=mirror.host),))
                with open_mirrored(reference, rule) as mirrored:
                    yield mirrored, mirrored
        else:
            with open_repository(reference) as opened:
                yield opened, opened


def listed_of(images: list[BuiltImage]) -> list[BuiltImage]:
    """Return images as a list of referrers has them: artifacts have no platform."""
    return [Listed(root=each.root, blobs=each.blobs, media_types=each.media_types) for each in images]


class Listed(BuiltImage):
    """An artifact, of which an index says no platform."""

    platform = None


ENDS: dict[str, Callable[[Path], AbstractContextManager[Opened]]] = {
    "memory": of_memory,
    "layout": of_layout,
    "registry that lists": of_registry,
    "registry with lists under tags": lambda folder: of_registry(folder, knows_subjects=False),
    "mirror without lists": lambda folder: of_registry(folder, is_mirrored=True),
}


@pytest.fixture(params=ENDS)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    with ENDS[request.param](tmp_path) as found:
        yield found


def digests(*images: BuiltImage) -> set[str]:
    return {image.digest for image in images}


def test_all_that_refers_to_a_manifest_or_index_is_listed_once_and_nothing_else(opened: Opened) -> None:
    _, listing = opened
    for subject, expected in ((IMAGE, [SIGNATURE, BILL]), (INDEX, [OF_INDEX]), (BILL, [SIGNED_BILL]), (ARM, [])):
        found = [str(each.digest) for each in listing.referrers(root_of(subject))]
        assert sorted(found) == sorted(digests(*expected)), subject.root


def test_what_is_listed_has_its_size_and_type(opened: Opened) -> None:
    source, listing = opened
    for each in listing.referrers(root_of(IMAGE)):
        assert len(RememberingSource(source).read(each)) == each.size_bytes


def test_what_refers_to_all_of_an_image_is_gathered_in_turn(opened: Opened) -> None:
    source, listing = opened
    found = gather_referrers(RememberingSource(source), listing, root_of(INDEX))
    assert {str(each.descriptor.digest) for each in found} == digests(SIGNATURE, BILL, SIGNED_BILL, OF_INDEX)
    assert str(found[-1].descriptor.digest) == SIGNED_BILL.digest
    assert {each.artifact_type for each in found if str(each.descriptor.digest) == BILL.digest} == {SBOM}


def test_what_is_absent_may_be_referred_to(opened: Opened) -> None:
    _, listing = opened
    absent = root_of(build_image(salt="absent"))
    found = [str(each.digest) for each in listing.referrers(absent)]
    # A list under a tag is made as something is pushed, which nobody did here.
    assert found in ([OF_ABSENT.digest], [])
