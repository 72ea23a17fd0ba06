"""Builds uring._uring: cffi reads uring/_cdef.h, the compiler reads the C in uring/."""

import sysconfig
from pathlib import Path

from cffi import FFI
from setuptools import Extension
from setuptools.command.build_ext import build_ext

if sysconfig.get_config_var("Py_GIL_DISABLED"):
    raise SystemExit("uring needs the GIL: build it with a CPython that is not free-threaded")

_PACKAGE = Path(__file__).parent / "uring"

ffibuilder = FFI()
ffibuilder.cdef((_PACKAGE / "_cdef.h").read_text())
ffibuilder.set_source("uring._uring", '#include "_buffers.h"', py_limited_api=True)


class BuildShim(build_ext):
    """build_ext that has cffi write the C source before it is compiled."""

    def build_extension(self, ext: Extension) -> None:
        """Write the source into the build folder, then compile it with the package's headers."""
        source = Path(self.build_temp) / "_uring.c"
        source.parent.mkdir(parents=True, exist_ok=True)
        ffibuilder.emit_c_code(str(source))
        ext.sources = [str(source)]
        ext.include_dirs = [str(_PACKAGE)]
        super().build_extension(ext)
