"""The sizes of blobs by their digests: a mapping as any other, but for the room that it takes."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from minibox_store.blob_sizes import BlobSizes
from minibox_store.digest import HEX_LENGTHS, Digest

DIGESTS = st.builds(
    lambda number, algorithm: Digest.of(str(number).encode(), algorithm),
    st.integers(0, 300),
    st.sampled_from(sorted(HEX_LENGTHS)),
)


def sizes_of(blobs: dict[Digest, int]) -> BlobSizes:
    sizes = BlobSizes()
    for digest, size_bytes in blobs.items():
        sizes.add(digest.hex, size_bytes)
    return sizes


def digest(number: int, algorithm: str = "sha256") -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, b"%d" % number).hexdigest())


@given(blobs=st.dictionaries(DIGESTS, st.integers(0, 2**63 - 1), max_size=120), others=st.lists(DIGESTS))
def test_it_is_the_mapping_that_a_dict_is(blobs: dict[Digest, int], others: list[Digest]) -> None:
    sizes = sizes_of(blobs)
    assert list(sizes.items()) == list(blobs.items())
    assert sizes.total_bytes == sum(blobs.values())
    for _ in range(2):
        for each in (*blobs, *others):
            assert sizes.get(each) == blobs.get(each)
            assert (each in sizes) == (each in blobs)
        assert (len(sizes), sizes == blobs) == (len(blobs), True)
        numbers = [sizes.numbers.add(each.hex) for each in others]  # behind the blobs, where they are none
        assert [sizes.numbers.digest(number) for number in numbers] == others
        assert [sizes.size_bytes(number) for number in numbers] == [blobs.get(each, 0) for each in others]


def test_the_beginning_of_a_longer_digest_is_another_one() -> None:
    long = digest(1, "sha512")
    assert Digest("sha256", long.hex[:64]) not in sizes_of({long: 1})


def test_a_blob_that_is_listed_twice_has_the_later_size() -> None:
    sizes = sizes_of({digest(1): 1, digest(2): 2})
    sizes.add(digest(1).hex, 3)
    assert sizes == {digest(1): 3, digest(2): 2}
