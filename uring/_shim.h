/*
 * The C that Python cannot do: map a ring, read and move its counters with the right memory order,
 * enter the kernel, copy SQEs in and CQEs out in bulk.
 *
 * Rules:
 *   - Every function returns a value >= 0, or a negative errno. Nothing is printed, nothing exits.
 *   - cffi releases the GIL around every call, so any of these may run in several threads at once.
 *     `sq_lock` guards our side of the SQ, `cq_lock` our side of the CQ; neither is held across a
 *     system call. A function that touches a mapping first joins the ring and parts from it at its
 *     end; uring_exit() refuses newcomers and unmaps only when everybody has parted.
 *   - The kernel is the other thread. It reads the SQ tail and the CQ head with acquire and writes
 *     the SQ head and the CQ tail with release; each access below names the half that pairs with it.
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
    SETUP_SQE128 = 1u << 10,
    SETUP_CQE32 = 1u << 11,
    SETUP_DEFER_TASKRUN = 1u << 13,
    SETUP_NO_SQARRAY = 1u << 16,
    FEAT_SINGLE_MMAP = 1u << 0,
    FEAT_EXT_ARG = 1u << 8,
    ENTER_GETEVENTS = 1u << 0,
    ENTER_SQ_WAKEUP = 1u << 1,
    ENTER_EXT_ARG = 1u << 3, /* 5.11 */
    SQ_NEED_WAKEUP = 1u << 0,
    SQ_CQ_OVERFLOW = 1u << 1,
    SQ_TASKRUN = 1u << 2,
    SQE_IO_LINKED = 1u << 2 | 1u << 3, /* IOSQE_IO_LINK, IOSQE_IO_HARDLINK */
    SQE_SIZE = 64,
    CQE_SIZE = 16,
    SUBMIT_TRIES = 64, /* of an enter that answers EAGAIN or EBUSY; each yields and flushes first */
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
    char *sqes;

    uint32_t *cq_head, *cq_tail, *cq_flags, *cq_overflow;
    uint32_t cq_mask, cqe_size;
    char *cqes;

    void *ring_map, *sqe_map;
    size_t ring_map_size, sqe_map_size;

    pthread_mutex_t sq_lock, cq_lock;
    uint32_t generation; /* of the process that mapped it */
    uint32_t users, waiters;
    uint32_t sealed;  /* only the closer submits and waits */
    uint32_t closing; /* nobody may join */
};

struct uring_counters {
    uint32_t sq_head, sq_tail, sq_mask, sq_flags, sq_dropped, sq_entries;
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

static void uring_part(struct uring *ring) { __atomic_sub_fetch(&ring->users, 1, __ATOMIC_SEQ_CST); }

/*
 * Sequentially consistent, both here and in uring_exit(): this thread counts itself and then looks
 * at `closing`, that one sets `closing` and then looks at the count, and one of the two must see.
 */
static int uring_join(struct uring *ring)
{
    if (ring->ring_map == NULL)
        return -ESHUTDOWN;
    if (is_forked(ring))
        return -EOWNERDEAD;
    __atomic_add_fetch(&ring->users, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&ring->closing, __ATOMIC_SEQ_CST)) {
        uring_part(ring);
        return -ESHUTDOWN;
    }
    return 0;
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
    long ret = syscall(__NR_io_uring_enter, ring->fd, to_submit, min_complete, flags, arg, arg_size);
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
        for (uint32_t i = 0; i < p->sq_entries; i++)
            array[i] = i;
    }
}

/* Twin: io_uring_queue_mmap(3), for kernels with FEAT_SINGLE_MMAP. */
static int uring_map(struct uring *ring, const struct uring_params *p)
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
    ring->ring_map = ring_map;
    pthread_mutex_init(&ring->sq_lock, NULL);
    pthread_mutex_init(&ring->cq_lock, NULL);
    point_into_map(ring, p);
    return 0;
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
    __atomic_store_n(&ring->closing, 1, __ATOMIC_SEQ_CST);
    if (ring->ring_map != NULL && !is_forked(ring)) {
        while (__atomic_load_n(&ring->users, __ATOMIC_SEQ_CST) != 0)
            sched_yield();
        munmap(ring->ring_map, ring->ring_map_size);
        munmap(ring->sqe_map, ring->sqe_map_size);
    }
    return close(ring->fd) < 0 ? -errno : 0;
}

/* ---- the submission side ---- */

/*
 * Copies all `count` SQEs behind the tail, or none. `tail` is where the caller believes the tail to
 * be; when another thread was faster the answer is ESTALE, so what two threads offer at once is
 * placed once. Twin: io_uring_get_sqe(3) and __io_uring_flush_sq().
 *
 * Acquire on the head: the kernel has read a slot before it moves the head past it, so we may
 * overwrite it. Release on the tail: the SQEs are visible before the tail that covers them. Only we
 * write the tail, and only under the lock, so reading it back may be relaxed.
 */
static int sq_place(struct uring *ring, uint32_t tail, const char *sqes, const char *user_data,
                    uint32_t count, uint32_t sealed)
{
    int ret = 0;
    pthread_mutex_lock(&ring->sq_lock);
    if (ring->sealed != sealed)
        ret = -ESHUTDOWN;
    else if (load_relaxed(ring->sq_tail) != tail)
        ret = -ESTALE;
    else if (count > ring->sq_entries - (tail - load_acquire(ring->sq_head)))
        ret = -ENOSPC;
    for (uint32_t i = 0; ret == 0 && i < count; i++) {
        char *sqe = ring->sqes + (size_t)((tail + i) & ring->sq_mask) * ring->sqe_size;
        memcpy(sqe, sqes + (size_t)i * SQE_SIZE, SQE_SIZE);
        memcpy(sqe + 32, user_data + (size_t)i * 8, 8);
        if (ring->sqe_size > SQE_SIZE)
            memset(sqe + SQE_SIZE, 0, ring->sqe_size - SQE_SIZE);
    }
    if (ret == 0 && count > 0)
        store_release(ring->sq_tail, tail + count);
    pthread_mutex_unlock(&ring->sq_lock);
    return ret;
}

/*
 * The poller sets NEED_WAKEUP and then looks at the tail once more; we move the tail and then look
 * at NEED_WAKEUP. Store before load on both sides takes a full fence: release and acquire alone let
 * both miss. Whether this very call moved the tail does not matter: a sleeper is always woken.
 */
static uint32_t wakeup_flag(const struct uring *ring)
{
    if (!(ring->setup_flags & SETUP_SQPOLL))
        return 0;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return load_relaxed(ring->sq_flags) & SQ_NEED_WAKEUP ? ENTER_SQ_WAKEUP : 0;
}

/*
 * Has the kernel take everything that is published. It stops at an SQE that it refuses outright
 * (which gets its CQE), so one call may take several enters. EAGAIN is lack of memory and EBUSY, on
 * kernels before 5.19, a CQ backlog: both may pass, and a flush helps. Nothing is lost when they do
 * not: the SQEs stay where they are.
 */
static int64_t sq_enter(const struct uring *ring, uint32_t placed)
{
    int64_t submitted = 0;
    int tries = SUBMIT_TRIES;

    if (ring->setup_flags & SETUP_SQPOLL) {
        uint32_t wakeup = wakeup_flag(ring);
        int ret = wakeup ? enter(ring, placed, 0, wakeup, NULL, 0) : 0;
        return ret < 0 && ret != -EINTR ? ret : (int64_t)placed;
    }
    for (;;) {
        uint32_t ready = load_relaxed(ring->sq_tail) - load_acquire(ring->sq_head);
        /* All of it, so that a chain that is placed meanwhile is not cut: the kernel takes no more
         * than there is. */
        int ret = ready ? enter(ring, ring->sq_entries, 0, 0, NULL, 0) : 0;
        if ((ret == -EAGAIN || ret == -EBUSY) && --tries) {
            sched_yield();
            (void)enter(ring, 0, 0, ENTER_GETEVENTS, NULL, 0); /* the retry tells if it helped */
        } else if (ret < 0 && ret != -EINTR) {
            return ret;
        } else if (ret == 0) { /* nothing was left, or the kernel takes nothing: never spin */
            return submitted;
        } else if (ret > 0) {
            submitted += ret;
        }
    }
}

static int64_t submit(struct uring *ring, uint32_t tail, const char *sqes, const char *user_data,
                      uint32_t count, uint32_t sealed)
{
    int64_t ret = uring_join(ring);
    if (ret < 0)
        return ret;
    ret = sq_place(ring, tail, sqes, user_data, count, sealed);
    if (ret == 0)
        ret = sq_enter(ring, count);
    if (ret >= 0) { /* the head first: it may move, and never past a tail that is read later */
        uint32_t head = load_acquire(ring->cq_head);
        ret |= (int64_t)(load_relaxed(ring->cq_tail) - head) << 32;
    }
    uring_part(ring);
    return ret;
}

/* Low half: how many SQEs the kernel took. High half: how many CQEs are there now. */
static int64_t uring_submit(struct uring *ring, uint32_t tail, const char *sqes,
                            const char *user_data, uint32_t count)
{
    return submit(ring, tail, sqes, user_data, count, 0);
}

/* ---- the completion side ---- */

static int64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/*
 * Before 5.11 enter takes no timeout: poll the ring's descriptor, which is readable from the first
 * CQE on; when some are there and not enough, all that is left is to look again in a while.
 */
static int poll_until(const struct uring *ring, int64_t left_ns)
{
    struct pollfd ready = {.fd = ring->fd, .events = POLLIN};
    struct timespec while_ = {.tv_nsec = 1000000};
    int64_t left_ms = left_ns / 1000000 + 1;
    if (left_ns <= 0)
        return 0;
    if (load_relaxed(ring->cq_tail) != load_relaxed(ring->cq_head))
        return nanosleep(&while_, NULL) < 0 ? -errno : 0;
    return poll(&ready, 1, left_ms < 1000 ? (int)left_ms : 1000) < 0 ? -errno : 0;
}

static int enter_until(const struct uring *ring, uint32_t wait_nr, uint32_t flags, int64_t deadline)
{
    int64_t left = deadline - monotonic_ns();
    struct uring_timespec ts = {.sec = 0, .nsec = 0};
    struct uring_getevents_arg arg = {.ts = (uint64_t)(uintptr_t)&ts};
    if (left > 0) {
        ts.sec = left / 1000000000;
        ts.nsec = left % 1000000000;
    }
    if (!(ring->features & FEAT_EXT_ARG)) {
        int ret = enter(ring, 0, 0, flags, NULL, 0);
        return ret < 0 ? ret : poll_until(ring, left);
    }
    return enter(ring, 0, wait_nr, flags | ENTER_EXT_ARG, &arg, sizeof arg);
}

/*
 * One wait for `wait_nr` CQEs: 0 when they are there, EINTR or EAGAIN when the caller should look
 * around (signals, a closing ring) and come again, ETIME when the deadline (CLOCK_MONOTONIC, -1 for
 * none) has passed. Never a loop in here: only the caller can run Python's signal handlers. The
 * kernel may return early and without an error, so what counts is the tail.
 * Twin: io_uring_wait_cqes(3).
 */
static int wait_cqes(struct uring *ring, uint32_t wait_nr, int64_t deadline_ns, uint32_t sealed)
{
    uint32_t target, flags;
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    __atomic_add_fetch(&ring->waiters, 1, __ATOMIC_SEQ_CST);
    if (wait_nr > ring->cq_entries)
        wait_nr = ring->cq_entries;
    target = load_relaxed(ring->cq_head) + wait_nr;
    if (__atomic_load_n(&ring->sealed, __ATOMIC_SEQ_CST) != sealed) {
        ret = -ESHUTDOWN;
    } else if ((int32_t)(load_relaxed(ring->cq_tail) - target) < 0) {
        flags = ENTER_GETEVENTS | wakeup_flag(ring);
        ret = deadline_ns < 0 ? enter(ring, 0, wait_nr, flags, NULL, 0)
                              : enter_until(ring, wait_nr, flags, deadline_ns);
        if (ret >= 0 && (int32_t)(load_relaxed(ring->cq_tail) - target) < 0)
            ret = deadline_ns >= 0 && monotonic_ns() >= deadline_ns ? -ETIME : -EAGAIN;
    }
    __atomic_sub_fetch(&ring->waiters, 1, __ATOMIC_SEQ_CST);
    uring_part(ring);
    return ret < 0 ? ret : 0;
}

static int uring_wait(struct uring *ring, uint32_t wait_nr, int64_t deadline_ns)
{
    return wait_cqes(ring, wait_nr, deadline_ns, 0);
}

/*
 * Must the kernel be entered for CQEs to show up? TASKRUN and CQ_OVERFLOW say so. An IOPOLL ring
 * finds completions only when entered; a DEFER_TASKRUN ring posts them only then, and says so only
 * with TASKRUN_FLAG. (Testing CQ_OVERFLOW alone is a known way to poll such a ring for ever.)
 */
static int cq_needs_enter(const struct uring *ring, uint32_t ready)
{
    uint32_t flags = load_relaxed(ring->sq_flags);
    if (ready == ring->cq_entries)
        return 0;
    if (flags & (SQ_CQ_OVERFLOW | SQ_TASKRUN))
        return 1;
    return ready == 0 && ring->setup_flags & (SETUP_IOPOLL | SETUP_DEFER_TASKRUN);
}

/*
 * Copies up to `max_nr` CQEs from `head` on, and first makes `head` the ring's: the caller keeps
 * the head, so that a copy whose answer never reached it is simply made again.
 *
 * Acquire on the tail: the CQEs that it covers are visible. Release on the head: we have read a
 * CQE before the kernel may overwrite it. Twin: io_uring_peek_batch_cqe(3).
 */
static uint32_t cq_copy_ready(struct uring *ring, uint32_t head, uint32_t max_nr, char *out,
                              uint32_t *ready)
{
    uint32_t count, first, size = ring->cqe_size, from = head & ring->cq_mask;
    pthread_mutex_lock(&ring->cq_lock);
    if (load_relaxed(ring->cq_head) != head)
        store_release(ring->cq_head, head);
    *ready = load_acquire(ring->cq_tail) - head;
    count = *ready < max_nr ? *ready : max_nr;
    first = ring->cq_mask + 1 - from;
    if (first > count)
        first = count;
    memcpy(out, ring->cqes + (size_t)from * size, (size_t)first * size);
    memcpy(out + (size_t)first * size, ring->cqes, (size_t)(count - first) * size);
    pthread_mutex_unlock(&ring->cq_lock);
    return count;
}

/* Low half: how many CQEs were copied. High half: the flags of all of them, or-ed. */
static int64_t uring_cq_copy(struct uring *ring, uint32_t head, uint32_t max_nr, char *out)
{
    uint32_t count, ready, flags = 0;
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    count = cq_copy_ready(ring, head, max_nr, out, &ready);
    if (count < max_nr && cq_needs_enter(ring, ready)) {
        ret = enter(ring, 0, 0, ENTER_GETEVENTS, NULL, 0);
        count = cq_copy_ready(ring, head, max_nr, out, &ready);
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t each;
        memcpy(&each, out + (size_t)i * ring->cqe_size + 12, sizeof each);
        flags |= each & 0xffff; /* the rest is a buffer id */
    }
    uring_part(ring);
    if (ret < 0 && ret != -EINTR && count == 0)
        return ret;
    return (int64_t)flags << 32 | count;
}

/* Twin: io_uring_cq_advance(3), but to an absolute place: doing it twice is doing it once. */
static int uring_cq_seek(struct uring *ring, uint32_t head)
{
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    pthread_mutex_lock(&ring->cq_lock);
    store_release(ring->cq_head, head);
    pthread_mutex_unlock(&ring->cq_lock);
    uring_part(ring);
    return 0;
}

/* ---- closing ---- */

/*
 * From here on only uring_sealed_submit() and uring_sealed_wait() submit and wait. Taken under the
 * lock, so that the tail is final for everybody else when this returns; sequentially consistent,
 * so that a thread that counts itself among the waiters either sees the seal or is seen.
 */
static int uring_seal(struct uring *ring)
{
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    pthread_mutex_lock(&ring->sq_lock);
    __atomic_store_n(&ring->sealed, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&ring->sq_lock);
    uring_part(ring);
    return 0;
}

static int64_t uring_sealed_submit(struct uring *ring, uint32_t tail, const char *sqes,
                                   const char *user_data, uint32_t count)
{
    return submit(ring, tail, sqes, user_data, count, 1);
}

static int uring_sealed_wait(struct uring *ring, uint32_t wait_nr, int64_t deadline_ns)
{
    return wait_cqes(ring, wait_nr, deadline_ns, 1);
}

/* How many threads are inside a wait. */
static int uring_waiters(struct uring *ring)
{
    return (int)__atomic_load_n(&ring->waiters, __ATOMIC_SEQ_CST);
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
    out->sq_mask = ring->sq_mask;
    out->sq_flags = load_relaxed(ring->sq_flags);
    out->sq_dropped = load_relaxed(ring->sq_dropped);
    out->sq_entries = ring->sq_entries;
    out->cq_head = load_acquire(ring->cq_head);
    out->cq_tail = load_relaxed(ring->cq_tail);
    out->cq_mask = ring->cq_mask;
    out->cq_flags = load_relaxed(ring->cq_flags);
    out->cq_overflow = load_relaxed(ring->cq_overflow);
    out->cq_entries = ring->cq_entries;
    uring_part(ring);
    return 0;
}

static uint64_t uring_address(const void *memory) { return (uint64_t)(uintptr_t)memory; }
