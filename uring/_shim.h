/*
 * The C that Python cannot do: map a ring, read and move its counters with the right memory order,
 * enter the kernel, copy SQEs in and CQEs out in bulk. Here is the ring as a whole; _sq.h and
 * _cq.h have its queues, _batch.h the batch loop, _waits.h the other waits, _resize.h other sizes,
 * _buffers.h provided buffers.
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
    SETUP_CQSIZE = 1u << 3,
    SETUP_TASKRUN_FLAG = 1u << 9,
    SETUP_SQE128 = 1u << 10,
    SETUP_CQE32 = 1u << 11,
    SETUP_DEFER_TASKRUN = 1u << 13,
    SETUP_NO_MMAP = 1u << 14,            /* 6.5 */
    SETUP_REGISTERED_FD_ONLY = 1u << 15, /* 6.5 */
    SETUP_NO_SQARRAY = 1u << 16,
    SETUP_CQE_MIXED = 1u << 18, /* 6.18 */
    FEAT_SINGLE_MMAP = 1u << 0,
    FEAT_EXT_ARG = 1u << 8,
    ENTER_GETEVENTS = 1u << 0,
    ENTER_SQ_WAKEUP = 1u << 1,
    ENTER_SQ_WAIT = 1u << 2,         /* 5.10 */
    ENTER_EXT_ARG = 1u << 3,         /* 5.11 */
    ENTER_REGISTERED_RING = 1u << 4, /* 5.18 */
    ENTER_EXT_ARG_REG = 1u << 6,     /* 6.13 */
    REGISTER_RING_FDS = 20,          /* 5.18 */
    UNREGISTER_RING_FDS = 21,
    RING_FDS_MAX = 16, /* of one thread: IO_RINGFD_REG_MAX in linux/io_uring_types.h */
    SQ_NEED_WAKEUP = 1u << 0,
    SQ_CQ_OVERFLOW = 1u << 1,
    SQ_TASKRUN = 1u << 2,
    CQE_MORE = 1u << 1,
    CQE_NOTIF = 1u << 3,
    CQE_SKIP = 1u << 5, /* 6.18 */
    CQE_F_32 = 1u << 15,
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
    MIXED_SIZE = 40, /* of a CQE that came out of a CQE_MIXED ring: see completions.py */
    RINGS_MAX = 2048, /* bytes of struct io_rings before its arrays, and of what aligns them */
    ENTRIES_MAX = 32768,
    SUBMIT_TRIES = 64, /* of an enter that answers EAGAIN or EBUSY; each yields and flushes first */
    CLOSING = 1,       /* why nobody may join: for good, or */
    RESIZING = 2,      /* until the queues have been replaced */
};
#define OFF_RING 0L
#define OFF_SQES 0x10000000L
#define REGISTER_USE_REGISTERED_RING 0x80000000u /* 6.3 */

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

struct uring_rsrc_update {
    uint32_t offset, resv;
    uint64_t data;
};
_Static_assert(sizeof(struct uring_rsrc_update) == 16, "struct io_uring_rsrc_update");

struct uring {
    int fd;           /* -1: REGISTERED_FD_ONLY */
    uint32_t is_open; /* the ring is ours to end */
    uint32_t setup_flags, features, sq_entries, cq_entries;

    uint32_t *sq_head, *sq_tail, *sq_flags, *sq_dropped;
    uint32_t sq_mask, sqe_size;
    uint32_t sq_array; /* its place in the map; 0: there is none */
    char *sqes;

    uint32_t *cq_head, *cq_tail, *cq_flags, *cq_overflow;
    uint32_t cq_mask, cqe_size; /* of a CQE that was taken */
    char *cqes;

    char *ring_map, *sqe_map;
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

    uint32_t slot_size;    /* of a place in the CQ: a large CQE of a mixed CQ takes two */
    uint32_t is_mixed;     /* CQE_MIXED: 1 or 0 */
    uint32_t after_filler; /* in a mixed CQ: what was passed last is a filler */
    uint32_t ring_index;   /* among a thread's registered rings, while `registration` is not 0 */
    uint64_t registration; /* see registered_here, or 0 */

    char *memory; /* NO_MMAP: both maps lie in here, the SQEs from `memory_sqes` on */
    size_t memory_size, memory_sqes;
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

/* Atomic, for who has not joined looks whether there is one; who has joined, sees `closing`. */
static void ring_map_set(struct uring *ring, char *map)
{
    __atomic_store_n(&ring->ring_map, map, __ATOMIC_RELAXED);
}

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
    if (__atomic_load_n(&ring->ring_map, __ATOMIC_RELAXED) == NULL)
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

/* ---- the system calls ---- */

/*
 * A registered ring is an index into a table that the kernel keeps for each thread. Ours says which
 * registration is behind each index: their numbers are never used again, so an index that has had
 * its day hits no other ring, and no thread takes another's for its own.
 */
static __thread uint64_t registered_here[RING_FDS_MAX];
static uint64_t registrations; /* how many there ever were */

/* Apart, so that a ring that no thread has registered does not pay for the look at the table. */
__attribute__((noinline)) static int is_here(const struct uring *ring, uint64_t registration)
{
    return registered_here[load_relaxed(&ring->ring_index) % RING_FDS_MAX] == registration;
}

static int is_registered_here(const struct uring *ring)
{
    uint64_t registration = __atomic_load_n(&ring->registration, __ATOMIC_RELAXED);
    return registration != 0 && is_here(ring, registration);
}

static void note_registered(struct uring *ring, uint32_t index)
{
    uint64_t registration = __atomic_add_fetch(&registrations, 1, __ATOMIC_RELAXED);
    registered_here[index % RING_FDS_MAX] = registration;
    __atomic_store_n(&ring->ring_index, index, __ATOMIC_RELAXED);
    __atomic_store_n(&ring->registration, registration, __ATOMIC_RELAXED);
}

static int call_enter(int fd, uint32_t to_submit, uint32_t min_complete, uint32_t flags,
                      const void *arg, size_t arg_size)
{
    long ret = syscall(__NR_io_uring_enter, fd, to_submit, min_complete, flags, arg, arg_size);
    return ret < 0 ? -errno : (int)ret;
}

static int enter(const struct uring *ring, uint32_t to_submit, uint32_t min_complete,
                 uint32_t flags, const void *arg, size_t arg_size)
{
    if (is_registered_here(ring))
        return call_enter((int)ring->ring_index, to_submit, min_complete,
                          flags | ENTER_REGISTERED_RING, arg, arg_size);
    return call_enter(ring->fd, to_submit, min_complete, flags, arg, arg_size);
}

static int call_register(const struct uring *ring, uint32_t opcode, void *arg, uint32_t nr_args)
{
    long ret;
    int fd = ring->fd;
    if (fd < 0 && is_registered_here(ring)) {
        fd = (int)ring->ring_index;
        opcode |= REGISTER_USE_REGISTERED_RING;
    }
    ret = syscall(__NR_io_uring_register, fd, opcode, arg, nr_args);
    return ret < 0 ? -errno : (int)ret;
}

static int unregister_here(struct uring *ring)
{
    struct uring_rsrc_update update = {.offset = ring->ring_index};
    int ret = call_register(ring, UNREGISTER_RING_FDS, &update, 1);
    registered_here[ring->ring_index % RING_FDS_MAX] = 0;
    __atomic_store_n(&ring->registration, 0, __ATOMIC_RELAXED);
    return ret < 0 ? ret : 0;
}

/* ---- what needs no queue ---- */

static int uring_register(struct uring *ring, uint32_t opcode, void *arg, uint32_t nr_args)
{
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    ret = call_register(ring, opcode, arg, nr_args);
    uring_part(ring);
    return ret;
}

/* A call that is not for any ring. */
static int uring_register_blind(uint32_t opcode, void *arg, uint32_t nr_args)
{
    long ret = syscall(__NR_io_uring_register, -1, opcode, arg, nr_args);
    return ret < 0 ? -errno : (int)ret;
}

/* Registers the ring with this thread, whose enters then go by its index. One at a time may. */
static int uring_register_fd(struct uring *ring)
{
    struct uring_rsrc_update update = {.offset = UINT32_MAX};
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    update.data = (uint64_t)ring->fd;
    ret = is_registered_here(ring) ? -EBUSY : call_register(ring, REGISTER_RING_FDS, &update, 1);
    if (ret > 0)
        note_registered(ring, update.offset);
    uring_part(ring);
    return ret < 0 ? ret : 0;
}

static int uring_unregister_fd(struct uring *ring)
{
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    ret = is_registered_here(ring) ? unregister_here(ring) : -ENXIO;
    uring_part(ring);
    return ret;
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
