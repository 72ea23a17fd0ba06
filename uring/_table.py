"""
The kernel's interface as a Markdown document: each of its numbers, and what stands for it here.

Which class stands for an opcode, the classes say themselves; what setup flags go with, `_setup`
says. What nothing else in the package says stands in the tables below, and only there: what drives
an opcode of io_uring_register(2), why something is not driven, what a flag means. A test makes
every call that is named here and looks at what the kernel is asked.
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import attrs

from uring import _setup, operations
from uring.flags import Features, Opcode, RegisterOpcode, SetupFlags, SQEFlags
from uring.operations import Operation
from uring.probe import Probe

NEWEST: Final = "7.2"
"""The release up to which `flags` goes; tests compare both with the same header."""

_R = RegisterOpcode
_S = SetupFlags
_F = Features
_Q = SQEFlags
_Member = Opcode | SetupFlags | RegisterOpcode | Features | SQEFlags

# ---- what drives the opcodes of io_uring_register(2) ----

# As one finds it in `uring`; in parentheses the argument that makes the difference.
DRIVEN_BY: Final[Mapping[RegisterOpcode, tuple[str, ...]]] = {
    _R.REGISTER_BUFFERS: ("Ring.register_buffers",),
    _R.UNREGISTER_BUFFERS: ("RegisteredBuffers.close",),
    _R.REGISTER_FILES: ("Ring.register_files",),
    _R.UNREGISTER_FILES: ("RegisteredFiles.close", "Ring.unregister_files"),
    _R.REGISTER_EVENTFD: ("Ring.register_eventfd",),
    _R.UNREGISTER_EVENTFD: ("RegisteredEventfd.close", "Ring.unregister_eventfd"),
    _R.REGISTER_FILES_UPDATE: ("RegisteredFiles.update", "Ring.register_files_update"),
    _R.REGISTER_EVENTFD_ASYNC: ("Ring.register_eventfd(only_async)",),
    _R.REGISTER_PROBE: ("probe",),
    _R.REGISTER_PERSONALITY: ("Ring.register_personality",),
    _R.UNREGISTER_PERSONALITY: ("Personality.close",),
    _R.REGISTER_RESTRICTIONS: ("Ring.register_restrictions",),
    _R.REGISTER_ENABLE_RINGS: ("Ring.enable",),
    _R.REGISTER_FILES2: ("Ring.register_files(tags)", "Ring.register_files_sparse"),
    _R.REGISTER_FILES_UPDATE2: ("RegisteredFiles.update(tags)",),
    _R.REGISTER_BUFFERS2: ("Ring.register_buffers(tags)", "Ring.register_buffers_sparse"),
    _R.REGISTER_BUFFERS_UPDATE: ("RegisteredBuffers.update",),
    _R.REGISTER_IOWQ_AFF: ("Ring.register_iowq_affinity",),
    _R.UNREGISTER_IOWQ_AFF: ("Ring.unregister_iowq_affinity",),
    _R.REGISTER_IOWQ_MAX_WORKERS: ("Ring.register_iowq_max_workers",),
    _R.REGISTER_RING_FDS: ("Ring.register_ring_fd",),
    _R.UNREGISTER_RING_FDS: ("Ring.unregister_ring_fd", "Ring.close"),
    _R.REGISTER_PBUF_RING: ("Ring.register_buffer_ring", "Ring.register_send_buffer_ring"),
    _R.UNREGISTER_PBUF_RING: ("BufferRing.close", "SendBufferRing.close"),
    _R.REGISTER_SYNC_CANCEL: ("Ring.cancel", "Ring.close"),
    _R.REGISTER_FILE_ALLOC_RANGE: ("Ring.register_file_alloc_range",),
    _R.REGISTER_PBUF_STATUS: ("BufferRing.inside", "SendBufferRing.inside"),
    _R.REGISTER_NAPI: ("Ring.register_napi", "NapiBusyPoll.add", "NapiBusyPoll.remove"),
    _R.UNREGISTER_NAPI: ("NapiBusyPoll.close", "Ring.unregister_napi"),
    _R.REGISTER_CLOCK: ("Ring.register_clock",),
    _R.REGISTER_CLONE_BUFFERS: ("Ring.clone_buffers",),
    _R.REGISTER_SEND_MSG_RING: ("Ring.send_message",),
    _R.REGISTER_ZCRX_IFQ: ("Ring.register_zcrx",),
    _R.REGISTER_RESIZE_RINGS: ("Ring.resize",),
    _R.REGISTER_MEM_REGION: ("Ring.register_wait_region",),
    _R.REGISTER_QUERY: ("probe",),
    _R.REGISTER_ZCRX_CTRL: ("ZcrxQueue.flush", "ZcrxQueue.export", "ZcrxQueue.arm_event"),
    _R.REGISTER_BPF_FILTER: ("Ring.register_bpf_filter",),
}

NOT_DRIVEN: Final[Mapping[RegisterOpcode | SetupFlags, str]] = {
    _S.SQE_MIXED: "all SQEs of a ring are taken to have one size",
    _S.SQ_REWIND: "what was submitted is known by its place in the queue",
}

# ---- what flags mean ----

SETUP_MEANS: Final[Mapping[SetupFlags, str]] = {
    _S.IOPOLL: "reads and writes with O_DIRECT complete when somebody polls the device for them",
    _S.SQPOLL: "a thread of the kernel takes what is queued: submitting needs no system call",
    _S.SQ_AFF: "the SQPOLL thread stays on one processor",
    _S.CQSIZE: "the completion queue has a size of its own",
    _S.CLAMP: "a size that is too large is cut to the largest, and not refused",
    _S.ATTACH_WQ: "another ring's worker threads are shared, and its SQPOLL thread",
    _S.R_DISABLED: "nothing runs before `Ring.enable()`, so that restrictions can come first",
    _S.SUBMIT_ALL: "a submit goes on behind an SQE that is refused",
    _S.COOP_TASKRUN: "the kernel does not interrupt a thread to complete its operations",
    _S.TASKRUN_FLAG: "a bit in the submission queue says that completions wait to be posted",
    _S.SQE128: "an SQE has 128 bytes",
    _S.CQE32: "a CQE has 32 bytes",
    _S.SINGLE_ISSUER: "only the thread that made or enabled the ring submits",
    _S.DEFER_TASKRUN: "completions are posted only when the owner enters the ring for them",
    _S.NO_MMAP: "the queues are in memory of the application",
    _S.REGISTERED_FD_ONLY: "the ring is a registered file of the thread, and has no descriptor",
    _S.NO_SQARRAY: "the queue has no array of indices beside its SQEs",
    _S.HYBRID_IOPOLL: "polling sleeps first, for as long as operations have been taking",
    _S.CQE_MIXED: "CQEs of 16 and of 32 bytes stand in one queue",
    _S.SQE_MIXED: "SQEs of 64 and of 128 bytes stand in one queue",
    _S.SQ_REWIND: "each submit begins at the start of the queue again",
}

FEATURE_MEANS: Final[Mapping[Features, str]] = {
    _F.SINGLE_MMAP: "one mapping holds both queues",
    _F.NODROP: "a completion that finds the queue full is kept, not dropped",
    _F.SUBMIT_STABLE: "what only submitting reads, such as a path or iovecs, may go after it",
    _F.RW_CUR_POS: "offset -1 is the file's own position",
    _F.CUR_PERSONALITY: "operations run with the credentials of who submits, not of who made it",
    _F.FAST_POLL: "a file that is not ready is polled, without a worker thread",
    _F.POLL_32BITS: "polls take all bits of epoll, such as EPOLLEXCLUSIVE",
    _F.SQPOLL_NONFIXED: "with SQPOLL files need not be registered",
    _F.EXT_ARG: "a wait takes its timeout with the call",
    _F.NATIVE_WORKERS: "worker threads are threads of the process",
    _F.RSRC_TAGS: "registered files and buffers have tags, and buffers are updated",
    _F.CQE_SKIP: "CQE_SKIP_SUCCESS is known",
    _F.LINKED_FILE: "in a chain a file is looked up when its operation begins",
    _F.REG_REG_RING: "io_uring_register(2) takes a ring that is a registered file",
    _F.RECVSEND_BUNDLE: "sends and receives take several provided buffers at once",
    _F.MIN_TIMEOUT: "a wait can have a second, shorter time, after which one CQE is enough",
    _F.RW_ATTR: "reads and writes can have attributes, such as integrity metadata",
    _F.NO_IOWAIT: "a wait can be told not to count as iowait",
}

# What sets it: as one finds it in `uring`, or a field of operations, with `=`.
SQE_FLAG_BY: Final[Mapping[SQEFlags, tuple[str, ...]]] = {
    _Q.FIXED_FILE: ("Fixed",),
    _Q.IO_DRAIN: ("Operation.drained",),
    _Q.IO_LINK: ("link", "Operation.linked"),
    _Q.IO_HARDLINK: ("hardlink", "Operation.hard_linked"),
    _Q.ASYNC: ("flags=",),
    _Q.BUFFER_SELECT: ("group=",),
    _Q.CQE_SKIP_SUCCESS: ("flags=",),
}

SQE_FLAG_MEANS: Final[Mapping[SQEFlags, str]] = {
    _Q.FIXED_FILE: "the file is a registered one, by its slot",
    _Q.IO_DRAIN: "begins when all before it are complete, and those behind it after that",
    _Q.IO_LINK: "the next one begins when this one has succeeded, and is cancelled if not",
    _Q.IO_HARDLINK: "the same, but a failure does not break the chain",
    _Q.ASYNC: "goes to a worker thread at once",
    _Q.BUFFER_SELECT: "the kernel picks a buffer from a group of provided ones",
    _Q.CQE_SKIP_SUCCESS: "no completion comes unless it fails",
}


# ---- what the running kernel has ----


@attrs.frozen
class Here:
    """The answer of the running kernel, or why there is none."""

    release: str
    probe: Probe | None
    errno_name: str = ""
    message: str = ""

    def line(self) -> str:
        """What the column is, in one sentence."""
        if self.probe is not None:
            return f"Here is what the running kernel, Linux {self.release}, says that it has."
        message = " ".join(self.message.split())
        return f"Here would be what Linux {self.release} has, which could not be asked: {message}."

    def cell(self, member: _Member) -> str:
        """Whether the kernel has it: yes, no, or why nobody knows."""
        found = self.probe
        if found is None:
            return f"unknown ({self.errno_name})" if self.errno_name else "unknown"
        if isinstance(member, SQEFlags):
            if found.sqe_flags is None:
                return "unknown (before 6.18)"
            return "yes" if found.sqe_flags & member else "no"
        is_silent = isinstance(member, RegisterOpcode) and found.last_register_opcode is None
        if is_silent and member > RegisterOpcode.REGISTER_PROBE:
            return "unknown (before 6.18)"
        return "yes" if found.supports(member) else "no"


# ---- the document ----

_INTRODUCTION: Final = f"""\
# The kernel's interface

Every opcode, flag and feature of Linux io_uring up to {NEWEST}, the release that first had it, and
what stands for it in `uring`. Values of fields that only some operations have are in
`uring.flags`, under the kernel's names.
"""

_KEPT: Final = """\
`python -m uring --table` prints this with one more column: what the running kernel has.
"""

_OPCODES: Final = """\
`uring.Opcode`: what one SQE asks for. Each class is in `uring`, and its `help()` says what its
fields and its result mean. Behind a semicolon stand the releases of what came later.
`ReadMany`, `WriteMany` and `StatxMany` stand for many READ, WRITE and STATX at once; `SQE`, the raw
record, for any.
"""

_SQE_FLAGS: Final = """\
`uring.SQEFlags`: how the kernel treats one SQE.
"""

_SETUP: Final = """\
`uring.SetupFlags`: the shape of a ring, and how `Ring()` is asked for it.
"""

_FEATURES: Final = """\
`uring.Features`: what the kernel says of itself when a ring is made; `Ring.features`.
"""

_REGISTER: Final = """\
`uring.RegisterOpcode`: the operations of io_uring_register(2), and what makes them.
"""


def render(here: Here | None = None) -> str:
    """The document; without the running kernel's answer it is the same on every machine."""
    opening = _KEPT if here is None else here.line() + "\n"
    sections = (
        ("Opcodes", _OPCODES, ("Class", "What it does"), _opcode_rows()),
        ("Flags of an SQE", _SQE_FLAGS, ("Set by", "Meaning"), _sqe_flag_rows()),
        ("Setup flags", _SETUP, ("Asked for with", "Meaning"), _setup_rows()),
        ("Features", _FEATURES, ("Meaning",), _feature_rows()),
        ("Opcodes of io_uring_register(2)", _REGISTER, ("Made by",), _register_rows()),
    )
    parts = [_INTRODUCTION, opening]
    for title, text, columns, rows in sections:
        head = ("Number", "Name", "Kernel", *(() if here is None else ("Here",)), *columns)
        table = [head, *(_cells(here, row) for row in rows)]
        parts += [f"## {title}\n", text, _markdown(table)]
    return "\n".join(parts)


@attrs.frozen
class _Row:
    member: _Member
    cells: tuple[str, ...]
    kernel: str
    is_first: bool = True
    """False where the row above is about the same member."""


def _cells(here: Here | None, row: _Row) -> tuple[str, ...]:
    number, name, cell = "", "", ""
    if row.is_first:
        member = row.member
        is_number = isinstance(member, Opcode | RegisterOpcode)
        number = str(int(member)) if is_number else f"bit {int(member).bit_length() - 1}"
        name = str(member.name)
        cell = "" if here is None else here.cell(member)
    return (number, name, row.kernel, *(() if here is None else (cell,)), *row.cells)


def classes() -> dict[Opcode, list[type[Operation]]]:
    """The classes that stand for each opcode; the one that has its name is the first."""
    found: dict[Opcode, list[type[Operation]]] = {opcode: [] for opcode in Opcode}
    for name in operations.__all__:
        value = getattr(operations, name)
        if isinstance(value, type) and issubclass(value, Operation) and "opcode" in vars(value):
            found[value.opcode].append(value)
    for opcode, each in found.items():
        own = opcode.name.replace("_", "").lower()
        each.sort(key=lambda kind, own=own: (kind.__name__.lower() != own, kind.__name__))  # type: ignore[misc]  # a default binds it
    return found


def _opcode_rows() -> Iterator[_Row]:
    for opcode, kinds in classes().items():
        for place, kind in enumerate(kinds):
            summary, kernel = _said(kind, str(opcode.since))
            yield _Row(opcode, (f"`{kind.__name__}`", summary), kernel, is_first=place == 0)


def _said(kind: type[Operation], since: str) -> tuple[str, str]:
    """What a docstring says in its first sentences and of kernels; without docstrings, less."""
    doc = inspect.getdoc(kind) or ""
    summary = " ".join(doc.partition("\n\n")[0].split())
    found = re.search(r"\nKernel: (.+?)\.\s+liburing:", doc, re.DOTALL)
    return summary, " ".join(found[1].split()) if found else since


def _sqe_flag_rows() -> Iterator[_Row]:
    for flag in SQEFlags:
        cells = (_listed(SQE_FLAG_BY[flag]), SQE_FLAG_MEANS[flag])
        yield _Row(flag, cells, str(flag.since))


def _setup_rows() -> Iterator[_Row]:
    arguments = {flag: f"`{argument}=`" for flag, argument in _setup._BY_ARGUMENT}
    for flag in SetupFlags:
        asked = arguments.get(flag, "`flags=`")
        if flag & _setup._NOT_DRIVEN:
            asked = f"not driven: {NOT_DRIVEN.get(flag)}"
        meaning = "; ".join((SETUP_MEANS[flag], *_companions(flag)))
        yield _Row(flag, (asked, meaning), str(flag.since))


def _companions(flag: SetupFlags) -> Iterator[str]:
    needed = {name for one, some in _setup._NEEDS if one is flag for name in _names(some)}
    if needed:
        yield "needs " + " or ".join(sorted(needed))
    excluded = {name for one, some in _setup._EXCLUDES if one is flag for name in _names(some)}
    excluded |= {str(one.name) for one, some in _setup._EXCLUDES if flag & some}
    if excluded:
        yield "not with " + ", ".join(sorted(excluded))


def _names(flags: SetupFlags) -> Iterator[str]:
    return (str(flag.name) for flag in SetupFlags if flag & flags)


def _feature_rows() -> Iterator[_Row]:
    for feature in Features:
        yield _Row(feature, (FEATURE_MEANS[feature],), str(feature.since))


def _register_rows() -> Iterator[_Row]:
    for opcode in RegisterOpcode:
        names = DRIVEN_BY.get(opcode)
        made_by = f"not driven: {NOT_DRIVEN.get(opcode)}" if names is None else _listed(names)
        yield _Row(opcode, (made_by,), str(opcode.since))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name.replace(')', '=...)')}`" for name in names)


def _markdown(table: Sequence[Sequence[str]]) -> str:
    """A table whose columns are aligned, so that it reads as it stands; but for the last one."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in (cells[0], ["-" * len(cell) for cell in cells[0]], *cells[1:]):
        shown = [cell.ljust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        lines.append(f"| {' | '.join([*shown, row[-1]])} |\n")
    return "".join(lines)
