"""Digests: the only way from untrusted text to an address of content.

A :class:`Digest` that exists is well formed, so whatever builds a path from one stays inside its folder.
"""

import hashlib

import attrs

from minibox_store.errors import ContentMismatch, InvalidDigest
from minibox_store.kinds import check_kind
from minibox_store.values import Value

HEX_LENGTHS = {"sha256": 64, "sha512": 128}  # of each algorithm that there is


def is_hexadecimal(text: str) -> bool:
    """Whether a text is of lower-case hexadecimal digits, two for each byte.

    >>> is_hexadecimal("00ff"), is_hexadecimal("00FF"), is_hexadecimal("0 0")
    (True, False, False)
    """
    try:
        return bytes.fromhex(text).hex() == text  # in half the time of a regular expression
    except ValueError:
        return False


# Without slots a frozen value is made in half the time, and a walk makes one for each blob of each document.
@attrs.frozen(order=True, slots=False, repr=False)
class Digest(Value):
    """The address of some content: an algorithm and its lower-case hexadecimal value.

    Raises:
        InvalidDigest: on construction, unless the algorithm is sha256 or sha512 and the value has its length.

    Spec: OCI image-spec 1.1, descriptor.md, section "Digests".
    """

    algorithm: str
    hex: str

    def __attrs_post_init__(self) -> None:
        length = HEX_LENGTHS.get(self.algorithm)
        if length is None:
            raise InvalidDigest(str(self), "the algorithm is not sha256 or sha512")
        if len(self.hex) != length or not is_hexadecimal(self.hex):
            raise InvalidDigest(str(self), f"{self.algorithm} takes {length} lower-case hexadecimal digits")

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """Return the digest that ``text`` spells; the text is not trusted.

        Raises:
            InvalidDigest: for anything but ``sha256:`` or ``sha512:`` and the right number of lower-case digits.

        >>> Digest.parse("sha256:" + "ab" * 32).hex[:4]
        'abab'
        """
        if not isinstance(text, str):
            raise InvalidDigest(repr(text), "it is no text")
        algorithm, colon, encoded = text.partition(":")
        if not colon:
            raise InvalidDigest(text, "it has no colon")
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, content: bytes | bytearray | memoryview, algorithm: str = "sha256") -> "Digest":
        """Return the digest of ``content``."""
        return cls(algorithm, hashlib.new(algorithm, content).hexdigest())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def check_digest(digest: Digest, name: str = "digest") -> None:
    """Return if an argument is a digest: the text of one equals none, and nothing would be found by it.

    Raises:
        InvalidArgument: when it is not.
    """
    check_kind(name, digest, Digest, ": Digest.parse reads one")


class Verifier:
    """Counts and hashes bytes as they pass, and says at the end whether they are the ones expected.

    Without a ``digest`` it checks their number alone, and tells their sha256. Not safe for several threads at once.
    """

    def __init__(self, digest: Digest | None, size_bytes: int) -> None:
        self._digest = digest
        self._size_bytes = size_bytes
        self._algorithm = "sha256" if digest is None else digest.algorithm
        self._hasher = hashlib.new(self._algorithm)
        self.seen_bytes = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes.

        Raises:
            ContentMismatch: as soon as there are more bytes than expected.
        """
        self.seen_bytes += len(data)
        if self.seen_bytes > self._size_bytes:
            raise ContentMismatch(self._what(), f"{self._size_bytes} bytes", "more")
        self._hasher.update(data)

    def finish(self) -> Digest:
        """Check that all bytes came and that they hash to the digest; return it.

        Raises:
            ContentMismatch: when they are too few, or others.
        """
        if self.seen_bytes != self._size_bytes:
            raise ContentMismatch(self._what(), f"{self._size_bytes} bytes", f"{self.seen_bytes} bytes")
        actual = Digest(self._algorithm, self._hasher.hexdigest())
        if self._digest is None:
            return actual
        if actual != self._digest:
            raise ContentMismatch(self._what(), str(self._digest), str(actual))
        return self._digest  # the value that is there already: an archive may have very many

    def _what(self) -> str:
        return "a blob" if self._digest is None else str(self._digest)
