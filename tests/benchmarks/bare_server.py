"""A Starlette application with one route that answers the same bytes each time, under the daemon's own server settings.

Usage: python -m tests.benchmarks.bare_server PORT FILE
"""

import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route


def main(port: str, file: str) -> None:
    """Serve the bytes of a file as ``/images`` until SIGTERM."""
    body = Path(file).read_bytes()

    async def images(request: Request) -> Response:
        return Response(body, media_type="application/json")

    async def ping(request: Request) -> Response:
        return PlainTextResponse("Daemon is running")

    app = Starlette(routes=[Route("/images", images), Route("/ping", ping)])
    uvicorn.run(
        app,
        port=int(port),
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
