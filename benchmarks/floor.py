"""The C floor: compiles floor.c, and says to ctypes what is in it."""

import ctypes
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from array import array

SOURCE = Path(__file__).with_name("floor.c")
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC"]
INT, UNSIGNED, ULONG, POINTER = (
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_uint64,
    ctypes.c_void_p,
)
ARGUMENTS = {
    "floor_open": [UNSIGNED],
    "floor_nop": [POINTER, UNSIGNED, UNSIGNED, UNSIGNED],
    "floor_read": [
        *(POINTER, UNSIGNED, UNSIGNED, INT, POINTER, UNSIGNED, POINTER, UNSIGNED, UNSIGNED),
    ],
    "floor_chain": [POINTER, UNSIGNED, INT, ULONG, UNSIGNED],
    "floor_echo": [POINTER, UNSIGNED, POINTER, POINTER, UNSIGNED, UNSIGNED, UNSIGNED],
    "floor_client": [POINTER, UNSIGNED, UNSIGNED],
}


def build(folder: Path) -> Path:
    """Compile floor.c into a shared library in `folder`."""
    library = folder / "floor.so"
    compiler = os.environ.get("CC", "gcc")
    subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(library)], check=True)
    return library


def load(library: Path) -> ctypes.CDLL:
    """Open the library, with the types of its functions."""
    floor = ctypes.CDLL(str(library), use_errno=True)
    for name, arguments in ARGUMENTS.items():
        function = getattr(floor, name)
        function.argtypes = arguments
        function.restype = {"floor_open": POINTER, "floor_client": INT}.get(name, ctypes.c_int64)
    return floor


def numbers(values: "array[int]") -> int:
    """Return the address of the numbers in an array, which must outlive its use."""
    return values.buffer_info()[0]


def address(buffer: object) -> int:
    """Return the address of a writable buffer, which must outlive its use."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))  # type: ignore[arg-type]  # ctypes checks it itself
