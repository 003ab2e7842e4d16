"""What a member of a layer means by its name: which names are refused, and which mean nothing."""

import pytest

from minibox_store.errors import InvalidArchive
from minibox_store.rootfs.placing import Placement, place
from minibox_store.tar.member import Member


@pytest.mark.parametrize("name", ["a/.wh.", "a/.wh..", "a/.wh...", ".wh.", ".wh..."])
def test_a_whiteout_that_names_nothing_is_refused(name: str) -> None:
    with pytest.raises(InvalidArchive, match="names nothing"):
        place(Member(name))


@pytest.mark.parametrize("name", [".wh..wh.aufs", "a/.wh..wh.plnk", "a/.wh..wh."])
def test_what_aufs_wrote_for_itself_means_nothing(name: str) -> None:
    assert place(Member(name)) == Placement("ignored", tuple(name.split("/")))


@pytest.mark.parametrize(
    ("longest", "words"),
    [
        ("a" * 255, "longer than 255 bytes"),
        ("d/" + "\u20ac" * 85, "longer than 255 bytes"),
        ("d/" + "\udcff" * 255, "longer than 255 bytes"),
        ("/".join(["\u20ac" * 63] * 21) + "/" + "a" * 105, "longer than 4,095 bytes"),
    ],
)
def test_a_name_is_as_long_as_a_file_can_have_and_no_longer(longest: str, words: str) -> None:
    assert place(Member(longest)) == Placement("entry", tuple(longest.split("/")))
    with pytest.raises(InvalidArchive, match=words):
        place(Member(longest + "a"))
