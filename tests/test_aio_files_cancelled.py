"""Asynchronous files whose tasks are cancelled, at every place where they can be."""

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from aio_scripts import (
    BYTES_STEPS,
    TEXT_STEPS,
    Opened,
    Player,
    Step,
    bytes_files,
    text_files,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import uring
from uring.aio import _raw, files

SETTINGS = settings(max_examples=250, deadline=None)


class Cancelled(BaseException):
    """What a loop raises in a task, as asyncio.CancelledError and trio.Cancelled."""

    late_result: int


class Canceller:
    """Does operations at once, or cancels the task: before, or after it was done all the same."""

    def __init__(self, plan: list[int]) -> None:
        self.plan = plan
        self.count = 0

    async def do(self, op: Any) -> Any:
        """Do as it is planned: 0 does it, 1 does not, 2 does it and says so, 3 does not say so."""
        act = self.plan.pop() if self.plan else 0
        if act == 3 and not _is_repeatable(op):
            act = 2
        self.count += act != 0
        if act == 1:
            raise Cancelled
        with uring.Ring(8) as ring:
            cqe = ring.run([op])[0]
        if act == 0 or cqe.res < 0:
            return cqe.result()
        error = Cancelled()
        if act == 2:
            error.late_result = cqe.res
        raise error


def _is_repeatable(op: Any) -> bool:
    """Whether to do it twice is to do it once: not where the kernel has the position."""
    return not isinstance(op, uring.Close) and getattr(op, "offset", 0) >= 0


def finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run what waits for nothing but a `Canceller`."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


class Persistent:
    """A file whose calls are repeated when they are cancelled."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.file, name)
        if name in {"seekable", "readable", "writable"}:
            return found

        async def call(*args: Any) -> Any:
            while True:
                try:
                    return await found(*args)
                except Cancelled:
                    assert not self.file._is_busy
                    if name == "write":
                        return len(args[0])

        return call


STEPS_LEFT_OUT = {"detach", "writelines", "readlines"}
"""They are several calls, or leave the file; what they call is cancelled by itself."""


def plays_the_same(opened: Opened, script: list[Step], plan: list[int], folder: Path) -> bool:
    """Play a script with the built-in file, and with one of ours that is cancelled by plan."""
    canceller = Canceller(plan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_raw, "do", canceller.do)
        patch.setattr(files, "do", Canceller([]).do)
        path = folder / "file"
        theirs, ours = (finish(_play(opened, script, path, how)) for how in (open, files.open))
    assert theirs == ours
    return canceller.count > 0


async def _play(opened: Opened, script: list[Step], path: Path, opening: Any) -> list[Any]:
    _prepare(path, opened)
    how = opened.buffering, opened.encoding, opened.errors, opened.newline
    file = opening(path, opened.mode, *how)
    if opening is not open:
        file = Persistent(await file)
    player = Player(file, opened)
    found = [await player.play(step) for step in script if step.name not in STEPS_LEFT_OUT]
    found += [await player.play(Step("flush")), await player.play(Step("close"))]
    return [*found, _bytes_in(path)]


def _bytes_in(path: Path) -> bytes:
    return path.read_bytes()


def _prepare(path: Path, opened: Opened) -> None:
    path.unlink(missing_ok=True)
    if opened.mode[0] != "x":
        path.write_bytes(opened.content or b"")


PLANS = st.lists(st.integers(0, 3), max_size=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder for the file."""
    return tmp_path_factory.mktemp("files")


@SETTINGS
@given(opened=bytes_files(), script=st.lists(BYTES_STEPS, max_size=10), plan=PLANS)
def test_binary_calls_that_are_cancelled_can_be_repeated(
    opened: Opened, script: list[Step], plan: list[int], folder: Path
) -> None:
    """A call that was cancelled any number of times gives what it would have given at once."""
    assume(opened.buffering != 0)
    plays_the_same(opened, script, plan, folder)


@SETTINGS
@given(opened=text_files(), script=st.lists(TEXT_STEPS, max_size=10), plan=PLANS)
def test_text_calls_that_are_cancelled_can_be_repeated(
    opened: Opened, script: list[Step], plan: list[int], folder: Path
) -> None:
    """A call that was cancelled any number of times gives what it would have given at once."""
    plays_the_same(opened, script, plan, folder)


def everywhere(opened: Opened, script: list[Step], folder: Path) -> None:
    """Play a script, cancelled once, at each of its operations and in each way."""
    for act in (1, 2, 3):
        place = 0
        while plays_the_same(opened, script, [act, *[0] * place], folder):
            place += 1
        assert place >= 2


@pytest.mark.parametrize(
    "steps",
    [
        [Step("read", (7,))],
        [Step("read")],
        [Step("readinto", (bytearray(9),))],
        [Step("readline")],
        [Step("seek", (3, os.SEEK_CUR))],
        [Step("truncate")],
        [Step("write", (b"longer than the buffer",)), Step("read", (3,))],
    ],
    ids=lambda steps: steps[0].name,
)
def test_calls_after_a_write_are_cancelled_anywhere(steps: list[Step], folder: Path) -> None:
    """What a call has taken before it flushes is taken again when it is repeated."""
    opened = Opened("r+b", 4, None, None, None, b"01234567\n9abcdefghij")
    script = [Step("read", (1,)), Step("write", (b"X",)), *steps, Step("tell"), Step("read", (4,))]
    everywhere(opened, script, folder)


@pytest.mark.parametrize("name", ["read", "readline", "write", "tell"])
def test_calls_of_text_files_are_cancelled_anywhere(name: str, folder: Path) -> None:
    """What a call has decoded or encoded is there when it is repeated."""
    opened = Opened("r+", 3, "utf-8", None, None, "é€x\r\n€€€€\nend".encode(), 4)
    args = {"read": (6,), "write": ("long €",)}.get(name, ())
    script = [Step("read", (1,)), Step(name, args), Step("tell"), Step("read", (2,)), Step("tell")]
    everywhere(opened, [*script, Step("seek", (0, 2)), Step("write", ("é\n",)), *script], folder)


def test_text_that_waits_to_be_written_is_taken_too(folder: Path) -> None:
    """A write that is cancelled while what was written before it goes out comes after that."""
    opened = Opened("w+", 3, "utf-8", None, None, b"", 30)
    script = [Step("write", ("0123456789",)), Step("write", ("a" * 25,)), Step("tell")]
    everywhere(opened, [*script, Step("seek", (0,)), Step("read")], folder)


class Trickling(Canceller):
    """Reads three bytes at a time, whatever is asked for."""

    async def do(self, op: Any) -> Any:
        """Do as it is planned."""
        if isinstance(op, uring.Read):
            op = uring.Read(op.fd, memoryview(op.buffer)[:3], op.offset)
        return await super().do(op)


@pytest.mark.parametrize("is_pipe", [False, True], ids=["file", "pipe"])
@pytest.mark.parametrize(("mode", "buffering"), [("rb", 0), ("rb", 5), ("rb", -1), ("r", -1)])
@pytest.mark.parametrize("name", ["read", "readline", "read some"])
def test_reads_in_parts_lose_none_when_cancelled(
    mode: str, buffering: int, name: str, *, is_pipe: bool, folder: Path
) -> None:
    """A read that has got some of what it needs gives that back, to files and to pipes alike."""
    data = b"0123456789abcdef\nghijklmn\nop"

    async def body(place: int, act: int) -> bool:
        canceller = Trickling([act, *[0] * place])
        patch.setattr(_raw, "do", canceller.do)
        file = Persistent(await files.open(_source(folder, data, is_pipe=is_pipe), mode, buffering))
        got = []
        while part := await (file.read(11) if name == "read some" else getattr(file, name)()):
            got.append(part if isinstance(part, bytes) else part.encode())
        assert b"".join(got) == data
        assert name != "readline" or got == data.splitlines(keepends=True)
        await file.close()
        return canceller.count > 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "do", Canceller([]).do)
        for act in (1, 2):
            place = 0
            while finish(body(place, act)):
                place += 1
            assert place > 5


def _source(folder: Path, data: bytes, *, is_pipe: bool) -> Any:
    if not is_pipe:
        (folder / "source").write_bytes(data)
        return folder / "source"
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader
