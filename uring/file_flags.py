"""
The numbers of file system calls that Python lacks, as enumerations like those of `flags`.

They are Linux's own, not io_uring's: those of linux/fcntl.h, falloc.h, fs.h, openat2.h, stat.h and
asm-generic/mman-common.h. `since` is the first kernel release that has one, where that is later
than 5.1.
"""

from uring.flags import _Bits, _Number


class AtFlags(_Bits):
    """AT_*: how a path is looked up, and what is done with what is found."""

    SYMLINK_NOFOLLOW = 0x100
    REMOVEDIR = 0x200
    SYMLINK_FOLLOW = 0x400
    NO_AUTOMOUNT = 0x800
    EMPTY_PATH = 0x1000
    STATX_FORCE_SYNC = 0x2000
    STATX_DONT_SYNC = 0x4000


class FallocateFlags(_Bits):
    """FALLOC_FL_*: what fallocate(2) does with a range; 0 allocates it."""

    KEEP_SIZE = 0x1
    PUNCH_HOLE = 0x2
    COLLAPSE_RANGE = 0x8
    ZERO_RANGE = 0x10
    INSERT_RANGE = 0x20
    UNSHARE_RANGE = 0x40
    WRITE_ZEROES = 0x80, "6.17"


class IntegrityFlags(_Bits):
    """IO_INTEGRITY_CHK_*: which fields of protection information a device checks."""

    CHK_GUARD = 0x1, "6.14"
    CHK_REFTAG = 0x2, "6.14"
    CHK_APPTAG = 0x4, "6.14"


class MadviseAdvice(_Number):
    """
    MADV_*: what `Madvise` says about memory.

    Four of Linux's are missing, for afterwards an access to the memory kills the process or its
    children: DONTFORK, HWPOISON, SOFT_OFFLINE and GUARD_INSTALL, with GUARD_REMOVE.
    """

    NORMAL = 0
    RANDOM = 1
    SEQUENTIAL = 2
    WILLNEED = 3
    DONTNEED = 4
    FREE = 8
    REMOVE = 9
    DOFORK = 11
    MERGEABLE = 12
    UNMERGEABLE = 13
    HUGEPAGE = 14
    NOHUGEPAGE = 15
    DONTDUMP = 16
    DODUMP = 17
    WIPEONFORK = 18
    KEEPONFORK = 19
    COLD = 20, "5.4"
    PAGEOUT = 21, "5.4"
    POPULATE_READ = 22, "5.14"
    POPULATE_WRITE = 23, "5.14"
    DONTNEED_LOCKED = 24, "5.18"
    COLLAPSE = 25, "6.1"


class RenameFlags(_Bits):
    """RENAME_*: what becomes of an existing target."""

    NOREPLACE = 0x1
    EXCHANGE = 0x2
    WHITEOUT = 0x4


class ResolveFlags(_Bits):
    """RESOLVE_*: where the lookup of openat2(2) may not lead."""

    NO_XDEV = 0x1, "5.6"
    NO_MAGICLINKS = 0x2, "5.6"
    NO_SYMLINKS = 0x4, "5.6"
    BENEATH = 0x8, "5.6"
    IN_ROOT = 0x10, "5.6"
    CACHED = 0x20, "5.12"


class StatxAttributes(_Bits):
    """STATX_ATTR_*: what is special about a file."""

    COMPRESSED = 0x4
    IMMUTABLE = 0x10
    APPEND = 0x20
    NODUMP = 0x40
    ENCRYPTED = 0x800
    AUTOMOUNT = 0x1000
    MOUNT_ROOT = 0x2000, "5.8"
    VERITY = 0x100000, "5.5"
    DAX = 0x200000, "5.8"
    WRITE_ATOMIC = 0x400000, "6.11"


class StatxMask(_Bits):
    """STATX_*: which fields statx(2) is asked for, and which ones it gave."""

    TYPE = 0x1
    MODE = 0x2
    NLINK = 0x4
    UID = 0x8
    GID = 0x10
    ATIME = 0x20
    MTIME = 0x40
    CTIME = 0x80
    INO = 0x100
    SIZE = 0x200
    BLOCKS = 0x400
    BASIC_STATS = 0x7FF
    BTIME = 0x800
    MNT_ID = 0x1000, "5.8"
    DIOALIGN = 0x2000, "6.1"
    MNT_ID_UNIQUE = 0x4000, "6.8"
    SUBVOL = 0x8000, "6.10"
    WRITE_ATOMIC = 0x10000, "6.11"
    DIO_READ_ALIGN = 0x20000, "6.14"


class SyncFileRangeFlags(_Bits):
    """SYNC_FILE_RANGE_*: which steps of writing a range back are taken."""

    WAIT_BEFORE = 0x1
    WRITE = 0x2
    WAIT_AFTER = 0x4
    WRITE_AND_WAIT = 0x7
