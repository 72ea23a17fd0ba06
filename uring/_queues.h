/*
 * The two queues: placing SQEs, taking CQEs, waiting. The rules are those of _shim.h.
 */

#include "_shim.h"

/* ---- the submission side ---- */

/*
 * Puts `count` SQEs behind the tail. sq_lock is held, and there is room.
 *
 * Release on the tail: the SQEs are visible before the tail that covers them. Only we write the
 * tail, and only under the lock, so reading it back may be relaxed.
 * Twin: io_uring_get_sqe(3) and __io_uring_flush_sq().
 */
static void sq_put(struct uring *ring, const char *sqes, const uint64_t *user_data, uint64_t first,
                   uint32_t count)
{
    uint32_t tail = load_relaxed(ring->sq_tail);
    for (uint32_t i = 0; i < count; i++) {
        char *sqe = ring->sqes + (size_t)((tail + i) & ring->sq_mask) * ring->sqe_size;
        uint64_t number = user_data ? user_data[i] : first + i;
        memcpy(sqe, sqes + (size_t)i * SQE_SIZE, SQE_SIZE);
        memcpy(sqe + SQE_USER_DATA, &number, sizeof number);
        if (ring->sqe_size > SQE_SIZE)
            memset(sqe + SQE_SIZE, 0, ring->sqe_size - SQE_SIZE);
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
static int sq_place(struct uring *ring, uint32_t start, const char *sqes, const uint64_t *user_data,
                    uint32_t count, uint32_t sealed)
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
        sq_put(ring, sqes, user_data, 0, count);
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

/*
 * How many CQEs are there for Python, at least; without the lock. The tail first: a run that is not
 * on the list after that has none below it but what was taken, which is looked at last.
 */
static uint32_t cq_glance(const struct uring *ring)
{
    uint32_t tail = load_acquire(ring->cq_tail);
    if (__atomic_load_n(&ring->runs, __ATOMIC_ACQUIRE) != NULL)
        return 0;
    int32_t ready = (int32_t)(tail - load_acquire(&ring->cq_taken));
    return ready > 0 ? (uint32_t)ready : 0;
}

static int64_t submit(struct uring *ring, uint32_t start, const char *sqes,
                      const uint64_t *user_data, uint32_t count, uint32_t sealed)
{
    int64_t ret = uring_join(ring);
    if (ret < 0)
        return ret;
    ret = sq_place(ring, start, sqes, user_data, count, sealed);
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
    return submit(ring, start, sqes, (const uint64_t *)(const void *)user_data, count, 0);
}

/* The same for one SQE, whose user_data then needs no array. */
static int64_t uring_submit_one(struct uring *ring, uint32_t start, const char *sqe,
                                uint64_t user_data)
{
    return submit(ring, start, sqe, &user_data, 1, 0);
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

static char *cq_at(const struct uring *ring, uint32_t place)
{
    return ring->cqes + (size_t)(place & ring->cq_mask) * ring->cqe_size;
}

static char *inbox_at(const struct uring *ring, uint32_t index)
{
    return ring->inbox + (size_t)index * ring->cqe_size;
}

/* Copies one CQE. The compiler makes two moves of a copy whose size it knows, else a call. */
static void cqe_copy(char *out, const char *cqe, uint32_t size)
{
    if (size == CQE_SIZE)
        memcpy(out, cqe, CQE_SIZE);
    else
        memcpy(out, cqe, 2 * CQE_SIZE);
}

/* Copies `count` CQEs from `place` on, around the end of the queue. */
static void cq_copy(const struct uring *ring, uint32_t place, uint32_t count, char *out)
{
    uint32_t size = ring->cqe_size, first = ring->cq_mask + 1 - (place & ring->cq_mask);
    if (first > count)
        first = count;
    memcpy(out, cq_at(ring, place), (size_t)first * size);
    memcpy(out + (size_t)first * size, ring->cqes, (size_t)(count - first) * size);
}

/*
 * Tells the kernel what we have taken, unless somebody waits: a wait counts from the head that the
 * kernel finds when it starts, so a head that moved between counting and waiting would have the
 * waiter sleep past its completions. While the head stands still every waiter's target is a fixed
 * tail, whoever takes the CQEs meanwhile; no target is beyond a full CQ, so a full CQ wakes all.
 * cq_lock is held. Release: we have read a CQE before the kernel may overwrite it.
 */
static void cq_publish(struct uring *ring)
{
    if (ring->waiters == 0)
        store_release(ring->cq_head, ring->cq_taken);
}

static int run_takes(struct uring *ring, const char *cqe); /* _batch.h */

/*
 * Takes CQEs out of the CQ: those of a batch to their places in it, others to the inbox, at most
 * `max_nr` of them while no batch is running, and then all that there is room for. cq_lock is held.
 * Acquire on the tail: the CQEs that it covers are visible. Twin: io_uring_peek_batch_cqe(3).
 */
static void cq_take(struct uring *ring, uint32_t max_nr)
{
    uint32_t taken = ring->cq_taken, ready = load_acquire(ring->cq_tail) - taken;
    if (ring->runs != NULL) {
        for (; ready > 0; ready--, taken++) {
            const char *cqe = cq_at(ring, taken);
            if (run_takes(ring, cqe))
                continue;
            if (ring->inbox_count == ring->cq_entries)
                break;
            cqe_copy(inbox_at(ring, ring->inbox_count++), cqe, ring->cqe_size);
        }
    } else {
        uint32_t room = ring->cq_entries - ring->inbox_count;
        uint32_t count = ready < max_nr ? ready : max_nr;
        if (count > room)
            count = room;
        cq_copy(ring, taken, count, inbox_at(ring, ring->inbox_count));
        ring->inbox_count += count;
        taken += count;
    }
    store_release(&ring->cq_taken, taken); /* cq_glance() looks at it */
    cq_publish(ring);
}

/* Takes CQEs until `max_nr` are in the inbox. cq_lock is held. */
static void inbox_fill(struct uring *ring, uint32_t max_nr)
{
    if (ring->inbox_count < max_nr)
        cq_take(ring, max_nr - ring->inbox_count);
    else if (ring->runs != NULL)
        cq_take(ring, 0);
}

/* Drops from the inbox what Python has: everything before `start`. cq_lock is held. */
static void inbox_acknowledge(struct uring *ring, uint64_t start)
{
    uint64_t known = start - ring->inbox_start;
    if (known == 0 || known > ring->inbox_count) /* nothing, or less than somebody else knows */
        return;
    ring->inbox_count -= (uint32_t)known;
    ring->inbox_start = start;
    memmove(ring->inbox, inbox_at(ring, (uint32_t)known),
            (size_t)ring->inbox_count * ring->cqe_size);
}

/* How many CQEs are ready for Python, which has everything before `start`. cq_lock is held. */
static uint32_t cq_ready(struct uring *ring, uint64_t start)
{
    inbox_acknowledge(ring, start);
    if (ring->runs != NULL)
        cq_take(ring, 0);
    return ring->inbox_count + load_acquire(ring->cq_tail) - ring->cq_taken;
}

/*
 * Counts this thread among the waiters, and says what it waits for: `missing` CQEs beyond those
 * that were taken, as the count from the head that the kernel wants. 0 when the CQ is full and
 * others, who are waking up because of that, must leave before the head can move. cq_lock is held.
 */
static uint32_t wait_begin(struct uring *ring, uint32_t missing)
{
    uint32_t head = load_relaxed(ring->cq_head), count = ring->cq_taken - head + missing;
    if (ring->waiters > 0 && load_relaxed(ring->cq_tail) - head >= ring->cq_entries)
        return 0;
    __atomic_add_fetch(&ring->waiters, 1, __ATOMIC_SEQ_CST);
    return count < ring->cq_entries ? count : ring->cq_entries;
}

static void wait_end(struct uring *ring)
{
    pthread_mutex_lock(&ring->cq_lock);
    __atomic_sub_fetch(&ring->waiters, 1, __ATOMIC_SEQ_CST);
    cq_publish(ring);
    pthread_mutex_unlock(&ring->cq_lock);
}

/* After wait_begin(): enters until `count` CQEs are there, counted from the head, or -ETIME. */
static int wait_enter(struct uring *ring, uint32_t count, int64_t deadline_ns, uint32_t sealed)
{
    uint32_t flags = ENTER_GETEVENTS | wakeup_flag(ring) | load_relaxed(&ring->wait_flags);
    int ret;
    if (count == 0) {
        sched_yield();
        return -EAGAIN;
    }
    if (__atomic_load_n(&ring->sealed, __ATOMIC_SEQ_CST) != sealed)
        ret = -ESHUTDOWN;
    else
        ret = deadline_ns < 0 ? enter(ring, 0, count, flags, NULL, 0)
                              : enter_until(ring, count, flags, deadline_ns);
    wait_end(ring);
    if (ret >= 0)
        ret = deadline_ns >= 0 && monotonic_ns() >= deadline_ns ? -ETIME : -EAGAIN;
    return ret;
}

/*
 * One wait for `wait_nr` CQEs beyond `start`: 0 when they are there, EINTR or EAGAIN when the
 * caller should look around (signals, a closing ring) and come again, ETIME when the deadline
 * (CLOCK_MONOTONIC, -1 for none) has passed. Never a loop in here: only the caller can run Python's
 * signal handlers. The kernel may return early and without an error, so what counts is the tail.
 *
 * Sequentially consistent on `sealed` and `waiters`: a closer seals and then counts the waiters.
 * Twin: io_uring_wait_cqes(3).
 */
static int wait_cqes(struct uring *ring, uint64_t start, uint32_t wait_nr, int64_t deadline_ns,
                     uint32_t sealed)
{
    uint32_t ready, count = 0;
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    if (wait_nr > ring->cq_entries)
        wait_nr = ring->cq_entries;
    pthread_mutex_lock(&ring->cq_lock);
    if ((int64_t)(start - ring->inbox_start) < 0) { /* somebody has taken what this one waits for */
        pthread_mutex_unlock(&ring->cq_lock);
        uring_part(ring);
        return -EAGAIN;
    }
    if (ring->setup_flags & SETUP_IOPOLL) /* which looks for more only when the CQ is empty */
        cq_take(ring, ring->cq_entries);
    ready = cq_ready(ring, start);
    if (ready < wait_nr)
        count = wait_begin(ring, wait_nr - ring->inbox_count);
    pthread_mutex_unlock(&ring->cq_lock);
    if (ready < wait_nr) {
        ret = wait_enter(ring, count, deadline_ns, sealed);
        pthread_mutex_lock(&ring->cq_lock);
        if (ret != -ESHUTDOWN && cq_ready(ring, start) >= wait_nr)
            ret = 0;
        pthread_mutex_unlock(&ring->cq_lock);
    } else if (load_relaxed(&ring->sealed) != sealed) {
        ret = -ESHUTDOWN;
    }
    uring_part(ring);
    return ret;
}

static int uring_wait(struct uring *ring, uint64_t start, uint32_t wait_nr, int64_t deadline_ns)
{
    return wait_cqes(ring, start, wait_nr, deadline_ns, 0);
}

/*
 * Must the kernel be entered for CQEs to show up? TASKRUN and CQ_OVERFLOW say so. An IOPOLL ring
 * finds completions only when entered; a DEFER_TASKRUN ring posts them only then, and says so only
 * with TASKRUN_FLAG. (Testing CQ_OVERFLOW alone is a known way to poll such a ring for ever.)
 */
static int cq_needs_enter(const struct uring *ring, uint32_t ready)
{
    uint32_t flags = load_relaxed(ring->sq_flags);
    if (flags & (SQ_CQ_OVERFLOW | SQ_TASKRUN))
        return 1;
    return ready == 0 && ring->setup_flags & (SETUP_IOPOLL | SETUP_DEFER_TASKRUN);
}

/* Flags of `count` CQEs, or-ed; without the upper half, which is a buffer id. */
static uint32_t all_flags(const struct uring *ring, const char *cqes, uint32_t count)
{
    uint32_t flags = 0, each;
    for (uint32_t i = 0; i < count; i++) {
        memcpy(&each, cqes + (size_t)i * ring->cqe_size + CQE_FLAGS, sizeof each);
        flags |= each & 0xffff;
    }
    return flags;
}

/*
 * Enters the kernel so that it posts what it holds back. When the CQ is full of CQEs that we have
 * taken, and the head stands still for waiters, nothing could be posted: a full CQ has woken all of
 * them, so this waits until they have left. cq_lock is held, but for that.
 */
static int cq_flush(struct uring *ring)
{
    int ret;
    while (ring->waiters > 0 &&
           load_relaxed(ring->cq_tail) - load_relaxed(ring->cq_head) == ring->cq_entries) {
        pthread_mutex_unlock(&ring->cq_lock);
        sched_yield();
        pthread_mutex_lock(&ring->cq_lock);
    }
    pthread_mutex_unlock(&ring->cq_lock);
    ret = enter(ring, 0, 0, ENTER_GETEVENTS, NULL, 0);
    pthread_mutex_lock(&ring->cq_lock);
    return ret;
}

/*
 * Acknowledges everything before `start`, and has the next CQEs, up to `max_nr`, stand at the
 * beginning of the inbox. Low half: how many they are. High half: the flags of all of them, or-ed.
 * The inbox changes only when a later `start` is given: what is not acknowledged is given again.
 */
static int64_t uring_take(struct uring *ring, uint64_t start, uint32_t max_nr)
{
    uint32_t count, flags;
    int is_full, ret = uring_join(ring);
    if (ret < 0)
        return ret;
    pthread_mutex_lock(&ring->cq_lock);
    inbox_acknowledge(ring, start);
    is_full = load_relaxed(ring->cq_tail) - ring->cq_taken == ring->cq_entries;
    inbox_fill(ring, max_nr);
    if (ring->inbox_count < max_nr && !is_full && cq_needs_enter(ring, ring->inbox_count)) {
        ret = cq_flush(ring);
        inbox_fill(ring, max_nr);
    }
    count = ring->inbox_count < max_nr ? ring->inbox_count : max_nr;
    if (ring->inbox_start != start) /* somebody else has these */
        count = 0;
    flags = all_flags(ring, ring->inbox, count);
    pthread_mutex_unlock(&ring->cq_lock);
    uring_part(ring);
    if (ret < 0 && ret != -EINTR && count == 0)
        return ret;
    return (int64_t)flags << 32 | count;
}

/*
 * Copies the CQEs that uring_take() would give, and leaves them where they are. Returns as it does.
 */
static int64_t uring_peek(struct uring *ring, uint64_t start, uint32_t max_nr, char *out)
{
    uint32_t ready, count, inside;
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    pthread_mutex_lock(&ring->cq_lock);
    ready = cq_ready(ring, start);
    if (ready < max_nr && ready < ring->cq_entries && cq_needs_enter(ring, ready)) {
        ret = cq_flush(ring);
        ready = cq_ready(ring, start);
    }
    count = ring->inbox_start != start ? 0 : ready < max_nr ? ready : max_nr;
    if (ring->runs != NULL && count > ring->inbox_count)
        count = ring->inbox_count; /* what is still in the CQ is not told apart */
    inside = count < ring->inbox_count ? count : ring->inbox_count;
    memcpy(out, ring->inbox, (size_t)inside * ring->cqe_size);
    cq_copy(ring, ring->cq_taken, count - inside, out + (size_t)inside * ring->cqe_size);
    pthread_mutex_unlock(&ring->cq_lock);
    uring_part(ring);
    if (ret < 0 && ret != -EINTR && count == 0)
        return ret;
    return (int64_t)all_flags(ring, out, count) << 32 | count;
}

/*
 * Whether no number comes twice, as far as a glance tells: each is greater than the one before it,
 * as those that the ring draws are, and those that a loop counts.
 */
static int uring_is_increasing(const char *numbers, uint32_t count)
{
    uint64_t before, number;
    for (uint32_t i = 0; i < count; i++, before = number) {
        memcpy(&number, numbers + (size_t)i * sizeof number, sizeof number);
        if (i > 0 && number <= before)
            return 0;
    }
    return 1;
}

/* How many CQEs uring_take() would give without entering the kernel. */
static int64_t uring_ready(struct uring *ring, uint64_t start)
{
    int64_t ready = uring_join(ring);
    if (ready < 0)
        return ready;
    pthread_mutex_lock(&ring->cq_lock);
    ready = cq_ready(ring, start);
    pthread_mutex_unlock(&ring->cq_lock);
    uring_part(ring);
    return ready;
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

static int64_t uring_sealed_submit(struct uring *ring, uint32_t start, const char *sqes,
                                   const char *user_data, uint32_t count)
{
    return submit(ring, start, sqes, (const uint64_t *)(const void *)user_data, count, 1);
}

static int uring_sealed_wait(struct uring *ring, uint64_t start, uint32_t wait_nr,
                             int64_t deadline_ns)
{
    return wait_cqes(ring, start, wait_nr, deadline_ns, 1);
}

/* How many threads are inside a wait. */
static int uring_waiters(struct uring *ring)
{
    return (int)(__atomic_load_n(&ring->waiters, __ATOMIC_SEQ_CST) +
                 __atomic_load_n(&ring->sq_waiters, __ATOMIC_SEQ_CST));
}
