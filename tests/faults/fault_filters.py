"""
Filters of the kernel (seccomp) by which a process forbids itself a system call.

A filter fails exactly the calls that it names and no others, those of a sanitizer's or of an
allocator's own included, and nobody can take it back.
"""

import ctypes
import os
import struct
from collections.abc import Mapping
from typing import Final

_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
MMAP: Final = {"x86_64": 9, "aarch64": 222}.get(os.uname().machine, -1)
"""The number of mmap(2), which varies; those of io_uring do not."""

_LOAD, _EQUAL, _ANSWER = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
_ARCH, _NUMBER, _ARGUMENTS = 4, 0, 16  # where struct seccomp_data has them
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2


def refuse(number: int, error: int, arguments: Mapping[int, int] | None = None) -> None:
    """
    Make the system call `number` fail with `error` in this process from now on.

    `arguments`: only when those with these indices have these values, as 32 bits.
    """
    tests = [
        (_ARCH, _AUDIT_ARCH[os.uname().machine]),  # numbers mean something per architecture only
        (_NUMBER, number),
        *((_ARGUMENTS + 8 * index, value) for index, value in (arguments or {}).items()),
    ]
    program = []
    for index, (place, value) in enumerate(tests):
        left = len(tests) - index - 1  # each takes two steps; behind them all is the one that fails
        program += [(_LOAD, 0, 0, place), (_EQUAL, 0, 2 * left + 1, value & 0xFFFFFFFF)]
    program += [(_ANSWER, 0, 0, _ERRNO | error), (_ANSWER, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    fprog = ctypes.create_string_buffer(
        struct.pack("@HP", len(program), ctypes.addressof(code))  # struct sock_fprog
    )
    libc = ctypes.CDLL(None, use_errno=True)
    pointer = ctypes.c_void_p(ctypes.addressof(fprog))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, pointer, 0, 0
    ):
        raise OSError(ctypes.get_errno(), "prctl")
