"""
Echo what TCP clients send; the kernel, asked once, accepts and receives again and again.

All connections share a few buffers, of which the kernel takes one when there is data. We copy what
is in it and give it back at once. While too much waits to be sent to a client, receiving is off.

    python examples/echo_multishot.py                  serves clients of its own, and ends
    python examples/echo_multishot.py --port 7777      and then, for instance: nc 127.0.0.1 7777
"""

import argparse
import errno
import os
import select
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import uring

LIMIT, SIZES = 256 * 1024, [100_000] * 50 + [8_000_000]  # LIMIT: of what waits for one client


@dataclass
class Connection:
    """What waits to be sent; what is in flight; and whether the client has ended."""

    waiting: bytearray = field(default_factory=bytearray)
    receiving: int = 0  # the user_data of a RecvMultishot
    sending: bool = False
    ended: bool = False


class EchoServer:
    """What listens, who is connected, and what was done for them."""

    def __init__(self, ring: uring.Ring, listener: socket.socket, count: int) -> None:
        self.ring, self.listener = ring, listener
        self.buffers = ring.register_buffer_ring(count, size=16 * 1024)
        self.connections: dict[int, Connection] = {}
        self.accepted = self.echoed = self.ran_out = 0
        self.is_stopped = False
        # Ctrl-C writes into a pipe: an exception amid the work could lose who was just accepted.
        self.stop, ctrl_c = os.pipe2(os.O_NONBLOCK)
        signal.set_wakeup_fd(ctrl_c)
        signal.signal(signal.SIGINT, lambda *_: None)

    def serve(self) -> None:
        """Serve until Ctrl-C."""
        self.ring.queue(uring.AcceptMultishot(self.listener))
        self.ring.queue(uring.PollAdd(self.stop, select.POLLIN))
        while not self.is_stopped:
            self.ring.submit_and_wait(1)
            for cqe in self.ring.copy_cqes(self.ring.sq.entries // 2):  # room for 2 each
                self.handle(cqe)

    def handle(self, cqe: uring.CQE) -> None:
        """Note what has happened, and queue what comes next."""
        match cqe.op:
            case uring.AcceptMultishot():
                if cqe.res >= 0:
                    self.accepted += 1
                    self.connections[cqe.res] = Connection()
                    self.go_on(cqe.res)
                if not cqe.more:  # perhaps no descriptor is free: wait for one
                    print(f"accept: {cqe.error}", file=sys.stderr)
                    self.ring.queue(uring.Timeout(0.25))
            case uring.PollAdd():
                self.is_stopped = True
            case uring.Timeout():
                self.ring.queue(uring.AcceptMultishot(self.listener))
            case uring.RecvMultishot(fd=int(fd)):
                self.receive(cqe, self.connections[fd])
                self.go_on(fd)
            case uring.Send(fd=int(fd), buffer=bytes(sent)):
                connection = self.connections[fd]
                connection.sending = False
                if cqe.res >= 0:
                    self.echoed += cqe.res
                    connection.waiting[:0] = sent[cqe.res :]  # what was not sent is the next
                else:
                    connection.waiting.clear()
                    connection.ended = True
                self.go_on(fd)

    def receive(self, cqe: uring.CQE, connection: Connection) -> None:
        """Keep what has come, and give the buffer back."""
        if not cqe.more:
            connection.receiving = 0
        if cqe.res > 0:
            with cqe.result() as lease:
                connection.waiting += lease.view
        elif cqe.res == -errno.ENOBUFS:  # when this is submitted again, all have been given back
            self.ran_out += 1
        elif cqe.res != -errno.ECANCELED:  # the client has finished, or the connection broke
            connection.ended = True

    def go_on(self, fd: int) -> None:
        """Send what waits, and receive unless that is too much."""
        connection = self.connections[fd]
        if connection.waiting and not connection.sending:
            self.ring.queue(uring.Send(fd, bytes(connection.waiting)))
            connection.waiting.clear()
            connection.sending = True
        if connection.receiving:
            if connection.ended or len(connection.waiting) > LIMIT:
                self.ring.queue(uring.AsyncCancel(connection.receiving))
        elif not connection.ended:
            if len(connection.waiting) <= LIMIT:
                connection.receiving = self.ring.queue(uring.RecvMultishot(fd, self.buffers))
        elif not connection.sending:
            del self.connections[fd]
            os.close(fd)


def be_client(address: tuple[str, int], count: int) -> None:
    """Send in one thread, receive in another, and compare."""
    data = os.urandom(count)
    with socket.create_connection(address) as client, ThreadPoolExecutor(1) as pool:
        pool.submit(client.sendall, data)
        pool.submit(client.shutdown, socket.SHUT_WR)  # the pool has one thread: this comes second
        if b"".join(iter(lambda: client.recv(65536), b"")) != data:
            raise RuntimeError("a client did not get back what it had sent")


def be_clients(address: tuple[str, int]) -> None:
    """Be many clients at once, and then press Ctrl-C."""
    try:
        with ThreadPoolExecutor(len(SIZES)) as pool:
            list(pool.map(be_client, [address] * len(SIZES), SIZES))
        print(f"{len(SIZES)} clients got back the {sum(SIZES)} bytes that they had sent")
    finally:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def main() -> None:
    """Read the command line, and listen."""
    parser = argparse.ArgumentParser(description="Echo what TCP clients send.")
    parser.add_argument("--port", type=int, help="0 for any that is free")
    parser.add_argument("--buffers", type=int, default=16, help="of 16 KiB; a power of two")
    args = parser.parse_args()
    try:
        with ThreadPoolExecutor(1) as pool:
            with (
                socket.create_server(("127.0.0.1", args.port or 0)) as listener,
                uring.Ring() as ring,
            ):
                server, address = EchoServer(ring, listener, args.buffers), listener.getsockname()
                print("listening on {}:{}".format(*address), flush=True)
                clients = pool.submit(be_clients, address) if args.port is None else None
                server.serve()
            for fd in server.connections:  # who is still connected
                os.close(fd)
        if clients:
            clients.result()
    except (OSError, OverflowError, RuntimeError, ValueError, uring.UringError) as error:
        sys.exit(f"error: {error}")
    print(f"served {server.accepted} connections, {server.echoed} bytes")
    print(f"the buffers ran out {server.ran_out} times")


if __name__ == "__main__":
    main()
