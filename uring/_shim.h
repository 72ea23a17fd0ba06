/*
 * The C that Python cannot do: map a ring, read and move its counters with the right memory order,
 * enter the kernel, copy SQEs in and CQEs out in bulk. Here is the ring as a whole; _queues.h has
 * its two queues, _batch.h the batch loop, _waits.h the other waits, _resize.h other sizes.
 *
 * Rules:
 *   - Every function returns a value >= 0, or a negative errno. Nothing is printed, nothing exits.
 *   - cffi releases the GIL around every call, so any of these may run in several threads at once.
 *     `sq_lock` guards our side of the SQ, `cq_lock` our side of the CQ; neither is held across a
 *     system call. A function that touches a mapping first joins the ring and parts from it at its
 *     end; uring_exit() refuses newcomers and unmaps only when everybody has parted.
 *   - A CQE is taken out of the CQ once, into the batch that it belongs to (_batch.h) or else into
 *     the inbox, where it stays until Python says that it has it.
 *   - The kernel is the other thread. It reads the SQ tail and the CQ head with acquire and writes
 *     the SQ head and the CQ tail with release; each access below names the half that pairs with
 *     it.
 *   - Nothing is taken from linux/io_uring.h, whose age varies with the distribution: the structs
 *     and numbers below are the interface's own, fixed since 5.4 unless a release is named.
 */

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef __NR_io_uring_setup /* one number on every architecture but alpha */
#define __NR_io_uring_setup 425
#define __NR_io_uring_enter 426
#define __NR_io_uring_register 427
#endif

#ifndef MADV_WIPEONFORK /* 4.14; older C libraries do not name it */
#define MADV_WIPEONFORK 18
#endif

enum {
    SETUP_IOPOLL = 1u << 0,
    SETUP_SQPOLL = 1u << 1,
    SETUP_TASKRUN_FLAG = 1u << 9,
    SETUP_SQE128 = 1u << 10,
    SETUP_CQE32 = 1u << 11,
    SETUP_DEFER_TASKRUN = 1u << 13,
    SETUP_NO_SQARRAY = 1u << 16,
    FEAT_SINGLE_MMAP = 1u << 0,
    FEAT_EXT_ARG = 1u << 8,
    ENTER_GETEVENTS = 1u << 0,
    ENTER_SQ_WAKEUP = 1u << 1,
    ENTER_SQ_WAIT = 1u << 2,     /* 5.10 */
    ENTER_EXT_ARG = 1u << 3,     /* 5.11 */
    ENTER_EXT_ARG_REG = 1u << 6, /* 6.13 */
    SQ_NEED_WAKEUP = 1u << 0,
    SQ_CQ_OVERFLOW = 1u << 1,
    SQ_TASKRUN = 1u << 2,
    CQE_MORE = 1u << 1,
    CQE_NOTIF = 1u << 3,
    SQE_IO_LINKED = 1u << 2 | 1u << 3, /* IOSQE_IO_LINK, IOSQE_IO_HARDLINK */
    SQE_SIZE = 64,
    SQE_FD = 4, /* the offsets of fields, here and below */
    SQE_OFF = 8,
    SQE_ADDR = 16,
    SQE_LEN = 24,
    SQE_USER_DATA = 32,
    CQE_SIZE = 16,
    CQE_RES = 8,
    CQE_FLAGS = 12,
    SUBMIT_TRIES = 64, /* of an enter that answers EAGAIN or EBUSY; each yields and flushes first */
    CLOSING = 1,       /* why nobody may join: for good, or */
    RESIZING = 2,      /* until the queues have been replaced */
};
#define OFF_RING 0L
#define OFF_SQES 0x10000000L

struct uring_params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd, resv[3];
    struct {
        uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, resv1;
        uint64_t user_addr;
    } sq_off;
    struct {
        uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1;
        uint64_t user_addr;
    } cq_off;
};
_Static_assert(sizeof(struct uring_params) == 120, "struct io_uring_params");

struct uring_getevents_arg { /* 5.11 */
    uint64_t sigmask;
    uint32_t sigmask_sz, min_wait_usec;
    uint64_t ts;
};
_Static_assert(sizeof(struct uring_getevents_arg) == 24, "struct io_uring_getevents_arg");

struct uring_timespec { /* struct __kernel_timespec: 64 bits on every architecture */
    int64_t sec, nsec;
};

struct uring {
    int fd;
    uint32_t is_open; /* `fd` is ours */
    uint32_t setup_flags, features, sq_entries, cq_entries;

    uint32_t *sq_head, *sq_tail, *sq_flags, *sq_dropped;
    uint32_t sq_mask, sqe_size;
    uint32_t sq_array; /* its place in the map; 0: there is none */
    char *sqes;

    uint32_t *cq_head, *cq_tail, *cq_flags, *cq_overflow;
    uint32_t cq_mask, cqe_size;
    char *cqes;

    void *ring_map, *sqe_map;
    size_t ring_map_size, sqe_map_size;

    pthread_mutex_t sq_lock, cq_lock;
    uint32_t placed;      /* how many SQEs uring_submit() has ever placed, wrapping */
    uint32_t cq_taken;    /* the place in the CQ up to which we have taken CQEs; see cq_publish() */
    char *inbox;          /* Python's memory, for cq_entries CQEs at least */
    uint64_t inbox_start; /* how many CQEs Python has acknowledged: the number of the first here */
    uint32_t inbox_count;
    struct uring_run *runs; /* the batches that are being run */

    uint32_t generation; /* of the process that mapped it */
    uint32_t users;
    uint32_t waiters; /* written under cq_lock */
    uint32_t sealed;  /* only the closer submits and waits */
    uint32_t closing; /* nobody may join: CLOSING, RESIZING or 0 */

    uint32_t sq_waiters; /* threads inside uring_wait_sq() */
    uint32_t wait_flags; /* what an enter that waits has besides: NO_IOWAIT */
    char *region;        /* of registered waits, or NULL */
    size_t region_size;
    uint32_t region_is_ours; /* we mapped it */
};

struct uring_counters {
    uint32_t placed, sq_head, sq_tail, sq_mask, sq_flags, sq_dropped, sq_entries;
    uint32_t cq_head, cq_tail, cq_mask, cq_flags, cq_overflow, cq_entries;
};

static uint32_t load_acquire(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static uint32_t load_relaxed(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static void store_release(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }

/* ---- fork: a ring belongs to the process that made it ---- */

/*
 * A page that the kernel empties in the child of a fork: the one test for a fork that needs no
 * system call and no cooperation, and also sees a fork that Python did not make. The mappings of
 * every ring are MADV_DONTFORK, so in a child they must not even be looked at.
 */
static uint32_t *fork_page;
static uint32_t fork_generation;

__attribute__((constructor)) static void fork_page_map(void)
{
    void *page = mmap(NULL, sizeof *fork_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                      -1, 0);
    if (page != MAP_FAILED && madvise(page, sizeof *fork_page, MADV_WIPEONFORK) == 0)
        fork_page = page;
}

/* The number of this process among its ancestors that used a ring; 0 when it cannot be told. */
static uint32_t process_generation(void)
{
    uint32_t unset = 0;
    if (fork_page == NULL)
        return 0;
    if (load_relaxed(fork_page) == 0) {
        uint32_t next = __atomic_add_fetch(&fork_generation, 1, __ATOMIC_RELAXED);
        (void)__atomic_compare_exchange_n(fork_page, &unset, next, 0, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED);
    }
    return load_relaxed(fork_page);
}

static int is_forked(const struct uring *ring)
{
    return load_relaxed(fork_page) != ring->generation;
}

/* ---- joining and parting ---- */

static void uring_part(struct uring *ring)
{
    __atomic_sub_fetch(&ring->users, 1, __ATOMIC_SEQ_CST);
}

/*
 * Sequentially consistent, both here and in uring_exit(): this thread counts itself and then looks
 * at `closing`, that one sets `closing` and then looks at the count, and one of the two must see.
 * The same with uring_resize(), for whose end this waits.
 */
static int uring_join(struct uring *ring)
{
    if (ring->ring_map == NULL)
        return -ESHUTDOWN;
    if (is_forked(ring))
        return -EOWNERDEAD;
    for (;;) {
        uint32_t closing;
        __atomic_add_fetch(&ring->users, 1, __ATOMIC_SEQ_CST);
        closing = __atomic_load_n(&ring->closing, __ATOMIC_SEQ_CST);
        if (closing == 0)
            return 0;
        uring_part(ring);
        if (closing != RESIZING)
            return -ESHUTDOWN;
        sched_yield();
    }
}

/* ---- setup and exit ---- */

/* `ring` is zeroed memory; uring_exit() undoes this, with or without a uring_map() in between. */
static int uring_setup(struct uring *ring, uint32_t entries, struct uring_params *params)
{
    long fd = syscall(__NR_io_uring_setup, entries, params);
    if (fd < 0)
        return -errno;
    ring->fd = (int)fd;
    ring->is_open = 1;
    return 0;
}

static int enter(const struct uring *ring, uint32_t to_submit, uint32_t min_complete,
                 uint32_t flags, const void *arg, size_t arg_size)
{
    long ret =
        syscall(__NR_io_uring_enter, ring->fd, to_submit, min_complete, flags, arg, arg_size);
    return ret < 0 ? -errno : (int)ret;
}

static void *map_shared(int fd, size_t size, long offset)
{
    void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset);
    if (map == MAP_FAILED)
        return NULL;
    if (madvise(map, size, MADV_DONTFORK) != 0) {
        int error = errno;
        munmap(map, size);
        errno = error;
        return NULL;
    }
    return map;
}

static void point_into_map(struct uring *ring, const struct uring_params *p)
{
    char *map = ring->ring_map;
    ring->sq_head = (uint32_t *)(void *)(map + p->sq_off.head);
    ring->sq_tail = (uint32_t *)(void *)(map + p->sq_off.tail);
    ring->sq_flags = (uint32_t *)(void *)(map + p->sq_off.flags);
    ring->sq_dropped = (uint32_t *)(void *)(map + p->sq_off.dropped);
    ring->sq_mask = *(uint32_t *)(void *)(map + p->sq_off.ring_mask);
    ring->sqes = ring->sqe_map;
    ring->cq_head = (uint32_t *)(void *)(map + p->cq_off.head);
    ring->cq_tail = (uint32_t *)(void *)(map + p->cq_off.tail);
    ring->cq_flags = (uint32_t *)(void *)(map + p->cq_off.flags);
    ring->cq_overflow = (uint32_t *)(void *)(map + p->cq_off.overflow);
    ring->cq_mask = *(uint32_t *)(void *)(map + p->cq_off.ring_mask);
    ring->cqes = map + p->cq_off.cqes;
    if (!(p->flags & SETUP_NO_SQARRAY)) { /* slot i always holds SQE i: written once, here */
        uint32_t *array = (uint32_t *)(void *)(map + p->sq_off.array);
        ring->sq_array = p->sq_off.array;
        for (uint32_t i = 0; i < p->sq_entries; i++)
            array[i] = i;
    }
}

/*
 * `inbox` has room for cq_entries CQEs and outlives the ring.
 * Twin: io_uring_queue_mmap(3), for kernels with FEAT_SINGLE_MMAP.
 */
static int uring_map(struct uring *ring, const struct uring_params *p, char *inbox)
{
    size_t sq_size = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
    size_t cq_size;
    void *ring_map;

    ring->generation = process_generation();
    if (ring->generation == 0)
        return -ENOMEM;
    if (!(p->features & FEAT_SINGLE_MMAP))
        return -EOPNOTSUPP;
    ring->setup_flags = p->flags;
    ring->features = p->features;
    ring->sq_entries = p->sq_entries;
    ring->cq_entries = p->cq_entries;
    ring->sqe_size = SQE_SIZE << !!(p->flags & SETUP_SQE128);
    ring->cqe_size = CQE_SIZE << !!(p->flags & SETUP_CQE32);
    cq_size = p->cq_off.cqes + (size_t)p->cq_entries * ring->cqe_size;
    ring->ring_map_size = sq_size > cq_size ? sq_size : cq_size;
    ring->sqe_map_size = (size_t)p->sq_entries * ring->sqe_size;

    ring->sqe_map = map_shared(ring->fd, ring->sqe_map_size, OFF_SQES);
    if (ring->sqe_map == NULL)
        return -errno;
    ring_map = map_shared(ring->fd, ring->ring_map_size, OFF_RING);
    if (ring_map == NULL) {
        int error = errno;
        munmap(ring->sqe_map, ring->sqe_map_size);
        return -error;
    }
    ring->inbox = inbox;
    ring->ring_map = ring_map;
    pthread_mutex_init(&ring->sq_lock, NULL);
    pthread_mutex_init(&ring->cq_lock, NULL);
    point_into_map(ring, p);
    return 0;
}

/* Nobody else is inside. Done before by a resize that failed. */
static void uring_unmap(struct uring *ring)
{
    if (ring->ring_map != NULL) {
        munmap(ring->ring_map, ring->ring_map_size);
        munmap(ring->sqe_map, ring->sqe_map_size);
    }
    if (ring->region_is_ours)
        munmap(ring->region, ring->region_size);
    ring->region_is_ours = 0;
    ring->ring_map = NULL;
}

/*
 * Refuses whoever comes, waits until whoever is inside has left, unmaps, closes the descriptor.
 * Those who are blocked in uring_wait() must have been woken before (uring_waiters() is 0). In the
 * child of a fork the mappings were never there, and their addresses may be somebody else's by now.
 */
static int uring_exit(struct uring *ring)
{
    if (!__atomic_exchange_n(&ring->is_open, 0, __ATOMIC_SEQ_CST))
        return 0;
    __atomic_store_n(&ring->closing, CLOSING, __ATOMIC_SEQ_CST);
    if (ring->ring_map != NULL && !is_forked(ring)) {
        while (__atomic_load_n(&ring->users, __ATOMIC_SEQ_CST) != 0)
            sched_yield();
        uring_unmap(ring);
    }
    return close(ring->fd) < 0 ? -errno : 0;
}

/* ---- the rest ---- */

static int uring_register(struct uring *ring, uint32_t opcode, void *arg, uint32_t nr_args)
{
    long ret = uring_join(ring);
    if (ret < 0)
        return (int)ret;
    ret = syscall(__NR_io_uring_register, ring->fd, opcode, arg, nr_args);
    if (ret < 0)
        ret = -errno;
    uring_part(ring);
    return (int)ret;
}

/* A snapshot for looking at: each counter is true at some moment, not all at the same. */
static int uring_counters(struct uring *ring, struct uring_counters *out)
{
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    pthread_mutex_lock(&ring->sq_lock); /* the tail stands still, and the head stays behind it */
    out->sq_tail = load_relaxed(ring->sq_tail);
    out->sq_head = load_acquire(ring->sq_head);
    pthread_mutex_unlock(&ring->sq_lock);
    out->placed = load_relaxed(&ring->placed);
    out->sq_mask = ring->sq_mask;
    out->sq_flags = load_relaxed(ring->sq_flags);
    out->sq_dropped = load_relaxed(ring->sq_dropped);
    out->sq_entries = ring->sq_entries;
    out->cq_head = load_relaxed(&ring->cq_taken); /* what the kernel will be told: cq_publish() */
    out->cq_tail = load_relaxed(ring->cq_tail);
    out->cq_mask = ring->cq_mask;
    out->cq_flags = load_relaxed(ring->cq_flags);
    out->cq_overflow = load_relaxed(ring->cq_overflow);
    out->cq_entries = ring->cq_entries;
    uring_part(ring);
    return 0;
}

static uint64_t uring_address(const void *memory) { return (uint64_t)(uintptr_t)memory; }
