"""Random scripts of calls, done with the built-in open() and with that of uring.aio."""

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import attrs
from hypothesis import strategies as st

import uring.aio.files

ENCODINGS: Final = [
    *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "latin-1"),
    *("ascii", "cp1252", "cp437", "shift_jis", "euc_jp", "iso2022_jp", "iso2022_kr", "gb18030"),
    *("big5", "hz", "punycode", None),
]
ERRORS: Final = [
    *(None, "strict", "ignore", "replace", "surrogateescape", "backslashreplace", "surrogatepass")
]
NEWLINES: Final = [None, "", "\n", "\r", "\r\n"]
SHAPES: Final = ["r", "w", "a", "x", "r+", "w+", "a+", "x+"]


@attrs.frozen
class Opened:
    """How a file is opened, and what is in it before."""

    mode: str
    buffering: int
    encoding: str | None
    errors: str | None
    newline: str | None
    content: bytes | None
    """None: there is no file."""
    chunk: int | None = None
    """How many bytes io.TextIOWrapper reads at once, if not what it likes to."""


@attrs.frozen
class Step:
    """A call, or a look at an attribute."""

    name: str
    args: tuple[Any, ...] = ()
    keywords: dict[str, Any] = attrs.field(factory=dict)


# ---- what they are made of ----

TEXTS: Final = st.one_of(
    st.text(alphabet="ab\n\r é€𝒳あ", max_size=12),
    st.sampled_from(["\n", "\r\n", "\r", "", "x" * 40 + "\n", "\ud800", "end"]),
    st.integers(1, 700).map(lambda count: "0123456789ab\n" * count),
    st.integers(1, 700).map(lambda count: "é€あ\r\n" * count),
)
PIECES: Final = st.one_of(
    st.binary(max_size=12),
    st.text(alphabet="ab\n", max_size=12).map(str.encode),
    st.integers(0, 20000).map(bytes),
    st.integers(1, 900).map(lambda count: b"0123456789ab\n" * count),
)
SIZES: Final = st.one_of(
    st.integers(-2, 20), st.sampled_from([-1, 0, 1, 2, 100, 4096, 8192, 8193, 20000]), st.none()
)
SOME: Final = st.one_of(st.integers(0, 20), st.sampled_from([1, 100, 4096, 5000, 10000]))
OFFSETS: Final = st.one_of(st.integers(-20, 40), st.integers(-10000, 30000))
WRONG: Final = st.sampled_from(["x", b"x", None, 1.5, 1 << 70, -1])


def steps(strategy: dict[str, Any]) -> st.SearchStrategy[Step]:
    """Make the calls of one kind of file: a strategy for the arguments of each."""
    return st.one_of(*[st.builds(Step, st.just(name), args) for name, args in strategy.items()])


def _args(*args: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(*args)


LOOKS: Final = st.sampled_from(
    [
        *("closed", "name", "mode", "encoding", "errors", "newlines", "line_buffering"),
        *("write_through", "closefd", "isatty", "readable", "writable", "seekable"),
    ]
).map(Step)
COMMON: Final = {
    "read": st.one_of(_args(SIZES), _args()),
    "readline": st.one_of(_args(SIZES), _args()),
    "readlines": st.one_of(_args(SIZES), _args()),
    "__next__": _args(),
    "tell": _args(),
    "flush": _args(),
    "truncate": st.one_of(_args(), _args(SOME)),
}
RARE: Final = steps(
    {
        "close": _args(),
        "detach": _args(),
        "read": _args(WRONG),
        "readline": _args(WRONG),
        "readlines": _args(WRONG),
        "write": _args(WRONG),
        "seek": st.one_of(_args(WRONG), _args(OFFSETS, st.integers(-1, 6))),
        "truncate": _args(WRONG),
    }
)
BYTES_STEPS: Final = steps(
    {
        **COMMON,
        "read1": st.one_of(_args(st.integers(-2, 10000)), _args()),
        "peek": st.one_of(_args(st.integers(-2, 10000)), _args()),
        "readinto": _args(SOME.map(bytearray)),
        "readinto1": _args(SOME.map(bytearray)),
        "readall": _args(),
        "write": _args(PIECES),
        "writelines": _args(st.lists(PIECES, max_size=3)),
        "seek": st.one_of(_args(OFFSETS), _args(OFFSETS, st.integers(0, 2))),
    }
)
TEXT_STEPS: Final = steps(
    {
        **COMMON,
        "write": _args(TEXTS),
        "writelines": _args(st.lists(TEXTS, max_size=3)),
        "seek": st.one_of(
            _args(st.just(0)), _args(st.just(0), st.integers(0, 2)), _args(st.integers(0, 9))
        ),
        "seek to an earlier tell": _args(st.integers(0, 9)),
    }
)
RECONFIGURE: Final = st.builds(
    Step,
    st.just("reconfigure"),
    st.just(()),
    st.fixed_dictionaries(
        {},
        optional={
            "line_buffering": st.sampled_from([True, False, None]),
            "write_through": st.sampled_from([True, False, None]),
            "newline": st.sampled_from(NEWLINES),
            "encoding": st.sampled_from(["latin-1", "utf-16", None]),
            "errors": st.sampled_from(["strict", "ignore", None]),
        },
    ),
)


def _mostly(often: st.SearchStrategy[Step], *seldom: st.SearchStrategy[Step]) -> Any:
    return st.integers(0, 19).flatmap(lambda n: seldom[n] if n < len(seldom) else often)


BYTES_SCRIPTS: Final = st.lists(_mostly(BYTES_STEPS, RARE, LOOKS), max_size=12)
TEXT_SCRIPTS: Final = st.lists(_mostly(TEXT_STEPS, RARE, LOOKS, RECONFIGURE), max_size=12)
BUFFERINGS: Final = st.sampled_from([-1, 2, 3, 7, 16, 100, 1000, 8192])


@st.composite
def contents(draw: st.DrawFn, encoding: str | None) -> bytes | None:
    """Make what is in a file: text in the encoding, for the most part."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return None
    if kind < 3:
        return draw(PIECES)
    text: str = draw(TEXTS) + draw(TEXTS)
    return text.encode(encoding or "utf-8", "ignore")


@st.composite
def bytes_files(draw: st.DrawFn) -> Opened:
    """Make a binary file."""
    mode = draw(st.sampled_from(SHAPES)) + "b"
    buffering = draw(st.one_of(st.just(0), BUFFERINGS))
    return Opened(mode, buffering, None, None, None, draw(contents("utf-8")))


@st.composite
def text_files(draw: st.DrawFn) -> Opened:
    """Make a text file."""
    encoding = draw(st.sampled_from(ENCODINGS))
    return Opened(
        draw(st.sampled_from(SHAPES)) + draw(st.sampled_from(["", "t"])),
        draw(st.one_of(st.just(1), BUFFERINGS)),
        encoding,
        draw(st.sampled_from(ERRORS)),
        draw(st.sampled_from(NEWLINES)),
        draw(contents(encoding)),
        draw(st.sampled_from([None, 1, 2, 5, 30])),
    )


# ---- how they are done ----

_READS: Final = frozenset({"read", "read1", "readline", "readlines", "__next__"})


def _read1_forgets_writes() -> bool:
    """Find out whether io has the fault that Python 3.12.2 mends: read1() does not flush first."""
    with tempfile.TemporaryFile() as file:
        file.write(b"ab")
        file.seek(0)
        file.write(b"A")
        return file.read1() != b"b"


READ1_FORGETS_WRITES: Final = _read1_forgets_writes()

Await = Callable[[Any], Awaitable[Any]]


async def have(value: Any) -> Any:
    """Give a result, awaited if it is one of ours."""
    return await value if hasattr(value, "__await__") else value


def _outcome_of(error: BaseException) -> tuple[Any, ...]:
    """Say what was raised, in as far as it is said to be the same."""
    if isinstance(error, StopAsyncIteration | StopIteration):
        return ("the end",)
    if isinstance(error, OSError) and error.errno is not None:
        name = Path(str(error.filename)).name if error.filename else None
        return (type(error), error.errno, error.strerror, name)
    if isinstance(error, TypeError | OverflowError | AttributeError):
        return (type(error),)  # worded by what checks the arguments
    if isinstance(error, UnicodeError):
        return (type(error), str(error))
    return (type(error), *error.args)


class Player:
    """Plays scripts, and keeps what `tell()` has given."""

    def __init__(self, file: Any, opened: Opened) -> None:
        self.file = file
        if opened.chunk is not None:
            (file.file if hasattr(file, "file") else file)._CHUNK_SIZE = opened.chunk
        self.can_read = "r" in opened.mode or "+" in opened.mode
        self.is_for_both = "+" in opened.mode
        self.is_fragile = (opened.encoding or "").startswith("iso2022")
        """Whether io crashes with a decoder that was given a state that was never its own."""
        self.tells: list[int] = []
        self.kept: list[Any] = []
        self.is_iterating = False
        self.is_lost = False
        """
        Whether io.TextIOWrapper may answer tell() with nonsense: it does not remember where it is
        while it is iterated over, and flush() makes it believe that it does.
        """

    async def _make_comparable(self, step: Step) -> bool:
        """Avoid what io itself does wrong; False if that is to leave the step out."""
        if READ1_FORGETS_WRITES and step.name in _READS and self.is_for_both:
            self._note(Step("flush"))
            with contextlib.suppress(Exception):
                await have(self.file.flush())
        self._note(step)
        is_relative = step.name == "seek" and step.args[1:] == (os.SEEK_CUR,)
        return not (self.is_lost and (step.name == "tell" or is_relative))

    def _note(self, step: Step) -> None:
        if step.name in {"__next__", "readlines"}:
            self.is_iterating = True
        elif step.name.startswith("seek ") or (step.name, step.args) == ("seek", (0,)):
            self.is_iterating = self.is_lost = False
        elif step.name in {"flush", "reconfigure", "seek", "truncate", "detach"}:
            self.is_lost = self.is_lost or self.is_iterating

    async def play(self, step: Step) -> tuple[Any, ...]:
        """Do a step; say what came of it."""
        if not await self._make_comparable(step):
            return ("is left out",)
        name, args = step.name, step.args
        if name == "seek to an earlier tell":
            name, args = "seek", (self.tells[args[0] % len(self.tells)] if self.tells else 0,)
        if name == "read" and not self.can_read:
            args = ()  # from Python 3.12 on io checks what it does not use
        if name == "seek" and self.is_fragile:
            args = (0, *args[1:])
        if name == "__next__" and hasattr(self.file, "__anext__"):
            name = "__anext__"
        args = tuple(bytearray(arg) if isinstance(arg, bytearray) else arg for arg in args)
        try:
            value = getattr(self.file, name)
            if callable(value):
                value = await have(value(*args, **step.keywords))
        except Exception as error:  # noqa: BLE001 - compared
            return _outcome_of(error)
        if name == "detach":
            self.kept.append(self.file)
            self.file = value
            value = type(value).__name__
        if name == "tell":
            self.tells.append(value)
        if name == "name":
            value = Path(value).name
        return ("gives", value, *[arg for arg in args if isinstance(arg, bytearray)])


async def outcomes(opened: Opened, script: list[Step], path: Path, open_it: Any) -> list[Any]:
    """Open a file, do the script with it, close it; give what came of each, and the bytes."""
    _prepare(path, opened.content)
    found: list[Any] = []
    how = opened.buffering, opened.encoding, opened.errors, opened.newline
    try:
        file = await have(open_it(path, opened.mode, *how))
    except Exception as error:  # noqa: BLE001 - compared
        found.append(_outcome_of(error))
    else:
        file.seekable()  # or a failed seek() would be what io.FileIO takes for the answer
        player = Player(file, opened)
        found += [await player.play(step) for step in script]
        found.append(await player.play(Step("close")))
        await have(player.file.close())
    found.append(_bytes_in(path))
    return found


def _prepare(path: Path, content: bytes | None) -> None:
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


def _bytes_in(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


async def differences(opened: Opened, script: list[Step], folder: Path) -> list[Any]:
    """Do a script with both; give what is not the same, and in which step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EncodingWarning)
        theirs = await outcomes(opened, script, folder / "theirs" / "file", io.open)
        ours = await outcomes(opened, script, folder / "ours" / "file", uring.aio.files.open)
    return (
        [
            (number, script[number : number + 1], *pair)
            for number, pair in enumerate(zip(theirs, ours, strict=True))
            if pair[0] != pair[1]
        ]
        if theirs != ours
        else []
    )


def make_folders(folder: Path) -> Path:
    """Make the two folders that `differences()` works in."""
    for name in ("theirs", "ours"):
        (folder / name).mkdir(exist_ok=True)
    return folder
