/*
 * The floor: what each case costs in C, with nothing between it and the kernel.
 *
 * A shared library for floor.py. One call is one measurement: it does its case `repeats` times, as
 * the Python sides do, and returns the sum of user_data and res of all completions, which must be
 * theirs too, or -1. The structs and numbers are the interface's own, so that the age of the
 * machine's headers does not matter. Source: io_uring(7), io_uring_setup(2), io_uring_enter(2).
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    NR_SETUP = 425, /* one number on every architecture but alpha */
    NR_ENTER = 426,
    ENTER_GETEVENTS = 1,
    OP_NOP = 0,
    OP_WRITEV = 2,
    OP_FSYNC = 3,
    OP_SEND = 26,
    OP_RECV = 27,
    SQE_IO_LINK = 1 << 2,
    CONNECTIONS_MAX = 64,
    MESSAGE_MAX = 64,
};

struct sqe {
    uint8_t opcode, flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t off, addr;
    uint32_t len, op_flags;
    uint64_t user_data, rest[3];
};
_Static_assert(sizeof(struct sqe) == 64, "struct io_uring_sqe");

struct cqe {
    uint64_t user_data;
    int32_t res;
    uint32_t flags;
};
_Static_assert(sizeof(struct cqe) == 16, "struct io_uring_cqe");

struct params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd, resv[3];
    struct {
        uint32_t head, tail, mask, entries, flags, dropped, array, resv[3];
    } sq;
    struct {
        uint32_t head, tail, mask, entries, overflow, cqes, flags, resv[3];
    } cq;
};
_Static_assert(sizeof(struct params) == 120, "struct io_uring_params");

struct floor {
    int fd;
    unsigned sq_mask, cq_mask, tail, submitted;
    unsigned *sq_tail, *cq_head, *cq_tail;
    struct sqe *sqes;
    struct cqe *cqes;
};

static char *map(int fd, size_t size, off_t offset)
{
    void *start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset);
    return start == MAP_FAILED ? NULL : start;
}

/* A ring of `entries`, without setup flags; NULL and errno. It lives as long as the process. */
struct floor *floor_open(unsigned entries)
{
    struct params p = {0};
    struct floor *f = calloc(1, sizeof *f);
    if (!f || (f->fd = (int)syscall(NR_SETUP, entries, &p)) < 0)
        return NULL;
    char *sq = map(f->fd, p.sq.array + p.sq_entries * sizeof(unsigned), 0);
    char *cq = map(f->fd, p.cq.cqes + p.cq_entries * sizeof(struct cqe), 0x8000000);
    f->sqes = (struct sqe *)map(f->fd, p.sq_entries * sizeof(struct sqe), 0x10000000);
    if (!sq || !cq || !f->sqes)
        return NULL;
    f->sq_tail = (unsigned *)(sq + p.sq.tail);
    f->sq_mask = *(unsigned *)(sq + p.sq.mask);
    for (unsigned i = 0; i < p.sq_entries; i++) /* entry i is always SQE i */
        ((unsigned *)(sq + p.sq.array))[i] = i;
    f->cq_head = (unsigned *)(cq + p.cq.head);
    f->cq_tail = (unsigned *)(cq + p.cq.tail);
    f->cq_mask = *(unsigned *)(cq + p.cq.mask);
    f->cqes = (struct cqe *)(cq + p.cq.cqes);
    return f;
}

static struct sqe *push(struct floor *f, uint8_t opcode, int fd, uint64_t addr, uint32_t len,
                        uint64_t off, uint64_t user_data)
{
    struct sqe *sqe = &f->sqes[f->tail++ & f->sq_mask];
    *sqe = (struct sqe){.opcode = opcode, .fd = fd, .off = off, .addr = addr, .len = len,
                        .user_data = user_data};
    return sqe;
}

/* Submit all that was pushed, and wait for `wait` completions. */
static int enter(struct floor *f, unsigned wait)
{
    /* Release: the kernel, which reads the tail with acquire, then sees the SQEs. */
    __atomic_store_n(f->sq_tail, f->tail, __ATOMIC_RELEASE);
    unsigned count = f->tail - f->submitted;
    long taken;
    do
        taken = syscall(NR_ENTER, f->fd, count, wait, ENTER_GETEVENTS, NULL, 0);
    while (taken < 0 && errno == EINTR);
    f->submitted += taken > 0 ? (unsigned)taken : 0;
    return taken == (long)count ? 0 : -1;
}

/* Submit, wait for `count` completions, take them: the sum of user_data and res. */
static int64_t finish(struct floor *f, unsigned count)
{
    unsigned head = *f->cq_head; /* only we move it */
    int64_t total = 0;
    do /* more than once only when a signal cut the wait off */
        if (enter(f, count))
            return -1;
    while (__atomic_load_n(f->cq_tail, __ATOMIC_ACQUIRE) - head < count);
    for (unsigned i = 0; i < count; i++, head++) {
        const struct cqe *cqe = &f->cqes[head & f->cq_mask];
        total += (int64_t)cqe->user_data + cqe->res;
    }
    __atomic_store_n(f->cq_head, head, __ATOMIC_RELEASE); /* after the reads above */
    return total;
}

/* `count` NOPs, `batch` of them at once: all that the ring holds, or one. */
int64_t floor_nop(struct floor *f, unsigned repeats, unsigned count, unsigned batch)
{
    int64_t total = 0;
    while (repeats--)
        for (unsigned start = 0; start < count; start += batch) {
            unsigned end = start + batch < count ? start + batch : count;
            for (unsigned i = start; i < end; i++)
                push(f, OP_NOP, -1, 0, 0, 0, i);
            int64_t sum = finish(f, end - start);
            if (sum < 0)
                return -1;
            total += sum;
        }
    return total;
}

/* `count` operations that read: READ (an address is a buffer) or READV (an address is an iovec). */
int64_t floor_read(struct floor *f, unsigned repeats, unsigned opcode, int fd,
                   const uint64_t *addresses, unsigned length, const int64_t *offsets,
                   unsigned count, unsigned batch)
{
    int64_t total = 0;
    while (repeats--)
        for (unsigned start = 0; start < count; start += batch) {
            for (unsigned i = start; i < start + batch; i++)
                push(f, (uint8_t)opcode, fd, addresses[i], length, (uint64_t)offsets[i], i);
            int64_t sum = finish(f, batch);
            if (sum < 0)
                return -1;
            total += sum;
        }
    return total;
}

/* A writev and the fsync behind it, linked. */
int64_t floor_chain(struct floor *f, unsigned repeats, int fd, uint64_t iovecs, unsigned parts)
{
    int64_t total = 0;
    while (repeats--) {
        push(f, OP_WRITEV, fd, iovecs, parts, 0, 0)->flags = SQE_IO_LINK;
        push(f, OP_FSYNC, fd, 0, 0, 0, 1);
        int64_t sum = finish(f, 2);
        if (sum < 0)
            return -1;
        total += sum;
    }
    return total;
}

/* Answer `trips` messages on each connection: one recv or one send in flight for each. */
static int64_t echo(struct floor *f, const int *fds, const uint64_t *buffers, unsigned length,
                    unsigned count, unsigned trips)
{
    unsigned left[CONNECTIONS_MAX], open = count, head = *f->cq_head;
    int64_t total = 0;
    for (unsigned i = 0; i < count; i++) {
        left[i] = trips;
        push(f, OP_RECV, fds[i], buffers[i], length, 0, i);
    }
    while (open) {
        if (enter(f, 1))
            return -1;
        unsigned tail = __atomic_load_n(f->cq_tail, __ATOMIC_ACQUIRE);
        for (; head != tail; head++) {
            const struct cqe *cqe = &f->cqes[head & f->cq_mask];
            unsigned number = (unsigned)cqe->user_data, i = number % count;
            total += cqe->res;
            if (number < count)
                push(f, OP_SEND, fds[i], buffers[i], length, 0, i + count);
            else if (--left[i])
                push(f, OP_RECV, fds[i], buffers[i], length, 0, i);
            else
                open--;
        }
        __atomic_store_n(f->cq_head, head, __ATOMIC_RELEASE);
    }
    return total;
}

int64_t floor_echo(struct floor *f, unsigned repeats, const int *fds, const uint64_t *buffers,
                   unsigned length, unsigned count, unsigned trips)
{
    int64_t total = 0;
    if (count > CONNECTIONS_MAX)
        return -1;
    while (repeats--) {
        int64_t sum = echo(f, fds, buffers, length, count, trips);
        if (sum < 0)
            return -1;
        total += sum;
    }
    return total;
}

/* The echo's other side: one message is always under way on each connection. 0 at their end. */
int floor_client(const int *fds, unsigned count, unsigned length)
{
    char sent[MESSAGE_MAX], received[MESSAGE_MAX];
    if (length > MESSAGE_MAX)
        return -1;
    memset(sent, 'e', sizeof sent);
    for (unsigned i = 0; i < count; i++)
        if (send(fds[i], sent, length, MSG_NOSIGNAL) != (ssize_t)length)
            return 0;
    for (;;)
        for (unsigned i = 0; i < count; i++) {
            ssize_t size = recv(fds[i], received, length, MSG_WAITALL);
            if (size <= 0)
                return 0;
            if (size != (ssize_t)length || memcmp(sent, received, length) != 0)
                return -1;
            if (send(fds[i], sent, length, MSG_NOSIGNAL) != (ssize_t)length)
                return 0;
        }
}
