/*
 * The completion queue: taking CQEs, waiting for them; and closing. The rules are those of _shim.h.
 */

#include "_sq.h"

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
    return ring->cqes + (size_t)(place & ring->cq_mask) * ring->slot_size;
}

static char *inbox_at(const struct uring *ring, uint32_t index)
{
    return ring->inbox + (size_t)index * ring->cqe_size;
}

/*
 * Copies one CQE; the rest of MIXED_SIZE is never looked at. The compiler makes two moves of a copy
 * whose size it knows, else a call.
 */
static void cqe_copy(char *out, const char *cqe, uint32_t size)
{
    if (size == CQE_SIZE)
        memcpy(out, cqe, CQE_SIZE);
    else
        memcpy(out, cqe, 2 * (size_t)CQE_SIZE);
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
 * In a CQE_MIXED CQ a CQE with F_32 takes two places, and one with SKIP is none: it fills the last
 * place when a CQE of two would have to wrap. A run and the inbox get both kinds in one size.
 *
 * On 6.18 that goes wrong when behind the filler there is no room for the two, either, so that they
 * wait (io_cqe_cache_refill in io_uring/io_uring.c): the next small CQE is put where the filler is,
 * and the tail moves on over the first place of the queue, which keeps what was there a round
 * before. So we blot that place out when we have passed it. When it is found so, nothing is there;
 * and what belongs there is in the last place, if that was a filler when we passed it. As long as
 * that may come to be, or may be what stands behind it, the head stays before the filler, or the
 * kernel could use the place again. The flag goes when the two have been written, which is after
 * that CQE: so the flag is looked at first. Acquire: then a tail that covers it is seen.
 * The tail may so come to be one beyond a full queue: who only counts has blotted nothing out, and
 * must not count the first place twice.
 */
static uint32_t mixed_head(const struct uring *ring)
{
    uint32_t taken = ring->cq_taken;
    if (ring->after_filler && (load_acquire(ring->sq_flags) & SQ_CQ_OVERFLOW ||
                               load_relaxed(ring->cq_tail) != taken))
        taken--;
    return taken;
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
        store_release(ring->cq_head, ring->is_mixed ? mixed_head(ring) : ring->cq_taken);
}

/*
 * From how many places on the CQ is full. A CQE that needs two finds none in a mixed CQ with one
 * left, and waits in the kernel, and so do all behind it. No wait may be for more than this: 6.18
 * would look for room all the time and never for a signal, so that not even SIGKILL ends it.
 */
static uint32_t cq_brim(const struct uring *ring) { return ring->cq_entries - ring->is_mixed; }

static int run_takes(struct uring *ring, const char *cqe); /* _batch.h */

static const unsigned char blot[CQE_SIZE] = {255, 255, 255, 255, 255, 255, 255, 255,
                                             255, 255, 255, 255, 255, 255, 255, 255};

struct mixed_place {
    const char *cqe;
    uint32_t count;        /* 1, or 0: nothing to be taken */
    uint32_t size, places; /* in bytes, in the CQ */
    uint32_t is_filler;
};

static struct mixed_place mixed_look(const struct uring *ring, uint32_t place,
                                     uint32_t after_filler)
{
    struct mixed_place found = {
        .cqe = cq_at(ring, place), .count = 1, .size = CQE_SIZE, .places = 1};
    uint32_t flags = load_acquire((const uint32_t *)(const void *)(found.cqe + CQE_FLAGS));
    if ((place & ring->cq_mask) == 0 &&
        (memcmp(found.cqe, blot, CQE_SIZE) == 0 || place - ring->cq_taken == ring->cq_entries)) {
        found.cqe = cq_at(ring, place - 1);
        found.count = after_filler;
    } else if (flags & CQE_SKIP) {
        found.count = 0;
        found.is_filler = 1;
    } else if (flags & CQE_F_32 && (place & ring->cq_mask) != ring->cq_mask) { /* none wraps */
        found.size = 2 * CQE_SIZE;
        found.places = 2;
    }
    return found;
}

/* How many CQEs there are in the CQ to be taken. cq_lock is held. */
__attribute__((noinline)) static uint32_t mixed_count(const struct uring *ring)
{
    uint32_t count = 0, place = ring->cq_taken, after_filler = ring->after_filler;
    uint32_t tail = load_acquire(ring->cq_tail);
    while ((int32_t)(tail - place) > 0) {
        struct mixed_place found = mixed_look(ring, place, after_filler);
        count += found.count;
        place += found.places;
        after_filler = found.is_filler;
    }
    return count;
}

/* cq_take() for a mixed CQ: `ready` places from `taken` on. Returns up to where it took. */
__attribute__((noinline)) static uint32_t mixed_take(struct uring *ring, uint32_t taken,
                                                     uint32_t ready, uint32_t max_nr)
{
    uint32_t end = taken + ready;
    while ((int32_t)(end - taken) > 0) {
        struct mixed_place found = mixed_look(ring, taken, ring->after_filler);
        if (found.count > 0) {
            char cqe[2 * CQE_SIZE] = {0};
            memcpy(cqe, found.cqe, found.size);
            if (ring->runs == NULL || !run_takes(ring, cqe)) {
                if (ring->inbox_count == ring->cq_entries || (ring->runs == NULL && max_nr-- == 0))
                    break;
                cqe_copy(inbox_at(ring, ring->inbox_count++), cqe, ring->cqe_size);
            }
        }
        if ((taken & ring->cq_mask) == 0)
            memcpy(cq_at(ring, taken), blot, CQE_SIZE);
        ring->after_filler = found.is_filler;
        taken += found.places;
    }
    return taken;
}

/*
 * Takes CQEs out of the CQ: those of a batch to their places in it, others to the inbox, at most
 * `max_nr` of them while no batch is running, and then all that there is room for. cq_lock is held.
 * Acquire on the tail: the CQEs that it covers are visible. Twin: io_uring_peek_batch_cqe(3).
 */
static void cq_take(struct uring *ring, uint32_t max_nr)
{
    uint32_t taken = ring->cq_taken, ready = load_acquire(ring->cq_tail) - taken;
    if (ring->is_mixed) {
        taken = mixed_take(ring, taken, ready, max_nr);
    } else if (ring->runs != NULL) {
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
    if (ring->is_mixed)
        return ring->inbox_count + mixed_count(ring);
    return ring->inbox_count + load_acquire(ring->cq_tail) - ring->cq_taken;
}

/*
 * Counts this thread among the waiters, and says what it waits for: `missing` CQEs beyond those
 * that were taken, as the count from the head that the kernel wants. (In a mixed CQ it counts
 * places, so such a wait may end too soon.) 0 when the CQ is full and others, who are waking up
 * because of that, must leave before the head can move. cq_lock is held.
 */
static uint32_t wait_begin(struct uring *ring, uint32_t missing)
{
    uint32_t head = load_relaxed(ring->cq_head), count = ring->cq_taken - head + missing;
    if (ring->waiters > 0 && load_relaxed(ring->cq_tail) - head >= cq_brim(ring))
        return 0;
    __atomic_add_fetch(&ring->waiters, 1, __ATOMIC_SEQ_CST);
    return count < cq_brim(ring) ? count : cq_brim(ring);
}

static void wait_end(struct uring *ring)
{
    pthread_mutex_lock(&ring->cq_lock);
    __atomic_sub_fetch(&ring->waiters, 1, __ATOMIC_SEQ_CST);
    cq_publish(ring);
    pthread_mutex_unlock(&ring->cq_lock);
}

/*
 * What a wait comes to, however it ended: when the time is over it is over, also if the kernel has
 * said EINTR or EAGAIN every time.
 */
static int wait_answer(int ret, int64_t end_ns)
{
    if (ret < 0 && ret != -EINTR && ret != -EAGAIN)
        return ret;
    if (end_ns >= 0 && monotonic_ns() >= end_ns)
        return -ETIME;
    return ret < 0 ? ret : -EAGAIN;
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
    return wait_answer(ret, deadline_ns);
}

/*
 * How many CQEs are there beyond `start`, for one who waits for `wait_nr`: what is in the CQ goes
 * to the inbox where it may keep out what is waited for. The caller holds `cq_lock`.
 */
static uint32_t ready_for_wait(struct uring *ring, uint64_t start, uint32_t wait_nr)
{
    uint32_t ready;
    if (ring->setup_flags & SETUP_IOPOLL) /* which looks for more only when the CQ is empty */
        cq_take(ring, ring->cq_entries);
    ready = cq_ready(ring, start);
    if (ready < wait_nr && ring->is_mixed) { /* as many may not fit in it, but in the inbox */
        cq_take(ring, ring->cq_entries);
        ready = cq_ready(ring, start);
    }
    return ready;
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
    ready = ready_for_wait(ring, start, wait_nr);
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
           load_relaxed(ring->cq_tail) - load_relaxed(ring->cq_head) >= cq_brim(ring)) {
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
    uint32_t count, flags, tries = 1 + ring->is_mixed; /* the first may bring but a filler */
    int is_full, ret = uring_join(ring);
    if (ret < 0)
        return ret;
    pthread_mutex_lock(&ring->cq_lock);
    inbox_acknowledge(ring, start);
    is_full = load_relaxed(ring->cq_tail) - ring->cq_taken == ring->cq_entries;
    inbox_fill(ring, max_nr);
    while (ring->inbox_count < max_nr && !is_full && tries-- > 0 &&
           cq_needs_enter(ring, ring->inbox_count)) {
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
    uint32_t ready, count, inside, tries = 1 + ring->is_mixed;
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    pthread_mutex_lock(&ring->cq_lock);
    ready = cq_ready(ring, start);
    while (ready < max_nr && ready < ring->cq_entries && tries-- > 0 &&
           cq_needs_enter(ring, ready)) {
        if (ring->is_mixed) /* as below; and the filler must be passed */
            cq_take(ring, ring->cq_entries);
        ret = cq_flush(ring);
        ready = cq_ready(ring, start);
    }
    count = ring->inbox_start != start ? 0 : ready < max_nr ? ready : max_nr;
    if (ring->is_mixed)
        cq_take(ring, ring->cq_entries);
    if ((ring->runs != NULL || ring->is_mixed) && count > ring->inbox_count)
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
    return submit(ring, start, sqes, SQE_SIZE, (const uint64_t *)(const void *)user_data, count,
                  1);
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
