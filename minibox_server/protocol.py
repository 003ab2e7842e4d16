"""HTTP/1.1 as bytes: what is answered where no request could be understood, so that no application sees it."""

import asyncio
from http import HTTPStatus

from minibox_server.declarations import PASSED_OVER_BYTES
from minibox_server.listening import peer_of
from minibox_server.zero_copy import ZeroCopyProtocol

# Together with the limits of security.py: what is longer than this is not even collected.
MAX_HEAD_BYTES = 64 * 1024


class Protocol(ZeroCopyProtocol):
    """uvicorn's protocol, with this daemon's words for requests that are none, and an end to bodies without one."""

    _surplus_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Note who is there, where that is a user of this machine and not an address."""
        super().connection_made(transport)
        if self.client is None:
            self.client = peer_of(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """Take what comes; where the answer is complete and the body is not, only so much more of it."""
        if self.cycle is not None and self.cycle.response_complete and self.cycle.more_body:
            self._surplus_bytes += len(data)
            if self._surplus_bytes > PASSED_OVER_BYTES:
                self.transport.close()
                return
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no request, or one whose head is too long, and close the connection."""
        answered = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if self.cycle is not None and not self.cycle.response_complete:
            # What the application still has to say would follow, and belong to nothing.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not answered:
            self.transport.write(self._refusal())
        self.transport.close()

    def _refusal(self) -> bytes:
        status, sentence = self._describe()
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            "Content-Type: text/plain; charset=utf-8",
            f"Content-Length: {len(sentence) + 1}",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
            "",
            sentence,
        ]
        return ("\r\n".join(lines) + "\n").encode("ascii")

    def _describe(self) -> tuple[HTTPStatus, str]:
        received, _ = self.conn.trailing_data
        if len(received) <= MAX_HEAD_BYTES:
            return HTTPStatus.BAD_REQUEST, "the request is not valid HTTP"
        if b"\n" in received:
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the headers are longer than {MAX_HEAD_BYTES} bytes"
        return HTTPStatus.REQUEST_URI_TOO_LONG, f"the target is longer than {MAX_HEAD_BYTES} bytes"
