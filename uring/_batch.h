/*
 * The batch loop: SQEs that are known in advance are submitted, awaited and sorted in C.
 *
 * A run is one pass over a batch. Its CQEs are told from all others by their user_data: a block of
 * numbers that the ring has drawn for it, or numbers that its operations were given, which nobody
 * else has while it lasts. Whoever takes CQEs out of the CQ, in whatever thread, puts those of a
 * run into their places (run_takes), so that several runs and ordinary reading share one ring. The
 * rules are those of _shim.h. At the end: what encodes many reads or writes at once (_columns.py).
 */

#include "_cq.h"

#define RUN_SLICE_NS 10000000 /* 10 ms: a Ctrl-C feels immediate, a look around costs 1 us */

struct uring_run {
    const char *sqes;          /* `count` of them; this and the next four are Python's to fill in */
    char *cqes;                /* room for the CQE of each */
    const uint64_t *numbers;   /* the user_data of each; NULL: first_number + i */
    const uint64_t *by_number; /* the pairs (number, i), sorted; or NULL as well */
    uint32_t count;

    struct uring_run *next;
    uint64_t first_number;
    uint32_t placed; /* how many are in the SQ or beyond; written by the thread that runs */
    uint32_t ended;  /* how many terminal CQEs have come; cq_lock guards it, next and is_listed */
    uint32_t is_listed;
    uint32_t is_stopping; /* nothing more is placed; atomic */
};

/* ---- what comes back ---- */

static uint32_t run_find(const struct uring_run *run, uint64_t number)
{
    uint32_t low = 0, high = run->count;
    if (run->numbers == NULL)
        return number - run->first_number < run->count ? (uint32_t)(number - run->first_number)
                                                       : UINT32_MAX;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (run->by_number[2 * (size_t)middle] < number)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < run->count && run->by_number[2 * (size_t)low] == number)
        return (uint32_t)run->by_number[2 * (size_t)low + 1];
    return UINT32_MAX;
}

/*
 * Whether a CQE without MORE that is a notification, or says ECANCELED, ends its operation. A chain
 * that fails cancels the zero-copy sends in it without MORE (io_fail_links(), io_uring/timeout.c),
 * and their notifications come all the same. One of an operation that does not notify belongs to
 * what had its number before, and ends nothing; nor does one that comes when its own has ended
 * otherwise. `place` has the result, if it has come, and else a MORE that nobody has posted.
 */
__attribute__((noinline)) static int run_ends(const char *sqe, const char *place, uint32_t flags)
{
    uint8_t opcode = (uint8_t)sqe[0];
    uint32_t known;
    int32_t res;
    if (opcode != OP_SEND_ZC && opcode != OP_SENDMSG_ZC)
        return !(flags & CQE_NOTIF);
    if (!(flags & CQE_NOTIF))
        return 0;
    memcpy(&known, place + CQE_FLAGS, sizeof known);
    memcpy(&res, place + CQE_RES, sizeof res);
    return known & CQE_MORE || res == -ECANCELED;
}

/*
 * Puts a CQE into its place, if it is one of a run. Of an operation that posts several (a zero-copy
 * send) the first one stays: the result. What ends it is the one without MORE; but see run_ends().
 * cq_lock is held.
 */
static int run_takes(struct uring *ring, const char *cqe)
{
    uint64_t number;
    uint32_t flags;
    int32_t res;
    memcpy(&number, cqe, sizeof number);
    memcpy(&res, cqe + CQE_RES, sizeof res);
    memcpy(&flags, cqe + CQE_FLAGS, sizeof flags);
    for (struct uring_run *run = ring->runs; run != NULL; run = run->next) {
        uint32_t index = run_find(run, number);
        char *place;
        if (index == UINT32_MAX)
            continue;
        place = run->cqes + (size_t)index * ring->cqe_size;
        if (!(flags & CQE_NOTIF))
            cqe_copy(place, cqe, ring->cqe_size);
        if (!(flags & CQE_MORE) &&
            ((!(flags & CQE_NOTIF) && res != -ECANCELED) ||
             run_ends(run->sqes + (size_t)index * SQE_SIZE, place, flags)))
            run->ended++;
        return 1;
    }
    return 0;
}

/* ---- what goes out ---- */

static int is_linked(const char *sqe) { return (sqe[1] & SQE_IO_LINKED) != 0; }

/* How many SQEs of the run, up to `room`, can be placed without cutting a chain. */
static uint32_t run_fitting(const struct uring_run *run, uint32_t room)
{
    uint32_t left = run->count - run->placed, fits = left < room ? left : room;
    const char *next = run->sqes + (size_t)run->placed * SQE_SIZE;
    if (room < left)
        while (fits > 0 && is_linked(next + (size_t)(fits - 1) * SQE_SIZE))
            fits--;
    return fits;
}

/*
 * Places as much of the run as fits, in whole chains; behind a chain that somebody has left open it
 * waits until the kernel has taken that one. No more is in flight than the CQ has room for, so that
 * a run does not make the CQ overflow. Returns how many SQEs were placed.
 */
static int run_place(struct uring *ring, struct uring_run *run, uint32_t in_flight)
{
    uint32_t room, tail, first = run->placed;
    int count = 0;
    pthread_mutex_lock(&ring->sq_lock);
    room = sq_room(ring);
    tail = load_relaxed(ring->sq_tail);
    if (room < ring->sq_entries &&
        is_linked(ring->sqes + (size_t)((tail - 1) & ring->sq_mask) * ring->sqe_size))
        room = 0;
    if (room > ring->cq_entries - in_flight)
        room = ring->cq_entries - in_flight;
    if (ring->sealed) {
        count = -ESHUTDOWN;
    } else {
        count = (int)run_fitting(run, room);
        if (count == 0 && room == ring->sq_entries) /* the ring was made smaller meanwhile */
            count = -EOVERFLOW;
        if (count > 0) {
            run->placed += (uint32_t)count; /* before the kernel can see them, and end them */
            sq_put(ring, run->sqes + (size_t)first * SQE_SIZE, SQE_SIZE,
                   run->numbers ? run->numbers + first : NULL, run->first_number + first,
                   (uint32_t)count);
        }
    }
    pthread_mutex_unlock(&ring->sq_lock);
    return count;
}

/* What sq_enter() still answers after its tries, in words that do not mean "come again" here. */
static int run_refusal(int64_t ret)
{
    return ret == -EAGAIN ? -ENOMEM : ret == -EINTR ? -EIO : (int)ret;
}

/* Has the kernel take what is in the SQ, and post what DEFER_TASKRUN or IOPOLL holds back. */
static int run_enter(struct uring *ring, uint32_t count)
{
    int64_t ret = 0;
    if (count > 0 || sq_room(ring) < ring->sq_entries)
        ret = sq_enter(ring, count);
    if (ret < 0)
        return run_refusal(ret);
    if ((load_relaxed(ring->cq_tail) == load_relaxed(&ring->cq_taken) ||
         load_relaxed(ring->sq_flags) & SQ_CQ_OVERFLOW) &&
        cq_needs_enter(ring, 0))
        ret = enter(ring, 0, 0, ENTER_GETEVENTS, NULL, 0);
    return ret < 0 && ret != -EINTR ? (int)ret : 0;
}

/* ---- the loop ---- */

/* cq_lock is held. Before its memory goes, a run must have ended and this must have said 0. */
static int run_unlist(struct uring *ring, struct uring_run *run)
{
    if (run->placed != run->ended ||
        (run->ended != run->count && !load_relaxed(&run->is_stopping)))
        return -EAGAIN;
    if (run->is_listed)
        for (struct uring_run **at = &ring->runs; *at != NULL; at = &(*at)->next)
            if (*at == run) {
                __atomic_store_n(at, run->next, __ATOMIC_RELEASE);
                break;
            }
    run->is_listed = 0;
    return 0;
}

/*
 * Takes CQEs: 0 when the run has ended, and is off the list; EAGAIN when not, ENOBUFS when it has
 * not and the inbox is full, so that CQEs behind it may be hidden. Says how many are in flight.
 */
static int run_collect(struct uring *ring, struct uring_run *run, uint32_t *in_flight)
{
    int ret;
    pthread_mutex_lock(&ring->cq_lock);
    cq_take(ring, 0);
    ret = run_unlist(ring, run);
    if (ret < 0 && ring->inbox_count == ring->cq_entries)
        ret = -ENOBUFS;
    *in_flight = run->placed - run->ended;
    pthread_mutex_unlock(&ring->cq_lock);
    return ret;
}

/* The loop, entered where CQEs are taken or, for a new run, where SQEs are placed. */
static int run_loop(struct uring *ring, struct uring_run *run, int is_new)
{
    uint32_t in_flight = 0;
    int64_t end_ns = 0;
    for (;;) {
        int placed = 0, ret = is_new ? -EAGAIN : run_collect(ring, run, &in_flight);
        if (ret != -EAGAIN)
            return ret;
        if (!is_new && end_ns == 0) /* not for a run that ends in its first round */
            end_ns = monotonic_ns() + RUN_SLICE_NS;
        else if (!is_new && monotonic_ns() >= end_ns)
            return -EINTR;
        is_new = 0;
        if (!load_relaxed(&run->is_stopping) && run->placed < run->count)
            placed = run_place(ring, run, in_flight);
        ret = placed < 0 ? placed : run_enter(ring, (uint32_t)placed);
        if (ret < 0)
            return ret;
        if (placed == 0 && load_relaxed(ring->cq_tail) == load_relaxed(&ring->cq_taken))
            return -EAGAIN;
    }
}

/*
 * Begins a run, and then as uring_run(). Its memory, and `run` itself, must stay until this,
 * uring_run() or uring_run_release() has returned 0. What is sealed takes no new run: its closer
 * has counted.
 */
static int uring_run_begin(struct uring *ring, struct uring_run *run, uint64_t first_number)
{
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    run->first_number = first_number;
    run->placed = run->ended = run->is_stopping = 0;
    memset(run->cqes, 0xff, (size_t)run->count * ring->cqe_size); /* flags no CQE has: not posted */
    pthread_mutex_lock(&ring->cq_lock);
    if (load_relaxed(&ring->sealed)) {
        ret = -ESHUTDOWN;
    } else {
        run->next = ring->runs;
        __atomic_store_n(&ring->runs, run, __ATOMIC_RELEASE);
        run->is_listed = 1;
    }
    pthread_mutex_unlock(&ring->cq_lock);
    if (ret == 0)
        ret = run_loop(ring, run, 1);
    uring_part(ring);
    return ret;
}

/*
 * Goes on with a run as far as it goes without waiting: 0 when it has ended, EAGAIN when it is time
 * to wait, EINTR when it took so long that Python should look at its signals and the clock, ENOBUFS
 * when Python must empty the inbox first, or what went wrong. Never waits, so that Python has seen
 * every signal that came up to here when it calls uring_run_wait().
 */
static int uring_run(struct uring *ring, struct uring_run *run)
{
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    ret = run_loop(ring, run, 0);
    uring_part(ring);
    return ret;
}

/*
 * Waits until it is worth while to go on with a run: until all that is in flight has ended or, when
 * more is to be placed, until half of the CQ is free again. Returns as uring_wait() does.
 */
static int uring_run_wait(struct uring *ring, struct uring_run *run, int64_t deadline_ns)
{
    uint32_t in_flight, missing, count = 0;
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    pthread_mutex_lock(&ring->cq_lock);
    cq_take(ring, 0);
    in_flight = run->placed - run->ended;
    missing = in_flight;
    if (!load_relaxed(&run->is_stopping) && run->placed < run->count) {
        uint32_t half = (ring->cq_entries + 1) / 2;
        missing = in_flight > half ? in_flight - half : in_flight > 0;
    }
    if (missing > 0 && ring->inbox_count < ring->cq_entries)
        count = wait_begin(ring, missing);
    pthread_mutex_unlock(&ring->cq_lock);
    if (missing > 0)
        ret = wait_enter(ring, count, deadline_ns, 0);
    else
        sched_yield(); /* the SQ is full of what others have placed */
    uring_part(ring);
    return ret;
}

/* Places no more of a run: it has ended when what is in flight has. */
static void uring_run_stop(struct uring_run *run)
{
    __atomic_store_n(&run->is_stopping, 1, __ATOMIC_RELAXED);
}

/*
 * Whether the memory of a run that nobody goes on with may go: 0, or EAGAIN. Takes what has come of
 * it. On a ring that is gone nobody looks at it.
 */
static int uring_run_release(struct uring *ring, struct uring_run *run)
{
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    uring_run_stop(run);
    if (cq_needs_enter(ring, 0))
        (void)enter(ring, 0, 0, ENTER_GETEVENTS, NULL, 0); /* the next one asks again */
    pthread_mutex_lock(&ring->cq_lock);
    cq_take(ring, 0);
    ret = run_unlist(ring, run);
    pthread_mutex_unlock(&ring->cq_lock);
    uring_part(ring);
    return ret;
}

/* ---- many reads or writes, encoded at once ---- */

/* Copies `count` integers of 1, 2, 4 or 8 bytes as 64-bit ones, which nobody else can change. */
static int uring_widen(int64_t *out, const char *in, uint32_t size, uint32_t is_signed,
                       uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t value = 0;
        const char *from = in + (size_t)i * size;
        if (size == 8) {
            memcpy(&value, from, 8);
        } else if (size == 4) {
            uint32_t narrow;
            memcpy(&narrow, from, 4);
            value = is_signed ? (uint64_t)(int64_t)(int32_t)narrow : narrow;
        } else if (size == 2) {
            uint16_t narrow;
            memcpy(&narrow, from, 2);
            value = is_signed ? (uint64_t)(int64_t)(int16_t)narrow : narrow;
        } else if (size == 1) {
            value = is_signed ? (uint64_t)(int64_t)(int8_t)*from : (uint8_t)*from;
        } else {
            return -EINVAL;
        }
        out[i] = (int64_t)value;
    }
    return 0;
}

/* The columns of many reads or writes; NULL stands for "as in the pattern", or as it says. */
struct uring_parts {
    const char *pattern;    /* the SQE that all begin as */
    const int64_t *fds;     /* descriptors or slots */
    const char *flags;      /* SQE flags that are added */
    const int64_t *offsets; /* never NULL */
    const int64_t *lengths; /* NULL: `length` each */
    int64_t length;
    char **buffers;         /* NULL: one part after the other from `buffer` on */
    const int64_t *sizes;   /* of each of `buffers` */
    char *buffer;
    uint64_t size;
    uint32_t count;
};

enum { PART_OFFSET = 1, PART_LENGTH, PART_ROOM, PART_FD }; /* what is wrong with a part */

/*
 * Encodes all parts: 0, or the first that cannot be as (its index << 3 | what is wrong). The
 * columns are copies of ours, so what was checked is what is used.
 */
static int64_t uring_encode_parts(char *sqes, const struct uring_parts *parts)
{
    uint64_t used = 0;
    for (uint32_t i = 0; i < parts->count; i++) {
        char *sqe = sqes + (size_t)i * SQE_SIZE;
        int64_t offset = parts->offsets[i];
        int64_t length = parts->lengths ? parts->lengths[i] : parts->length;
        uint64_t room = parts->buffers ? (uint64_t)parts->sizes[i] : parts->size - used;
        uint64_t address = (uint64_t)(uintptr_t)(parts->buffers ? parts->buffers[i]
                                                                : parts->buffer + used);
        uint32_t length32;
        if (offset < 0)
            return (int64_t)i << 3 | PART_OFFSET;
        if (length < 0 || length > UINT32_MAX)
            return (int64_t)i << 3 | PART_LENGTH;
        if ((uint64_t)length > room)
            return (int64_t)i << 3 | PART_ROOM;
        length32 = (uint32_t)length;
        used += length32;
        memcpy(sqe, parts->pattern, SQE_SIZE);
        if (parts->fds) {
            int32_t fd = (int32_t)parts->fds[i];
            if (fd != parts->fds[i])
                return (int64_t)i << 3 | PART_FD;
            memcpy(sqe + SQE_FD, &fd, sizeof fd);
        }
        if (parts->flags)
            sqe[1] = (char)(sqe[1] | parts->flags[i]);
        memcpy(sqe + SQE_OFF, &offset, sizeof offset);
        memcpy(sqe + SQE_ADDR, &address, sizeof address);
        memcpy(sqe + SQE_LEN, &length32, sizeof length32);
    }
    return 0;
}
