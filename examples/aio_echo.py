"""
Echo what TCP clients send, in tasks of asyncio: one accept for all, and buffers that all share.

The kernel takes a buffer from the group when there is data, not before: a connection that is idle
holds no memory for it, and one that does not read what is sent back holds no buffer either.

    python examples/aio_echo.py                  serves clients of its own, and ends
    python examples/aio_echo.py --port 7777      and then, for instance: nc 127.0.0.1 7777
"""

import argparse
import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys

import uring
import uring.aio

CLIENTS, SIZE = 50, 200_000


class EchoServer:
    """The ring of the running loop, the buffers, and what was done."""

    def __init__(self, listener: socket.socket, count: int) -> None:
        self.listener, self.ring = listener, uring.aio.ring()
        self.buffers = self.ring.plain.register_buffer_ring(count, size=16 * 1024)
        self.accepted = self.echoed = 0

    async def serve(self) -> None:
        """Accept until it is cancelled; each connection is a task, cancelled with it."""
        async with asyncio.TaskGroup() as connections:
            while True:
                try:
                    async with self.ring.stream(uring.AcceptMultishot(self.listener)) as accepted:
                        async for cqe in accepted:
                            self.accepted += 1
                            client = socket.socket(fileno=cqe.result())
                            connections.create_task(self.echo(client))
                except OSError as error:  # perhaps no descriptor is free: they wait who connect
                    print(f"accept: {error}", file=sys.stderr, flush=True)
                    await asyncio.sleep(0.25)

    async def echo(self, client: socket.socket) -> None:
        """Send back what one client sends, until it ends, or the connection fails."""
        with client, contextlib.suppress(OSError):
            while received := await self.receive(client):
                while received:  # a send may be partial
                    count = await self.ring.do(uring.Send(client, received))
                    self.echoed += count
                    received = received[count:]

    async def receive(self, client: socket.socket) -> bytes:
        """Wait for data; nothing at the end. Its buffer goes back to the kernel at once."""
        while True:
            try:
                with await self.ring.do(uring.RecvSelect(client, self.buffers)) as lease:
                    return bytes(lease)
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # else more has come in one turn than there are
                    raise
                await asyncio.sleep(0.001)


async def be_client(host: str, port: int) -> bool:
    """Be a client of the server: whether what comes back is what was sent."""
    sent = os.urandom(SIZE)
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(sent)
    writer.write_eof()
    received = await reader.read(-1)
    writer.close()
    await writer.wait_closed()
    return received == sent


async def main(port: int | None, count: int) -> None:
    """Serve until Ctrl-C, or until the clients are done."""
    with socket.create_server(("127.0.0.1", port or 0)) as listener:
        server, address = EchoServer(listener, count), listener.getsockname()
        print("listening on {}:{}".format(*address), flush=True)
        serving = asyncio.create_task(server.serve())
        if port is None:
            if not all(await asyncio.gather(*[be_client(*address) for _ in range(CLIENTS)])):
                raise RuntimeError("a client did not get back what it had sent")
            print(f"{CLIENTS} clients got back the {CLIENTS * SIZE} bytes that they had sent")
        else:
            stop = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
            await stop.wait()
        serving.cancel()
        await asyncio.wait([serving])
    print(f"served {server.accepted} connections, {server.echoed} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Echo what TCP clients send.")
    parser.add_argument("--port", type=int, help="0 for any that is free")
    parser.add_argument("--buffers", type=int, default=16, help="of 16 KiB; a power of two")
    args = parser.parse_args()
    try:
        asyncio.run(main(args.port, args.buffers))
    except (OSError, OverflowError, RuntimeError, ValueError, uring.UringError) as error:
        sys.exit(f"error: {error}")
