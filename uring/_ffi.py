"""
The one door to the compiled module: nobody else imports it.

It opens in the main interpreter alone. Another one may end while the kernel still writes to memory
that is its own, which from CPython 3.12 on goes with it, whoever holds it; and cffi has one module
for all of them.
"""

import sys

if sys.platform != "linux":
    raise ImportError("uring needs Linux: io_uring is an interface of the Linux kernel")


def _is_main_interpreter() -> bool:
    """Whether this is the interpreter that the process has begun with."""
    if sys.implementation.name != "cpython":
        return True
    try:
        import ctypes  # noqa: PLC0415 - some subinterpreters refuse it, too
    except ImportError:
        return False
    current = ctypes.pythonapi.PyInterpreterState_Get
    current.restype = ctypes.c_void_p
    number = ctypes.pythonapi.PyInterpreterState_GetID
    number.restype = ctypes.c_int64
    number.argtypes = [ctypes.c_void_p]
    return bool(number(current()) == 0)


if not _is_main_interpreter():
    raise ImportError(
        "uring cannot be used in a subinterpreter, whose memory may go while the kernel writes to"
        " it: use it in the main interpreter, from any thread, or in a process of its own"
    )

try:
    from uring._uring import ffi, lib
except ModuleNotFoundError as error:
    raise ImportError(
        "the compiled part of uring is missing: this is a source tree, found before the installed"
        " package; install it with `pip install -e .`, or run Python from another folder"
    ) from error

__all__ = ["ffi", "lib"]
