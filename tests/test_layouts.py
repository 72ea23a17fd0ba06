"""
The kernel's structs: each in the data is one that the package has, field by field, or is not used.

The data are offsets that a compiler gave. Of the structs in C the text is read and laid out by
cffi; those that cffi shows are compared as they were compiled, too (test_shim).
"""

import ast
import importlib
import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import cffi
import pytest

import uring
from uring import (
    _file_memory,
    _kernel,
    _memory,
    _messages,
    _structures,
    completions,
    sqe,
)
from uring.operations import _base
from uring.registry import (
    bpf,
    buffer_rings,
    buffers,
    cancel,
    files,
    napi,
    restrictions,
    waits,
    workers,
    zcrx,
)

DATA: Final = Path(__file__).parent / "data"
STRUCTS: Final[dict[str, Any]] = json.loads((DATA / "layouts.json").read_text("ascii"))["structs"]
CONSTANTS: Final[dict[str, int]] = {
    constant["name"]: constant["value"]
    for constant in json.loads((DATA / "uapi.json").read_text("ascii"))["constants"]
}
PACKAGE: Final = Path(uring.__file__).parent
PROBE: Final = importlib.import_module("uring.probe")  # `uring.probe` is the function

Layout = tuple[int, dict[str, tuple[int, int]]]
"""The size, and of each field (where it starts, its size)."""


# ---- what we have ----


@attrs.frozen
class Packed:
    """A `struct.Struct`, with the kernel's names of its fields in their order."""

    code: struct.Struct
    names: str
    zero: str = ""
    """Fields of the kernel's that stay 0, for the reason that stands beside."""

    def layout(self) -> Layout:
        """Set each field alone to ones, and look where they are."""
        names = self.names.split()
        found = {}
        for place, name in enumerate(names):
            values = [0] * len(names)
            for ones in (-1, 2**64 - 1, 2**32 - 1, 2**16 - 1, 2**8 - 1):
                values[place] = ones
                try:
                    packed = self.code.pack(*values)
                except struct.error:
                    continue
                break
            start, size = packed.find(b"\xff"), packed.count(b"\xff")
            assert packed[start : start + size] == b"\xff" * size
            found[name] = start, size
        return self.code.size, found


@attrs.frozen
class InC:
    """A struct of the shim; a name that differs from the kernel's is in RENAMED."""

    tag: str
    zero: str = ""

    def layout(self) -> Layout:
        """Have cffi lay it out."""
        ffi = cffi.FFI()
        for text in c_structs().values():
            if "*" not in text and "pthread" not in text:
                ffi.cdef(text)
        kind: Any = ffi.typeof(f"struct {self.tag}")
        return ffi.sizeof(kind), dict(fields_of(ffi, kind, "", 0))


@attrs.frozen
class Marks:
    """Places that the code names by themselves: only where they start, and the whole size."""

    size: int
    starts: Mapping[str, int]
    zero: str = ""


RENAMED: Final = {"sec": "tv_sec", "nsec": "tv_nsec", "desc": "region_uptr"}


def fields_of(ffi: Any, kind: Any, prefix: str, start: int) -> list[tuple[str, tuple[int, int]]]:
    """The fields of a struct and of those in it."""
    found = []
    for name, field in kind.fields:
        full = prefix + RENAMED.get(name, name)
        offset = start + field.offset
        if field.type.kind == "struct":
            found += fields_of(ffi, field.type, f"{full}.", offset)
        else:
            found.append((full, (offset, ffi.sizeof(field.type))))
    return found


def shim() -> str:
    """The C of the shim, without comments."""
    paths = sorted(path for path in PACKAGE.glob("*.h") if path.name != "_cdef.h")
    text = "".join(path.read_text(encoding="ascii") for path in paths)
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def c_structs() -> dict[str, str]:
    """The structs of the shim by their tags; those that others have in them come first."""
    found = dict(re.findall(r"(?m)^struct (\w+) (\{ *$.*?^\};)", shim(), re.DOTALL))
    order = sorted(found, key=lambda tag: tag != "uring_timespec")
    return {tag: f"struct {tag} {found[tag]}" for tag in order}


def c_numbers() -> dict[str, int]:
    """The named numbers of the shim, as far as they are plain ones."""
    pairs = re.findall(r"(?m)^(?:#define |    )([A-Z]\w+)(?: =)? ([^,;\n]+),? *$", shim())
    found = {}
    for name, text in pairs:
        plain = re.sub(r"(?<=[0-9a-fA-F])[uUlL]+\b", "", text)
        if re.fullmatch(r"[0-9a-fA-Fx<| ]+", plain):
            left = [part.split("<<") for part in plain.split("|")]
            found[name] = sum(
                int(part[0], 0) << (int(part[1], 0) if part[1:] else 0) for part in left
            )
    return found


def marks(prefix: str, names: str) -> dict[str, int]:
    """The offsets that C has under a prefix and the field's name in capitals."""
    numbers = c_numbers()
    return {name: numbers[prefix + name.upper()] for name in names.split()}


def struct_of(bound: Any) -> struct.Struct:
    """The struct.Struct of one of its methods."""
    found = bound.__self__
    assert isinstance(found, struct.Struct)
    return found


_SQE_NAMES: Final = (
    "opcode flags ioprio fd off addr len rw_flags user_data buf_index personality splice_fd_in"
    " addr3 attr_type_mask"
)

# Each struct of the kernel's that the package encodes or decodes, and where.
RECORDS: Final[list[tuple[str, Packed | InC | Marks]]] = [
    ("io_uring_sqe", Packed(sqe._RECORD, _SQE_NAMES)),
    (
        "io_uring_sqe",
        Packed(
            struct_of(_base.pack_lent),
            "opcode flags ioprio fd off addr len rw_flags personality",
            # of these operations; user_data is set in C
            zero="user_data buf_index splice_fd_in addr3 attr_type_mask",
        ),
    ),
    ("io_uring_sqe", Marks(c_numbers()["SQE_SIZE"], marks("SQE_", "fd off addr len user_data"))),
    ("io_uring_cqe", Packed(completions._CQE, "user_data res flags")),
    ("io_uring_cqe", Marks(completions.CQE_SIZE, {})),
    (
        "io_uring_cqe",
        Packed(struct_of(importlib.import_module("uring._completion")._cqe), "user_data res flags"),
    ),
    (
        "io_uring_cqe",
        Marks(c_numbers()["CQE_SIZE"], {"user_data": 0} | marks("CQE_", "res flags")),
    ),
    ("io_uring_params", InC("uring_params")),
    ("io_uring_getevents_arg", InC("uring_getevents_arg")),
    ("__kernel_timespec", InC("uring_timespec")),
    ("__kernel_timespec", Packed(_memory._TIMESPEC, "tv_sec tv_nsec")),
    ("io_uring_reg_wait", InC("uring_reg_wait")),
    ("io_uring_reg_wait", Marks(waits.WAIT_SIZE, {})),
    ("io_uring_mem_region_reg", InC("uring_region_reg")),
    ("io_uring_region_desc", InC("uring_region_desc")),
    ("io_uring_region_desc", Packed(zcrx._REGION, "user_addr size flags id mmap_offset")),
    ("io_uring_files_update", Packed(files._UPDATE, "offset resv fds")),
    ("io_uring_rsrc_register", Packed(files.RSRC_REGISTER, "nr flags resv2 data tags")),
    ("io_uring_rsrc_update2", Packed(files.RSRC_UPDATE2, "offset resv data tags nr resv2")),
    ("io_uring_file_index_range", Packed(files._RANGE, "off len resv")),
    ("io_uring_clone_buffers", Packed(buffers._CLONE, "src_fd flags src_off dst_off nr")),
    ("io_uring_rsrc_update", InC("uring_rsrc_update")),
    ("io_uring_probe", Marks(PROBE._PROBE_SIZE, {"ops_len": 1})),
    ("io_uring_probe_op", Packed(PROBE._PROBE_OP, "op flags")),
    (
        "io_uring_query_hdr",
        Packed(_kernel._QUERY_HEADER, "next_entry query_data query_op size result"),
    ),
    (
        "io_uring_query_opcode",
        Packed(
            _kernel._QUERY_OPCODES,
            "nr_request_opcodes nr_register_opcodes feature_flags ring_setup_flags enter_flags"
            " sqe_flags nr_query_opcodes",
        ),
    ),
    (
        "io_uring_query_zcrx",
        Packed(
            PROBE._QUERY_ZCRX,
            "register_flags area_flags nr_ctrl_opcodes features rq_hdr_size rq_hdr_alignment",
        ),
    ),
    ("io_uring_query_scq", Packed(PROBE._QUERY_SCQ, "hdr_size hdr_alignment")),
    ("io_uring_restriction", Packed(restrictions._RESTRICTION, "opcode sqe_op")),
    ("io_uring_clock_register", Packed(workers._CLOCK, "clockid")),
    (
        "io_uring_sync_cancel_reg",
        Packed(cancel._SYNC_CANCEL, "addr fd flags timeout.tv_sec timeout.tv_nsec opcode"),
    ),
    ("io_uring_napi", Packed(napi._NAPI, "busy_poll_to prefer_busy_poll opcode op_param")),
    (
        "io_uring_buf_reg",
        # min_left is of a kernel that no release of ours has met: the least room that is left in
        # a buffer of an incremental group
        Packed(buffer_rings._BUF_REG, "ring_addr ring_entries bgid flags", zero="min_left"),
    ),
    ("io_uring_buf_status", Packed(buffer_rings._BUF_STATUS, "buf_group head")),
    ("io_uring_buf", Marks(c_numbers()["BUF_SIZE"], marks("BUF_", "addr len bid"))),
    (
        "io_uring_buf_ring",
        Marks(c_numbers()["BUF_SIZE"], {"tail": c_numbers()["BUF_RING_TAIL"]}),
    ),
    ("io_uring_recvmsg_out", Packed(_messages._RECVMSG_OUT, "namelen controllen payloadlen flags")),
    ("io_uring_zcrx_area_reg", Packed(zcrx._AREA, "addr len rq_area_token flags dmabuf_fd")),
    (
        "io_uring_zcrx_ifq_reg",
        Packed(
            zcrx._IFQ,
            "if_idx if_rxq rq_entries flags area_ptr region_ptr offsets.head offsets.tail"
            " offsets.rqes zcrx_id rx_buf_len event_desc",
        ),
    ),
    ("io_uring_zcrx_rqe", Marks(zcrx._RQE_SIZE, {})),
    ("zcrx_ctrl", Packed(zcrx._CONTROL, "zcrx_id op zc_export.zcrx_fd")),
    ("zcrx_ctrl", Packed(zcrx._CONTROL, "zcrx_id op zc_arm_event.event_type")),
    (
        "io_uring_bpf",
        Packed(
            bpf._BPF,
            "cmd_type cmd_flags filter.opcode filter.flags filter.filter_len filter.pdu_size"
            " filter.filter_ptr",
        ),
    ),
    ("open_how", Packed(_file_memory.OPEN_HOW, "flags mode resolve")),
    ("io_uring_attr_pi", Packed(_structures.ATTR_PI, "flags app_tag len addr seed rsvd")),
    ("futex_waitv", Packed(_structures._WAITV, "val uaddr flags __reserved")),
]

# Those that are a field of another one, and compared there.
PARTS: Final = {
    "io_sqring_offsets": ("io_uring_params", "sq_off"),
    "io_cqring_offsets": ("io_uring_params", "cq_off"),
    "io_uring_bpf_filter": ("io_uring_bpf", "filter"),
    "io_uring_zcrx_offsets": ("io_uring_zcrx_ifq_reg", "offsets"),
    "zcrx_ctrl_export": ("zcrx_ctrl", "zc_export"),
    "zcrx_ctrl_flush_rq": ("zcrx_ctrl", "zc_flush"),
    "zcrx_ctrl_arm_event": ("zcrx_ctrl", "zc_arm_event"),
}

_OF_THE_CALLER: Final = "entries of a zero-copy receive are read by the caller, not by the package"
NOT_USED: Final = {
    "io_timespec": "the same as __kernel_timespec, under the name that liburing's header has",
    "io_uring_bpf_ctx": "what a filter program is given; it runs in the kernel",
    "io_uring_mock_create": "a file for the kernel's own tests",
    "io_uring_mock_probe": "a file for the kernel's own tests",
    "io_uring_query_zcrx_event": "`Probe` does not have the events of zero-copy receive",
    "io_uring_task_restriction": "restrictions of a task, for all its rings, are not driven",
    "io_uring_zcrx_cqe": _OF_THE_CALLER,
    "zcrx_event_desc": "`Ring.register_zcrx()` asks for no events",
    "zcrx_stats": "counted where zcrx_event_desc says",
}

# The package's other structs, which the data do not have.
OTHERS: Final = {
    "uring._file_memory._FDS": "two descriptors",
    "uring._memory._iovec": "struct iovec, pointer and size_t",
    "uring._messages._CMSGHDR": "struct cmsghdr of the C library: test_operations_messages",
    "uring._messages._IOVEC": "struct iovec",
    "uring._messages._MSGHDR": "struct msghdr of the C library: test_operations_messages",
    "uring._sockaddr._INET": "struct sockaddr_in",
    "uring._sockaddr._INET6": "struct sockaddr_in6",
    "uring._structures.EPOLL_EVENT": "struct epoll_event: test_operations_polling",
    "uring._structures._SIGINFO": "siginfo_t of the C library: test_operations_processes",
    "uring.aio._cookies._PARTS": "what io packs into a text file's position: test_aio_files",
    "uring.aio._threads._IOVEC": "struct iovec",
    "uring.completions._BIG_CQE": "the two numbers behind a CQE of 16 bytes",
    "uring.operations.socket_commands._INT": "one int, the value of an option",
    "uring.registry.bpf._INSTRUCTION": "struct sock_filter in linux/filter.h",
    "uring.registry.buffers._iovec": "struct iovec",
    "uring.registry.workers._MAX_WORKERS": "two numbers, indexed by WorkerKind",
}

# The shim's own structs, which only the package knows.
OWN_IN_C: Final = {
    *("mixed_place", "uring", "uring_alias", "uring_buffers", "uring_counters", "uring_mark"),
    *("uring_parts", "uring_run", "wait_end"),
}


# ---- every struct has its place ----


def test_every_struct_of_the_kernel_is_compared_or_left_out_with_a_reason() -> None:
    """Each struct in the data is encoded here, part of one that is, or not used; in one list."""
    lists = [{name for name, _ in RECORDS}, set(PARTS), set(NOT_USED)]
    assert set().union(*lists) == set(STRUCTS)
    assert sum(map(len, lists)) == len(STRUCTS)
    assert all(NOT_USED.values())


@pytest.mark.parametrize("name", NOT_USED)
def test_struct_that_is_not_used_is_not_encoded(name: str) -> None:
    """No struct.Struct has such a name beside it, and C does not mention it."""
    for path in (*PACKAGE.rglob("*.py"), *PACKAGE.glob("*.h")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if path.suffix == ".h" or "struct.Struct(" in line:
                assert not re.search(rf"\b{name}\b", line), path


def test_every_struct_in_python_is_known() -> None:
    """Each struct.Struct of the package is compared with the data, or is no io_uring struct."""
    compared = {id(record.code) for _, record in RECORDS if isinstance(record, Packed)}
    others = set()
    for path in sorted(PACKAGE.rglob("[!_]*.py")) + sorted(PACKAGE.rglob("_[!_]*.py")):
        name = ".".join(["uring", *path.relative_to(PACKAGE).with_suffix("").parts])
        for attribute in constants(path):
            value = vars(importlib.import_module(name))[attribute]
            code = getattr(value, "__self__", value)
            if id(code) not in compared:
                others.add(f"{name}.{attribute}")
    assert others == set(OTHERS)


def constants(path: Path) -> list[str]:
    """The names that a module gives to a struct.Struct(...), or to a method of one."""
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if "struct.Struct(" in ast.unparse(node.value):
            found.append(ast.unparse(target))
    return found


def test_every_struct_in_c_is_known() -> None:
    """Each struct of the shim is compared with the data, or its own."""
    compared = {record.tag for _, record in RECORDS if isinstance(record, InC)}
    assert set(c_structs()) == compared | OWN_IN_C
    assert not compared & OWN_IN_C


# ---- every field is at its place ----


def is_reserved(name: str) -> bool:
    """Whether the kernel calls a field padding."""
    last = name.rpartition(".")[2]
    return re.fullmatch(r"_*(resv|rsvd|pad|reserved|empty)\w*", last) is not None


def leaves(name: str) -> dict[str, tuple[int, int]]:
    """The kernel's fields that have a size and no fields in them."""
    fields = STRUCTS[name]["fields"]
    return {
        field: (where["offset"], where["size"])
        for field, where in fields.items()
        if where["size"] and not any(other.startswith(f"{field}.") for other in fields)
    }


@pytest.mark.parametrize(("name", "record"), RECORDS, ids=lambda value: str(value)[:40])
def test_record_is_the_kernels(name: str, record: Packed | InC | Marks) -> None:
    """Ours has the kernel's size, and each field starts where the kernel's does, as long as it."""
    theirs = leaves(name)
    if isinstance(record, Marks):
        assert record.size == STRUCTS[name]["size"]
        assert record.starts == {field: theirs[field][0] for field in record.starts}
        return
    size, ours = record.layout()
    assert size == STRUCTS[name]["size"]
    shown = {field: where for field, where in ours.items() if field in theirs}
    assert shown == {field: theirs[field] for field in shown}
    assert all(is_reserved(field) for field in set(ours) - set(theirs))


@pytest.mark.parametrize(
    ("name", "record"),
    [pair for pair in RECORDS if not isinstance(pair[1], Marks)],
    ids=lambda value: str(value)[:40],
)
def test_record_leaves_nothing_out(name: str, record: Packed | InC) -> None:
    """Each byte of the kernel's that is no padding is one of ours, or said to stay 0."""
    _, ours = record.layout()
    covered = [place for start, size in ours.values() for place in range(start, start + size)]
    assert len(covered) == len(set(covered))
    theirs = leaves(name)
    zero = set(record.zero.split())
    places = set(covered) | {place for field in zero for place in span(theirs[field])}
    for field, where in theirs.items():
        assert is_reserved(field) or set(span(where)) <= places, field
    assert not set(covered) & {place for field in zero for place in span(theirs[field])}


def span(where: tuple[int, int]) -> range:
    """The bytes of a field."""
    start, size = where
    return range(start, start + size)


@pytest.mark.parametrize(("name", "place"), PARTS.items(), ids=str)
def test_part_has_its_layout_inside_the_whole(name: str, place: tuple[str, str]) -> None:
    """In the data the inner struct's fields lie in the outer one as they lie by themselves."""
    outer, field = place
    fields = STRUCTS[outer]["fields"]
    start = fields[field]["offset"]
    assert fields[field]["size"] == STRUCTS[name]["size"]
    inner = {
        part.removeprefix(f"{field}."): (where["offset"] - start, where["size"])
        for part, where in fields.items()
        if part.startswith(f"{field}.")
    }
    assert inner == {
        part: (where["offset"], where["size"]) for part, where in STRUCTS[name]["fields"].items()
    }


# ---- the numbers that C has by itself ----

PREFIXES: Final = {
    "SETUP_": "IORING_SETUP_",
    "FEAT_": "IORING_FEAT_",
    "ENTER_": "IORING_ENTER_",
    "SQ_": "IORING_SQ_",
    "CQ_": "IORING_CQ_",
    "CQE_": "IORING_CQE_F_",
    "OFF_": "IORING_OFF_",
    "REGISTER_": "IORING_REGISTER_",
    "UNREGISTER_": "IORING_UNREGISTER_",
    "MEM_REGION_": "IORING_MEM_REGION_TYPE_",
}
SPELLED_OTHERWISE: Final = {
    "CQE_F_32": ("IORING_CQE_F_32",),
    "MEM_REGION_WAITS": ("IORING_MEM_REGION_REG_WAIT_ARG",),
    "OFF_RING": ("IORING_OFF_SQ_RING",),
    "SQE_IO_LINKED": ("IOSQE_IO_LINK", "IOSQE_IO_HARDLINK"),
}
_OFFSETS: Final = {"CQE_SIZE", "CQE_RES", "CQE_FLAGS"}  # compared above


def test_numbers_in_c_are_the_kernels() -> None:
    """Each number of the shim that has a name of the kernel's has the kernel's value."""
    checked = 0
    for name, value in c_numbers().items():
        prefix = name[: name.find("_") + 1]
        prefix = "MEM_REGION_" if name.startswith("MEM_REGION_") else prefix
        names = SPELLED_OTHERWISE.get(name)
        if names is None and prefix in PREFIXES and name not in _OFFSETS:
            names = (name.replace(prefix, PREFIXES[prefix], 1),)
        if names is not None:
            assert value == sum(CONSTANTS[each] for each in names), name
            checked += 1
    assert checked >= 20
