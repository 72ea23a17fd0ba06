/*
 * Raw SQEs, as the input has them, bent so far that they hurt nobody: an address falls into the
 * arena and its length ends there, a descriptor is one of the fuzzer's, a number of another
 * operation is one that exists. All else stays as it came.
 */

#include "confine.h"

struct raw_sqe {
    uint8_t opcode, flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t off, addr;
    uint32_t len, op_flags;
    uint64_t user_data;
    uint16_t buf_index, personality;
    uint32_t splice_fd_in;
    uint64_t addr3, pad;
};
_Static_assert(sizeof(struct raw_sqe) == SQE_SIZE, "struct io_uring_sqe");

enum { /* enum io_uring_op, as far as it needs bending */
    OP_NOP = 0, OP_READV, OP_WRITEV, OP_FSYNC, OP_READ_FIXED, OP_WRITE_FIXED, OP_POLL_ADD,
    OP_POLL_REMOVE, OP_SYNC_FILE_RANGE, OP_SENDMSG, OP_RECVMSG, OP_TIMEOUT, OP_TIMEOUT_REMOVE,
    OP_ACCEPT, OP_ASYNC_CANCEL, OP_LINK_TIMEOUT, OP_CONNECT, OP_FALLOCATE, OP_OPENAT, OP_CLOSE,
    OP_FILES_UPDATE, OP_STATX, OP_READ, OP_WRITE, OP_FADVISE, OP_MADVISE, OP_SEND, OP_RECV,
    OP_OPENAT2, OP_EPOLL_CTL, OP_SPLICE, OP_PROVIDE_BUFFERS, OP_REMOVE_BUFFERS, OP_TEE,
    OP_SHUTDOWN, OP_RENAMEAT, OP_UNLINKAT, OP_MKDIRAT, OP_SYMLINKAT, OP_LINKAT, OP_MSG_RING,
    OP_FSETXATTR, OP_SETXATTR, OP_FGETXATTR, OP_GETXATTR, OP_SOCKET, OP_URING_CMD, OP_SEND_ZC,
    OP_SENDMSG_ZC, OP_READ_MULTISHOT, OP_WAITID, OP_FUTEX_WAIT, OP_FUTEX_WAKE, OP_FUTEX_WAITV,
    OP_FIXED_FD_INSTALL, OP_FTRUNCATE, OP_BIND, OP_LISTEN, OP_RECV_ZC, OP_EPOLL_WAIT,
    OP_READV_FIXED, OP_WRITEV_FIXED, OP_PIPE, OP_COUNT,
};
enum {
    FOLD_FIXED_FILE = 1, FOLD_CQE_SKIP = 64, /* SQE flags */
    POLL_NEW_USER_DATA = 4, MSG_FLAGS_PASS = 2, TIMEOUT_IS_MULTISHOT = 64,
    MESSAGES_FROM = 1 << 30, /* the user_data of what MSG_RING posts */
};

static uint64_t address_of(const void *memory) { return (uint64_t)(uintptr_t)memory; }

/* An address in the arena with `size` bytes behind it. */
static uint64_t in_data(uint64_t wanted, uint64_t size)
{
    return address_of(data) + wanted % (DATA_SIZE - size + 1);
}

/* `addr` and `len`: any part of the arena. */
static void fold_span(struct raw_sqe *sqe)
{
    uint64_t place = sqe->addr % DATA_SIZE;
    sqe->addr = address_of(data) + place;
    sqe->len %= (uint32_t)(DATA_SIZE - place + 1);
}

static uint64_t path_at(uint64_t which) { return address_of(structures->paths[which % PATHS]); }

static int32_t fold_file(uint64_t which, int is_fixed)
{
    return (int32_t)(is_fixed ? which % SLOTS : FIRST_FILE + which % FILES);
}

static int32_t fold_directory(uint64_t which)
{
    return which & 1 ? AT_FDCWD : FIRST_FILE + 13;
}

/* What could reach outside when this thread has no root and network of its own. */
static int reaches_outside(uint8_t opcode)
{
    switch (opcode) {
    case OP_OPENAT: case OP_OPENAT2: case OP_STATX: case OP_RENAMEAT: case OP_UNLINKAT:
    case OP_MKDIRAT: case OP_SYMLINKAT: case OP_LINKAT: case OP_SETXATTR: case OP_GETXATTR:
    case OP_SOCKET: case OP_BIND: case OP_CONNECT: case OP_SENDMSG: case OP_SENDMSG_ZC:
    case OP_SEND: case OP_SEND_ZC: case OP_URING_CMD:
        return 1;
    default:
        return 0;
    }
}

/* The operations on paths. */
static int fold_paths(struct raw_sqe *sqe)
{
    switch (sqe->opcode) {
    case OP_OPENAT: case OP_MKDIRAT: case OP_UNLINKAT:
        break;
    case OP_OPENAT2:
        sqe->off = address_of(structures->open_how);
        sqe->len = sizeof structures->open_how;
        break;
    case OP_STATX:
        sqe->off = in_data(sqe->off, 256);
        break;
    case OP_RENAMEAT: case OP_LINKAT:
        sqe->len = (uint32_t)fold_directory(sqe->len);
        sqe->off = path_at(sqe->off);
        break;
    case OP_SYMLINKAT:
        sqe->off = path_at(sqe->off);
        break;
    default:
        return 0;
    }
    sqe->fd = fold_directory((uint32_t)sqe->fd);
    sqe->addr = path_at(sqe->addr);
    return 1;
}

/* Those on sockets. */
static int fold_sockets(struct raw_sqe *sqe)
{
    static const int families[] = {AF_UNIX, AF_INET, AF_INET6};
    switch (sqe->opcode) {
    case OP_SENDMSG: case OP_RECVMSG: case OP_SENDMSG_ZC:
        sqe->addr = address_of(&structures->messages[sqe->addr % 4]);
        return 1;
    case OP_SEND: case OP_SEND_ZC:
        fold_span(sqe);
        sqe->off = sqe->off & 1 ? address_of(&structures->addresses[sqe->off % ADDRESSES]) : 0;
        sqe->splice_fd_in = sqe->off ? sizeof(struct sockaddr_un) : 0;
        return 1;
    case OP_CONNECT: case OP_BIND:
        sqe->addr = address_of(&structures->addresses[sqe->addr % ADDRESSES]);
        sqe->off %= 256;
        return 1;
    case OP_ACCEPT:
        sqe->addr = sqe->off & 1 ? in_data(sqe->addr, 128) : 0;
        sqe->off = sqe->addr ? in_data(sqe->off, 4) : 0;
        return 1;
    case OP_SOCKET: /* other families load modules of the kernel's */
        sqe->fd = families[(uint32_t)sqe->fd % 3];
        sqe->off = 1 + sqe->off % 2;
        sqe->len = 0;
        return 2; /* fd is none */
    case OP_URING_CMD: /* socket options, of SOL_SOCKET alone for the same reason */
        sqe->off %= 8;
        sqe->fd = FIRST_FILE + 4 + (sqe->fd & 3);
        sqe->flags &= (uint8_t)~FOLD_FIXED_FILE;
        sqe->addr = sqe->off == 5 ? in_data(sqe->addr, 128)
                                  : (sqe->addr & UINT64_C(0x7f00000000)) | SOL_SOCKET;
        sqe->splice_fd_in %= 129;
        sqe->addr3 = in_data(sqe->addr3, 128);
        return 2;
    default:
        return 0;
    }
}

/* Those on others that are in flight, and on files of the ring's. */
static int fold_control(struct raw_sqe *sqe, uint64_t count)
{
    switch (sqe->opcode) {
    case OP_TIMEOUT: case OP_LINK_TIMEOUT:
        sqe->addr = address_of(&structures->times[sqe->addr % 4]);
        return 1;
    case OP_TIMEOUT_REMOVE:
        sqe->addr %= count;
        sqe->off = address_of(&structures->times[sqe->off % 4]);
        return 1;
    case OP_ASYNC_CANCEL:
        sqe->addr %= count;
        return 1;
    case OP_POLL_REMOVE:
        sqe->addr %= count;
        sqe->len &= ~(uint32_t)POLL_NEW_USER_DATA;
        return 1;
    case OP_MSG_RING:
        sqe->fd = FIRST_FILE + FILES - 1;
        sqe->flags &= (uint8_t)~FOLD_FIXED_FILE;
        sqe->addr %= 3;
        sqe->off = MESSAGES_FROM;
        sqe->op_flags &= ~(uint32_t)MSG_FLAGS_PASS;
        return 2;
    case OP_FILES_UPDATE:
        sqe->addr = address_of(structures->files);
        sqe->len %= SLOTS + 1;
        return 1;
    case OP_CLOSE: /* what operations have made, and slots */
        sqe->fd = sqe->splice_fd_in ? 0 : FIRST_MADE + (sqe->fd & 31);
        sqe->splice_fd_in %= SLOTS + 1;
        sqe->flags &= (uint8_t)~FOLD_FIXED_FILE;
        return 2;
    case OP_EPOLL_CTL:
        sqe->fd = FIRST_FILE + 12;
        sqe->flags &= (uint8_t)~FOLD_FIXED_FILE;
        sqe->addr = address_of(&structures->event);
        sqe->off = (uint64_t)fold_file(sqe->off, 0);
        return 2;
    case OP_WAITID: /* nobody has children here */
        sqe->off = in_data(sqe->off, 128);
        return 2;
    default:
        return 0;
    }
}

/* Those on memory, beside reads and writes. */
static int fold_memory(struct raw_sqe *sqe)
{
    uint64_t room;
    switch (sqe->opcode) {
    case OP_READV: case OP_WRITEV: case OP_READV_FIXED: case OP_WRITEV_FIXED:
        sqe->addr = sqe->addr % IOVECS;
        sqe->len = sqe->len % (uint32_t)(IOVECS - sqe->addr + 1);
        sqe->addr = address_of(&structures->iovecs[sqe->addr]);
        break;
    case OP_MADVISE: /* the first five; others poison pages of the machine */
        sqe->addr = address_of(data) + sqe->addr % DATA_SIZE / PAGE * PAGE;
        sqe->off = 0;
        sqe->len %= (uint32_t)(address_of(data) + DATA_SIZE - sqe->addr + 1);
        sqe->op_flags %= 5;
        return 2;
    case OP_PROVIDE_BUFFERS:
        room = DATA_SIZE - sqe->addr % DATA_SIZE;
        sqe->addr = address_of(data) + sqe->addr % DATA_SIZE;
        sqe->len = 1 + sqe->len % 512;
        sqe->fd = (int32_t)((uint32_t)sqe->fd % (1 + (uint32_t)room / sqe->len));
        sqe->off %= 64;
        return 2;
    case OP_FSETXATTR: case OP_SETXATTR: case OP_FGETXATTR: case OP_GETXATTR:
        sqe->addr = path_at(sqe->addr);
        sqe->len %= 2048;
        sqe->off = in_data(sqe->off, 2048);
        sqe->addr3 = path_at(sqe->addr3);
        break;
    case OP_FUTEX_WAIT: case OP_FUTEX_WAKE:
        sqe->addr = in_data(sqe->addr, 16) & ~UINT64_C(7);
        return 2;
    case OP_FUTEX_WAITV:
        sqe->addr = address_of(structures->futexes);
        sqe->len %= 5;
        return 2;
    case OP_EPOLL_WAIT:
        sqe->addr = in_data(sqe->addr, 16 * 12);
        sqe->len %= 17;
        break;
    case OP_PIPE:
        sqe->addr = in_data(sqe->addr, 8);
        return 2;
    default:
        return 0;
    }
    return 1;
}

/* Whether it may be an SQE of a batch: what posts any number of CQEs may not. */
static void fold_multishot(struct raw_sqe *sqe)
{
    if (sqe->opcode == OP_READ_MULTISHOT)
        sqe->opcode = OP_READ;
    if (sqe->opcode == OP_POLL_ADD)
        sqe->len = 0;
    if (sqe->opcode == OP_TIMEOUT || sqe->opcode == OP_URING_CMD)
        sqe->op_flags &= ~(uint32_t)(TIMEOUT_IS_MULTISHOT | 2);
    if (sqe->opcode != OP_READ)
        sqe->ioprio = 0;
}

/* Bends one; `count` operations have been made before it. */
static void fold(struct raw_sqe *sqe, uint64_t count)
{
    int is_folded;
    if (!is_confined && reaches_outside(sqe->opcode))
        sqe->opcode = OP_NOP;
    if (sqe->opcode >= OP_COUNT) /* a newer kernel may know more than is bent here */
        sqe->opcode = UINT8_MAX;
    sqe->flags &= (uint8_t)~FOLD_CQE_SKIP; /* each is to post a CQE, so that they can be counted */
    sqe->buf_index %= 3;
    sqe->personality = 0;
    is_folded = fold_paths(sqe);
    if (is_folded) {
        sqe->flags &= (uint8_t)~FOLD_FIXED_FILE;
        return;
    }
    is_folded = fold_sockets(sqe);
    if (!is_folded)
        is_folded = fold_control(sqe, count);
    if (!is_folded)
        is_folded = fold_memory(sqe);
    if (is_folded < 2)
        sqe->fd = fold_file((uint32_t)sqe->fd, sqe->flags & FOLD_FIXED_FILE);
    if (sqe->opcode == OP_SPLICE || sqe->opcode == OP_TEE) {
        sqe->splice_fd_in = (uint32_t)fold_file(sqe->splice_fd_in, 0);
        sqe->op_flags &= 0x7fffffff; /* SPLICE_F_FD_IN_FIXED */
        sqe->len %= DATA_SIZE;
    } else if (!is_folded && sqe->opcode < OP_COUNT) {
        fold_span(sqe);
        if (sqe->opcode != OP_FALLOCATE)
            return;
        sqe->addr %= 2 * DATA_SIZE; /* a length */
    }
}
