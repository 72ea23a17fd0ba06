"""Waiting for children."""

import attrs

from uring import _structures
from uring._checks import check_range
from uring.flags import Opcode
from uring.operations._base import Operation, operation
from uring.sqe import UINT32_MAX

__all__ = ["Waitid", "WaitidResult"]


@attrs.frozen
class WaitidResult:
    """
    What became of a child, in the fields of os.waitid_result.

    Source: siginfo_t as waitid(2) fills it.
    """

    si_pid: int
    """The child."""
    si_uid: int
    """The real user ID of the child."""
    si_signo: int
    """signal.SIGCHLD."""
    si_status: int
    """Its exit status, or the signal that ended, stopped or continued it: `si_code` says which."""
    si_code: int
    """os.CLD_EXITED, CLD_KILLED, CLD_DUMPED, CLD_TRAPPED, CLD_STOPPED or CLD_CONTINUED."""


@operation
class Waitid(Operation):
    """
    Wait until a child of this process changes. Equivalent: waitid(2), as os.waitid has it.

    What WEXITED tells of is reaped: nobody else, such as the subprocess module, can wait for it.

    Args:
        idtype: os.P_PID, P_PGID, P_PIDFD or P_ALL.
        id: the process, the group, or the descriptor of the child; 0 with P_ALL.
        options: os.WEXITED, WSTOPPED and WCONTINUED, at least one of them, with WNOHANG to complete
            at once and WNOWAIT to leave the child to others; and Linux's __WCLONE and its like,
            as numbers.

    Lifetime: the room for the answer is the ring's, until the result has been read.
    Completion: res is 0; `result()` is a `WaitidResult`, or None when there was nothing to tell
        (with WNOHANG), or when the operation shared its user_data. ECHILD (ChildProcessError) when
        there is no such child.

    Kernel: 6.7. liburing: io_uring_prep_waitid(3).
    """

    opcode = Opcode.WAITID

    idtype: int
    id: int
    options: int

    _keeps_memory = True

    def _encode(self) -> tuple[bytes, object]:
        idtype = check_range("idtype", self.idtype, 0, 2**31 - 1)
        number = check_range("id", self.id, 0, 2**31 - 1)
        options = check_range("options", self.options, 0, UINT32_MAX)
        room = _structures.ChildInfo()
        return self._pack(number, off=room.address, len=idtype, splice_fd_in=options), room

    def _result(self, _res: int, memory: object, _flags: int) -> WaitidResult | None:
        if not isinstance(memory, _structures.ChildInfo):
            return None
        result = WaitidResult(*memory.decode())
        return result if result.si_pid else None
