"""The one door to the compiled module: nobody else imports it."""

import sys

if sys.platform != "linux":
    raise ImportError("uring needs Linux: io_uring is an interface of the Linux kernel")

from uring._uring import ffi, lib

__all__ = ["ffi", "lib"]
