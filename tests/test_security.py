"""What SECURITY.md says about restricted rings, and about rings as such: the kernel is asked."""

import builtins
import ctypes
import errno
import mmap
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

import uring
from uring import SQE, Fixed, Opcode, Restriction, Ring, SetupFlags, SQEFlags

SECURITY: Final = Path(__file__).parent.parent / "SECURITY.md"
FIXED: Final = Restriction.sqe_flags_required(SQEFlags.FIXED_FILE)
CONTENT: Final = b"some bytes"
OPENAT: Final = {"x86_64": 257, "aarch64": 56}


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """Give a file with a few bytes."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@contextmanager
def restricted(file: int, *rules: Restriction | Iterable[Restriction]) -> Iterator[Ring]:
    """Give a ring with one registered file and one buffer, under these restrictions."""
    with Ring(8, flags=SetupFlags.R_DISABLED) as ring:
        ring.register_files([file])
        ring.register_buffers([bytearray(64)])
        ring.register_restrictions(rules)
        ring.enable()
        yield ring


def res(ring: Ring, op: uring.Operation | SQE) -> int:
    """Queue one operation, and give its result."""
    ring.queue(op)
    ring.submit()
    return ring.copy_cqe(timeout=10).res


def test_security_names_what_there_is() -> None:
    """Each link is a file of the repository, and each name of a method or class is there."""
    text = SECURITY.read_text(encoding="utf-8")
    paths = re.findall(r"\]\((\w[\w/.]*)\)", text)
    assert paths
    assert all((SECURITY.parent / path).exists() for path in paths)
    owners = (uring, Ring, Restriction, builtins)
    names = re.findall(r"`(?:Ring\.)?([a-z_]+)\([A-Z_]*\)`", text)
    names += re.findall(r"`([A-Z][A-Za-z]+)`", text)
    assert {"Openat", "RuntimeWarning", "register_restrictions", "allow_opcode"} <= {*names}
    for name in names:
        assert any(hasattr(each, name) for each in owners), name


def test_without_an_allowed_opcode_nothing_is_allowed(file: int) -> None:
    """What is required is no permission: READ of a registered file is refused, and NOP."""
    with restricted(file, FIXED) as ring:
        assert res(ring, uring.Nop()) == -errno.EACCES
        assert res(ring, uring.Read(Fixed(0), bytearray(16))) == -errno.EACCES


def test_without_required_flags_any_descriptor_is_read(file: int) -> None:
    """An allowed READ reads what is not registered, and may not even have FIXED_FILE."""
    with restricted(file, Restriction.allow_opcode(uring.Read)) as ring:
        assert res(ring, uring.Read(file, bytearray(16))) == len(CONTENT)
        assert res(ring, uring.Read(Fixed(0), bytearray(16))) == -errno.EACCES


@pytest.mark.parametrize("flag", [SQEFlags.ASYNC, SQEFlags.IO_LINK, SQEFlags.IO_DRAIN])
def test_flags_that_are_neither_allowed_nor_required_are_refused(file: int, flag: SQEFlags) -> None:
    """With FIXED_FILE required, any other flag is refused until it is allowed."""
    op = uring.Read(Fixed(0), bytearray(16), flags=flag)
    read = Restriction.allow_opcode(op)
    with restricted(file, read, FIXED) as ring:
        assert res(ring, op) == -errno.EACCES
    with restricted(file, read, FIXED, Restriction.sqe_flags_allowed(flag)) as ring:
        assert res(ring, op) == len(CONTENT)


def test_operations_without_a_file_need_the_flag_for_nothing(file: int) -> None:
    """NOP is refused where FIXED_FILE is required; a raw one that has the flag is not."""
    with restricted(file, Restriction.allow_opcode(Opcode.NOP), FIXED) as ring:
        assert res(ring, uring.Nop()) == -errno.EACCES
        assert res(ring, SQE(Opcode.NOP, flags=SQEFlags.FIXED_FILE)) == 0


def test_splice_takes_its_input_from_any_descriptor(pipe: tuple[int, int], tmp_path: Path) -> None:
    """The required FIXED_FILE is of the output of SPLICE; the input is not registered."""
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    with restricted(target, Restriction.allow_opcode(Opcode.SPLICE), FIXED) as ring:
        os.write(pipe[1], CONTENT)
        op = uring.Splice(fd_in=pipe[0], fd_out=Fixed(0), length=len(CONTENT))
        assert res(ring, op) == len(CONTENT)
    assert os.pread(target, 16, 0) == CONTENT
    os.close(target)


def test_raw_read_writes_anywhere_and_read_fixed_does_not(file: int) -> None:
    """A raw READ writes to any address; READ_FIXED is EFAULT outside the registered buffer."""
    memory = ctypes.create_string_buffer(16)
    address = ctypes.addressof(memory)
    for opcode, wanted in ((Opcode.READ, 8), (Opcode.READ_FIXED, -errno.EFAULT)):
        memory.raw = bytes(16)
        with restricted(file, Restriction.allow_opcode(opcode), FIXED) as ring:
            found = res(ring, SQE(opcode, SQEFlags.FIXED_FILE, addr=address, len=8))
        assert (found, memory.raw[:8] == CONTENT[:8]) == (wanted, wanted == 8)


def test_personalities_from_before_may_be_used(file: int) -> None:
    """One that was registered before enable() is taken; another number is EINVAL."""
    with Ring(8, flags=SetupFlags.R_DISABLED) as ring:
        number = ring.register_personality().id
        ring.register_restrictions([Restriction.allow_opcode(uring.Read)])
        ring.enable()
        with pytest.raises(uring.RegisterError, match="restriction"):
            ring.register_personality()
        read = uring.Read(file, bytearray(16), personality=number)
        assert res(ring, read) == len(CONTENT)
        read = uring.Read(file, bytearray(16), personality=number + 1)
        assert res(ring, read) == -errno.EINVAL


def test_messages_of_other_rings_come_in(file: int) -> None:
    """A ring that may do nothing but READ gets completions that another ring posts."""
    read = Restriction.allow_opcode(uring.Read)
    with restricted(file, read) as ring, Ring(2) as outside:
        outside.send_message(ring, target_user_data=5, target_res=6)
        assert res(outside, uring.MsgRing(ring, target_user_data=7, target_res=8)) == 0
        assert [(cqe.user_data, cqe.res) for cqe in ring.copy_cqes()] == [(5, 6), (7, 8)]


def test_attached_rings_are_not_restricted(file: int) -> None:
    """attach_wq of a restricted ring makes one that can do all."""
    with (
        restricted(file, Restriction.allow_opcode(uring.Read)) as ring,
        Ring(2, attach_wq=ring) as attached,
    ):
        assert res(attached, uring.Nop()) == 0


UNSEEN: Final = """
import errno, os, sys, uring
from fault_filters import refuse
path, openat = sys.argv[1], int(sys.argv[2])
with uring.Ring(2) as ring:
    refuse(openat, errno.EPERM)
    try:
        os.open(path, os.O_RDONLY)
    except PermissionError:
        print("refused")
    fd = ring.run([uring.Openat(path)])[0].result()
    print(os.read(fd, 100).decode())
    os.close(fd)
"""


def test_a_truncated_mapping_is_an_error_and_no_crash(file: int, tmp_path: Path) -> None:
    """Reading into an mmap of a file that has become empty is EFAULT."""
    path = tmp_path / "mapped"
    path.write_bytes(bytes(mmap.PAGESIZE))
    with (
        path.open("r+b") as opened,
        Ring(2) as ring,
        mmap.mmap(opened.fileno(), 0) as mapped,
    ):
        os.truncate(path, 0)
        assert res(ring, uring.Read(file, mapped)) == -errno.EFAULT


def test_seccomp_filters_do_not_see_operations(tmp_path: Path) -> None:
    """Where openat(2) is EPERM, Openat opens the file all the same."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    command = [sys.executable, "-W", "error", "-c", UNSEEN, str(path)]
    done = subprocess.run(
        [*command, str(OPENAT[platform.machine()])],
        cwd=Path(__file__).parent / "faults",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"refused\n{CONTENT.decode()}\n", "")
