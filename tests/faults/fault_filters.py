"""
Filters of the kernel (seccomp) by which a process forbids itself a system call, or is asked first.

A filter is for exactly the calls that it names and no others, those of a sanitizer's or of an
allocator's own included, and nobody can take it back. It is the calling thread's, and that of each
thread and process which this one starts.
"""

import ctypes
import os
import struct
from collections.abc import Mapping
from typing import Final

_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
MMAP: Final = {"x86_64": 9, "aarch64": 222}.get(os.uname().machine, -1)
MADVISE: Final = {"x86_64": 28, "aarch64": 233}.get(os.uname().machine, -1)
_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}.get(os.uname().machine, -1)
"""The numbers of mmap(2), madvise(2) and seccomp(2), which vary; those of io_uring do not."""

_LOAD, _EQUAL, _ANSWER = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
_ASK: Final = 0x7FC00000  # SECCOMP_RET_USER_NOTIF
_ARCH, _NUMBER, _ARGUMENTS = 4, 0, 16  # where struct seccomp_data has them
_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER


def _install(answer: int, flags: int, number: int, arguments: Mapping[int, int]) -> int:
    """Give the kernel the filter: what seccomp(2) returns, which `flags` may make a descriptor."""
    tests = [
        (_ARCH, _AUDIT_ARCH[os.uname().machine]),  # numbers mean something per architecture only
        (_NUMBER, number),
        *((_ARGUMENTS + 8 * index, value) for index, value in arguments.items()),
    ]
    program = []
    for index, (place, value) in enumerate(tests):
        left = len(tests) - index - 1  # each takes two steps; behind them all is the answer
        program += [(_LOAD, 0, 0, place), (_EQUAL, 0, 2 * left + 1, value & 0xFFFFFFFF)]
    program += [(_ANSWER, 0, 0, answer), (_ANSWER, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    fprog = ctypes.create_string_buffer(
        struct.pack("@HP", len(program), ctypes.addressof(code))  # struct sock_fprog
    )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    pointer = ctypes.c_void_p(ctypes.addressof(fprog))
    returned = int(libc.syscall(_SECCOMP, _SET_MODE_FILTER, flags, pointer))
    if returned < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return returned


def refuse(number: int, error: int, arguments: Mapping[int, int] | None = None) -> None:
    """
    Make the system call `number` fail with `error` from now on.

    `arguments`: only when those with these indices have these values, as 32 bits.
    """
    _install(_ERRNO | error, 0, number, arguments or {})


def ask(number: int) -> int:
    """Have the kernel ask before each system call `number`: the descriptor to be asked by."""
    return _install(_ASK, _NEW_LISTENER, number, {})
