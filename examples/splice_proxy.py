"""
Pass TCP connections on to a target; their bytes go through pipes and never come to this process.

A flow, one for each direction, splices bytes from a socket into a pipe, and from there into the
other socket. Splices run on threads of the kernel's. So that none of these waits for a peer, the
sockets are non-blocking, and the splice is linked to a poll, which waits.

    python examples/splice_proxy.py                      measures itself and a plain loop
    python examples/splice_proxy.py 7777 127.0.0.1:80    then, for instance: nc 127.0.0.1 7777
"""

import argparse
import errno
import os
import socket
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fcntl import F_SETPIPE_SZ, fcntl
from select import POLLIN, POLLOUT
from statistics import median
from time import perf_counter
from typing import Any

import uring

MIB, ROUNDS, ANSWER = 1024 * 1024, 5, b"received"
PIPE_SIZE = MIB  # as much as anyone may have
TCP = socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK
SKIP = uring.SQEFlags.CQE_SKIP_SUCCESS
Address = tuple[str, int]
Steps = Generator[Sequence[uring.Operation], Any, Any]  # gets the CQE of each one's last operation


def move(fd_in: int, fd_out: int, length: int, poll: uring.PollAdd) -> Steps:
    """Splice once, when that can be done without waiting."""
    while True:
        cqe = yield uring.link(poll, uring.Splice(fd_in=fd_in, fd_out=fd_out, length=length))
        if cqe.res != -errno.EAGAIN:
            return cqe.result()


def flow(source: int, sink: int, pipe: tuple[int, int], both: list[int]) -> Steps:
    """Move what comes; the second of two flows to end closes the sockets."""
    readable = uring.PollAdd(source, POLLIN, flags=SKIP)
    writable = uring.PollAdd(sink, POLLOUT, flags=SKIP)
    try:
        with suppress(PermissionError):  # this user has enough in pipes already
            fcntl(pipe[1], F_SETPIPE_SZ, PIPE_SIZE)
        while left := (yield from move(source, pipe[1], PIPE_SIZE, readable)):
            while left:
                left -= yield from move(pipe[0], sink, left, writable)
        yield [uring.Shutdown(sink, socket.SHUT_WR)]
    except OSError:  # broken: end the other flow, too
        yield [uring.Shutdown(source, socket.SHUT_RDWR)]
        yield [uring.Shutdown(sink, socket.SHUT_RDWR)]
    both.remove(source)
    for fd in (*pipe, *(() if both else (source, sink))):
        os.close(fd)


class Proxy:
    """A ring, and who waits for which completion."""

    def __init__(self, listener: socket.socket, target: Address, count: int = -1) -> None:
        """Serve so many connections, or without end."""
        self.waiting: dict[int, Steps] = {}
        with uring.Ring() as self.ring:
            self.go_on(self.accept(listener, target, count))
            while self.waiting:
                self.ring.submit_and_wait(1)
                for cqe in self.ring.copy_cqes(self.ring.sq.entries // 4):  # each queues 4 at most
                    if cqe.user_data in self.waiting:  # not that of a poll that failed
                        self.go_on(self.waiting.pop(cqe.user_data), cqe)

    def go_on(self, steps: Steps, cqe: uring.CQE | None = None) -> None:
        """Queue the next operations, the last of which tells when to go on."""
        with suppress(StopIteration):
            self.waiting[self.ring.queue_all(steps.send(cqe))[-1]] = steps

    def accept(self, listener: socket.socket, target: Address, count: int) -> Steps:
        """Accept, and let the rest happen meanwhile."""
        while count:
            cqe = yield [uring.Accept(listener, accept_flags=socket.SOCK_NONBLOCK)]
            if cqe.error is None:
                self.go_on(self.connect(cqe.res, target))
                count -= 1
            else:  # perhaps no descriptor is free: wait for one
                print(f"accept: {cqe.error}", file=sys.stderr)
                yield [uring.Timeout(0.25)]

    def connect(self, client: int, target: Address) -> Steps:
        """Connect to the target, and start both flows."""
        fds = [client]
        try:
            fds += [(yield [uring.Socket(*TCP)]).result()]
            fds += (yield [uring.Pipe()]).result()
            fds += (yield [uring.Pipe()]).result()
            (yield [uring.Connect(fds[1], target)]).result()
        except OSError as error:
            print(f"connection to {target}: {error}", file=sys.stderr)
            for fd in fds:
                os.close(fd)
        else:
            both = [client, fds[1]]
            self.go_on(flow(client, fds[1], (fds[2], fds[3]), both))
            self.go_on(flow(fds[1], client, (fds[4], fds[5]), both))


def copy(source: socket.socket, sink: socket.socket) -> None:
    """Do in a plain loop what a flow does."""
    while data := source.recv(PIPE_SIZE):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)


def copy_one(listener: socket.socket, target: Address, _count: int) -> None:
    """Serve one connection with two threads, each in a plain loop."""
    with (
        listener.accept()[0] as client,
        socket.create_connection(target) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        list(pool.map(copy, (client, server), (server, client)))


def receive(listener: socket.socket) -> bytes:
    """Be the target of one connection; return what came."""
    with listener.accept()[0] as connection:
        parts = list(iter(lambda: connection.recv(PIPE_SIZE), b""))
        connection.sendall(ANSWER)
    return b"".join(parts)


def measure(proxy: Callable[[socket.socket, Address, int], object], data: bytes) -> float:
    """Send data through a proxy, check what comes out at both ends, and return MiB/s."""
    target, listener = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    with target, listener, ThreadPoolExecutor(2) as pool:
        received = pool.submit(receive, target)
        served = pool.submit(proxy, listener, target.getsockname(), 1)
        with socket.create_connection(listener.getsockname()) as client:
            began = perf_counter()
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            answer = client.recv(len(ANSWER), socket.MSG_WAITALL)
            rate = len(data) / MIB / (perf_counter() - began)
        served.result()
        if (received.result(), answer) != (data, ANSWER):
            sys.exit("error: what came out is not what went in")
    return rate


def main() -> None:
    """Read the command line; serve, or compare."""
    parser = argparse.ArgumentParser(description="Pass TCP connections on with Splice.")
    parser.add_argument("port", nargs="?", type=int, help="to listen on; 0 for any that is free")
    parser.add_argument("target", nargs="?", default="", help="HOST:PORT; an IPv4 address")
    args = parser.parse_args()
    host, _, port = args.target.rpartition(":")
    if args.port is not None and not port.isdecimal():
        parser.error("the target must be HOST:PORT")
    try:
        if args.port is not None:
            with socket.create_server(("127.0.0.1", args.port)) as listener:
                print("listening on {}:{}".format(*listener.getsockname()), flush=True)
                with suppress(KeyboardInterrupt):
                    Proxy(listener, (host, int(port)))
        else:
            data = os.urandom(MIB) * 128
            copied, spliced = (
                median([measure(proxy, data) for _ in range(ROUNDS)]) for proxy in (copy_one, Proxy)
            )
            print(f"recv and send{copied:6.0f} MiB/s")
            print(f"splice       {spliced:6.0f} MiB/s{spliced / copied:6.2f} times as fast")
    except (OSError, OverflowError, uring.UringError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
