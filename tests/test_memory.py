"""What the kernel may touch: which buffers are taken, how long, and how addresses look to it."""

import array
import ctypes
import errno
import math
import mmap
import os
import socket
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

import uring
from uring import _memory, _sockaddr
from uring._ffi import ffi


def content(pin: Any) -> bytes:
    """The pinned bytes."""
    return bytes(ffi.buffer(pin))


# ---- buffers ----

MAP_NORESERVE: Final = 0x4000  # the mmap module has it from Python 3.12 on
TWO_DIMENSIONS: Final = [3, 4]
WRITABLE: Final[dict[str, Callable[[], Any]]] = {
    "bytearray": lambda: bytearray(b"abcdefghijkl"),
    "memoryview": lambda: memoryview(bytearray(b"abcdefghijkl")),
    "cast": lambda: memoryview(bytearray(b"abcdefghijkl")).cast("I"),
    "slice": lambda: memoryview(bytearray(b"__abcdefghijkl__"))[2:14],
    "two dimensions": lambda: memoryview(bytearray(b"abcdefghijkl")).cast("B", TWO_DIMENSIONS),
    "array": lambda: array.array("H", b"abcdefghijkl"),
    "ctypes array": lambda: (ctypes.c_char * 12).from_buffer_copy(b"abcdefghijkl"),
    "ctypes int array": lambda: (ctypes.c_uint32 * 3).from_buffer_copy(b"abcdefghijkl"),
}


@pytest.mark.parametrize("kind", WRITABLE)
@pytest.mark.parametrize("pinned", [_memory.readable, _memory.writable])
def test_buffer_is_pinned_where_it_is(kind: str, pinned: Callable[..., Any]) -> None:
    """The address is that of the object's own bytes, and the length counts bytes, not items."""
    buffer = WRITABLE[kind]()
    pin, address, length = pinned(buffer)
    assert length == 12
    place = address - _memory.address_of(pin)  # of a slice, in what is pinned
    assert place == (2 if kind == "slice" else 0)
    assert ctypes.string_at(address, 12) == b"abcdefghijkl" == content(pin)[place : place + 12]
    ctypes.memmove(address, b"X", 1)
    assert memoryview(buffer).tobytes()[:1] == b"X"


def test_buffer_readable_takes_bytes_and_read_only_views() -> None:
    """What the kernel only reads may be immutable."""
    for buffer in (b"abc", memoryview(b"abc"), memoryview(bytearray(b"abc")).toreadonly()):
        pin, address, length = _memory.readable(buffer)
        assert (content(pin), length) == (b"abc", 3)
        assert ctypes.string_at(address, 3) == b"abc"


def test_buffer_may_be_empty() -> None:
    """A buffer of no bytes has length 0, for reading and for writing."""
    assert _memory.readable(b"")[2] == 0
    assert _memory.writable(bytearray())[2] == 0


def test_buffer_mmap_is_pinned_and_cannot_be_closed() -> None:
    """Closing an mmap raises BufferError while its pin lives, and works afterwards."""
    memory = mmap.mmap(-1, 4096)
    for pinned in (_memory.readable, _memory.writable):
        pin, _, length = pinned(memory)
        assert length == 4096
        with pytest.raises(BufferError):
            memory.close()
        del pin
    memory.close()


@pytest.mark.parametrize("pinned", [_memory.readable, _memory.writable])
def test_buffer_bytearray_cannot_be_resized_while_the_pin_lives(
    pinned: Callable[..., Any],
) -> None:
    """Resizing raises BufferError until the pin is gone; changing bytes in place works."""
    buffer = bytearray(8)
    pin, _, _ = pinned(buffer)
    resizes: list[Callable[[], object]] = [
        lambda: buffer.append(1),
        lambda: buffer.extend(bytes(64)),
        buffer.clear,
    ]
    for resize in resizes:
        with pytest.raises(BufferError):
            resize()
    buffer[0] = 1
    del pin
    buffer.append(1)
    assert len(buffer) == 9


def test_buffer_view_of_a_bytearray_pins_the_bytearray() -> None:
    """The view that was lent may be released, but the bytearray under it cannot be resized."""
    buffer = bytearray(8)
    view = memoryview(buffer)[2:4]
    pin, _, _ = _memory.writable(view)
    view.release()
    with pytest.raises(BufferError):
        buffer.append(1)
    del pin
    buffer.append(1)


@pytest.mark.parametrize("buffer", ["text", 5, None, 1.5, [1, 2], object()])
@pytest.mark.parametrize("pinned", [_memory.readable, _memory.writable])
def test_buffer_refuses_what_is_no_buffer(buffer: Any, pinned: Callable[..., Any]) -> None:
    """TypeError names what was wanted and the type that came."""
    with pytest.raises(TypeError, match=f"bytes-like object, not {type(buffer).__name__}"):
        pinned(buffer)


@pytest.mark.parametrize(
    "buffer",
    [b"abc", memoryview(b"abc"), memoryview(bytearray(b"abc")).toreadonly()],
    ids=["bytes", "memoryview", "toreadonly"],
)
def test_buffer_refuses_read_only_where_the_kernel_writes(buffer: Any) -> None:
    """TypeError says that the kernel writes into it."""
    with pytest.raises(TypeError, match=r"the kernel writes into the buffer.*read-only"):
        _memory.writable(buffer)


def test_buffer_refuses_read_only_mmap_where_the_kernel_writes(tmp_path: Path) -> None:
    """A file mapped ACCESS_READ can be written from, and not read into."""
    name = tmp_path / "file"
    name.write_bytes(b"x" * 4096)
    with name.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        assert _memory.readable(memory)[2] == 4096
        with pytest.raises(TypeError, match="read-only mmap"):
            _memory.writable(memory)


@pytest.mark.parametrize("pinned", [_memory.readable, _memory.writable])
def test_buffer_refuses_a_strided_view(pinned: Callable[..., Any]) -> None:
    """Every second byte of a bytearray is no contiguous memory: ValueError says so."""
    with pytest.raises(ValueError, match="C-contiguous"):
        pinned(memoryview(bytearray(8))[::2])


@pytest.mark.parametrize("pinned", [_memory.readable, _memory.writable])
def test_buffer_refuses_more_than_32_bits(pinned: Callable[..., Any]) -> None:
    """5 GiB raise ValueError, and nothing stays pinned; a slice of it is taken."""
    with mmap.mmap(-1, 5 << 30, flags=mmap.MAP_PRIVATE | MAP_NORESERVE) as memory:
        try:
            pinned(memory)
        except ValueError as error:  # pytest.raises would keep the frame, and the pin in it
            message = str(error)
        assert "5368709120 bytes" in message
        assert "at most 4294967295" in message
        with memoryview(memory) as view, view[: 2**32 - 1] as part:
            pin, _, length = pinned(part)
            assert length == 2**32 - 1
            del pin


@pytest.mark.parametrize("pinned", [_memory.readable, _memory.writable])
def test_buffer_refuses_what_was_released(pinned: Callable[..., Any]) -> None:
    """A released memoryview and a closed mmap raise ValueError."""
    view = memoryview(bytearray(8))
    view.release()
    with pytest.raises(ValueError, match="released"):
        pinned(view)
    memory = mmap.mmap(-1, 4096)
    memory.close()
    with pytest.raises(ValueError, match="closed"):
        pinned(memory)


# ---- iovecs ----


def parts(address: int, count: int) -> list[bytes]:
    """What an array of struct iovec at `address` describes, as the kernel would read it."""
    numbers = struct.unpack(f"={2 * count}Q", ctypes.string_at(address, 16 * count))
    return [ctypes.string_at(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]


@given(st.lists(st.binary(max_size=9), max_size=20), st.booleans())
def test_iovecs_describe_every_buffer_in_order(buffers: list[bytes], write: bool) -> None:
    """The array holds the address and length of each buffer, empty ones too."""
    given_buffers = [bytearray(buffer) for buffer in buffers]
    pins, address, count = _memory.iovecs(given_buffers, write=write)
    assert parts(address, count) == buffers
    del pins


def test_iovecs_pin_every_buffer() -> None:
    """None of the buffers can be resized while the pins live; all can afterwards."""
    buffers = [bytearray(4), bytearray(4)]
    pins, _, _ = _memory.iovecs(buffers, write=True)
    for buffer in buffers:
        with pytest.raises(BufferError):
            buffer.append(1)
    del pins
    for buffer in buffers:
        buffer.append(1)


def test_iovecs_take_at_most_1024_buffers() -> None:
    """1024 buffers are taken, 1025 raise ValueError with both numbers."""
    assert _memory.iovecs([b"x"] * 1024, write=False)[2] == 1024
    with pytest.raises(ValueError, match="at most 1024 buffers, not 1025"):
        _memory.iovecs([b"x"] * 1025, write=False)


@pytest.mark.parametrize("buffers", [b"ab", bytearray(2), memoryview(b"ab"), "ab"])
@pytest.mark.parametrize("write", [True, False])
def test_iovecs_refuse_one_buffer_in_place_of_several(buffers: Any, write: bool) -> None:
    """One buffer, whose items are no buffers, raises TypeError that says so."""
    with pytest.raises(TypeError, match="a sequence of buffers, not one"):
        _memory.iovecs(buffers, write=write)


def test_iovecs_refuse_one_mmap_in_place_of_several() -> None:
    """A mapping is one buffer: TypeError says so, as it does for a bytearray."""
    with (
        mmap.mmap(-1, 4096) as memory,
        pytest.raises(TypeError, match="a sequence of buffers, not one"),
    ):
        _memory.iovecs(memory, write=False)  # type: ignore[arg-type]  # iterates over single bytes


@pytest.mark.parametrize("buffers", [None, 3, [b"x", None], [b"x", "y"]])
def test_iovecs_refuse_what_are_no_buffers(buffers: Any) -> None:
    """TypeError, for the sequence as for what is in it."""
    with pytest.raises(TypeError):
        _memory.iovecs(buffers, write=False)


def test_iovecs_refuse_a_read_only_part_where_the_kernel_writes() -> None:
    """One read-only buffer among writable ones raises TypeError, and the others are free again."""
    buffer = bytearray(4)
    with pytest.raises(TypeError, match="read-only"):
        _memory.iovecs([buffer, b"ro"], write=True)
    buffer.append(1)


# ---- paths ----


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("a/b", b"a/b"),
        (b"a/b", b"a/b"),
        (Path("a/b"), b"a/b"),
        ("", b""),
        ("\u00e4", "\u00e4".encode()),
        (os.fsdecode(b"\xff\xfe"), b"\xff\xfe"),
    ],
)
def test_path_becomes_a_c_string(name: Any, encoded: bytes) -> None:
    """The pinned bytes are the file system's, undecodable ones too, and one null byte."""
    pin, address = _memory.path(name)
    assert content(pin) == encoded + b"\0"
    assert ctypes.string_at(address) == encoded


@pytest.mark.parametrize("name", ["a\0b", b"a\0b", Path("a\0"), "\0"])
def test_path_refuses_a_null_byte(name: Any) -> None:
    """A name that C would cut off raises ValueError."""
    with pytest.raises(ValueError, match="null byte"):
        _memory.path(name)


@pytest.mark.parametrize("name", [3, None, bytearray(b"a")])
def test_path_refuses_what_is_no_path(name: Any) -> None:
    """A descriptor number, or None, raises TypeError."""
    with pytest.raises(TypeError):
        _memory.path(name)


# ---- times ----


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, 0), (-0.0, 0), (1, 10**9), (0.5, 5 * 10**8), (1e-9, 1), (1e-10, 1), (1.5e-9, 2)],
)
def test_nanoseconds_round_up(seconds: float, expected: int) -> None:
    """Less than a nanosecond is one, so that a wait never ends before its time."""
    assert _memory.nanoseconds(seconds) == expected


@given(st.integers(0, 2**33 - 1) | st.floats(0, 2**33, exclude_max=True))
def test_nanoseconds_are_as_near_as_a_float_is(seconds: float) -> None:
    """The result is the exact one rounded up, within the precision of the float itself."""
    exact = Fraction(seconds) * 10**9
    slack = 0 if isinstance(seconds, int) else exact / 2**52
    assert exact - slack <= _memory.nanoseconds(seconds) < exact + slack + 1


@pytest.mark.parametrize("seconds", [-1, -1e-30, math.nan, math.inf, -math.inf, 2**33, 1e300])
def test_nanoseconds_refuse_what_no_clock_can_tell(seconds: float) -> None:
    """A negative, endless, undefined or huge time raises ValueError."""
    with pytest.raises(ValueError, match=r"must be in 0\.\.2\*\*33"):
        _memory.nanoseconds(seconds)


@pytest.mark.parametrize("seconds", [True, "1", None, Fraction(1, 2), 1j])
def test_nanoseconds_refuse_what_is_no_time(seconds: Any) -> None:
    """What is neither int nor float, and a bool, raise TypeError."""
    with pytest.raises(TypeError, match="an int or a float"):
        _memory.nanoseconds(seconds)


@given(st.integers(0, 2**33 - 1), st.integers(0, 999))
def test_timespec_is_seconds_and_nanoseconds(whole: int, milliseconds: int) -> None:
    """The kernel reads two signed 64-bit numbers, the second below one second."""
    pin, address = _memory.timespec(_memory.nanoseconds(whole))
    assert struct.unpack("=qq", ctypes.string_at(address, 16)) == (whole, 0)
    pin, address = _memory.timespec(_memory.nanoseconds(milliseconds / 1000))
    seconds, nanoseconds = struct.unpack("=qq", content(pin))
    assert seconds == 0
    assert 0 <= nanoseconds - milliseconds * 10**6 <= 1  # 0.267 s is a float just above


# ---- socket addresses ----

LIBC: Final = ctypes.CDLL(None, use_errno=True)


def raw_name(sock: socket.socket, room: int = 128) -> bytes:
    """The address of a socket as the kernel itself writes it."""
    memory = ctypes.create_string_buffer(room)
    length = ctypes.c_uint32(room)
    if LIBC.getsockname(sock.fileno(), memory, ctypes.byref(length)) < 0:
        raise OSError(ctypes.get_errno(), "getsockname")
    return memory.raw[: length.value]


@pytest.fixture
def unix_socket() -> Iterator[socket.socket]:
    """Give an AF_UNIX socket without a name."""
    with socket.socket(socket.AF_UNIX) as sock:
        yield sock


@pytest.mark.parametrize("address", [("127.0.0.1", 0), ("", 0), ("0.0.0.0", 0)])
def test_sockaddr_inet_is_what_the_kernel_has(address: tuple[str, int]) -> None:
    """The encoding of an AF_INET socket's name is the kernel's own, byte for byte, and back."""
    with socket.socket() as sock:
        sock.bind(address)
        raw = raw_name(sock)
        assert _sockaddr.encode_sockaddr(sock.getsockname()) == raw
        assert _sockaddr.encode_sockaddr((address[0], sock.getsockname()[1])) == raw
        assert _sockaddr.decode_sockaddr(raw) == sock.getsockname()


@pytest.mark.parametrize("address", [("::1", 0), ("::1", 0, 0, 0), ("::", 0), ("::1", 0, 0, 1)])
def test_sockaddr_inet6_is_what_the_kernel_has(address: tuple[Any, ...]) -> None:
    """The encoding of an AF_INET6 socket's name is the kernel's own, byte for byte, and back."""
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(address)
        except OSError as error:
            if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                pytest.skip(f"no IPv6 here: {error}")
            raise
        raw = raw_name(sock)
        assert _sockaddr.encode_sockaddr(sock.getsockname()) == raw
        assert _sockaddr.decode_sockaddr(raw) == sock.getsockname()


def test_sockaddr_unix_path_is_what_the_kernel_has(
    tmp_path: Path, unix_socket: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path, as str or as bytes, has the kernel's own encoding with its null byte, and back."""
    monkeypatch.chdir(tmp_path)
    unix_socket.bind("name")
    raw = raw_name(unix_socket)
    assert _sockaddr.encode_sockaddr("name") == _sockaddr.encode_sockaddr(b"name") == raw
    assert _sockaddr.decode_sockaddr(raw) == unix_socket.getsockname() == "name"


def test_sockaddr_unix_abstract_is_what_the_kernel_has(unix_socket: socket.socket) -> None:
    """An abstract name has no null byte at its end, may have one inside, and is bytes again."""
    name = b"\0uring-\0-" + str(os.getpid()).encode()
    unix_socket.bind(name)
    raw = raw_name(unix_socket)
    assert _sockaddr.encode_sockaddr(name) == raw
    assert _sockaddr.encode_sockaddr(name.decode()) == raw
    assert _sockaddr.decode_sockaddr(raw) == unix_socket.getsockname() == name


def test_sockaddr_unix_without_a_name_is_the_empty_string(unix_socket: socket.socket) -> None:
    """The address of an unnamed socket is decoded as the socket module has it."""
    raw = raw_name(unix_socket)
    assert len(raw) == 2
    assert _sockaddr.decode_sockaddr(raw) == unix_socket.getsockname() == ""


@pytest.mark.parametrize("name", ["", b""])
def test_sockaddr_unix_empty_is_not_the_abstract_name_of_one_null_byte(name: Any) -> None:
    """An empty path is refused, or encoded without a name, as the socket module does."""
    try:
        encoded = _sockaddr.encode_sockaddr(name)
    except ValueError:
        return
    assert encoded == struct.pack("=H", socket.AF_UNIX)
    assert encoded != _sockaddr.encode_sockaddr(b"\0")


def test_sockaddr_unix_length_limits() -> None:
    """A path of 107 bytes and an abstract name of 108 fit; one more raises ValueError."""
    assert len(_sockaddr.encode_sockaddr("p" * 107)) == 2 + 108
    assert len(_sockaddr.encode_sockaddr(b"\0" + b"a" * 107)) == 2 + 108
    for name in ("p" * 108, b"\0" + b"a" * 108):
        with pytest.raises(ValueError, match="at most 107 bytes"):
            _sockaddr.encode_sockaddr(name)


def test_sockaddr_unix_refuses_a_null_byte_in_a_path() -> None:
    """A path that C would cut off raises ValueError."""
    with pytest.raises(ValueError, match="null byte"):
        _sockaddr.encode_sockaddr("a\0b")


@given(st.ip_addresses(v=4), st.integers(0, 65535))
def test_sockaddr_inet_round_trip(host: object, port: int) -> None:
    """Every AF_INET address is decoded as it was encoded."""
    address = str(host), port
    assert _sockaddr.decode_sockaddr(_sockaddr.encode_sockaddr(address)) == address


@given(
    st.binary(min_size=16, max_size=16),
    st.integers(0, 65535),
    st.integers(0, 2**20 - 1),
    st.integers(0, 2**32 - 1),
)
def test_sockaddr_inet6_round_trip(host: bytes, port: int, flowinfo: int, scope_id: int) -> None:
    """Every AF_INET6 address is decoded as it was encoded."""
    address = socket.inet_ntop(socket.AF_INET6, host), port, flowinfo, scope_id
    encoded = _sockaddr.encode_sockaddr(address)
    assert len(encoded) == 28
    assert _sockaddr.decode_sockaddr(encoded) == address


def test_sockaddr_inet6_scope_in_the_host() -> None:
    """A scope after `%`, a name or a number, is the scope_id of the four-part address."""
    index = socket.if_nametoindex("lo")
    expected = _sockaddr.encode_sockaddr(("fe80::1", 80, 0, index))
    assert _sockaddr.encode_sockaddr(("fe80::1%lo", 80)) == expected
    assert _sockaddr.encode_sockaddr((f"fe80::1%{index}", 80)) == expected


def test_sockaddr_inet6_unknown_scope_is_a_wrong_argument() -> None:
    """A scope that names no interface raises ValueError, as every wrong argument does."""
    with pytest.raises(ValueError, match="no-such-if"):
        _sockaddr.encode_sockaddr(("fe80::1%no-such-if", 80))


def test_sockaddr_inet_special_hosts() -> None:
    """The empty host is any address and `<broadcast>` all ones, as in the socket module."""
    assert _sockaddr.encode_sockaddr(("", 1))[4:8] == bytes(4)
    assert _sockaddr.encode_sockaddr(("<broadcast>", 1))[4:8] == b"\xff" * 4


@pytest.mark.parametrize(
    "address",
    [
        ("localhost", 80),
        ("127.1", 80),
        ("::g", 80),
        ("127.0.0.1", 80, 0, 0),
        ("127.0.0.1", -1),
        ("127.0.0.1", 65536),
        ("::1", 80, 2**20, 0),
        ("::1", 80, -1, 0),
        ("::1", 80, 0, 2**32),
    ],
)
def test_sockaddr_refuses_values_out_of_range(address: Any) -> None:
    """A host that is a name, and numbers that do not fit, raise ValueError."""
    with pytest.raises(ValueError, match=r"numeric|port|flowinfo"):
        _sockaddr.encode_sockaddr(address)


@pytest.mark.parametrize(
    "address",
    [None, 80, ("127.0.0.1",), ("127.0.0.1", "80"), (b"127.0.0.1", 80), ("::1", 80, 0), ["h", 1]],
)
def test_sockaddr_refuses_other_types(address: Any) -> None:
    """What has not the shape of an address raises TypeError."""
    with pytest.raises(TypeError):
        _sockaddr.encode_sockaddr(address)


def test_sockaddr_of_another_family_is_raw() -> None:
    """A family without a class of address is given as the kernel's bytes, and none as None."""
    raw = struct.pack("=H", socket.AF_NETLINK) + bytes(10)
    assert _sockaddr.decode_sockaddr(raw) == uring.Sockaddr(raw)
    assert _sockaddr.decode_sockaddr(b"") is None


def test_sockaddr_room_is_what_getsockname_fills() -> None:
    """The room tells its size, takes what the kernel writes, and decodes it."""
    room = _sockaddr.SockaddrRoom()
    assert room.decode() == _sockaddr.decode_sockaddr(bytes(128))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        pointers = ctypes.c_void_p(room.address), ctypes.c_void_p(room.length_address)
        assert ctypes.string_at(room.length_address, 4) == struct.pack("=I", 128)
        assert LIBC.getsockname(sock.fileno(), *pointers) == 0
        assert room.decode() == sock.getsockname()


def test_sockaddr_pin_holds_the_encoding() -> None:
    """The pinned address is the encoding, with its length."""
    pin, address, length = _sockaddr.sockaddr(("127.0.0.1", 80))
    assert ctypes.string_at(address, length) == _sockaddr.encode_sockaddr(("127.0.0.1", 80))
    assert len(pin) == length == 16
