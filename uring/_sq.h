/*
 * The submission queue: placing SQEs, and having the kernel take them. The rules are those of
 * _shim.h.
 */

#include "_map.h"

/*
 * Puts `count` SQEs of `size` bytes behind the tail. sq_lock is held, and there is room.
 *
 * Release on the tail: the SQEs are visible before the tail that covers them. Only we write the
 * tail, and only under the lock, so reading it back may be relaxed.
 * Twin: io_uring_get_sqe(3) and __io_uring_flush_sq().
 */
static void sq_put(struct uring *ring, const char *sqes, uint32_t size, const uint64_t *user_data,
                   uint64_t first, uint32_t count)
{
    uint32_t tail = load_relaxed(ring->sq_tail);
    for (uint32_t i = 0; i < count; i++) {
        char *sqe = ring->sqes + (size_t)((tail + i) & ring->sq_mask) * ring->sqe_size;
        uint64_t number = user_data ? user_data[i] : first + i;
        memcpy(sqe, sqes + (size_t)i * size, SQE_SIZE);
        memcpy(sqe + SQE_USER_DATA, &number, sizeof number);
        if (size > SQE_SIZE) /* then the ring has SQE128 */
            memcpy(sqe + SQE_SIZE, sqes + (size_t)i * size + SQE_SIZE, SQE_SIZE);
        else if (ring->sqe_size > SQE_SIZE)
            memset(sqe + SQE_SIZE, 0, SQE_SIZE);
    }
    store_release(ring->sq_tail, tail + count);
}

/* Acquire: the kernel has read a slot before it moves the head past it, so we may overwrite it. */
static uint32_t sq_room(const struct uring *ring)
{
    return ring->sq_entries - (load_relaxed(ring->sq_tail) - load_acquire(ring->sq_head));
}

/*
 * Places all `count` SQEs, or none. `start` is how many the caller believes were placed before;
 * when another thread was faster the answer is ESTALE, so what two threads offer at once is placed
 * once.
 */
static int sq_place(struct uring *ring, uint32_t start, const char *sqes, uint32_t size,
                    const uint64_t *user_data, uint32_t count, uint32_t sealed)
{
    int ret = 0;
    pthread_mutex_lock(&ring->sq_lock);
    if (ring->sealed != sealed)
        ret = -ESHUTDOWN;
    else if (ring->placed != start)
        ret = -ESTALE;
    else if (count > sq_room(ring))
        ret = -ENOSPC;
    if (ret == 0 && count > 0) {
        sq_put(ring, sqes, size, user_data, 0, count);
        __atomic_store_n(&ring->placed, start + count, __ATOMIC_RELAXED);
    }
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
 * kernels before 5.19, a CQ backlog: both may pass, and a flush helps. EINTR comes from a tracer or
 * a filter. Nothing is lost when they do not pass: the SQEs stay where they are.
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
        if ((ret == -EAGAIN || ret == -EBUSY || ret == -EINTR) && --tries) {
            sched_yield();
            (void)enter(ring, 0, 0, ENTER_GETEVENTS, NULL, 0); /* the retry tells if it helped */
        } else if (ret < 0) {
            return ret;
        } else if (ret == 0) { /* nothing was left, or the kernel takes nothing: never spin */
            return submitted;
        } else {
            submitted += ret;
        }
    }
}

/*
 * How many CQEs are there for Python, at least; without the lock. The tail first: a run that is not
 * on the list after that has none below it but what was taken, which is looked at last. In a mixed
 * CQ places tell too little: any may be filling, the last one, too, if what it was for had no room.
 */
static uint32_t cq_glance(const struct uring *ring)
{
    uint32_t tail = load_acquire(ring->cq_tail);
    if (__atomic_load_n(&ring->runs, __ATOMIC_ACQUIRE) != NULL)
        return 0;
    int32_t ready = (int32_t)(tail - load_acquire(&ring->cq_taken));
    return ready > 0 && !ring->is_mixed ? (uint32_t)ready : 0;
}

static int64_t submit(struct uring *ring, uint32_t start, const char *sqes, uint32_t size,
                      const uint64_t *user_data, uint32_t count, uint32_t sealed)
{
    int64_t ret = uring_join(ring);
    if (ret < 0)
        return ret;
    ret = sq_place(ring, start, sqes, size, user_data, count, sealed);
    if (ret == 0)
        ret = sq_enter(ring, count);
    if (ret >= 0)
        ret |= (int64_t)cq_glance(ring) << 32;
    uring_part(ring);
    return ret;
}

/* Low half: how many SQEs the kernel took. High half: how many CQEs are there now, at least. */
static int64_t uring_submit(struct uring *ring, uint32_t start, const char *sqes,
                            const char *user_data, uint32_t count)
{
    return submit(ring, start, sqes, SQE_SIZE, (const uint64_t *)(const void *)user_data, count,
                  0);
}

/* The same for SQEs of 128 bytes; EINVAL without SQE128. */
static int64_t uring_submit128(struct uring *ring, uint32_t start, const char *sqes,
                               const char *user_data, uint32_t count)
{
    if (ring->sqe_size < 2 * SQE_SIZE)
        return -EINVAL;
    return submit(ring, start, sqes, 2 * SQE_SIZE, (const uint64_t *)(const void *)user_data,
                  count, 0);
}

/* uring_submit() for one SQE, whose user_data then needs no array. */
static int64_t uring_submit_one(struct uring *ring, uint32_t start, const char *sqe,
                                uint64_t user_data)
{
    return submit(ring, start, sqe, SQE_SIZE, &user_data, 1, 0);
}
