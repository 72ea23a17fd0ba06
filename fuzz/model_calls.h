/*
 * The system calls of the kernel in model.h, and its clock, which moves when it is looked at. Which
 * of them fail, and how, is the input's to say, as far as the real ones may.
 */

#include "model.h"

enum { BLOCKED_ROUNDS = 8, OFF_REGION = 0x20000000 };
static uint64_t anonymous_size; /* of the last such mapping */

/* ---- setup ---- */

static uint32_t power_of_two(uint32_t wanted, uint32_t most)
{
    uint32_t size = 1;
    while (size < wanted && size < most)
        size *= 2;
    return size;
}

/* Makes the queues. The CQEs end with the memory, so that AddressSanitizer sees their end. */
static void lay_out(struct uring_params *p)
{
    uint32_t is_wide = !!(p->flags & SETUP_CQE32);
    uint32_t end = (kernel.line + p->cq_entries * CQE_SIZE) << is_wide;
    uint32_t array = (end + kernel.line - 1) / kernel.line * kernel.line;
    p->sq_off.head = 0;
    p->sq_off.tail = 4;
    p->cq_off.head = 8;
    p->cq_off.tail = 12;
    p->sq_off.ring_mask = 16;
    p->cq_off.ring_mask = 20;
    p->sq_off.flags = 24;
    p->sq_off.dropped = 28;
    p->cq_off.overflow = 32;
    p->cq_off.flags = kernel.line == 64 ? 36 : 0; /* 0: as before 5.8 */
    p->cq_off.cqes = kernel.line;
    p->sq_off.array = p->flags & SETUP_NO_SQARRAY ? 0 : array;
    kernel.sq_entries = p->sq_entries;
    kernel.cq_entries = p->cq_entries;
    kernel.sqes_size = (size_t)p->sq_entries * (SQE_SIZE << !!(p->flags & SETUP_SQE128));
    kernel.rings_size = p->flags & SETUP_NO_SQARRAY
                            ? kernel.line + (size_t)p->cq_entries * (CQE_SIZE << is_wide)
                            : array + p->sq_entries * sizeof(uint32_t);
    if (p->flags & SETUP_NO_MMAP) {
        kernel.rings = (char *)(uintptr_t)p->cq_off.user_addr;
        kernel.sqes = (char *)(uintptr_t)p->sq_off.user_addr;
        HOLDS(kernel.rings + kernel.rings_size <= kernel.sqes);
        HOLDS(kernel.sqes + kernel.sqes_size <= kernel.rings + anonymous_size);
    } else {
        kernel.rings = calloc(1, kernel.rings_size);
        kernel.sqes = calloc(1, kernel.sqes_size);
        HOLDS(kernel.rings != NULL && kernel.sqes != NULL);
    }
    kernel.offsets = *p;
    *counter(p->sq_off.ring_mask) = p->sq_entries - 1;
    *counter(p->cq_off.ring_mask) = p->cq_entries - 1;
}

static long model_setup(uint32_t entries, struct uring_params *p)
{
    if (take8() == 255)
        return -ENOMEM;
    p->sq_entries = power_of_two(entries, ENTRIES_MAX);
    p->cq_entries = power_of_two(p->flags & SETUP_CQSIZE ? p->cq_entries : 2 * p->sq_entries,
                                 2 * ENTRIES_MAX);
    kernel.flags = p->flags;
    lay_out(p);
    kernel.registered_index = p->flags & SETUP_REGISTERED_FD_ONLY ? 3 : -1;
    return p->flags & SETUP_REGISTERED_FD_ONLY ? 3 : MODEL_FD;
}

/* ---- enter ---- */

static void post_some(uint32_t most)
{
    while (most-- > 0 && post_any())
        ;
    commit();
}

/* The time that the wait is given in `arg`, and what is enough after the minimum time; -1: none. */
static int64_t wait_limit(uint32_t flags, const void *arg, size_t size, uint32_t *min_usec)
{
    struct uring_timespec ts;
    struct uring_getevents_arg given;
    *min_usec = 0;
    if (!(flags & ENTER_EXT_ARG))
        return -1;
    if (flags & ENTER_EXT_ARG_REG) {
        struct uring_reg_wait wait;
        size_t offset = (size_t)(uintptr_t)arg;
        HOLDS(size == sizeof wait);
        if (kernel.region == NULL || offset + size > kernel.region_size)
            return -1;
        memcpy(&wait, kernel.region + offset, sizeof wait);
        *min_usec = wait.min_wait_usec;
        return wait.flags & 1 ? wait.ts.sec * 1000000000 + wait.ts.nsec : -1;
    }
    HOLDS(size == sizeof given);
    memcpy(&given, arg, sizeof given);
    memcpy(&ts, (const void *)(uintptr_t)given.ts, sizeof ts);
    HOLDS(ts.sec >= 0 && ts.nsec >= 0 && ts.nsec < 1000000000);
    *min_usec = given.min_wait_usec;
    return ts.sec < NEVER_NS / 1000000000 ? ts.sec * 1000000000 + ts.nsec : -1;
}

static uint32_t cq_count(void)
{
    return kernel.cached_tail - *counter(kernel.offsets.cq_off.head);
}

/* As io_cqring_wait(): 0 when there are so many, or why not. */
static long model_wait(uint32_t wanted, uint32_t flags, const void *arg, size_t size)
{
    uint32_t min_usec, rounds = BLOCKED_ROUNDS;
    int64_t limit_ns = wait_limit(flags, arg, size, &min_usec), start_ns = kernel.now_ns;
    if (wanted > kernel.cq_entries)
        wanted = kernel.cq_entries;
    /* See cq_brim(): the real one would never come back, not even to be killed. */
    HOLDS(!(kernel.flags & SETUP_CQE_MIXED) || wanted < kernel.cq_entries || kernel.is_corrupt);
    flush_backlog();
    if (!posts_of_itself()) {
        post_some(1 + take_up_to(3));
        set_sq_flags(0, SQ_TASKRUN);
    }
    while (cq_count() < wanted) {
        if (rounds-- == 0)
            return -EINTR;
        kernel.is_busy = 0;
        act_meanwhile();
        kernel.is_busy = 1;
        if (kernel.is_gone)
            return -EINTR;
        if (kernel.flags & SETUP_SQPOLL)
            consume(kernel.sq_entries);
        post_some(1 + take_up_to(3));
        if (min_usec > 0 && cq_count() > 0) {
            kernel.now_ns = start_ns + (int64_t)min_usec * 1000;
            return 0;
        }
        if (kernel.request_count == 0 && cq_count() < wanted) {
            kernel.now_ns = start_ns + (limit_ns > 0 ? limit_ns : 0);
            return limit_ns >= 0 ? -ETIME : -EINTR;
        }
    }
    return 0;
}

/* What the shim still has mapped goes without it: a fork has happened, or a map was refused. */
static void forget_memory(void)
{
    if (!(kernel.flags & SETUP_NO_MMAP))
        free(kernel.sqes);
    free(kernel.rings);
    free(kernel.own_region);
    kernel.rings = kernel.sqes = kernel.region = kernel.own_region = NULL;
    kernel.is_gone = 1;
}

static int is_this_ring(int fd, int is_registered)
{
    return is_registered ? fd == kernel.registered_index : fd == MODEL_FD;
}

static long model_enter(int fd, uint32_t to_submit, uint32_t wanted, uint32_t flags,
                        const void *arg, size_t size)
{
    static const int faults[] = {EINTR, EAGAIN, EBUSY};
    long submitted = 0, ret = 0;
    uint8_t fault;
    HOLDS(is_this_ring(fd, !!(flags & ENTER_REGISTERED_RING)));
    fault = take8();
    if (fault >= 250)
        return -faults[fault % 3];
    if (kernel.flags & SETUP_SQPOLL) {
        if (flags & (ENTER_SQ_WAKEUP | ENTER_SQ_WAIT)) {
            set_sq_flags(0, SQ_NEED_WAKEUP);
            consume(kernel.sq_entries);
        }
        submitted = to_submit;
    } else if (to_submit > 0) {
        submitted = consume(fault >= 230 ? 1 + fault % 3 : to_submit);
    }
    if (flags & ENTER_GETEVENTS)
        ret = model_wait(wanted, flags, arg, size);
    if (kernel.is_gone)
        return -EINTR;
    commit();
    return submitted > 0 ? submitted : ret;
}

/* ---- register ---- */

/* As io_register_resize_rings(), whose copies nobody should rely on. */
static long model_resize(struct uring_params *p)
{
    char *old_rings = kernel.rings;
    struct kernel *k = &kernel;
    uint32_t counters[9], i;
    uint32_t sq_count = *counter(k->offsets.sq_off.tail) - *counter(k->offsets.sq_off.head);
    if (!(k->flags & SETUP_DEFER_TASKRUN) || k->flags & SETUP_NO_MMAP)
        return -EINVAL;
    p->flags |= k->flags & ~(uint32_t)SETUP_CQSIZE;
    p->sq_entries = power_of_two(p->sq_entries, ENTRIES_MAX);
    p->cq_entries = power_of_two(p->cq_entries, 2 * ENTRIES_MAX);
    if (p->cq_entries < p->sq_entries)
        return -EINVAL;
    if (sq_count > p->sq_entries || cq_count() > p->cq_entries)
        return -EOVERFLOW;
    memcpy(counters, old_rings, sizeof counters);
    lay_out(p);
    for (i = 0; i < 4; i++)
        memcpy(k->rings + 4 * i, &counters[i], 4);
    memcpy(k->rings + p->sq_off.flags, &counters[6], 4);
    if (take8() & 1) /* as far as this goes, it has copied nothing */
        memset(k->sqes, 0xa5, k->sqes_size);
    set_sq_flags(SQ_TASKRUN | SQ_NEED_WAKEUP, 0);
    k->cache_at = k->cache_end = 0;
    if (take8() & 1)
        p->sq_off.array = 0; /* up to 7.0 */
    return 0; /* the old ones are freed when they are unmapped */
}

static long model_region(const struct uring_region_reg *reg)
{
    struct uring_region_desc desc, *given = (void *)(uintptr_t)reg->desc;
    memcpy(&desc, given, sizeof desc);
    if (kernel.region != NULL)
        return -EBUSY;
    if (desc.size == 0 || desc.size > 1 << 16)
        return -EINVAL;
    kernel.region_size = desc.size;
    if (desc.flags & MEM_REGION_USER)
        kernel.region = (char *)(uintptr_t)desc.user_addr;
    else
        kernel.region = kernel.own_region = calloc(1, desc.size);
    given->mmap_offset = OFF_REGION;
    return 0;
}

static long model_register(int fd, uint32_t opcode, void *arg, uint32_t count)
{
    struct uring_rsrc_update *update = arg;
    int is_registered = !!(opcode & REGISTER_USE_REGISTERED_RING);
    if (!is_this_ring(fd, is_registered))
        return -EBADF;
    switch (opcode & ~REGISTER_USE_REGISTERED_RING) {
    case REGISTER_RING_FDS:
        if (take8() >= 240)
            return -ENOMEM;
        update->offset = 1 + take_up_to(RING_FDS_MAX - 2);
        kernel.registered_index = (int)update->offset;
        return 1;
    case UNREGISTER_RING_FDS:
        kernel.registered_index = -1;
        return 1;
    case REGISTER_RESIZE_RINGS:
        HOLDS(count == 1);
        return take8() >= 250 ? -ENOMEM : model_resize(arg);
    case REGISTER_MEM_REGION:
        return model_region(arg);
    default:
        return -(long)(take8() & 1) * EINVAL;
    }
}

static long model_syscall(long number, ...)
{
    va_list list;
    long ret = -ENOSYS, a, b;
    uint32_t is_busy = kernel.is_busy;
    va_start(list, number);
    kernel.is_busy = 1;
    a = va_arg(list, int); /* each argument as the shim gives it */
    if (number == __NR_io_uring_setup) {
        ret = model_setup((uint32_t)a, va_arg(list, struct uring_params *));
    } else if (number == __NR_io_uring_enter) {
        uint32_t to_submit = va_arg(list, uint32_t), wanted = va_arg(list, uint32_t);
        uint32_t flags = va_arg(list, uint32_t);
        const void *arg = va_arg(list, const void *);
        ret = model_enter((int)a, to_submit, wanted, flags, arg, va_arg(list, size_t));
    } else if (number == __NR_io_uring_register) {
        void *arg;
        b = va_arg(list, uint32_t);
        arg = va_arg(list, void *);
        ret = model_register((int)a, (uint32_t)b, arg, va_arg(list, uint32_t));
    }
    va_end(list);
    kernel.is_busy = is_busy;
    errno = ret < 0 ? (int)-ret : errno;
    return ret < 0 ? -1 : ret;
}

/* ---- memory ---- */

static void *model_mmap(void *at, size_t size, int protection, int flags, int fd, long offset)
{
    (void)at;
    (void)protection;
    if (kernel.mmaps_until_failure > 0 && --kernel.mmaps_until_failure == 0) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    if (flags & MAP_ANONYMOUS) {
        anonymous_size = size;
        return calloc(1, size);
    }
    if (fd < 0) { /* a ring that only has an index cannot be mapped */
        errno = EBADF;
        return MAP_FAILED;
    }
    HOLDS(fd == MODEL_FD);
    if (offset == OFF_REGION)
        return kernel.region;
    if (offset == OFF_RING) {
        HOLDS(size <= kernel.rings_size);
        return kernel.rings;
    }
    if (offset == OFF_SQES) {
        HOLDS(size <= kernel.sqes_size);
        return kernel.sqes;
    }
    HOLDS(offset >= OFF_PBUF_RING);
    return calloc(1, size);
}

/* Freed at once, so that AddressSanitizer sees who still looks at it. */
static int model_munmap(void *at, size_t size)
{
    (void)size;
    if (at == kernel.rings || at == kernel.sqes)
        kernel.is_gone = 1;
    if (at == kernel.rings)
        kernel.rings = NULL;
    if (at == kernel.sqes)
        kernel.sqes = NULL;
    if (at == kernel.own_region)
        kernel.region = kernel.own_region = NULL;
    free(at);
    return 0;
}

static int model_madvise(void *at, size_t size, int advice)
{
    (void)at;
    (void)size;
    (void)advice;
    return 0;
}

static int model_close(int fd)
{
    HOLDS(fd == MODEL_FD);
    kernel.is_gone = 1;
    return 0;
}

/* ---- time ---- */

static int model_clock_gettime(clockid_t clock, struct timespec *now)
{
    HOLDS(clock == CLOCK_MONOTONIC);
    kernel.now_ns += 1000 + (kernel.serial & 7) * 100000; /* a run is cut into slices, at times */
    now->tv_sec = kernel.now_ns / 1000000000;
    now->tv_nsec = kernel.now_ns % 1000000000;
    return 0;
}

static int model_poll(struct pollfd *polled, nfds_t count, int timeout_ms)
{
    HOLDS(count == 1 && polled->fd == MODEL_FD);
    kernel.now_ns += (int64_t)timeout_ms * 1000000;
    if (posts_of_itself()) {
        kernel.is_busy = 1;
        post_some(2);
        kernel.is_busy = 0;
    }
    return 1;
}

static int model_nanosleep(const struct timespec *time, struct timespec *left)
{
    (void)left;
    kernel.now_ns += time->tv_sec * 1000000000 + time->tv_nsec;
    return 0;
}
