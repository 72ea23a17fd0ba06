/*
 * The other ways to wait: with a minimum time, with arguments that the kernel has already, and for
 * room in the SQ. The rules are those of _shim.h, and the plain wait is in _cq.h.
 *
 * The kernel gets what is left of a time, not its end: ENTER_ABS_TIMER (6.12) would be on the clock
 * of the ring, which may be another (REGISTER_CLOCK), and our deadlines are on CLOCK_MONOTONIC.
 * So a wait on a ring with BOOTTIME counts a suspension, until a signal interrupts it.
 */

#include "_batch.h"

#define NEVER_NS (INT64_C(1) << 61)    /* later than anybody waits, and no clock overflows */
#define LOOK_AGAIN_NS INT64_C(1000000) /* 1 ms: how late a wait for room with a timeout may be */
#define MEM_REGION_USER 1u
#define MEM_REGION_WAITS 1u
#define REGISTER_MEM_REGION 34u
#define CQ_EVENTFD_DISABLED 1u

struct uring_reg_wait { /* 6.13 */
    struct uring_timespec ts;
    uint32_t min_wait_usec, flags;
    uint64_t sigmask;
    uint32_t sigmask_sz, pad[3];
    uint64_t pad2[2];
};
_Static_assert(sizeof(struct uring_reg_wait) == 64, "struct io_uring_reg_wait");

struct uring_region_desc { /* 6.13 */
    uint64_t user_addr, size;
    uint32_t flags, id;
    uint64_t mmap_offset, resv[4];
};
_Static_assert(sizeof(struct uring_region_desc) == 64, "struct io_uring_region_desc");

struct uring_region_reg { /* 6.13 */
    uint64_t desc, flags, resv[2];
};
_Static_assert(sizeof(struct uring_region_reg) == 32, "struct io_uring_mem_region_reg");

static void timespec_of(struct uring_timespec *ts, int64_t ns)
{
    ts->sec = ns > 0 ? ns / 1000000000 : 0;
    ts->nsec = ns > 0 ? ns % 1000000000 : 0;
}

/* ---- with a minimum time, or with registered arguments ---- */

/* How one wait ends, besides by what it waits for. */
struct wait_end {
    int64_t min_ns; /* from when on one CQE is enough (CLOCK_MONOTONIC) */
    int64_t end_ns; /* when the time is over; -1: never */
    int64_t offset; /* of the arguments in the region, which say the same; -1: they are here */
};

/* As wait_enter(), which has the short way; this one needs 6.12 or, with an offset, 6.13. */
static int wait_enter_until(struct uring *ring, uint32_t count, const struct wait_end *end)
{
    uint32_t flags = ENTER_GETEVENTS | ENTER_EXT_ARG | wakeup_flag(ring);
    int64_t now = monotonic_ns(), min_usec = (end->min_ns - now + 999) / 1000;
    struct uring_timespec ts;
    struct uring_getevents_arg arg = {.ts = (uint64_t)(uintptr_t)&ts};
    int ret;
    if (count == 0) {
        sched_yield();
        return -EAGAIN;
    }
    flags |= load_relaxed(&ring->wait_flags);
    timespec_of(&ts, end->end_ns < 0 ? NEVER_NS : end->end_ns - now);
    /* What does not fit ends early: the caller looks at the clock, and comes again. */
    if (min_usec > 0)
        arg.min_wait_usec = min_usec < UINT32_MAX ? (uint32_t)min_usec : UINT32_MAX;
    if (__atomic_load_n(&ring->sealed, __ATOMIC_SEQ_CST))
        ret = -ESHUTDOWN;
    else if (end->offset >= 0)
        ret = enter(ring, 0, count, flags | ENTER_EXT_ARG_REG,
                    (const void *)(uintptr_t)end->offset, sizeof(struct uring_reg_wait));
    else
        ret = enter(ring, 0, count, flags, &arg, sizeof arg);
    wait_end(ring);
    return wait_answer(ret, end->end_ns);
}

/*
 * As wait_cqes(), until `end`. Before the minimum time is over the goal is `wait_nr`, and the
 * kernel knows that the first CQE is enough afterwards; from then on the goal is one. The kernel's
 * own test for that one is whether the head is behind the tail, which it also is when others wait
 * and the head stands still: then it returns early, and the next wait is for a tail.
 */
static int wait_until(struct uring *ring, uint64_t start, uint32_t wait_nr,
                      const struct wait_end *end)
{
    uint32_t ready, goal, count = 0;
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    if (wait_nr > ring->cq_entries)
        wait_nr = ring->cq_entries;
    goal = monotonic_ns() < end->min_ns || wait_nr == 0 ? wait_nr : 1;
    pthread_mutex_lock(&ring->cq_lock);
    if ((int64_t)(start - ring->inbox_start) < 0) { /* somebody has taken what this one waits for */
        pthread_mutex_unlock(&ring->cq_lock);
        uring_part(ring);
        return -EAGAIN;
    }
    ready = ready_for_wait(ring, start, goal);
    if (ready < goal)
        count = wait_begin(ring, goal - ring->inbox_count);
    pthread_mutex_unlock(&ring->cq_lock);
    if (ready < goal) {
        ret = wait_enter_until(ring, count, end);
        goal = monotonic_ns() < end->min_ns ? wait_nr : 1;
        pthread_mutex_lock(&ring->cq_lock);
        if (ret != -ESHUTDOWN && cq_ready(ring, start) >= goal)
            ret = 0;
        pthread_mutex_unlock(&ring->cq_lock);
    } else if (load_relaxed(&ring->sealed)) {
        ret = -ESHUTDOWN;
    }
    uring_part(ring);
    return ret;
}

/*
 * Waits for `wait_nr` CQEs until `min_ns`, and from then on until `end_ns` for one; returns as
 * uring_wait(). Twin: io_uring_submit_and_wait_min_timeout(3).
 */
static int uring_wait_min(struct uring *ring, uint64_t start, uint32_t wait_nr, int64_t min_ns,
                          int64_t end_ns)
{
    struct wait_end end = {.min_ns = min_ns, .end_ns = end_ns, .offset = -1};
    return wait_until(ring, start, wait_nr, &end);
}

/*
 * The same with the arguments at `index` of the region. The deadlines are for the look afterwards:
 * what is left when this was interrupted is waited for with uring_wait_min().
 * Twin: io_uring_submit_and_wait_reg(3).
 */
static int uring_wait_registered(struct uring *ring, uint64_t start, uint32_t wait_nr,
                                 int64_t min_ns, int64_t end_ns, uint32_t index)
{
    int64_t offset = (int64_t)index * (int64_t)sizeof(struct uring_reg_wait);
    struct wait_end end = {.min_ns = min_ns, .end_ns = end_ns, .offset = offset};
    return wait_until(ring, start, wait_nr, &end);
}

/* ---- the region of registered arguments ---- */

/*
 * Registers `size` bytes at `memory`, or of the kernel's when that is NULL, for the arguments of
 * waits: only on a disabled ring, once. Memory of ours stays until the ring has exited.
 * Twin: io_uring_register_region(3).
 */
static int uring_register_region(struct uring *ring, char *memory, uint64_t size)
{
    struct uring_region_desc desc = {.size = size, .user_addr = (uint64_t)(uintptr_t)memory};
    struct uring_region_reg reg = {.desc = (uint64_t)(uintptr_t)&desc, .flags = MEM_REGION_WAITS};
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    desc.flags = memory != NULL ? MEM_REGION_USER : 0;
    ret = call_register(ring, REGISTER_MEM_REGION, &reg, 1);
    if (ret == 0 && memory == NULL) {
        memory = map_shared(ring->fd, size, (long)desc.mmap_offset);
        if (memory == NULL)
            ret = -ENOMEM; /* the kernel has it, and gives no second one */
        else
            ring->region_is_ours = 1;
    }
    if (ret == 0) {
        memset(memory, 0, size);
        ring->region_size = size;
        ring->region = memory;
    }
    uring_part(ring);
    return ret;
}

/* Sets the arguments at `index`, which is inside the region; -1 for no timeout. */
static int uring_region_set(struct uring *ring, uint32_t index, int64_t timeout_ns,
                            uint32_t min_usec)
{
    struct uring_reg_wait wait = {.min_wait_usec = min_usec, .flags = timeout_ns >= 0};
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    timespec_of(&wait.ts, timeout_ns);
    if (ring->region == NULL || (index + UINT64_C(1)) * sizeof wait > ring->region_size)
        ret = -EFAULT;
    else
        memcpy(ring->region + (size_t)index * sizeof wait, &wait, sizeof wait);
    uring_part(ring);
    return ret;
}

/* ---- for room in the SQ ---- */

/*
 * One wait for room in the SQ of an SQPOLL ring: how many SQEs fit, or EAGAIN, EINTR and ETIME as
 * uring_wait() has them. A poller that sleeps is woken. The kernel's wait takes no timeout: with
 * one, this looks again after a while. Twin: io_uring_sqring_wait(3).
 */
static int64_t uring_wait_sq(struct uring *ring, int64_t end_ns)
{
    uint32_t room;
    int64_t left = end_ns < 0 ? 0 : end_ns - monotonic_ns();
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    /* Seen by who seals and then counts, or the seal is seen here. */
    __atomic_add_fetch(&ring->sq_waiters, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_lock(&ring->sq_lock);
    room = sq_room(ring);
    pthread_mutex_unlock(&ring->sq_lock);
    if (__atomic_load_n(&ring->sealed, __ATOMIC_SEQ_CST)) {
        ret = -ESHUTDOWN;
    } else if (room == 0 && end_ns < 0) {
        ret = enter(ring, 0, 0, ENTER_SQ_WAIT | wakeup_flag(ring), NULL, 0);
    } else if (room == 0 && left > 0) {
        struct timespec pause = {.tv_nsec = left < LOOK_AGAIN_NS ? left : LOOK_AGAIN_NS};
        ret = wakeup_flag(ring) ? enter(ring, 0, 0, ENTER_SQ_WAKEUP, NULL, 0) : 0;
        if (ret >= 0)
            ret = nanosleep(&pause, NULL) < 0 ? -errno : 0;
    }
    __atomic_sub_fetch(&ring->sq_waiters, 1, __ATOMIC_SEQ_CST);
    uring_part(ring);
    if (room > 0 || ret < 0)
        return ret < 0 ? ret : (int64_t)room;
    return end_ns >= 0 && left <= 0 ? -ETIME : -EAGAIN;
}

/* ---- what the application tells the kernel besides ---- */

/* What is or-ed to the flags of every enter that waits. Twin: io_uring_set_iowait(3). */
static int uring_set_wait_flags(struct uring *ring, uint32_t flags)
{
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    __atomic_store_n(&ring->wait_flags, flags, __ATOMIC_RELAXED);
    uring_part(ring);
    return 0;
}

/*
 * Whether completions signal the eventfd. Before 5.8 there is no such field, and its offset is 0.
 * Relaxed: the kernel reads it when it signals, and promises no order.
 * Twin: io_uring_cq_eventfd_toggle(3).
 */
static int uring_set_cq_flags(struct uring *ring, uint32_t flags)
{
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    if ((void *)ring->cq_flags == ring->ring_map)
        ret = -EOPNOTSUPP;
    else
        __atomic_store_n(ring->cq_flags, flags, __ATOMIC_RELAXED);
    uring_part(ring);
    return ret;
}
