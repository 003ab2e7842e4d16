"""The tar reader over bytes that a fuzzer makes: however it is read, it is the same members, or the same refusal."""

import io
import tarfile
from contextlib import suppress

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]  # no stubs; no wheel on some Pythons

with atheris.instrument_imports(include=["minibox_store"]):
    from minibox_store.errors import InvalidArchive
    from minibox_store.tar import ByteStream, Member, TarReader, encode_header, padding

from tests.fuzz.mending import mended
from tests.fuzz.running import arguments, fuzz
from tests.support.hard_layers import CASES
from tests.support.hostile_archives import ATTACKS, FORMS_READ, good_archive, tiny_parts
from tests.support.sparse_tars import all_ways
from tests.support.tars import BLOCK, END, ForwardOnly

_MOST_SEED_BYTES = 1 << 15
Contents = list[tuple[Member, bytes]]


def check(content: bytes) -> None:
    """Read a tar in each way that there is.

    Raises:
        AssertionError: when two of them differ, or what was read is not what it becomes once it is written again.
    """
    if content[:1] != b"\xff":
        content = mended(content)
    plain = _read(io.BytesIO(content))
    assert _read(ForwardOnly(content, 700)) == plain
    assert _read(ForwardOnly(content), by_readinto=True) == plain
    skipped = _read(io.BytesIO(content), skip=True)
    if isinstance(plain, str):
        assert skipped == plain
    else:
        assert not isinstance(skipped, str)
        assert [member for member, _ in skipped] == [member for member, _ in plain]
        assert len(plain) <= len(content) // BLOCK
        _check_written(plain)
        _check_tarfile(content, plain)
    sparse = _read(ForwardOnly(content, 700), sparse=True)
    assert isinstance(plain, str) or sparse == plain


def _read(
    stream: ByteStream | io.BytesIO, *, skip: bool = False, by_readinto: bool = False, sparse: bool = False
) -> Contents | str:
    reader = TarReader(stream, sparse=sparse)
    found: Contents = []
    try:
        for member in reader:
            found.append((member, b"" if skip else _data(reader, by_readinto=by_readinto)))
            assert skip or len(found[-1][1]) == member.stored_bytes
    except InvalidArchive as error:
        sentence = str(error)
        assert sentence.isprintable()
        assert len(sentence) < 1000
        return sentence
    return found


def _data(reader: TarReader, *, by_readinto: bool) -> bytes:
    if not by_readinto:
        return b"".join(iter(lambda: reader.read(600), b""))
    data, buffer = b"", bytearray(600)
    while count := reader.readinto(buffer):
        data += buffer[:count]
    return data


def _check_written(contents: Contents) -> None:
    archive, written = b"", []
    for member, data in contents:
        try:
            header = encode_header(member)
        except InvalidArchive:
            continue  # a device number of more than 21 bits, say
        archive += header + data + padding(len(data))
        written.append((member, data))
    assert _read(io.BytesIO(archive + END)) == written


def _check_tarfile(content: bytes, contents: Contents) -> None:
    """See that Python's reader takes the same bytes for data, as far as it comes.

    Through a difference a member would be smuggled past a check. It ends early at a number that it cannot read.
    """
    with suppress(tarfile.ReadError), tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        theirs = [(each.offset_data, each.size if each.isreg() else 0) for each in tar]
        assert theirs == [(member.data_offset, member.size_bytes) for member, _ in contents[: len(theirs)]]


def seeds() -> dict[str, bytes]:
    """Return archives of all that a tar can have, good ones and bad ones."""
    found = {f"form {form}": good_archive(form) for form in FORMS_READ}
    found |= {f"layers {name}": b"".join(b"".join(layer) for layer in layers) + END for name, layers in CASES.items()}
    tiny = tiny_parts("minibox")
    found |= {f"attack {number}": build(tiny) for number, build in enumerate(ATTACKS.values())}
    found |= {f"sparse {number}": member + END for number, member in enumerate(all_ways([(0, 10), (512, 20)], 1000))}
    return {name: content for name, content in found.items() if len(content) <= _MOST_SEED_BYTES}


if __name__ == "__main__":
    fuzz(check, seeds(), *arguments())
