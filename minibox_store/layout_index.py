"""The rules of index.json: what a name in it is, and how one comes and goes. Pure.

Every rule keeps the entries it does not mean, named or not, in their order.

Spec: OCI image-spec 1.1, image-layout.md, "index.json file"; annotations.md, `org.opencontainers.image.ref.name`.
"""

from collections.abc import Iterator
from contextlib import suppress

import attrs

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, LayoutEntry, LayoutIndex
from minibox_store.errors import ImageNotFound
from minibox_store.reference import normalised

NAME_ANNOTATION = "org.opencontainers.image.ref.name"
REFERRER_ANNOTATION = "dev.minibox.store.referrer"


def name_of(descriptor: Descriptor) -> str | None:
    """Return the name that an entry carries, None where it has none."""
    return descriptor.annotations.get(NAME_ANNOTATION)


def nameless(descriptor: Descriptor) -> Descriptor:
    """Return what an entry stands for, without the name that it carries."""
    kept = {key: text for key, text in descriptor.annotations.items() if key != NAME_ANNOTATION}
    return attrs.evolve(descriptor, annotations=kept)


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


def with_name(index: LayoutIndex, name: str, descriptor: Descriptor) -> LayoutIndex:
    """Return the index in which ``name`` stands for ``descriptor``, and for nothing else."""
    # Only this project says of an entry that it is a referrer: a registry that could would have its image pruned.
    kept = {key: text for key, text in descriptor.annotations.items() if key != REFERRER_ANNOTATION}
    annotations = {**kept, NAME_ANNOTATION: name}
    new = LayoutEntry(descriptor=attrs.evolve(descriptor, annotations=annotations))
    for entry in index.entries:
        if name_of(entry.descriptor) == name:
            # An unchanged entry keeps what others wrote into it.
            present = entry.descriptor
            is_same = (present.digest, present.size_bytes) == (descriptor.digest, descriptor.size_bytes)
            new = entry if is_same and present.media_type == descriptor.media_type else new
            break
    return with_entry(index, new)


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


def lost_entries(before: LayoutIndex, after: LayoutIndex) -> tuple[LayoutEntry, ...]:
    """Return the entries of ``before`` that ``after`` has not: removed, or their names standing for another entry.

    Of entries with one name the first counts, in both.
    """
    kept = dict(names_of(after))
    nameless = {entry.descriptor for entry in after.entries if name_of(entry.descriptor) is None}
    lost = []
    seen = set()
    for entry in before.entries:
        name = name_of(entry.descriptor)
        if name is None:
            is_kept = entry.descriptor in nameless
        else:
            is_kept = name in seen or kept.get(name) == entry.descriptor
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
