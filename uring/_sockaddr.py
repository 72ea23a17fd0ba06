"""
Socket addresses: Python's own, and the kernel's struct sockaddr_in, sockaddr_in6 and sockaddr_un.

The shape of an address tells its family. What has no shape of its own (AF_VSOCK, AF_PACKET, ...) is
a `Sockaddr`: the bytes as the kernel has them.
"""

import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final

import attrs

from uring import _memory
from uring.sqe import UINT32_MAX

if TYPE_CHECKING:
    from uring._uring import CData

SOCKADDR_MAX: Final = 128
"""The size of struct sockaddr_storage, which has room for every address."""

_UNIX_PATH_MAX: Final = 108
_INET: Final = struct.Struct("=H2s4s8x")
_INET6: Final = struct.Struct("=H2s4s16sI")


@attrs.frozen
class Sockaddr:
    """
    A socket address as the kernel has it, for families that have no form of their own here.

    Stands wherever an operation takes an address, and is what one gives back when its family is
    none of AF_INET, AF_INET6 and AF_UNIX.

    Args:
        encoded: the whole struct sockaddr_*: the family as a native unsigned short, and what
            follows it; 2..128 bytes.

    Raises:
        TypeError, ValueError: it is no bytes object of such a length.
    """

    encoded: bytes = attrs.field()

    @encoded.validator
    def _check(self, _attribute: object, value: object) -> None:
        if not isinstance(value, bytes):
            raise TypeError(f"Sockaddr() takes bytes, not {value!r}")
        if not 2 <= len(value) <= SOCKADDR_MAX:
            raise ValueError(f"a socket address has 2..{SOCKADDR_MAX} bytes, not {len(value)}")

    @property
    def family(self) -> int:
        """The address family: socket.AF_*."""
        return int.from_bytes(self.encoded[:2], sys.byteorder)


Address = tuple[str, int] | tuple[str, int, int, int] | str | bytes | Sockaddr
"""A socket address as the socket module has it (AF_INET, AF_INET6, AF_UNIX), or a `Sockaddr`."""


def sockaddr(address: Address) -> "tuple[CData, int, int]":
    """Pin a socket address as the kernel has it: (pin, address, length)."""
    return _memory.readable(encode_sockaddr(address))


def destination(address: Address) -> tuple[object, int, int]:
    """Pin where a send goes: (pin, ``sqe->addr2``, the field that holds ``sqe->addr_len``)."""
    pin, place, length = sockaddr(address)
    # addr_len is the first half of the 32 bits that file_index has.
    return pin, place, int.from_bytes(struct.pack("=HH", length, 0), sys.byteorder)


def optional_destination(address: Address | None) -> tuple[object, int, int]:
    """The same of a send that may have no address of its own."""
    return (None, 0, 0) if address is None else destination(address)


def encode_sockaddr(address: Address) -> bytes:
    """The bytes of a socket address; its shape tells the family."""
    if isinstance(address, Sockaddr):
        return address.encoded
    if isinstance(address, str | bytes):
        return _encode_unix(os.fsencode(address))
    if not isinstance(address, tuple) or len(address) not in {2, 4}:
        raise TypeError(
            "a socket address is (host, port), (host, port, flowinfo, scope_id), a path or a"
            f" Sockaddr, not {address!r}"
        )
    host, port, *rest = address
    if not isinstance(host, str) or not all(isinstance(n, int) for n in (port, *rest)):
        raise TypeError(f"a host is a str and a port an int, not {address!r}")
    if not 0 <= port <= 65535:
        raise ValueError(f"a port is in 0..65535, not {port}")
    big_port = port.to_bytes(2, "big")
    if len(address) == 2 and ":" not in host:
        return _INET.pack(socket.AF_INET, big_port, _inet_host(host))
    return _encode_inet6(host, big_port, *rest)


def _encode_unix(name: bytes) -> bytes:
    if not name:
        return struct.pack("=H", socket.AF_UNIX)  # no name at all, as the socket module has it
    abstract = name.startswith(b"\0")
    if not abstract and b"\0" in name:
        raise ValueError(f"the socket path {name!r} has a null byte in it")
    if len(name) + (not abstract) > _UNIX_PATH_MAX:
        raise ValueError(f"a socket path has at most {_UNIX_PATH_MAX - 1} bytes, not {len(name)}")
    return struct.pack("=H", socket.AF_UNIX) + name + (b"" if abstract else b"\0")


def _inet_host(host: str) -> bytes:
    if host == "":
        return bytes(4)
    if host == "<broadcast>":
        return b"\xff" * 4
    return _numeric(socket.AF_INET, host)


def _encode_inet6(host: str, port: bytes, flowinfo: int = 0, scope_id: int = 0) -> bytes:
    host, _, zone = host.partition("%")
    packed = _numeric(socket.AF_INET6, host or "::")
    if zone:
        scope_id = int(zone) if zone.isdecimal() else _interface(zone)
    if not 0 <= flowinfo < 2**20 or not 0 <= scope_id <= UINT32_MAX:
        raise ValueError("flowinfo must be in 0..0xfffff and scope_id in 0..0xffffffff")
    return _INET6.pack(socket.AF_INET6, port, flowinfo.to_bytes(4, "big"), packed, scope_id)


def _interface(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise ValueError(f"there is no network interface {name!r}") from None


def _numeric(family: int, host: str) -> bytes:
    try:
        return socket.inet_pton(family, host)
    except OSError:
        raise ValueError(
            f"{host!r} is not a numeric address; a name takes a blocking look-up: resolve it first"
            " with socket.getaddrinfo()"
        ) from None


def decode_sockaddr(encoded: bytes) -> Address | None:
    """
    A socket address as the socket module would return it; None when there is none.

    What is of another family, or was cut off, is a `Sockaddr`.
    """
    length = len(encoded)
    if length < 2:
        return None
    (family,) = struct.unpack_from("=H", encoded)
    if family == socket.AF_INET and length >= _INET.size:
        _, port, host = _INET.unpack_from(encoded)
        return socket.inet_ntop(family, host), int.from_bytes(port, "big")
    if family == socket.AF_INET6 and length >= _INET6.size:
        _, port, flowinfo, host, scope_id = _INET6.unpack_from(encoded)
        numbers = int.from_bytes(port, "big"), int.from_bytes(flowinfo, "big"), scope_id
        return socket.inet_ntop(family, host), *numbers
    if family == socket.AF_UNIX:
        name = encoded[2:]
        return name if name.startswith(b"\0") else os.fsdecode(name.partition(b"\0")[0])
    return Sockaddr(encoded)


class SockaddrRoom:
    """
    Room for an address that the kernel writes: a socklen_t and a sockaddr_storage.

    Belongs to one operation in flight; the decoded address is the caller's.
    """

    __slots__ = ("_memory", "address", "length_address")

    def __init__(self) -> None:
        memory = bytearray(struct.pack("=I", SOCKADDR_MAX).ljust(8 + SOCKADDR_MAX, b"\0"))
        self._memory, self.length_address, _ = _memory.writable(memory)
        self.address = self.length_address + 8

    def decode(self) -> Address | None:
        """The address that the kernel wrote."""
        memory = _memory.bytes_of(self._memory)
        (length,) = struct.unpack_from("=I", memory)
        return decode_sockaddr(memory[8 : 8 + length])
