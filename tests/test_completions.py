"""CQE and Completions: what the bytes of a batch mean, by themselves. No ring."""

import errno
import operator
import os
import struct
from typing import Any, Final

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import uring
from uring.completions import EMPTY, Answer, close_all, uncollected_descriptors
from uring.flags import CQEFlags

ROW: Final = struct.Struct("=QiI")

ROWS: Final = st.lists(
    st.tuples(
        st.integers(0, 2**64 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**32 - 1)
    ),
    max_size=12,
)
Row = tuple[int, int, int]


def batch(rows: list[Row], *, cqe_size: int = 16, extra: bytes = b"") -> uring.Completions:
    """Completions over the rows; `extra` follows each row of a 32-byte CQE."""
    extra = extra.ljust(cqe_size - 16, b"\0")
    return uring.Completions(b"".join(ROW.pack(*row) + extra for row in rows), cqe_size=cqe_size)


# ---- CQE ----


def test_cqe_equality_is_of_the_three_numbers() -> None:
    """Operation and extra words do not count; each of the three numbers does."""
    cqe = uring.CQE(1, 2, 3)
    same = uring.CQE(1, 2, 3, subject=uring.Nop(), big_cqe=(4, 5))
    assert cqe == same
    assert hash(cqe) == hash(same)
    for other in (uring.CQE(0, 2, 3), uring.CQE(1, 0, 3), uring.CQE(1, 2), (1, 2, 3)):
        assert cqe != other


def test_cqe_is_immutable() -> None:
    """Assigning to a field raises."""
    cqe = uring.CQE(1, 2)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        cqe.res = 5  # type: ignore[misc]  # wrong on purpose


def test_cqe_op_is_the_operation() -> None:
    """`op` is the very operation that was queued, and None when the ring is not sure."""
    nop = uring.Nop()
    assert uring.CQE(1, 0, subject=nop).op is nop
    assert uring.CQE(1, 0, subject=Answer(nop)).op is nop
    assert uring.CQE(1, 0, subject=Answer(nop, is_certain=False)).op is None
    assert uring.CQE(1, 0).op is None


@given(st.integers(0, 2**32 - 1))
def test_cqe_flags_have_their_meaning(flags: int) -> None:
    """`more`, `is_notification` and `buffer_id` follow one bit each, and the upper half."""
    cqe = uring.CQE(1, 0, flags)
    assert cqe.more is bool(flags & 2)
    assert cqe.is_notification is bool(flags & 8)
    assert cqe.buffer_id == (flags >> 16 if flags & 1 else None)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, FileNotFoundError),
        (errno.ECONNRESET, ConnectionResetError),
        (errno.EPIPE, BrokenPipeError),
        (errno.EAGAIN, BlockingIOError),
        (errno.ETIMEDOUT, TimeoutError),
        (errno.EBADF, OSError),
        (errno.ECANCELED, OSError),
    ],
)
def test_cqe_error_is_the_builtin_exception_with_the_operation(
    number: int, kind: type[OSError]
) -> None:
    """A failed operation gives exactly the OSError subclass of its errno, noted with itself."""
    op = uring.Fsync(7)
    cqe = uring.CQE(1, -number, subject=op)
    error = cqe.error
    assert type(error) is kind
    assert error.errno == number
    assert error.__notes__ == [f"in {op!r}"]
    with pytest.raises(kind) as caught:
        cqe.result()
    assert caught.value.errno == number


def test_cqe_error_of_the_unknown_names_the_user_data() -> None:
    """Without an operation the note is the number, in hexadecimal."""
    error = uring.CQE(0xABC, -errno.EIO).error
    assert error is not None
    assert error.__notes__ == ["user_data 0xabc"]


def test_cqe_error_of_an_errno_without_a_name_is_an_os_error() -> None:
    """A number that no errno has is an OSError with that number, and -2**31 is too."""
    for number in (4095, 2**31):
        error = uring.CQE(1, -number).error
        assert type(error) is OSError
        assert error.errno == number


def test_cqe_error_has_the_path_as_filename() -> None:
    """A failed open carries the path as it was given, and str(error) shows it."""
    error = uring.CQE(1, -errno.ENOENT, subject=uring.Openat("/no/such")).error
    assert isinstance(error, FileNotFoundError)
    assert error.filename == "/no/such"
    assert "/no/such" in str(error)


def test_cqe_error_of_a_shared_user_data_has_no_filename() -> None:
    """When another operation may have failed, its path is not named as this one's."""
    answer = Answer(uring.Openat("/one"), is_certain=False)
    error = uring.CQE(1, -errno.ENOENT, subject=answer).error
    assert error is not None
    assert error.filename is None


def test_cqe_success_has_no_error() -> None:
    """A result of 0 or more has no error and is the result, with an operation or without."""
    for res in (0, 1, 2**31 - 1):
        for subject in (None, uring.Nop(), Answer(uring.Nop())):
            cqe = uring.CQE(1, res, subject=subject)
            assert cqe.error is None
            assert cqe.result() == res


@pytest.mark.parametrize("res", [0, -(2**31)])
@pytest.mark.parametrize("subject", [None, uring.Nop()])
def test_cqe_notification_is_neither_error_nor_result(res: int, subject: uring.Nop | None) -> None:
    """The usage report of a zero-copy send, negative as it is, is no error; the result is None."""
    cqe = uring.CQE(1, res, int(CQEFlags.NOTIF), subject=subject)
    assert cqe.is_notification
    assert cqe.error is None
    assert cqe.result() is None


@pytest.mark.parametrize(
    ("op", "res", "result"),
    [
        (uring.Timeout(1), -errno.ETIME, True),
        (uring.Timeout(1), -errno.ECANCELED, False),
        (uring.Timeout(1), 0, False),
        (uring.LinkTimeout(1), -errno.ETIME, True),
        (uring.LinkTimeout(1), -errno.ECANCELED, False),
        (uring.LinkTimeout(1), -errno.ENOENT, False),
    ],
)
@pytest.mark.parametrize("wrap", [lambda op: op, Answer, lambda op: Answer(op, is_certain=False)])
def test_cqe_ordinary_outcome_of_a_timeout_is_no_error(
    op: Any, res: int, result: bool, wrap: Any
) -> None:
    """What a timeout is for is a result and no error: whether the time was over."""
    cqe = uring.CQE(1, res, subject=wrap(op))
    assert cqe.error is None
    assert cqe.result() is result


def test_cqe_other_failure_of_a_timeout_is_an_error() -> None:
    """EINVAL of a timeout is an error, and so is the ETIME of what is no timeout."""
    for cqe in (
        uring.CQE(1, -errno.EINVAL, subject=uring.Timeout(1)),
        uring.CQE(1, -errno.ENOENT, subject=uring.Timeout(1)),
        uring.CQE(1, -errno.ETIME, subject=uring.Nop()),
        uring.CQE(1, -errno.ETIME),
    ):
        assert cqe.error is not None
        with pytest.raises(OSError, match=r"."):
            cqe.result()


def test_cqe_result_of_an_uncertain_accept_has_no_address() -> None:
    """When several accepts shared a user_data, the result is given without raising."""
    answer = Answer(uring.Accept(3, address=True), None, is_certain=False)
    result = uring.CQE(1, 9, subject=answer).result()
    assert result in {9, (9, None)}


def test_cqe_repr_names_the_errno_and_the_operation() -> None:
    """The repr shows the number, the errno by name, and the operation."""
    shown = repr(uring.CQE(255, -errno.ENOENT, 2, subject=uring.Nop()))
    assert shown == "CQE(user_data=0xff, res=-2 (ENOENT), flags=0x2, op=Nop())"
    assert repr(uring.CQE(1, 5)) == "CQE(user_data=0x1, res=5, flags=0x0)"
    assert "res=-4095," in repr(uring.CQE(1, -4095))


# ---- Completions ----


@given(ROWS, st.sampled_from([16, 32, 40]))
def test_completions_are_a_sequence_of_cqes(rows: list[Row], cqe_size: int) -> None:
    """Length, every index from both ends, and iteration agree with a list of CQEs."""
    cqes = [uring.CQE(*row) for row in rows]
    completions = batch(rows, cqe_size=cqe_size)
    assert len(completions) == len(cqes)
    assert bool(completions) is bool(cqes)
    assert list(completions) == cqes
    assert list(reversed(completions)) == cqes[::-1]
    for index in range(-len(cqes), len(cqes)):
        assert completions[index] == cqes[index]
    for index in (len(cqes), -len(cqes) - 1):
        with pytest.raises(IndexError):
            completions[index]
    for cqe in cqes:
        assert cqe in completions
        assert completions.index(cqe) == cqes.index(cqe)
        assert completions.count(cqe) == cqes.count(cqe)


SLICES: Final = st.slices(12)


@given(ROWS, SLICES, st.sampled_from([16, 32, 40]))
def test_completions_slice_as_a_list_does(rows: list[Row], part: slice, cqe_size: int) -> None:
    """Any slice, steps and negative ones too, is a Completions of what a list would give."""
    completions = batch(rows, cqe_size=cqe_size)[part]
    cqes = [uring.CQE(*row) for row in rows][part]
    assert isinstance(completions, uring.Completions)
    assert list(completions) == cqes
    assert completions.res.tolist() == [cqe.res for cqe in cqes]


@given(st.integers(0, 12), SLICES)
def test_completions_slice_keeps_each_operation_with_its_completion(size: int, part: slice) -> None:
    """After slicing, every CQE still knows its own operation."""
    operations = [uring.Nop(user_data=number) for number in range(size)]
    raw = b"".join(ROW.pack(number, 0, 0) for number in range(size))
    chosen = uring.Completions(raw, operations)[part]
    assert [cqe.op for cqe in chosen] == operations[part]
    assert [chosen[index].op for index in range(len(chosen))] == operations[part]
    assert all(cqe.op is operations[cqe.user_data] for cqe in chosen)


@given(ROWS, st.sampled_from([16, 32, 40]))
def test_completions_columns_are_the_numbers(rows: list[Row], cqe_size: int) -> None:
    """Columns are read-only memoryviews of the numbers, signed as they are; rows have the same."""
    completions = batch(rows, cqe_size=cqe_size, extra=b"\xff" * (cqe_size - 16))
    columns = completions.user_data, completions.res, completions.flags
    for place, (column, code) in enumerate(zip(columns, "QiI", strict=True)):
        assert isinstance(column, memoryview)
        assert column.format == code
        assert column.readonly
        assert column.tolist() == [row[place] for row in rows]
    assert [*completions._rows()] == [(*row, None) for row in rows]


def test_completions_big_cqe_is_of_those_that_have_it() -> None:
    """Of a mixed ring only CQEs with F_32 have `big_cqe`, by index, by iteration and in a slice."""
    flags = [0, 0x8000, 2, 0x8002]
    raw = b"".join(ROW.pack(1, 0, flag) + struct.pack("=QQQ", flag, 7, 9) for flag in flags)
    completions = uring.Completions(raw, cqe_size=40)
    expected = [None, (0x8000, 7), None, (0x8002, 7)]
    assert [cqe.big_cqe for cqe in completions] == expected
    assert [completions[index].big_cqe for index in range(4)] == expected
    assert [cqe.big_cqe for cqe in completions[::-2]] == expected[::-2]


def test_completions_big_cqe_holds_the_extra_words() -> None:
    """On 32-byte CQEs `big_cqe` is the two further words, by index and by iteration."""
    raw = b"".join(ROW.pack(n, -n, 0) + struct.pack("=QQ", n + 100, 2**64 - 1) for n in range(3))
    completions = uring.Completions(raw, cqe_size=32)
    expected = [(100, 2**64 - 1), (101, 2**64 - 1), (102, 2**64 - 1)]
    assert [cqe.big_cqe for cqe in completions] == expected
    assert [completions[index].big_cqe for index in range(3)] == expected
    assert [cqe.big_cqe for cqe in completions[::-1]] == expected[::-1]
    assert completions.user_data.tolist() == [0, 1, 2]


def test_completions_small_cqe_has_no_extra_words() -> None:
    """On 16-byte CQEs `big_cqe` is None, by index and by iteration."""
    completions = batch([(1, 2, 3)])
    assert completions[0].big_cqe is None
    assert [cqe.big_cqe for cqe in completions] == [None]


@given(ROWS, ROWS)
def test_completions_are_equal_when_their_cqes_are(some: list[Row], others: list[Row]) -> None:
    """Equality is that of the lists of CQEs, and equal batches have equal hashes."""
    assert (batch(some) == batch(others)) is (some == others)
    assert batch(some) == batch(some)
    assert hash(batch(some)) == hash(batch(some))


@given(ROWS)
def test_completions_that_are_equal_have_equal_hashes_whatever_their_layout(
    rows: list[Row],
) -> None:
    """A batch of 32-byte CQEs equals one of 16 bytes with the same numbers, and hashes alike."""
    small = batch(rows)
    for large in (batch(rows, cqe_size=32), batch(rows, cqe_size=32, extra=b"x" * 16)):
        assert small == large
        assert hash(small) == hash(large)


def test_completions_are_not_equal_to_another_sequence() -> None:
    """A list of the same CQEs is not equal, as a tuple is not equal to a list."""
    assert batch([(1, 2, 3)]) != [uring.CQE(1, 2, 3)]
    assert (EMPTY == ()) is False


def test_completions_are_immutable() -> None:
    """No item, column or new attribute can be assigned, and no item deleted."""
    completions: Any = batch([(1, 2, 3)])
    with pytest.raises(TypeError):
        completions[0] = uring.CQE(1, 1)
    with pytest.raises(TypeError):
        del completions[0]
    with pytest.raises(TypeError):
        completions.res[0] = 5
    for name in ("user_data", "res", "flags", "other"):
        with pytest.raises(AttributeError):
            setattr(completions, name, 5)


@pytest.mark.parametrize(("length", "cqe_size"), [(1, 16), (17, 16), (16, 32), (40, 32)])
def test_completions_refuse_a_part_of_a_cqe(length: int, cqe_size: int) -> None:
    """Bytes that do not divide into CQEs raise ValueError."""
    with pytest.raises(ValueError, match="whole CQEs"):
        uring.Completions(bytes(length), cqe_size=cqe_size)


def test_completions_refuse_an_index_of_the_wrong_type() -> None:
    """A string as index raises TypeError."""
    completions: Any = batch([(1, 2, 3)])
    with pytest.raises(TypeError):
        completions["0"]


def test_completions_repr_is_bounded() -> None:
    """The repr shows eight completions and counts the rest."""
    assert repr(EMPTY) == "Completions([])"
    assert repr(batch([(1, 2, 0)])) == f"Completions([{uring.CQE(1, 2)!r}])"
    shown = repr(batch([(1, 2, 0)] * 20))
    assert shown.count("CQE(") == 8
    assert shown.endswith("... 12 more])")


def test_uncollected_descriptors_are_only_what_operations_made(pipe: tuple[int, int]) -> None:
    """The result of an open is closed; that of a read, and a failure, are not descriptors."""
    read_end, write_end = pipe
    made = os.dup(read_end)
    rows = [(1, made, 0), (2, write_end, 0), (3, -errno.ENOENT, 0), (4, read_end, 0)]
    subjects: list[Any] = [
        Answer(uring.Openat("x")),
        uring.Read(0, bytearray(1)),
        uring.Openat("x"),
        None,
    ]
    raw = b"".join(ROW.pack(*row) for row in rows)
    found = uncollected_descriptors(uring.Completions(raw, subjects))
    assert found == [made]
    orphans = [None, made, 9999, made]
    close_all(orphans)
    assert orphans == [None]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made)


def test_completions_join_in_order_with_their_operations() -> None:
    """`+` keeps the order and the operations, and what is empty goes with all, on either side."""
    plain = [struct.pack("=QiI", number, number, 0) for number in range(3)]
    nop, fsync = uring.Nop(), uring.Fsync(0)
    known = uring.Completions(plain[0], [nop]) + uring.Completions(plain[1])
    joined = known + uring.Completions(plain[2], [fsync])
    assert [(cqe.user_data, cqe.op) for cqe in joined] == [(0, nop), (1, None), (2, fsync)]
    big = uring.Completions(plain[0] + bytes(16), [nop], 32)
    for both in (uring.Completions() + big, big + uring.Completions()):
        assert (len(both), both[0].big_cqe, list(both.res)) == (1, (0, 0), [0])
    with pytest.raises(ValueError, match="CQE32"):
        big + known
    with pytest.raises(TypeError):
        operator.add(known, [1])
