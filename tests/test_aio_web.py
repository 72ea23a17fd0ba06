"""A web framework that serves files through the asynchronous ones: Starlette, on any loop."""

from collections.abc import AsyncGenerator, Callable, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from aio import KITS, Kit
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

import uring
import uring.aio

Scope = MutableMapping[str, Any]


@pytest.fixture(params=KITS, ids=lambda kit: kit.name)
def kit(request: pytest.FixtureRequest, ring: uring.Ring) -> Kit:  # noqa: ARG001 - asks for it
    """Give each event loop in turn, where there are rings."""
    made: Kit = request.param
    return made


def serving(folder: Path, bodies: list[AsyncGenerator[bytes, None]]) -> Starlette:
    """Make an application that serves the files of a folder; what it sends is noted."""

    async def serve(request: Request) -> Response:
        try:
            file = await uring.aio.open(folder / request.path_params["name"], "rb")
        except FileNotFoundError:
            raise HTTPException(404) from None

        async def chunks() -> AsyncGenerator[bytes, None]:
            async with file:
                while chunk := await file.read(65536):
                    yield chunk

        bodies.append(chunks())
        return StreamingResponse(bodies[-1], media_type="application/octet-stream")

    return Starlette(routes=[Route("/{name}", serve)])


async def get(app: Starlette, path: str, *, leaves_after: int | None = None) -> tuple[int, bytes]:
    """Ask an application for a path, as a server would: the status and the body."""
    status = 0
    body = bytearray()
    asked = False

    async def receive() -> Scope:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.disconnect"}

    async def send(message: Scope) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        body.extend(message.get("body", b""))
        if leaves_after is not None and len(body) > leaves_after:
            raise OSError("the client has left")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return status, bytes(body)


@pytest.mark.parametrize("size", [0, 1, 65536, 3_000_001])
def test_file_is_served_whole(kit: Kit, size: int, tmp_path: Path) -> None:
    """20 requests at once for a file of any size: each has all of it; another file is not there."""
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "data").write_bytes(content[:size])
    bodies: list[AsyncGenerator[bytes, None]] = []
    app = serving(tmp_path, bodies)

    async def main() -> None:
        for status, body in await kit.all(*[lambda: get(app, "/data")] * 20):
            assert status == 200
            assert body == content[:size]
        assert (await get(app, "/other"))[0] == 404

    kit.run(main)


def test_client_that_leaves_has_its_file_closed(
    kit: Kit, tmp_path: Path, descriptors: Callable[[], set[str]]
) -> None:
    """When the client leaves in the middle, the response ends and the file is closed."""
    (tmp_path / "data").write_bytes(bytes(3_000_000))
    bodies: list[AsyncGenerator[bytes, None]] = []
    app = serving(tmp_path, bodies)

    async def main() -> None:
        await get(app, "/data")
        before = descriptors()
        with pytest.raises(ClientDisconnect):
            await get(app, "/data", leaves_after=100_000)

        await bodies[-1].aclose()  # which Starlette leaves to the loop
        assert descriptors() == before

    kit.run(main)
