/*
 * A kernel of our own under the real shim, so that the fuzzer decides what the other side of the
 * queues does, and when: every atomic load of the shim's, and every system call, is a moment at
 * which this kernel may take SQEs and post CQEs. Counters begin where the input says, 2**32 in
 * sight.
 *
 * Here are its queues; model_calls.h has its system calls. The completion queue follows 6.18
 * (io_get_cqe_overflow(), io_cqe_cache_refill() and __io_cqring_overflow_flush() in
 * io_uring/io_uring.c and io_uring.h), the fault with a filler in a mixed queue included: it is
 * what the shim has to live with.
 */

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "input.h"

static long model_syscall(long number, ...);
static void *model_mmap(void *at, size_t size, int protection, int flags, int fd, long offset);
static int model_munmap(void *at, size_t size);
static int model_madvise(void *at, size_t size, int advice);
static int model_close(int fd);
static int model_poll(struct pollfd *polled, nfds_t count, int timeout_ms);
static int model_nanosleep(const struct timespec *time, struct timespec *left);
static int model_clock_gettime(clockid_t clock, struct timespec *now);
static int model_sched_yield(void);
static void model_breathe(void);

#define syscall model_syscall
#define mmap model_mmap
#define munmap model_munmap
#define madvise model_madvise
#define close model_close
#define poll(...) model_poll(__VA_ARGS__)
#define nanosleep model_nanosleep
#define clock_gettime model_clock_gettime
#define sched_yield model_sched_yield
#define __atomic_load_n(from, order) (model_breathe(), __atomic_load_n(from, order))
#include "../uring/_buffers.h"
#undef syscall
#undef mmap
#undef munmap
#undef madvise
#undef close
#undef poll
#undef nanosleep
#undef clock_gettime
#undef sched_yield
#undef __atomic_load_n

enum {
    OPERATIONS_MAX = 1024, /* of one input; each posts at most 4 CQEs */
    POSTED_MAX = 4 * OPERATIONS_MAX,
    NOBODY = -1, /* instead of the number of a run */
    MODEL_FD = 1000000,
};

struct posted {
    uint64_t user_data;
    int32_t res;
    uint32_t flags;
    uint64_t more[2];
};

/* An operation that was handed to the shim: what the kernel must find, and once. */
struct operation {
    uint64_t user_data;
    uint8_t opcode, flags;
    uint8_t is_wide; /* an SQE of 128 bytes, and not one of 64 */
    uint8_t is_taken;
    int run; /* that it is of, or NOBODY */
    uint32_t place;
};

/* An operation that the kernel has taken: how many CQEs it still posts. */
struct request {
    uint64_t user_data;
    uint32_t left;
    uint32_t is_zero_copy; /* the last one is a notification */
    int run;
    uint32_t place;
};

static struct kernel {
    uint32_t is_corrupt; /* the input writes into the queues: nothing is promised but no crash */
    uint32_t is_gone;    /* the memory of the queues is not to be touched */
    uint32_t is_busy;    /* inside this kernel */
    uint32_t flags, sq_entries, cq_entries;
    uint32_t line;       /* where the CQEs begin */
    char *rings, *sqes;
    size_t rings_size, sqes_size;
    struct uring_params offsets;
    uint32_t quiet; /* how many more loads pass before it acts */

    uint32_t cached_head; /* of the SQ */
    uint32_t cached_tail, cache_at, cache_end; /* of the CQ; the places that were reserved */
    uint32_t is_overflowing;
    uint32_t serial;                           /* of the next CQE */
    int registered_index;                      /* -1: none */
    char *region, *own_region;                 /* of registered waits; what is not the caller's */
    size_t region_size;
    int64_t now_ns;
    uint32_t mmaps_until_failure; /* 0: none fails */

    struct operation operations[OPERATIONS_MAX];
    uint32_t operation_count, taken_count;
    struct request requests[OPERATIONS_MAX];
    uint32_t request_count;
    struct posted backlog[POSTED_MAX];
    int backlog_runs[POSTED_MAX];
    uint32_t backlog_places[POSTED_MAX];
    uint32_t backlog_first, backlog_end;
    struct posted written[POSTED_MAX]; /* in the CQ, in this order, for whom no run waits */
    uint32_t written_count, committed_count;
} kernel;

/* The tests' side of it. */
static void note_of_run(int run, uint32_t place, const struct posted *cqe);
static void check_chain(const struct operation *last);
static void act_meanwhile(void);

static uint32_t *counter(uint32_t offset) { return (uint32_t *)(void *)(kernel.rings + offset); }
static uint32_t is_large(const struct posted *cqe)
{
    return kernel.flags & SETUP_CQE_MIXED && cqe->flags & CQE_F_32;
}

/* ---- the submission queue ---- */

/* The bytes of an SQE, which tell which operation it is of. */
static void sqe_bytes(uint32_t serial, char *out, size_t size)
{
    const struct operation *operation = &kernel.operations[serial];
    uint64_t seed = (uint64_t)serial * UINT64_C(0x9e3779b97f4a7c15) + 1;
    for (size_t i = 0; i < size; i += 8, seed = seed * UINT64_C(6364136223846793005) + 1442695)
        memcpy(out + i, &seed, 8);
    out[0] = (char)operation->opcode;
    out[1] = (char)operation->flags;
    memcpy(out + SQE_OFF, &(uint64_t){serial}, 8);
}

static void check_sqe(const char *sqe, uint32_t serial)
{
    const struct operation *operation = &kernel.operations[serial];
    char expected[2 * SQE_SIZE] = {0};
    size_t size = SQE_SIZE << !!(kernel.flags & SETUP_SQE128);
    sqe_bytes(serial, expected, operation->is_wide ? 2 * SQE_SIZE : SQE_SIZE);
    memcpy(expected + SQE_USER_DATA, &operation->user_data, 8);
    HOLDS(memcmp(sqe, expected, size) == 0);
}

/* Takes up to `most` SQEs; how many. */
static uint32_t consume(uint32_t most)
{
    uint32_t head = kernel.cached_head, count = 0;
    uint32_t tail = *counter(kernel.offsets.sq_off.tail), mask = kernel.sq_entries - 1;
    size_t size = SQE_SIZE << !!(kernel.flags & SETUP_SQE128);
    if (!kernel.is_corrupt)
        HOLDS(tail - head <= kernel.sq_entries);
    for (; count < most && count < kernel.sq_entries && head != tail; count++, head++) {
        uint32_t slot = head & mask;
        uint64_t serial;
        struct operation *operation;
        struct request *request = &kernel.requests[kernel.request_count];
        if (!(kernel.flags & SETUP_NO_SQARRAY))
            HOLDS(counter(kernel.offsets.sq_off.array)[slot] == slot || kernel.is_corrupt);
        memcpy(&serial, kernel.sqes + slot * size + SQE_OFF, 8);
        if (kernel.is_corrupt) /* it may be anything, and come again */
            continue;
        HOLDS(serial < kernel.operation_count);
        operation = &kernel.operations[serial];
        HOLDS(!operation->is_taken);
        check_sqe(kernel.sqes + slot * size, (uint32_t)serial);
        if (head + 1 == tail)
            check_chain(operation);
        operation->is_taken = 1;
        kernel.taken_count++;
        *request = (struct request){operation->user_data, 1 + (operation->opcode & 1),
                                    operation->opcode == OP_SEND_ZC, operation->run,
                                    operation->place};
        if (operation->run == NOBODY)
            request->left = 1 + (operation->opcode & 3);
        kernel.request_count++;
    }
    kernel.cached_head = head;
    __atomic_store_n(counter(kernel.offsets.sq_off.head), head, __ATOMIC_RELEASE);
    return count;
}

/* ---- the completion queue ---- */

static uint32_t queued(void)
{
    uint32_t count = kernel.cached_tail - *counter(kernel.offsets.cq_off.head);
    return count < kernel.cq_entries ? count : kernel.cq_entries;
}

static char *cqe_at(uint32_t place)
{
    uint32_t size = CQE_SIZE << !!(kernel.flags & SETUP_CQE32);
    return kernel.rings + kernel.offsets.cq_off.cqes + (size_t)place * size;
}

/* io_cqe_cache_refill(), io_fill_nop_cqe() in it. */
static int refill(uint32_t is_from_backlog, uint32_t large)
{
    uint32_t place = kernel.cached_tail & (kernel.cq_entries - 1), room, length;
    if (!is_from_backlog && kernel.is_overflowing)
        return 0;
    if (large && place + 1 == kernel.cq_entries) {
        const struct posted filler = {.flags = CQE_SKIP};
        if (queued() >= kernel.cq_entries)
            return 0;
        memcpy(cqe_at(place), &filler, CQE_SIZE);
        kernel.cached_tail++;
        place = 0;
    }
    room = kernel.cq_entries - queued();
    length = kernel.cq_entries - place;
    length = room < length ? room : length;
    if (length < large + 1)
        return 0;
    kernel.cache_at = place;
    kernel.cache_end = place + length;
    return 1;
}

/* io_get_cqe_overflow(), and the copy: whether there was room. */
static int write_cqe(const struct posted *cqe, int run, uint32_t place, uint32_t is_from_backlog)
{
    uint32_t large = is_large(cqe), is_wide = large || kernel.flags & SETUP_CQE32;
    if (kernel.cache_end - kernel.cache_at < large + 1 && !refill(is_from_backlog, large))
        return 0;
    memcpy(cqe_at(kernel.cache_at), cqe, is_wide ? 2 * CQE_SIZE : CQE_SIZE);
    kernel.cached_tail += 1 + large;
    kernel.cache_at += 1 + large;
    if (run == NOBODY)
        kernel.written[kernel.written_count++] = *cqe;
    else
        note_of_run(run, place, cqe);
    return 1;
}

static void set_sq_flags(uint32_t set, uint32_t cleared)
{
    uint32_t *flags = counter(kernel.offsets.sq_off.flags);
    *flags = (*flags & ~cleared) | set;
}

static void commit(void)
{
    __atomic_store_n(counter(kernel.offsets.cq_off.tail), kernel.cached_tail, __ATOMIC_RELEASE);
    kernel.committed_count = kernel.written_count;
}

static void flush_backlog(void)
{
    for (; kernel.backlog_first < kernel.backlog_end; kernel.backlog_first++) {
        uint32_t i = kernel.backlog_first;
        if (!write_cqe(&kernel.backlog[i], kernel.backlog_runs[i], kernel.backlog_places[i], 1))
            break;
    }
    if (kernel.backlog_first == kernel.backlog_end) {
        kernel.is_overflowing = 0;
        set_sq_flags(0, SQ_CQ_OVERFLOW);
    }
    commit();
}

/*
 * Whether a CQE of the same request waits in the backlog. In 6.18 a small one may overtake it into a
 * place that is reserved already; here the CQEs of one request stay in order.
 */
static int is_behind(const struct posted *cqe, int run)
{
    for (uint32_t i = kernel.backlog_first; i < kernel.backlog_end; i++)
        if (kernel.backlog[i].user_data == cqe->user_data && kernel.backlog_runs[i] == run)
            return 1;
    return 0;
}

/* Posts the next CQE of one request. */
static void post_one(uint32_t which)
{
    struct request *request = &kernel.requests[which];
    uint32_t serial = kernel.serial++, flags = (uint32_t)take8() << 16;
    struct posted cqe = {.user_data = request->user_data, .res = (int32_t)serial};
    int run = request->run;
    uint32_t place = request->place;
    request->left--;
    if (request->left > 0)
        flags |= CQE_MORE;
    else if (request->is_zero_copy)
        flags |= CQE_NOTIF;
    if (kernel.flags & SETUP_CQE_MIXED && flags & 1u << 16)
        flags |= CQE_F_32;
    cqe.flags = flags;
    if (kernel.flags & SETUP_CQE32 || is_large(&cqe)) {
        cqe.more[0] = serial * UINT64_C(0x9e3779b97f4a7c15);
        cqe.more[1] = ~cqe.more[0];
    }
    if (request->left == 0)
        *request = kernel.requests[--kernel.request_count];
    if (!is_behind(&cqe, run) && write_cqe(&cqe, run, place, 0))
        return;
    kernel.backlog[kernel.backlog_end] = cqe;
    kernel.backlog_runs[kernel.backlog_end] = run;
    kernel.backlog_places[kernel.backlog_end++] = place;
    kernel.is_overflowing = 1;
    set_sq_flags(SQ_CQ_OVERFLOW, 0);
}

/* Posts a CQE, of a request that the input chooses, if there is one. */
static int post_any(void)
{
    if (kernel.request_count == 0)
        return 0;
    post_one(take8() % kernel.request_count);
    return 1;
}

/*
 * How many CQEs there may be to see, at most. In a mixed queue one that takes the place of a filler
 * is seen as soon as it is written, for the tail has passed that place already.
 */
static uint32_t visible_count(void)
{
    return kernel.flags & SETUP_CQE_MIXED ? kernel.written_count : kernel.committed_count;
}

/* ---- what it does of itself ---- */

static int posts_of_itself(void)
{
    return !(kernel.flags & (SETUP_DEFER_TASKRUN | SETUP_IOPOLL));
}

static void model_breathe(void)
{
    uint8_t choice;
    if (kernel.rings == NULL || kernel.is_gone || kernel.is_busy || kernel.quiet-- > 0)
        return;
    if (input_left == 0) {
        kernel.quiet = UINT32_MAX;
        return;
    }
    kernel.is_busy = 1;
    choice = take8();
    kernel.quiet = choice >> 4;
    if (kernel.flags & SETUP_SQPOLL && choice & 8) {
        if (consume(1 + (choice & 1)) == 0)
            set_sq_flags(SQ_NEED_WAKEUP, 0);
    } else if (posts_of_itself()) {
        for (uint32_t i = 0; i < (choice & 3u) && post_any(); i++)
            ;
        if (!(choice & 4)) /* or the tail is moved at a later moment */
            commit();
    } else if (kernel.flags & SETUP_TASKRUN_FLAG && kernel.request_count > 0) {
        set_sq_flags(SQ_TASKRUN, 0);
    }
    kernel.is_busy = 0;
}
