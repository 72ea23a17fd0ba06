"""
io_uring for asyncio, uvloop and trio: any operation as something to await, and files on top.

`open()` is the built-in one to be awaited, `stat()`, `rename()` and their like are those of `os`,
and `read_bytes()` and `write_bytes()` take one path or many. They work in threads where io_uring is
not to be had: `backend()` tells, `use_backend()` decides.

`ring()` is the ring of the running loop: `await ring().do(op)` is one operation, `run(ops)` many
that are known together, and `stream(op)` one that completes again and again.

The layers, from the top; each imports only from those below it::

    files  paths                     files as open() has them; functions as os has them
    _text  _textbase  _cookies       text, and its positions
    _buffered  _window               bytes with a buffer
    _raw  _iobase                    bytes without one; what all files share
    _contents  _copies               whole files, many at once; copying
    _backend                         the ring of the loop, or threads where there are no rings
    _threads                         operations in a thread
    _ring                            Ring: do, stream and run, on the running loop
    _streams                         several completions of one operation
    _exchange  _kinds                from tasks to the kernel and back; what kinds of operation
    _takers                          who takes completions
    _detect  _asyncio  _trio  _loop  which loop it is, and what is asked of it
"""

from uring.aio._backend import backend, use_backend
from uring.aio._ring import Ring, ring
from uring.aio._streams import Stream
from uring.aio.files import (
    BufferedRandom,
    BufferedReader,
    BufferedWriter,
    FileIO,
    TextIOWrapper,
    open,  # noqa: A004 - it is that, awaited
)
from uring.aio.paths import (
    copyfile,
    getxattr,
    link,
    lstat,
    makedirs,
    mkdir,
    read_bytes,
    remove,
    rename,
    replace,
    rmdir,
    setxattr,
    stat,
    symlink,
    unlink,
    write_bytes,
)

__all__ = [
    "BufferedRandom",
    "BufferedReader",
    "BufferedWriter",
    "FileIO",
    "Ring",
    "Stream",
    "TextIOWrapper",
    "backend",
    "copyfile",
    "getxattr",
    "link",
    "lstat",
    "makedirs",
    "mkdir",
    "open",
    "read_bytes",
    "remove",
    "rename",
    "replace",
    "ring",
    "rmdir",
    "setxattr",
    "stat",
    "symlink",
    "unlink",
    "use_backend",
    "write_bytes",
]
