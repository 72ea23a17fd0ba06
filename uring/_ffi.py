"""
The one door to the compiled module: nobody else imports it.

Here, before anything is loaded, interpreters are refused on which the promise does not hold. Three
habits of CPython with its GIL carry it. Whoever owns memory counts its exports, so what the kernel
uses cannot be unmapped, freed or moved. Threads are switched, and signal handlers run, after calls
only, so stores that stand together are one step (see ring.py). And what nobody refers to any more
ends at once, whichever thread let go of it, so buffers come back to who waits for them.
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

try:
    from uring._uring import ffi, lib
except ModuleNotFoundError as error:
    raise ImportError(
        "the compiled part of uring is missing: this is a source tree, found before the installed"
        " package; install it with `pip install -e .`, or run Python from another folder"
    ) from error

__all__ = ["ffi", "lib"]
