"""The rules of index.json: what a name in it is, and how one comes and goes. Pure.

Every rule keeps the entries it does not mean, named or not, in their order.

Spec: OCI image-spec 1.1, image-layout.md, "index.json file"; annotations.md, `org.opencontainers.image.ref.name`.
"""

from collections.abc import Container, Iterator, Mapping
from contextlib import suppress

import attrs

from minibox_store.codec import annotated
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, LayoutEntry, LayoutIndex
from minibox_store.errors import ImageNotFound, InvalidDigest
from minibox_store.reference import normalised
from minibox_store.values import Value

NAME_ANNOTATION = "org.opencontainers.image.ref.name"
# By this name containerd's import calls an image, whatever the one above says: one that was set elsewhere would let an
# image of this store pass for another.
CONTAINERD_NAME_ANNOTATION = "io.containerd.image.name"
# What begins so is written by this project alone.
_OWN = "dev.minibox.store."
REFERRER_ANNOTATION = f"{_OWN}referrer"
# Of an entry without a name: the repository that it was pushed to.
REPOSITORY_ANNOTATION = f"{_OWN}repository"
REFERENCE_ANNOTATION = f"{_OWN}source-reference"
DIGEST_ANNOTATION = f"{_OWN}source-digest"
PLATFORM_ANNOTATION = f"{_OWN}source-platform"
_SOURCE_ANNOTATIONS = frozenset({REFERENCE_ANNOTATION, DIGEST_ANNOTATION, PLATFORM_ANNOTATION})


@attrs.frozen(kw_only=True, repr=False)
class Provenance(Value):
    """What an image was pulled as.

    Attributes:
        reference: canonical.
        digest: what it stood for at the registry: an index, where the image was chosen from one.
        platform: what was asked for, in the usual words; None where all was taken as it is.
    """

    reference: str
    digest: Digest
    platform: str | None

    @property
    def annotations(self) -> dict[str, str]:
        """How an entry says so."""
        asked = {} if self.platform is None else {PLATFORM_ANNOTATION: self.platform}
        return {REFERENCE_ANNOTATION: self.reference, DIGEST_ANNOTATION: str(self.digest), **asked}


def provenance_of(descriptor: Descriptor) -> Provenance | None:
    """Return what an entry was pulled as, None where it does not say."""
    said = descriptor.annotations
    if REFERENCE_ANNOTATION not in said or DIGEST_ANNOTATION not in said:
        return None
    try:
        digest = Digest.parse(said[DIGEST_ANNOTATION])
    except InvalidDigest:
        return None
    return Provenance(reference=said[REFERENCE_ANNOTATION], digest=digest, platform=said.get(PLATFORM_ANNOTATION))


def name_of(descriptor: Descriptor) -> str | None:
    """Return the name that an entry carries, None where it has none."""
    return descriptor.annotations.get(NAME_ANNOTATION)


def is_referrer(descriptor: Descriptor) -> bool:
    """Whether an entry is kept for what it refers to alone; one that got a name, however that was, is not."""
    said = descriptor.annotations
    return said.get(REFERRER_ANNOTATION) == "true" and NAME_ANNOTATION not in said


def nameless(descriptor: Descriptor) -> Descriptor:
    """Return what an entry stands for, without the name that it carries."""
    kept = {key: text for key, text in descriptor.annotations.items() if key != NAME_ANNOTATION}
    return attrs.evolve(descriptor, annotations=kept)


def without_own(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return what an entry says besides its names, and besides what this project notes in it."""
    left_out = {NAME_ANNOTATION, CONTAINERD_NAME_ANNOTATION}
    return {key: text for key, text in annotations.items() if key not in left_out and not key.startswith(_OWN)}


def names_of(index: LayoutIndex) -> Iterator[tuple[str, Descriptor]]:
    """Yield each name once, with the entry it stands for: the first one, should a foreign tool have written two."""
    seen = set()
    for entry in index.entries:
        name = name_of(entry.descriptor)
        if name is not None and name not in seen:
            seen.add(name)
            yield name, entry.descriptor


def names_for(index: LayoutIndex, digest: Digest) -> tuple[str, ...]:
    """Return the names that stand for the manifest or index with this digest, sorted."""
    return tuple(sorted(name for name, descriptor in names_of(index) if descriptor.digest == digest))


def find_exact_name(index: LayoutIndex, name: str) -> Descriptor:
    """Return the entry with this very name; the first one, should a foreign tool have written two.

    Raises:
        ImageNotFound: when there is none.
    """
    for entry in index.entries:
        if name_of(entry.descriptor) == name:
            return entry.descriptor
    raise ImageNotFound(name)


def find_name(index: LayoutIndex, name: str) -> tuple[str, Descriptor]:
    """Return the entry that ``name`` means, and the name as it stands in the index.

    It is the entry with that very name; where there is none, the single one that spells the same reference.

    Raises:
        ImageNotFound: when there is neither.
    """
    with suppress(ImageNotFound):
        return name, find_exact_name(index, name)
    wanted = normalised(name)
    alike = [found for found in names_of(index) if wanted is not None and normalised(found[0]) == wanted]
    if len(alike) != 1:
        raise ImageNotFound(name)
    return alike[0]


def with_name(
    index: LayoutIndex, name: str, descriptor: Descriptor, provenance: Provenance | None = None
) -> LayoutIndex:
    """Return the index in which ``name`` stands for ``descriptor``, and for nothing else.

    What the descriptor says in this project's own words is left out, whoever it comes from: ``provenance`` says what
    it was pulled as, and None that nobody knows, or that an entry which stands for the same already is right.
    """
    # A registry that could call an entry a referrer would have its image pruned, and one that could say what it was
    # pulled as would have it kept for ever.
    pulled_as = {} if provenance is None else provenance.annotations
    annotations = {**without_own(descriptor.annotations), NAME_ANNOTATION: name, **pulled_as}
    new = LayoutEntry(descriptor=attrs.evolve(descriptor, annotations=annotations))
    for entry in index.entries:
        if name_of(entry.descriptor) == name:
            # An unchanged entry keeps what others wrote into it.
            present = entry.descriptor
            is_same = (present.digest, present.size_bytes) == (descriptor.digest, descriptor.size_bytes)
            if is_same and present.media_type == descriptor.media_type:
                new = entry if provenance is None else _pulled_as(entry, provenance)
            break
    return with_entry(index, new)


def _pulled_as(entry: LayoutEntry, provenance: Provenance) -> LayoutEntry:
    present = entry.descriptor
    annotations = {**_without_source(present).annotations, **provenance.annotations}
    return entry if annotations == present.annotations else annotated(entry, annotations)


def _without_source(descriptor: Descriptor) -> Descriptor:
    if _SOURCE_ANNOTATIONS.isdisjoint(descriptor.annotations):
        return descriptor
    kept = {key: text for key, text in descriptor.annotations.items() if key not in _SOURCE_ANNOTATIONS}
    return attrs.evolve(descriptor, annotations=kept)


def with_entry(index: LayoutIndex, new: LayoutEntry) -> LayoutIndex:
    """Return the index with this very entry, which takes the place of those that have its name; last where none has.

    One without a name takes no other's place, and is there once.
    """
    name = name_of(new.descriptor)
    entries = []
    placed = False
    for entry in index.entries:
        if entry != new if name is None else name_of(entry.descriptor) != name:
            entries.append(entry)
        elif not placed:
            entries.append(new)
            placed = True
    if not placed:
        entries.append(new)
    return attrs.evolve(index, entries=tuple(entries))


def with_referrer(index: LayoutIndex, descriptor: Descriptor) -> LayoutIndex:
    """Return the index in which ``descriptor`` is kept as long as what it refers to; other entries for it stay, too."""
    for entry in index.entries:
        if entry.descriptor.digest == descriptor.digest and is_referrer(entry.descriptor):
            return index
    # What a registry says of it in annotations stands in its document, too, or is not true.
    kept = attrs.evolve(descriptor, annotations={REFERRER_ANNOTATION: "true"}, platform=None, urls=())
    return attrs.evolve(index, entries=(*index.entries, LayoutEntry(descriptor=kept)))


def without_referrers(index: LayoutIndex, digests: Container[Digest]) -> LayoutIndex:
    """Return the index in which these are kept as referrers no more; entries for them that are none stay."""
    entries = [
        each for each in index.entries if not (is_referrer(each.descriptor) and each.descriptor.digest in digests)
    ]
    return attrs.evolve(index, entries=tuple(entries))


def lost_entries(before: LayoutIndex, after: LayoutIndex) -> tuple[LayoutEntry, ...]:
    """Return the entries of ``before`` that ``after`` has not: removed, or their names standing for another entry.

    Of entries with one name the first counts, in both. An image that was pulled again as something else is not lost,
    nor is a referrer, which went for want of what it refers to, nor what was pushed by its digest: that went since a
    name came that reaches it, or because somebody deleted that very digest.
    """
    kept = {name: _without_source(descriptor) for name, descriptor in names_of(after)}
    unnamed = {entry.descriptor for entry in after.entries if name_of(entry.descriptor) is None}
    lost = []
    seen = set()
    for entry in before.entries:
        name = name_of(entry.descriptor)
        if name is None:
            is_pushed = REPOSITORY_ANNOTATION in entry.descriptor.annotations
            is_kept = entry.descriptor in unnamed or is_referrer(entry.descriptor) or is_pushed
        else:
            is_kept = name in seen or kept.get(name) == _without_source(entry.descriptor)
            seen.add(name)
        if not is_kept:
            lost.append(entry)
    return tuple(lost)


def without_name(index: LayoutIndex, name: str) -> LayoutIndex:
    """Return the index in which ``name``, as it stands there, is gone.

    Raises:
        ImageNotFound: when no entry has this very name.
    """
    entries = tuple(entry for entry in index.entries if name_of(entry.descriptor) != name)
    if len(entries) == len(index.entries):
        raise ImageNotFound(name)
    return attrs.evolve(index, entries=entries)
