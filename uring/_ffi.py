"""
The one door to the compiled module: nobody else imports it.

Here, before anything is loaded, interpreters are refused on which the promise does not hold. Three
habits of CPython with its GIL carry it. Whoever owns memory counts its exports, so what the kernel
uses cannot be unmapped, freed or moved. Threads are switched, and signal handlers run, after calls
only, so stores that stand together are one step (see ring.py). And what nobody refers to any more
ends at once, whichever thread let go of it, so buffers come back to who waits for them.

It opens in the main interpreter alone. Another one may end while the kernel still writes to memory
that is its own, which from CPython 3.12 on goes with it, whoever holds it; and cffi has one module
for all of them.
"""

import sys

if sys.platform != "linux":
    raise ImportError("uring needs Linux: io_uring is an interface of the Linux kernel")
if sys.implementation.name != "cpython":
    raise ImportError(
        f"uring needs CPython, and this is {sys.implementation.name}: only CPython is known to keep"
        " a program from unmapping an mmap, or resizing an array, while the kernel writes into its"
        " memory, and threads from coming between any two steps of a ring; run the program with"
        " CPython 3.11 or newer"
    )
if "t" in sys.abiflags:
    raise ImportError(
        "uring needs the GIL, and this CPython is free-threaded: without the GIL threads could"
        " change a ring in the middle of each other's steps, and even with PYTHON_GIL=1 a buffer"
        " that one thread lets go of would come back only when another wakes; run the program with"
        " an ordinary build (python3.14, say, instead of python3.14t)"
    )


def _is_main_interpreter() -> bool:
    """Whether this is the interpreter that the process has begun with."""
    try:
        import ctypes  # noqa: PLC0415 - some subinterpreters refuse it, too
    except ModuleNotFoundError:  # a Python built without it, of which nothing can be told
        return True
    except ImportError:
        return False
    python = ctypes.PyDLL(None)  # with functions of its own: those of pythonapi are everybody's
    current = python.PyInterpreterState_Get
    current.restype = ctypes.c_void_p
    number = python.PyInterpreterState_GetID
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
