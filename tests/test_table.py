"""The table of the kernel's interface: it is whole, it is true, and the kept one is not stale."""

import ast
import contextlib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

import uring
from uring import _setup, _table, flags
from uring._ffi import lib
from uring.flags import Features, Opcode, RegisterOpcode, SetupFlags, SQEFlags
from uring.registry import zcrx

ROOT: Final = Path(__file__).parent.parent
KEPT: Final = ROOT / "docs" / "kernel-interface.md"
COMMAND: Final = "python -m uring --table --no-probe > docs/kernel-interface.md"
PROBE: Final = uring.Probe(
    release="6.1",
    opcodes=frozenset({Opcode.NOP}),
    features=Features.NODROP,
    setup_flags=SetupFlags.IOPOLL,
    last_register_opcode=None,
)

ALL: Final[tuple[_table._Member, ...]] = (
    *Opcode,
    *SQEFlags,
    *SetupFlags,
    *Features,
    *RegisterOpcode,
)


# ---- the document ----


def test_kept_table_is_not_stale() -> None:
    """The table in the repository is the one that the package makes now."""
    assert KEPT.read_text(encoding="ascii") == _table.render(), f"stale; renew it with: {COMMAND}"


def test_kept_table_is_linked_from_the_readme() -> None:
    """The README leads to it, and it says how to see the running kernel's answers."""
    assert "(docs/kernel-interface.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "`python -m uring --table`" in _table.render()


def rows(document: str) -> Iterator[list[str]]:
    """The rows of all tables, without their heads, as cells."""
    for table in re.findall(r"(?:^\|.*\n)+", document, re.MULTILINE):
        lines = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in table.splitlines()]
        assert len({len(line) for line in lines}) == 1, table
        assert set("".join(lines[1])) == {"-"}
        yield from lines[2:]


def test_table_has_every_member_once() -> None:
    """Each opcode, flag and feature has one row with its number and release, in their order."""
    found = [(number, name, kernel) for number, name, kernel, *_ in rows(_table.render()) if name]
    assert len(found) == len(ALL) == 65 + 7 + 21 + 18 + 38
    for member, (number, name, kernel) in zip(ALL, found, strict=True):
        is_number = isinstance(member, Opcode | RegisterOpcode)
        expected = f"{int(member)}" if is_number else f"bit {int(member).bit_length() - 1}"
        assert (number, name) == (expected, member.name)
        assert re.match(rf"{member.since}(?:;|$)", kernel)


def test_table_has_no_empty_cell_but_for_what_is_above() -> None:
    """Every row says something in each column; the further classes of an opcode have no number."""
    for number, name, *cells in rows(_table.render()):
        assert all(cells), cells
        assert bool(number) == bool(name)
        assert "None" not in cells


def test_table_is_ascii_and_lines_without_cells_are_short() -> None:
    """It reads the same everywhere; text has at most 100 columns."""
    document = _table.render()
    assert document.isascii()
    text = [line for line in document.splitlines() if not line.startswith("|")]
    assert max(map(len, text)) <= 100
    assert not any(line != line.rstrip() for line in document.splitlines())


def test_table_keeps_a_bar_in_its_cell() -> None:
    """A vertical bar in a text does not begin a cell."""
    assert list(rows(_table._markdown([("a", "b"), ("1|2", "3")]))) == [[r"1\|2", "3"]]


def test_table_goes_as_far_as_the_flags() -> None:
    """The release that it names is that of the flags, and of the header that these are from."""
    newest = re.search(r"up to (\d+\.\d+)", str(flags.__doc__))
    assert newest
    assert newest[1] == _table.NEWEST
    data = json.loads((Path(__file__).parent / "data" / "uapi.json").read_text(encoding="ascii"))
    assert f" {_table.NEWEST}." in data["source"]["linux"]


# ---- what stands for what ----


def exported() -> set[type[uring.Operation]]:
    """The public operations."""
    values = [getattr(uring, name) for name in uring.__all__]
    kinds = {v for v in values if isinstance(v, type) and issubclass(v, uring.Operation)}
    return kinds - {uring.Operation}


def test_every_opcode_has_a_class_and_every_class_is_there() -> None:
    """No opcode is without, and each public operation stands at its own opcode, once."""
    found = _table.classes()
    assert all(found.values())
    listed = [kind for kinds in found.values() for kind in kinds]
    assert set(listed) == exported()
    assert len(listed) == len(exported())
    assert all(kind.opcode is opcode for opcode, kinds in found.items() for kind in kinds)


def test_classes_of_an_opcode_begin_with_the_one_of_its_name() -> None:
    """UringCmd stands before the commands that share its opcode."""
    names = [kind.__name__ for kind in _table.classes()[Opcode.URING_CMD]]
    assert names[0] == "UringCmd"
    assert names[1:] == sorted(names[1:])


def test_rows_of_classes_say_what_their_docstrings_say() -> None:
    """Summary and releases are the docstring's; where those were stripped, the opcode's is left."""
    assert _table._said(uring.RecvMultishot, "5.6")[1] == "5.6; multishot 6.0"
    assert _table._said(uring.Bind, "6.11") == (
        "Give a socket its own address. Equivalent: bind(2).",
        "6.11",
    )

    class Stripped(uring.Nop):
        __doc__ = ""

    assert _table._said(Stripped, "5.1") == ("", "5.1")


def driven(kind: type) -> set[Any]:
    """The members of one enumeration that are said not to be driven."""
    return {member for member in _table.NOT_DRIVEN if type(member) is kind}


def test_register_opcodes_are_driven_or_not() -> None:
    """Each is in one of the two tables, the reasons are there, and no name stands twice."""
    assert set(_table.DRIVEN_BY) | driven(RegisterOpcode) == set(RegisterOpcode)
    assert not set(_table.DRIVEN_BY) & driven(RegisterOpcode)
    assert all(_table.NOT_DRIVEN.values())
    assert all(len(set(names)) == len(names) > 0 for names in _table.DRIVEN_BY.values())


def test_register_opcodes_that_the_code_names_are_those_that_are_driven() -> None:
    """What the package passes to io_uring_register(2) is in the table, and nothing else is."""
    named = set()
    for path in Path(uring.__file__).parent.rglob("*.py"):
        if path.name in {"flags.py", "errors.py", "_table.py", "__main__.py"}:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_attribute = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if is_attribute and node.value.id == "RegisterOpcode":  # type: ignore[attr-defined]  # looked at above
                named.add(RegisterOpcode[node.attr])  # type: ignore[attr-defined]  # the same
    assert named == set(_table.DRIVEN_BY)
    shim = "".join(path.read_text("ascii") for path in Path(uring.__file__).parent.glob("*.h"))
    in_c = re.findall(r"call_register\(ring, ([A-Z_]+),", shim)
    assert {RegisterOpcode[name] for name in in_c} == set().union(*IN_C.values())
    assert all(f"int {name}(" in shim for name in IN_C)


def resolved(name: str) -> Any:
    """What a name of the tables stands for; its argument must be one."""
    path, _, argument = name.rstrip(")").partition("(")
    value: Any = uring
    for part in path.split("."):
        value = getattr(value, part)
    assert not argument or argument in inspect.signature(value).parameters
    return value


@pytest.mark.parametrize("opcode", _table.DRIVEN_BY, ids=lambda opcode: opcode.name)
def test_docstrings_of_what_drives_an_opcode_name_its_release(opcode: RegisterOpcode) -> None:
    """One of those that make the call says which kernel has it: the method, or its class."""
    texts = []
    for name in _table.DRIVEN_BY[opcode]:
        owner = name.partition(".")[0]
        kind = [] if owner == "Ring" else [inspect.getdoc(resolved(owner))]
        texts += [inspect.getdoc(resolved(name)), *kind]
    assert re.search(rf"(?<![\d.]){re.escape(str(opcode.since))}(?![\d])", str(texts))


# What the shim registers by itself: the function that does it.
IN_C: Final = {
    "uring_exit": {RegisterOpcode.UNREGISTER_RING_FDS},
    "uring_register_fd": {RegisterOpcode.REGISTER_RING_FDS},
    "uring_register_region": {RegisterOpcode.REGISTER_MEM_REGION},
    "uring_resize": {RegisterOpcode.REGISTER_RESIZE_RINGS},
    "uring_unregister_fd": {RegisterOpcode.UNREGISTER_RING_FDS},
}


class Recorder:
    """The shim, that tells with which opcodes io_uring_register(2) was called."""

    def __init__(self) -> None:
        self.opcodes: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        if name in IN_C:
            self.opcodes |= {int(opcode) for opcode in IN_C[name]}
        return getattr(lib, name)

    def uring_register(self, ring: Any, opcode: int, *rest: Any) -> int:
        """Call the kernel."""
        self.opcodes.add(int(opcode))
        return int(lib.uring_register(ring, opcode, *rest))

    def uring_register_blind(self, opcode: int, *rest: Any) -> int:
        """Call the kernel for no ring."""
        self.opcodes.add(int(opcode))
        return int(lib.uring_register_blind(opcode, *rest))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Give what stands in for the shim in every module of the package."""
    made = Recorder()
    for name, module in list(sys.modules.items()):
        if name.startswith("uring.") and vars(module).get("lib") is lib:
            monkeypatch.setattr(module, "lib", made)
    return made


def zcrx_queue(ring: uring.Ring) -> uring.ZcrxQueue:
    """A queue that the kernel does not know, for calls that it refuses."""
    none = uring.ZcrxRegisterFlags(0)
    request = zcrx.ZcrxRequest(1, 0, area_size=4096, rq_entries=8, rx_buf_len=0, zcrx_flags=none)
    return uring.ZcrxQueue(ring, request)


def napi(ring: uring.Ring) -> uring.NapiBusyPoll:
    """Busy polling of what is named."""
    tracking = uring.NapiTracking.STATIC
    return ring.register_napi(busy_poll_timeout_us=1, tracking=tracking)


def close_busy(ring: uring.Ring) -> None:
    """Close a ring with something in flight."""
    ring.queue(uring.Timeout(60))
    ring.submit()
    ring.close()


def resize(_: uring.Ring) -> None:
    """Resize a ring of the only kind that can be."""
    with uring.Ring(4, flags=SetupFlags.SINGLE_ISSUER | SetupFlags.DEFER_TASKRUN) as ring:
        ring.resize(8)


def register_twice(ring: uring.Ring) -> None:
    """Register a ring with this thread, and undo it."""
    ring.register_ring_fd()
    ring.unregister_ring_fd()


def other_buffers(ring: uring.Ring) -> None:
    """Clone the buffers of another ring."""
    with uring.Ring(1) as other:
        ring.clone_buffers(other.register_buffers([bytearray(8)]))


# Each name of the table, called with a ring and an eventfd; the kernel may refuse the call.
CALLS: Final[dict[str, Callable[[uring.Ring, int], object]]] = {
    "BufferRing.close": lambda ring, _: ring.register_buffer_ring(1, size=8).close(),
    "BufferRing.inside": lambda ring, _: ring.register_buffer_ring(1, size=8).inside,
    "NapiBusyPoll.add": lambda ring, _: napi(ring).add(1),
    "NapiBusyPoll.close": lambda ring, _: napi(ring).close(),
    "NapiBusyPoll.remove": lambda ring, _: napi(ring).remove(1),
    "Personality.close": lambda ring, _: ring.register_personality().close(),
    "RegisteredBuffers.close": lambda ring, _: ring.register_buffers([bytearray(8)]).close(),
    "RegisteredBuffers.update": (
        lambda ring, _: ring.register_buffers_sparse(1).update(0, [bytearray(8)])
    ),
    "RegisteredEventfd.close": lambda ring, fd: ring.register_eventfd(fd).close(),
    "RegisteredFiles.close": lambda ring, fd: ring.register_files([fd]).close(),
    "RegisteredFiles.update": lambda ring, fd: ring.register_files([fd]).update(0, [fd]),
    "RegisteredFiles.update(tags)": (
        lambda ring, fd: ring.register_files([fd]).update(0, [fd], tags=[7])
    ),
    "Ring.cancel": lambda ring, _: ring.cancel(any=True),
    "Ring.clone_buffers": lambda ring, _: other_buffers(ring),
    "Ring.close": lambda ring, _: close_busy(ring),
    "Ring.enable": lambda ring, _: ring.enable(),
    "Ring.register_bpf_filter": (
        lambda ring, _: ring.register_bpf_filter(uring.BpfFilter(0, [(6, 0, 0, 1)]))
    ),
    "Ring.register_buffer_ring": lambda ring, _: ring.register_buffer_ring(1, size=8),
    "Ring.register_buffers": lambda ring, _: ring.register_buffers([bytearray(8)]),
    "Ring.register_buffers(tags)": (
        lambda ring, _: ring.register_buffers([bytearray(8)], tags=[7])
    ),
    "Ring.register_buffers_sparse": lambda ring, _: ring.register_buffers_sparse(1),
    "Ring.register_clock": lambda ring, _: ring.register_clock(1),
    "Ring.register_eventfd": lambda ring, fd: ring.register_eventfd(fd),
    "Ring.register_eventfd(only_async)": (
        lambda ring, fd: ring.register_eventfd(fd, only_async=True)
    ),
    "Ring.register_file_alloc_range": lambda ring, _: ring.register_file_alloc_range(0, count=0),
    "Ring.register_files": lambda ring, fd: ring.register_files([fd]),
    "Ring.register_files(tags)": lambda ring, fd: ring.register_files([fd], tags=[7]),
    "Ring.register_files_sparse": lambda ring, _: ring.register_files_sparse(1),
    "Ring.register_files_update": lambda ring, fd: ring.register_files_update(0, [fd]),
    "Ring.register_iowq_affinity": (
        lambda ring, _: ring.register_iowq_affinity(os.sched_getaffinity(0))
    ),
    "Ring.register_iowq_max_workers": lambda ring, _: ring.register_iowq_max_workers(),
    "Ring.register_napi": lambda ring, _: napi(ring),
    "Ring.register_personality": lambda ring, _: ring.register_personality(),
    "Ring.register_restrictions": (
        lambda ring, _: ring.register_restrictions([uring.Restriction.allow_opcode(Opcode.NOP)])
    ),
    "Ring.register_ring_fd": lambda ring, _: ring.register_ring_fd(),
    "Ring.register_send_buffer_ring": lambda ring, _: ring.register_send_buffer_ring(1, size=8),
    "Ring.register_zcrx": (
        lambda ring, _: ring.register_zcrx("lo", 0, area_size=4096, rq_entries=8)
    ),
    "Ring.register_wait_region": lambda ring, _: ring.register_wait_region(),
    "Ring.resize": lambda ring, _: resize(ring),
    "Ring.send_message": lambda ring, _: ring.send_message(ring, target_user_data=7),
    "Ring.unregister_eventfd": lambda ring, _: ring.unregister_eventfd(),
    "Ring.unregister_files": lambda ring, _: ring.unregister_files(),
    "Ring.unregister_iowq_affinity": lambda ring, _: ring.unregister_iowq_affinity(),
    "Ring.unregister_ring_fd": lambda ring, _: register_twice(ring),
    "Ring.unregister_napi": lambda ring, _: ring.unregister_napi(),
    "SendBufferRing.close": lambda ring, _: ring.register_send_buffer_ring(1, size=8).close(),
    "SendBufferRing.inside": lambda ring, _: ring.register_send_buffer_ring(1, size=8).inside,
    "ZcrxQueue.arm_event": lambda ring, _: zcrx_queue(ring).arm_event(uring.ZcrxEvent.COPY),
    "ZcrxQueue.export": lambda ring, _: zcrx_queue(ring).export(),
    "ZcrxQueue.flush": lambda ring, _: zcrx_queue(ring).flush(),
    "probe": lambda _ring, _: uring.probe(),
}


@pytest.mark.parametrize(
    ("opcode", "name"),
    [(opcode, name) for opcode, names in _table.DRIVEN_BY.items() for name in names],
    ids=lambda value: getattr(value, "name", value),
)
def test_what_drives_a_register_opcode_calls_the_kernel_with_it(
    ring: uring.Ring, recorder: Recorder, opcode: RegisterOpcode, name: str
) -> None:
    """The method that the table names is there, and makes the call, allowed or refused."""
    resolved(name)
    fd = os.eventfd(0)
    try:
        with contextlib.suppress(uring.RegisterError, uring.UnsupportedError):
            CALLS[name](ring, fd)
        ring.close()
    finally:
        os.close(fd)
    assert opcode in recorder.opcodes


def test_calls_are_those_of_the_table() -> None:
    """No call above is of something that the table does not name."""
    assert set(CALLS) == {name for names in _table.DRIVEN_BY.values() for name in names}


# ---- flags ----


def test_flags_all_have_a_meaning() -> None:
    """Each setup flag, feature and SQE flag has one; what a flag means is said once."""
    assert set(_table.SETUP_MEANS) == set(SetupFlags)
    assert set(_table.FEATURE_MEANS) == set(Features)
    assert set(_table.SQE_FLAG_MEANS) == set(_table.SQE_FLAG_BY) == set(SQEFlags)
    for meanings in (_table.SETUP_MEANS, _table.FEATURE_MEANS, _table.SQE_FLAG_MEANS):
        assert len(set(meanings.values())) == len(meanings)


@pytest.mark.usefixtures("ring")
@pytest.mark.parametrize("flag", SetupFlags, ids=lambda flag: flag.name)
def test_setup_flags_that_are_not_driven_are_those_that_ring_refuses(flag: SetupFlags) -> None:
    """`Ring()` itself refuses exactly those that have a reason; the others the kernel may."""
    wanted = flag
    for one, needed in _setup._NEEDS:
        if one & wanted:
            wanted |= next(each for each in SetupFlags if each & needed)
    arguments: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        if flag is SetupFlags.CQSIZE:
            arguments["cq_entries"] = 8
        elif flag is SetupFlags.SQ_AFF:
            arguments["sq_thread_cpu"] = min(os.sched_getaffinity(0))
        elif flag is SetupFlags.ATTACH_WQ:
            arguments["attach_wq"] = stack.enter_context(uring.Ring(4)).fd
        if arguments:
            wanted &= ~flag
        if flag in _table.NOT_DRIVEN:
            with pytest.raises(uring.UnsupportedError, match=r"does not (drive|know)"):
                uring.Ring(4, flags=wanted, **arguments)
            return
        if not uring.probe().supports(flag):
            with pytest.raises(uring.SetupError):
                uring.Ring(4, flags=wanted, **arguments)
            return
        ring = stack.enter_context(uring.Ring(4, flags=wanted, **arguments))
        assert flag & ring.flags


def test_setup_flags_tell_what_they_go_with() -> None:
    """What a flag needs and what it cannot stand with is said of both."""
    assert list(_table._companions(SetupFlags.DEFER_TASKRUN)) == [
        "needs SINGLE_ISSUER",
        "not with SQPOLL",
    ]
    assert next(_table._companions(SetupFlags.TASKRUN_FLAG)) == (
        "needs COOP_TASKRUN or DEFER_TASKRUN"
    )
    assert list(_table._companions(SetupFlags.CQE32)) == ["not with CQE_MIXED"]
    assert list(_table._companions(SetupFlags.CQE_MIXED)) == ["not with CQE32"]
    assert list(_table._companions(SetupFlags.CQSIZE)) == []


FLAGGED: Final[dict[str, Callable[[SQEFlags], uring.Operation]]] = {
    "Fixed": lambda _: uring.Read(uring.Fixed(1), bytearray(1)),
    "Operation.drained": lambda _: uring.Nop().drained(),
    "Operation.linked": lambda _: uring.Nop().linked(),
    "Operation.hard_linked": lambda _: uring.Nop().hard_linked(),
    "link": lambda _: uring.link(uring.Nop(), uring.Nop())[0],
    "hardlink": lambda _: uring.hardlink(uring.Nop(), uring.Nop())[0],
    "flags=": lambda flag: uring.Nop(flags=flag),
    "group=": lambda _: uring.RecvSelect(1, group=2),
}


@pytest.mark.parametrize(
    ("flag", "name"), [(flag, name) for flag, names in _table.SQE_FLAG_BY.items() for name in names]
)
def test_what_sets_a_flag_of_an_sqe_sets_it(flag: SQEFlags, name: str) -> None:
    """The name is one of the package's, or a field of operations, and sets this flag alone."""
    if not name.endswith("="):
        resolved(name)
    assert FLAGGED[name](flag).sqe().flags == flag


# ---- the running kernel's column ----


def cells(here: _table.Here) -> dict[str, str]:
    """The cell of each member, by its name."""
    return {name: cell for _, name, _, cell, *_ in rows(_table.render(here)) if name}


def test_column_of_the_running_kernel_is_what_it_has() -> None:
    """It says yes or no for each member, and the opening names the kernel."""
    answer = attrs.evolve(PROBE, last_register_opcode=3, sqe_flags=SQEFlags.ASYNC)
    here = _table.Here("6.1.2-x", answer)
    found = cells(here)
    yes = {"NOP", "NODROP", "IOPOLL", "ASYNC", *(_name(number) for number in range(4))}
    assert {name for name, cell in found.items() if cell == "yes"} == yes
    assert {cell for name, cell in found.items() if name not in yes} == {"no"}
    assert "\nHere is what the running kernel, Linux 6.1.2-x, says" in _table.render(here)


def _name(number: int) -> str:
    return RegisterOpcode(number).name


def test_column_before_6_18_leaves_open_what_nobody_tells() -> None:
    """Flags of SQEs, and calls behind REGISTER_PROBE, are unknown to such a kernel's probe."""
    found = cells(_table.Here("6.1", PROBE))
    unknown = {name for name, cell in found.items() if cell == "unknown (before 6.18)"}
    assert unknown == {flag.name for flag in SQEFlags} | {_name(number) for number in range(9, 38)}
    assert found["REGISTER_PROBE"] == "yes"


def test_column_says_why_nothing_is_known() -> None:
    """Without an answer each cell has the errno, and the opening the reason in one line."""
    here = _table.Here("6.1", None, "EPERM", "io_uring_setup: no;\n a filter")
    assert set(cells(here).values()) == {"unknown (EPERM)"}
    assert "Linux 6.1 has, which could not be asked: io_uring_setup: no; a filter.\n" in (
        _table.render(here)
    )
    assert set(cells(_table.Here("6.1", None)).values()) == {"unknown"}


def test_documents_differ_only_by_the_column() -> None:
    """Without its column, and but for the opening, the longer document is the kept one."""
    longer = [[*cells[:3], *cells[4:]] for cells in rows(_table.render(_table.Here("6.1", PROBE)))]
    assert longer == list(rows(_table.render()))
