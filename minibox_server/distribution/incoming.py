"""Requests with a body that is taken by a thread as it comes, and refused in a way that clients get to see."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from minibox_server.bodies import AnswerToBody, RequestBody
from minibox_server.distribution.naming import naming_errors
from minibox_server.responses import RequestError
from minibox_server.workers import Workers
from minibox_store import Cancellation, LocalRepository


def answer_to_body(
    workers: Workers, request: Request, repository: LocalRepository, call: Callable[[RequestBody], Response]
) -> Response:
    """Return the answer that ``call`` makes of the body of a request to a repository, in a thread."""

    async def answer(body: RequestBody) -> Response:
        cancellation = Cancellation()

        def run() -> Response:
            with cancellation.interrupting(body), naming_errors(repository):
                return call(body)

        with workers.cancellable(cancellation):
            return await workers.run(workers.receiving, run)

    return AnswerToBody(request, answer)


def read_bounded(body: RequestBody, most_bytes: int) -> bytes:
    """Return all of a body.

    Raises:
        RequestError: 413, when it is longer than ``most_bytes``.
    """
    content = bytearray()
    buffer = memoryview(bytearray(64 * 1024))
    while count := body.readinto(buffer):
        content += buffer[:count]
        if len(content) > most_bytes:
            raise RequestError(413, f"the body is longer than {most_bytes} bytes", code="SIZE_INVALID")
    return bytes(content)
