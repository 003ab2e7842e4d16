"""Answers that are long: they are made and sent piece by piece, and no piece is ever there twice."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

# What is told of one thing may have a hundred names; so many of them are put into words at once.
_ITEMS = 64


class LongAnswer(Response):
    """An answer of several pieces, which may be sent to many at once.

    Args:
        pieces: what it says, one after the other.
        media_type: of all of it.
    """

    def __init__(self, pieces: Sequence[bytes], media_type: str) -> None:
        self._pieces = pieces
        headers = {"Content-Length": str(sum(map(len, pieces)))}
        super().__init__(None, headers=headers, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; each piece once the client has taken the one before."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def encode_record(fields: Mapping[str, object], lists: Mapping[str, Iterable[object]]) -> Iterator[bytes]:
    """Yield a JSON object, the bytes of one that is encoded at once: some fields, one at least, and then some lists."""
    yield _encode(fields)[:-1]
    for name, items in lists.items():
        yield b"," + _encode({name: []})[1:-2]
        rest = iter(items)
        separator = b""
        while some := list(islice(rest, _ITEMS)):
            yield separator + _encode(some)[1:-1]
            separator = b","
        yield b"]"
    yield b"}"


def _encode(value: object) -> bytes:
    return bytes(JSONResponse(value).body)
