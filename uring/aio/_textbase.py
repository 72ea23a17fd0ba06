"""What a text file consists of: the file underneath, its codecs, and what lies between them."""

import codecs
import io
from typing import TYPE_CHECKING, Any, Final

from uring.aio._iobase import Above

if TYPE_CHECKING:
    from uring.aio._buffered import BufferedRandom, BufferedReader, BufferedWriter

Snapshot = tuple[int, bytes]
_NO_NEWLINE: Final = object()
_TOO_LATE: Final = (
    "It is not possible to set the encoding or newline of stream after the first read"
)


class _Iso2022Decoder:
    """
    A decoder of one of the ISO 2022 encodings, with a state of 0 for its beginning.

    It has no such state, but `seek()` to a position that was not `tell()`'s sets it, and CPython's
    decoder then reads behind the end of its tables.
    """

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.decode = decoder.decode
        self.getstate = decoder.getstate
        self.reset = decoder.reset

    def setstate(self, state: tuple[bytes, int]) -> None:
        """Go on from a state that `getstate()` gave."""
        if state[1]:
            self._decoder.setstate(state)
        else:
            self._decoder.reset()


class TextBase(Above):
    """What a text file is; what it does stands in `_text`."""

    _buffer: "BufferedReader | BufferedWriter | BufferedRandom | None" = None
    mode: str
    """The mode that it was opened with."""

    def __init__(
        self,
        buffer: "BufferedReader | BufferedWriter | BufferedRandom",
        encoding: str | None,
        errors: str | None,
        newline: str | None,
        *,
        line_buffering: bool = False,
    ) -> None:
        self._line_buffering = line_buffering
        self._write_through = False
        self._decoded: str | None = None
        self._used = 0
        self._snapshot: Snapshot | None = None
        self._is_told = False
        """Whether it was decoded when `tell()` was possible: see `_text`."""
        self._ratio = 0.0
        """How many bytes a character had in the last chunk."""
        self._chunks: list[tuple[str, bytes, Snapshot | None]] = []
        """What was decoded since the call began, which may have to go back."""
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._seekable = self._telling = buffer.seekable()
        self._reads, self._writes = buffer.readable(), buffer.writable()
        self._buffer = buffer  # what fails from here on leaves it to be closed
        try:
            self._configure(encoding, errors, newline)
        except BaseException:
            self._buffer = None
            raise
        buffer._is_below = True

    def _configure(self, encoding: str | None, errors: str | None, newline: str | None) -> None:
        # The original refuses what cannot be, and knows what the defaults are.
        model = io.TextIOWrapper(io.BytesIO(), encoding, errors, newline)
        self._encoding, self._errors, self._newline = (
            model.encoding,
            model.errors or "strict",
            newline,
        )
        self._is_universal = newline is None or newline == ""
        self._line_end = newline or "\n"
        self._is_plain = newline in {None, "\n"}
        """Whether a line ends with a newline character, and with nothing else."""
        codec = codecs.lookup(self._encoding)
        self._codec_name = codec.name
        self._decoder: Any = None
        self._encoder: Any = None
        if self._reads:
            self._decoder = codecs.getincrementaldecoder(self._encoding)(self._errors)
            if codec.name.startswith("iso2022"):
                self._decoder = _Iso2022Decoder(self._decoder)
            if self._is_universal:
                translate = newline is None
                self._decoder = io.IncrementalNewlineDecoder(self._decoder, translate)
        if self._writes:
            self._encoder = codecs.getincrementalencoder(self._encoding)(self._errors)
            if self._seekable and self._attached()._tell() + self._pending_size != 0:
                self._encoder.setstate(0)

    def __repr__(self) -> str:
        try:
            name = f" name={self.name!r}"
        except ValueError:
            name = ""
        mode = f" mode={self.mode!r}" if hasattr(self, "mode") else ""
        return f"<uring.aio.TextIOWrapper{name}{mode} encoding={self._encoding!r}>"

    # ---- what it is ----

    @property
    def buffer(self) -> Any:
        """The binary file underneath; None once detached."""
        return self._buffer

    def _attached(self) -> "BufferedReader | BufferedWriter | BufferedRandom":
        buffer = self._buffer
        if buffer is None:
            raise ValueError("underlying buffer has been detached")
        return buffer

    def _check_open(self) -> None:
        buffer = self._buffer
        if buffer is None or buffer._raw is None or buffer._raw._fd < 0:  # without a detour
            super()._check_open()

    @property
    def encoding(self) -> str:
        """The encoding."""
        return self._encoding

    @property
    def errors(self) -> str:
        """What is done about what cannot be encoded or decoded."""
        return self._errors

    @property
    def newlines(self) -> str | tuple[str, ...] | None:
        """The line ends that were met so far."""
        self._attached()
        found: str | tuple[str, ...] | None = getattr(self._decoder, "newlines", None)
        return found

    @property
    def line_buffering(self) -> bool:
        """Whether the end of a line flushes."""
        return self._line_buffering

    @property
    def write_through(self) -> bool:
        """Whether what is written goes straight to the binary file."""
        return self._write_through

    def reconfigure(
        self,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: Any = _NO_NEWLINE,
        line_buffering: bool | None = None,
        write_through: bool | None = None,
    ) -> None:
        """
        Change the encoding, the line ends, or when it flushes, from here on.

        Unlike io.TextIOWrapper's it does not flush, and so need not be awaited: what was written
        before is encoded already.

        Raises:
            io.UnsupportedOperation: the encoding or the line ends are changed after something was
                read.
        """
        self._attached()
        is_new = newline is not _NO_NEWLINE or encoding is not None or errors is not None
        if is_new and self._decoded is not None:
            self._unsupported(_TOO_LATE)
        self._check_open()
        if is_new:
            if newline is _NO_NEWLINE:
                newline = self._newline
            if errors is None:
                errors = self._errors if encoding is None else "strict"
            self._configure(self._encoding if encoding is None else encoding, errors, newline)
        self._telling = self._seekable
        self._ratio = 0.0
        if line_buffering is not None:
            self._line_buffering = bool(line_buffering)
        if write_through is not None:
            self._write_through = bool(write_through)
