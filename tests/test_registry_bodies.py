"""Bodies end where HTTP/1.1 says, a cut is never taken for an end, and nothing is read without a bound."""

import io
from collections.abc import Callable
from http.client import HTTPException

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store.registry.bodies import Body, ChunkedBody, FixedBody, UntilCloseBody
from minibox_store.registry.failures import LineCut
from minibox_store.registry.reading import LineReader

Make = Callable[[LineReader], Body]


class Trickle(io.RawIOBase):
    """A line that gives a few bytes at a time, and says how many it has given."""

    def __init__(self, content: bytes, step_bytes: int = 1 << 30) -> None:
        super().__init__()
        self._content = content
        self._step = step_bytes
        self.given_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object, /) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        piece = self._content[self.given_bytes : self.given_bytes + min(len(view), self._step)]
        view[: len(piece)] = piece
        self.given_bytes += len(piece)
        return len(piece)


def read_whole(body: Body, *, step_bytes: int = 1 << 16, limit_bytes: int = 1 << 20) -> bytes:
    content = bytearray()
    buffer = memoryview(bytearray(step_bytes))
    while len(content) < limit_bytes and (count := body.read_some(buffer)):
        content += buffer[:count]
    return bytes(content)


def rest_of(source: LineReader) -> bytes:
    return read_whole(UntilCloseBody(source))


def chunked(pieces: list[bytes], trailer: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"


@given(st.binary(max_size=200), st.binary(max_size=50), st.integers(1, 30), st.integers(1, 300))
def test_a_body_of_known_length_is_read_and_nothing_behind_it(
    content: bytes, behind: bytes, line_step: int, step: int
) -> None:
    source = LineReader(Trickle(content + behind, line_step))
    body = FixedBody(source, len(content))
    assert read_whole(body, step_bytes=step) == content
    assert body.is_finished
    assert rest_of(source) == behind


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    st.sampled_from([b"", b"X: y\r\n", b"X: y\r\nZ: z\n"]),
    st.binary(max_size=20),
    st.integers(1, 30),
    st.integers(1, 100),
)
def test_a_chunked_body_is_read_and_nothing_behind_it(
    pieces: list[bytes], trailer: bytes, behind: bytes, line_step: int, step: int
) -> None:
    source = LineReader(Trickle(chunked(pieces, trailer) + behind, line_step))
    body = ChunkedBody(source)
    assert read_whole(body, step_bytes=step) == b"".join(pieces)
    assert body.is_finished
    assert body.read_some(memoryview(bytearray(1))) == 0
    assert rest_of(source) == behind


@given(st.binary(max_size=200), st.integers(1, 30))
def test_a_body_until_the_connection_closes_is_everything(content: bytes, line_step: int) -> None:
    body = UntilCloseBody(LineReader(Trickle(content, line_step)))
    assert not body.is_finished
    assert read_whole(body) == content
    assert body.is_finished
    assert body.ends_with_connection


@given(st.binary(min_size=1, max_size=100), st.data())
def test_a_cut_is_an_error_after_every_byte_before_it(content: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(content) - 1))
    body = FixedBody(LineReader(Trickle(content[:cut])), len(content))
    buffer = memoryview(bytearray(7))
    got = b""
    while len(got) < cut:
        got += bytes(buffer[: body.read_some(buffer)])
    with pytest.raises(LineCut):
        body.read_some(buffer)
    assert got == content[:cut]
    assert not body.is_finished


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=4), st.data())
def test_a_cut_within_chunks_is_an_error_and_never_an_end(pieces: list[bytes], data: st.DataObject) -> None:
    wire = chunked(pieces)
    cut = data.draw(st.integers(0, len(wire) - 1))
    body = ChunkedBody(LineReader(Trickle(wire[:cut])))
    with pytest.raises((LineCut, HTTPException)):
        read_whole(body)
    assert not body.is_finished


@pytest.mark.parametrize(
    "wire",
    [
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5_0\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\nhello",
        b"5" * 5000 + b"\r\n",
        b"5;" + b"x" * 5000 + b"\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello, and more\r\n0\r\n\r\n",
    ],
)
def test_chunks_that_lie_are_refused(wire: bytes) -> None:
    with pytest.raises((LineCut, HTTPException)):
        read_whole(ChunkedBody(LineReader(Trickle(wire))))


def test_s7_a_trailer_without_end_is_refused_after_a_few_lines() -> None:
    line = Trickle(b"1\r\nx\r\n0\r\n" + b"X: y\r\n" * 100_000)
    with pytest.raises(HTTPException):
        read_whole(ChunkedBody(LineReader(line)))
    assert line.given_bytes < 40_000


@pytest.mark.parametrize("make", [lambda source: FixedBody(source, 1 << 30), UntilCloseBody])
def test_big_reads_wait_for_the_line_once(make: Make) -> None:
    line = Trickle(bytes(1 << 20), 1000)
    body = make(LineReader(line))
    assert body.read_some(memoryview(bytearray(1 << 16))) == 1000
    assert line.given_bytes == 1000


# Lines


@given(st.binary(max_size=300), st.integers(1, 30), st.integers(1, 40))
def test_lines_are_read_as_files_read_them_until_the_cut(content: bytes, line_step: int, limit: int) -> None:
    reader, oracle = LineReader(Trickle(content, line_step)), io.BytesIO(content)
    while True:
        expected = oracle.readline(limit)
        if not expected.endswith(b"\n") and len(expected) < limit:
            break
        assert reader.readline(limit) == expected
    with pytest.raises(LineCut):
        reader.readline(limit)


def test_bytes_in_hand_are_given_before_the_line_is_waited_for() -> None:
    class Stuck(Trickle):
        def readinto(self, buffer: object, /) -> int:
            if self.given_bytes:
                raise TimeoutError
            return super().readinto(buffer)

    reader = LineReader(Stuck(b"head\nbody"))
    assert reader.readline() == b"head\n"
    big = memoryview(bytearray(1 << 20))
    assert bytes(big[: reader.read_some(big)]) == b"body"
    with pytest.raises(TimeoutError):
        reader.read_some(big)


def test_closing_a_reader_closes_the_line() -> None:
    line = Trickle(b"")
    LineReader(line).close()
    assert line.closed
