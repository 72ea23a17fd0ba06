"""The kernel's numbers: every constant of the header is ours, and nothing of ours is invented."""

import json
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Final, TypedDict

import pytest

from uring import flags

DATA: Final = Path(__file__).parent / "data" / "uapi.json"


class Constant(TypedDict):
    """One #define or enumerator of linux/io_uring.h and the headers beside it."""

    name: str
    value: int
    group: str
    since: str | None


CONSTANTS: Final[list[Constant]] = json.loads(DATA.read_text(encoding="ascii"))["constants"]

# Left out on purpose:
# - group "mock" is linux/io_uring/mock_file.h, a file for the kernel's own tests;
# - sentinels count the members of an enumeration and change with every release;
# - the IOSQE_*_BIT numbers are the positions of the IOSQE_* flags, which are what a SQE holds.
OMITTED_GROUPS: Final = {"mock", "sentinel"}
SENTINELS: Final = {"__ZCRX_EVENT_TYPE_LAST", "__ZCRX_CTRL_LAST", "__IO_URING_QUERY_MAX"}

# The kernel's prefix -> the enumeration; the longest prefix that fits wins.
PREFIXES: Final[dict[str, tuple[tuple[str, type[flags._Since]], ...]]] = {
    "op": (("IORING_OP_", flags.Opcode),),
    "sqe_flag": (("IOSQE_", flags.SQEFlags),),
    "setup_flag": (("IORING_SETUP_", flags.SetupFlags),),
    "feature": (("IORING_FEAT_", flags.Features),),
    "enter_flag": (("IORING_ENTER_", flags.EnterFlags),),
    "sq_ring_flag": (("IORING_SQ_", flags.SQRingFlags),),
    "cq_ring_flag": (("IORING_CQ_", flags.CQRingFlags),),
    "cqe_flag": (("IORING_CQE_F_", flags.CQEFlags),),
    "register": (("IORING_", flags.RegisterOpcode),),
    "fsync_flag": (("IORING_FSYNC_", flags.FsyncFlags),),
    "timeout_flag": (("IORING_TIMEOUT_", flags.TimeoutFlags), ("IORING_", flags.TimeoutFlags)),
    "poll_flag": (("IORING_POLL_", flags.PollFlags),),
    "cancel_flag": (("IORING_ASYNC_CANCEL_", flags.CancelFlags),),
    "splice_flag": (("SPLICE_F_", flags.SpliceFlags),),
    "recvsend_ioprio": (("IORING_", flags.SendRecvFlags),),
    "accept_ioprio": (("IORING_ACCEPT_", flags.AcceptFlags),),
    "msg_ring_cmd": (("IORING_MSG_", flags.MsgRingCommand),),
    "msg_ring_flag": (("IORING_MSG_RING_", flags.MsgRingFlags),),
    "install_fd_flag": (("IORING_FIXED_FD_", flags.FixedFdFlags),),
    "nop_flag": (("IORING_NOP_", flags.NopFlags),),
    "uring_cmd_flag": (("IORING_URING_CMD_", flags.UringCmdFlags),),
    "socket_cmd": (("SOCKET_URING_OP_", flags.SocketCommand),),
    "rw_attr": (("IORING_RW_ATTR_FLAG_", flags.RwAttrFlags),),
    "mmap_offset": (("IORING_OFF_", flags.MmapOffset),),
    "rsrc": (("IORING_RSRC_REGISTER_", flags.RsrcFlags),),
    "probe_flag": (("IO_URING_OP_", flags.ProbeFlags),),
    "iowq": (("IO_WQ_", flags.WorkerKind),),
    "mem_region": (
        ("IORING_MEM_REGION_TYPE_", flags.MemRegionTypeFlags),
        ("IORING_MEM_REGION_", flags.MemRegionFlags),
    ),
    "clone_buffers_flag": (("IORING_REGISTER_", flags.CloneBuffersFlags),),
    "pbuf": (("IOU_PBUF_RING_", flags.PbufRingFlags),),
    "napi": (
        ("IO_URING_NAPI_TRACKING_", flags.NapiTracking),
        ("IO_URING_NAPI_", flags.NapiOpcode),
    ),
    "restriction": (("IORING_RESTRICTION_", flags.RestrictionOpcode),),
    "reg_wait": (("IORING_REG_WAIT_", flags.RegWaitFlags),),
    "query": (("IO_URING_QUERY_", flags.QueryOpcode),),
    "bpf": (
        ("IO_URING_BPF_FILTER_", flags.BpfFilterFlags),
        ("IO_URING_BPF_CMD_", flags.BpfCommand),
    ),
    "zcrx": (
        ("IORING_ZCRX_AREA_", flags.ZcrxAreaFlags),
        ("ZCRX_REG_", flags.ZcrxRegisterFlags),
        ("ZCRX_FEATURE_", flags.ZcrxFeatures),
        ("ZCRX_EVENT_", flags.ZcrxEvent),
        ("ZCRX_EVENT_DESC_FLAG_", flags.ZcrxEventFlags),
        ("ZCRX_CTRL_", flags.ZcrxControl),
    ),
}

# What is no member of an enumeration but a number by itself: the kernel's name without IORING_.
LONE: Final = {
    "CQE_BUFFER_SHIFT",
    "FILE_INDEX_ALLOC",
    "NOTIF_USAGE_ZC_COPIED",
    "REGISTER_FILES_SKIP",
    "REGISTER_USE_REGISTERED_RING",
    "TIMESTAMP_HW_SHIFT",
    "TIMESTAMP_TYPE_SHIFT",
    "ZCRX_AREA_MASK",
    "ZCRX_AREA_SHIFT",
}


MOCK: Final = {
    *("IORING_MOCK_FEAT_CMD_COPY", "IORING_MOCK_FEAT_RW_ZERO", "IORING_MOCK_FEAT_RW_NOWAIT"),
    *("IORING_MOCK_FEAT_RW_ASYNC", "IORING_MOCK_FEAT_POLL", "IORING_MOCK_FEAT_END"),
    *("IORING_MOCK_CREATE_F_SUPPORT_NOWAIT", "IORING_MOCK_CREATE_F_POLL"),
    *("IORING_MOCK_MGR_CMD_PROBE", "IORING_MOCK_MGR_CMD_CREATE"),
    *("IORING_MOCK_CMD_COPY_REGBUF", "IORING_MOCK_COPY_FROM"),
}
# What a sentinel counts. They are in the header for the kernel's own arrays.
COUNTED: Final[dict[str, type[IntEnum]]] = {
    "IORING_OP_LAST": flags.Opcode,
    "IORING_REGISTER_LAST": flags.RegisterOpcode,
    "IORING_RESTRICTION_LAST": flags.RestrictionOpcode,
    "__ZCRX_EVENT_TYPE_LAST": flags.ZcrxEvent,
    "__ZCRX_CTRL_LAST": flags.ZcrxControl,
    "__IO_URING_QUERY_MAX": flags.QueryOpcode,
}


def wanted() -> list[Constant]:
    """Every constant of the header that ours must have."""
    return [
        constant
        for constant in CONSTANTS
        if constant["group"] not in OMITTED_GROUPS
        and constant["name"] not in SENTINELS
        and not (constant["group"] == "sqe_flag" and constant["name"].endswith("_BIT"))
    ]


def place(constant: Constant) -> tuple[type[flags._Since], str] | None:
    """The enumeration and the name that the constant has here; None for a lone number."""
    name = constant["name"]
    if name.removeprefix("IORING_") in LONE:
        return None
    fitting = [pair for pair in PREFIXES[constant["group"]] if name.startswith(pair[0])]
    prefix, enumeration = max(fitting, key=lambda pair: len(pair[0]))
    ours = name.removeprefix(prefix)
    return enumeration, f"F_{ours}" if ours[0].isdigit() else ours


MEMBERS: Final = [constant for constant in wanted() if place(constant)]


@pytest.mark.parametrize("constant", MEMBERS, ids=lambda constant: constant["name"])
def test_flags_have_the_kernels_name_value_and_release(constant: Constant) -> None:
    """The constant is a member of its enumeration with the header's value and first release."""
    found = place(constant)
    assert found
    enumeration, name = found
    member = enumeration.__members__[name]  # type: ignore[attr-defined]  # of the enumerations
    assert (int(member), member.since) == (constant["value"], constant["since"])


@pytest.mark.parametrize("name", sorted(LONE))
def test_flags_have_the_lone_numbers_of_the_header(name: str) -> None:
    """A number outside the enumerations has the header's value, and its docstring the release."""
    (constant,) = (c for c in CONSTANTS if c["name"] == f"IORING_{name}")
    assert getattr(flags, name) == constant["value"]
    text = Path(flags.__file__).read_text(encoding="utf-8").partition(f"\n{name}: ")[2]
    assert f"(kernel {constant['since']})" in text.split('"""')[1]


def test_flags_have_no_member_that_the_header_lacks() -> None:
    """Every member and every number of ours stands for exactly one constant of the header."""
    ours: set[object] = {
        (enumeration, name)
        for enumeration in vars(flags).values()
        if isinstance(enumeration, type) and issubclass(enumeration, IntEnum | IntFlag)
        for name in enumeration.__members__
    }
    theirs = [place(constant) for constant in MEMBERS]
    assert ours == set(theirs)
    assert len(theirs) == len(set(theirs))
    assert {name for name in vars(flags) if name.isupper()} == LONE


def test_flags_leave_out_only_what_is_said() -> None:
    """Of the constants of the header, those that are not ours are listed above, each by name."""
    bits = {f"IOSQE_{flag.name}_BIT" for flag in flags.SQEFlags}
    ours = {constant["name"] for constant in wanted()}
    assert {c["name"] for c in CONSTANTS} - ours == MOCK | set(COUNTED) | bits
    assert len(CONSTANTS) == len(ours) + len(MOCK) + len(COUNTED) + len(bits) == 300


def test_flags_are_as_many_as_the_header_counts() -> None:
    """Each sentinel is behind the last member of its enumeration; a bit's number is its flag's."""
    values = {constant["name"]: constant["value"] for constant in CONSTANTS}
    for name, enumeration in COUNTED.items():
        assert max(enumeration) + 1 == len(enumeration) == values[name]
    for flag in flags.SQEFlags:
        assert 1 << values[f"IOSQE_{flag.name}_BIT"] == flag


def test_flags_say_which_enumerations_are_bits() -> None:
    """An enumeration named Flags, or Features, combines with `|`; every other one does not."""
    for name, enumeration in vars(flags).items():
        if isinstance(enumeration, type) and issubclass(enumeration, IntEnum | IntFlag):
            is_bits = name.endswith(("Flags", "Features", "_Bits", "IntFlag"))
            assert issubclass(enumeration, IntFlag) is is_bits, name


def test_flags_combined_have_no_release() -> None:
    """A combination of flags keeps its class and has `since` None, also when made twice."""
    for _ in range(2):
        both = flags.SetupFlags.SQPOLL | flags.SetupFlags.IOPOLL
        assert type(both) is flags.SetupFlags
        assert both.since is None
    assert flags.SQEFlags(0).since is None
    assert flags.SetupFlags.SQPOLL.since == "5.1"


def test_flags_keep_bits_that_have_no_name() -> None:
    """A bit that a newer kernel may set survives in the enumeration as it is."""
    assert int(flags.CQEFlags(0x40)) == 0x40
    assert int(flags.Features(1 << 31) | flags.Features.NODROP) == 1 << 31 | 2
