"""The one door to the compiled module: nobody else imports it."""

import sys

if sys.platform != "linux":
    raise ImportError("uring needs Linux: io_uring is an interface of the Linux kernel")

try:
    from uring._uring import ffi, lib
except ModuleNotFoundError as error:
    raise ImportError(
        "the compiled part of uring is missing: this is a source tree, found before the installed"
        " package; install it with `pip install -e .`, or run Python from another folder"
    ) from error

__all__ = ["ffi", "lib"]
