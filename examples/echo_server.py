"""
Echo whatever TCP clients send, many of them at once, with one ring and one loop.

A connection has one operation in flight, a Recv or a Send; `user_data` is its descriptor.

    python examples/echo_server.py --port 7777     and then, for instance: nc 127.0.0.1 7777
"""

import argparse
import contextlib
import os
import socket
import sys

import uring


class EchoServer:
    """What listens, who is connected, and what was done for them."""

    def __init__(self, ring: uring.Ring, listener: socket.socket) -> None:
        self.ring, self.listener = ring, listener
        self.receives: dict[int, uring.Recv] = {}  # of each connection, by its descriptor
        self.accepted = self.echoed = 0

    def serve(self) -> None:
        """Serve until Ctrl-C."""
        self.ring.queue(uring.Accept(self.listener))
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                self.ring.submit_and_wait(1)
                for cqe in self.ring.copy_cqes(self.ring.sq.entries // 2):  # room for 2 each
                    self.handle(cqe)

    def handle(self, cqe: uring.CQE) -> None:
        """Queue what comes next for a connection, or for the listener."""
        fd, res = cqe.user_data, cqe.res
        match cqe.op:
            case uring.Accept() if res < 0:  # perhaps no descriptor is free: wait for one
                print(f"accept: {cqe.error}", file=sys.stderr)
                self.ring.queue(uring.Timeout(0.25))
            case uring.Timeout():
                self.ring.queue(uring.Accept(self.listener))
            case uring.Accept():
                self.accepted += 1
                self.receives[res] = uring.Recv(res, bytearray(64 * 1024), user_data=res)
                self.ring.queue_all([self.receives[res], uring.Accept(self.listener)])
            case uring.Recv(buffer=buffer) if res > 0:
                self.ring.queue(uring.Send(fd, memoryview(buffer)[:res], user_data=fd))
            case uring.Send(buffer=buffer) if res >= 0:
                self.echoed += res
                rest = memoryview(buffer)[res:]
                more = uring.Send(fd, rest) if rest else self.receives[fd]
                self.ring.queue(more, user_data=fd)
            case _:  # the client has finished, or the connection broke
                del self.receives[fd]
                os.close(fd)


def main() -> None:
    """Read the command line, and listen."""
    parser = argparse.ArgumentParser(description="Echo what TCP clients send.")
    parser.add_argument("--host", default="127.0.0.1", help="an IPv4 address")
    parser.add_argument("--port", default=7777, type=int, help="0 for any that is free")
    args = parser.parse_args()
    try:
        with socket.create_server((args.host, args.port)) as listener, uring.Ring() as ring:
            server = EchoServer(ring, listener)
            print("listening on {}:{}".format(*listener.getsockname()), flush=True)
            server.serve()
        for fd in server.receives:  # who is still connected
            os.close(fd)
    except (OSError, OverflowError, uring.UringError) as error:
        sys.exit(f"error: {error}")
    print(f"served {server.accepted} connections, {server.echoed} bytes")


if __name__ == "__main__":
    main()
