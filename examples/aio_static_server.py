"""
Serve the files below a directory over HTTP/1.1, in tasks of asyncio, and no thread for files.

GET and HEAD, connections that are kept alive, entity tags, so that what a client has is not sent
again, and ranges, so that a video can be sought in and a download gone on with. The kernel itself
keeps paths below the directory: openat2(2), RESOLVE_BENEATH.

    python examples/aio_static_server.py DIR --port 8000
    curl -i http://127.0.0.1:8000/               and: wrk http://127.0.0.1:8000/FILE
"""

import argparse
import asyncio
import contextlib
import errno
import mimetypes
import os
import re
import signal
import socket
import stat
import sys
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import quote, unquote_to_bytes

import uring
import uring.aio

HEAD_MAX, CHUNK, IDLE_SECONDS = 16 * 1024, 128 * 1024, 60
REQUEST = re.compile(rb"([A-Z]+) (?:http://[^/\s]*)?(/[^\s?]*)\S* HTTP/1\.([01])\r\n")
RANGE = re.compile(rb"bytes=(?!-$)(\d{0,18})-(\d{0,18})")
FIELD = re.compile(rb"([!#$%&'*+.^_`|~\w-]+):[ \t]*([^\r\n]*?)[ \t]*\r\n")
ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}


class Connection:
    """One client, and what it has sent that is not answered yet."""

    def __init__(self, client: socket.socket, root: int) -> None:
        self.ring, self.client, self.root = uring.aio.ring(), client, root
        self.received, self.buffer = b"", bytearray(CHUNK)
        self.is_kept = self.is_head = False

    async def serve(self) -> None:
        """Answer one request after the other, until the client ends or is idle for too long."""
        with self.client, contextlib.suppress(OSError):  # TimeoutError, too
            self.is_kept = True
            while self.is_kept and (head := await self.receive_head()):
                await self.answer(head)

    async def receive_head(self) -> bytes:
        """Receive a request up to its empty line, and keep what is behind; nothing at the end."""
        async with asyncio.timeout(IDLE_SECONDS):
            while b"\r\n\r\n" not in self.received and len(self.received) < HEAD_MAX:
                count = await self.ring.do(uring.Recv(self.client, self.buffer))
                if count == 0:
                    return b""
                self.received += self.buffer[:count]
        head, end, self.received = self.received.partition(b"\r\n\r\n")
        return head + end[:2]

    async def answer(self, head: bytes) -> None:
        """Answer one request."""
        line = REQUEST.match(head)
        lines = head[line.end() :] if line else b""
        fields = {name.lower(): value for name, value in FIELD.findall(lines)}
        self.is_head = head.startswith(b"HEAD ")
        if (
            not line
            or FIELD.sub(b"", lines)
            or {b"content-length", b"transfer-encoding"} & {*fields}
        ):
            self.is_kept = False  # where the next one begins nobody knows
            return await self.respond(HTTPStatus.BAD_REQUEST)
        wish = fields.get(b"connection", b"").lower()
        self.is_kept = wish == b"keep-alive" or (wish != b"close" and line[3] == b"1")
        if line[1] not in {b"GET", b"HEAD"}:
            return await self.respond(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET, HEAD"})
        path = unquote_to_bytes(line[2]).lstrip(b"/")
        path += b"index.html" if path.endswith(b"/") or not path else b""
        flags, beneath = os.O_RDONLY | os.O_NONBLOCK, uring.ResolveFlags.BENEATH
        try:
            op = uring.Openat2(path, flags, resolve=beneath, dir_fd=self.root)
            fd = await self.ring.do(op)
        except ValueError:  # a null byte
            return await self.respond(HTTPStatus.BAD_REQUEST)
        except OSError as error:
            is_absent = error.errno in ABSENT
            return await self.respond(HTTPStatus.NOT_FOUND if is_absent else HTTPStatus.FORBIDDEN)
        try:
            return await self.send_file(fd, path, fields)
        finally:
            os.close(fd)

    async def send_file(self, fd: int, path: bytes, fields: dict[bytes, bytes]) -> None:
        """Send an open file, or a part of it, unless the client has it."""
        found = await uring.aio.stat(fd)
        if stat.S_ISDIR(found.st_mode):
            place = {"Location": f"/{quote(path)}/"}
            return await self.respond(HTTPStatus.MOVED_PERMANENTLY, place)
        if not stat.S_ISREG(found.st_mode):
            return await self.respond(HTTPStatus.NOT_FOUND)
        tag = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
        had = fields.get(b"if-none-match", b"").decode("latin-1")
        if had == "*" or tag in had:
            return await self.respond(HTTPStatus.NOT_MODIFIED, {"ETag": tag})
        kind, coding = mimetypes.guess_type(os.fsdecode(path))
        kind = kind if kind and not coding else "application/octet-stream"
        lines = {"ETag": tag, "Content-Type": kind, "Accept-Ranges": "bytes"}
        part = None
        if not self.is_head and fields.get(b"if-range", tag.encode()) == tag.encode():
            part = part_asked_for(fields.get(b"range", b""), found.st_size)
        if part is None:
            part, status = range(found.st_size), HTTPStatus.OK
        elif not part:
            unmet = {"Content-Range": f"bytes */{found.st_size}"}
            return await self.respond(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, unmet)
        else:
            status = HTTPStatus.PARTIAL_CONTENT
            lines["Content-Range"] = f"bytes {part[0]}-{part[-1]}/{found.st_size}"
        await self.respond(status, lines, size=len(part))
        while part and not self.is_head:
            room = memoryview(self.buffer)[: len(part)]
            count = await self.ring.do(uring.Read(fd, room, part[0]))
            if count == 0:  # it was cut short, and so is the response
                self.is_kept = False
                return None
            await self.send(room[:count])
            part = part[count:]
        return None

    async def respond(
        self, status: HTTPStatus, fields: dict[str, str] | None = None, size: int | None = None
    ) -> None:
        """Send the head of a response; of one without a file, its body, too."""
        body = b""
        if size is None and status is not HTTPStatus.NOT_MODIFIED:
            body = f"{status} {status.phrase}\n".encode()
            size = len(body)
        lines = {"Connection": "keep-alive" if self.is_kept else "close"}
        lines |= {"Date": formatdate(usegmt=True), **(fields or {})}
        if size is not None:
            lines["Content-Length"] = str(size)
        head = f"HTTP/1.1 {status} {status.phrase}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
        is_alone = body or not size or self.is_head
        flags = 0 if is_alone else socket.MSG_MORE
        await self.send(head.encode() + (b"" if self.is_head else body), flags)

    async def send(self, content: bytes | memoryview, flags: int = 0) -> None:
        """Send all of it, to a client that takes it."""
        while content:
            async with asyncio.timeout(IDLE_SECONDS):
                count = await self.ring.do(uring.Send(self.client, content, flags))
            content = content[count:]


def part_asked_for(wish: bytes, size: int) -> range | None:
    """Say which bytes a Range field asks for, empty if there are none such; None for the file."""
    asked = RANGE.fullmatch(wish)
    if not asked or not size:  # several parts, and other units, are answered with all of it
        return None
    first, last = asked.groups()
    if not first:
        return range(max(0, size - int(last)), size)
    if last and int(last) < int(first):  # it is no range, and as if it were not there
        return None
    return range(int(first), min(int(last or size) + 1, size))


async def accept(listener: socket.socket, root: int) -> None:
    """Accept until it is cancelled; each connection is a task, cancelled with it."""
    async with asyncio.TaskGroup() as connections:
        while True:
            try:
                async with uring.aio.ring().stream(uring.AcceptMultishot(listener)) as accepted:
                    async for cqe in accepted:
                        client = socket.socket(fileno=cqe.result())
                        connections.create_task(Connection(client, root).serve())
            except OSError as error:  # perhaps no descriptor is free: they wait who connect
                print(f"accept: {error}", file=sys.stderr, flush=True)
                await asyncio.sleep(0.25)


async def main(directory: str, port: int) -> None:
    """Serve until Ctrl-C."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    root = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    with socket.create_server(("127.0.0.1", port)) as listener:
        print("listening on {}:{}".format(*listener.getsockname()), flush=True)
        serving = asyncio.create_task(accept(listener, root))
        await stop.wait()
        serving.cancel()
        await asyncio.wait([serving])
    os.close(root)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve the files below a directory over HTTP.")
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free")
    args = parser.parse_args()
    try:
        asyncio.run(main(args.directory, args.port))
    except (OSError, OverflowError, uring.UringError) as error:
        sys.exit(f"error: {error}")
