/*
 * The shim without the interpreter: threads on one ring, and each number comes back once.
 *
 * What Python does around the shim is done here in C, by the same rules. Who places SQEs says how
 * many he knows of; who takes CQEs says how many were had, copies what he gets, and has them only
 * if nobody else had them meanwhile (as _take_recent() in _completion.py, the way without a lock).
 * So ThreadSanitizer and Valgrind see every access but the kernel's, and AddressSanitizer every
 * leak. `.ci/shim` builds and runs it; the argument is how many numbers go through each ring.
 */

#include "_buffers.h"

#include <dirent.h>
#include <stdio.h>

#define CHECK(held) ((held) ? (void)0 : failed(#held, __LINE__))

enum {
    OP_NOP = 0, /* the kernel's numbers */
    OP_TIMEOUT = 11,
    OP_READ = 22,
    SQE_ASYNC = 1 << 4,
    SQE_BUFFER_SELECT = 1 << 5,
    SQE_OP_FLAGS = 28,
    SQE_BUF_GROUP = 40,
    NOP_CQE32 = 1 << 5,
    CQE_BUFFER = 1 << 0,
    SINGLE_ISSUER = 1 << 12,
    COOP_TASKRUN = 1 << 8,
    R_DISABLED = 1 << 6,
    REGISTER_ENABLE_RINGS = 12,
    REGISTER_PBUF_RING = 22,
    REGION_SIZE = 4096,
    PBUF_RING_MMAP = 1,
    ENTRIES = 8, /* few, so that queues are full and wrap */
    CQ_ENTRIES = 16,
    AT_ONCE = 5, /* placed or taken by one call */
    SECONDS = 240,
    RUN_COUNT = 40, /* operations of a batch: more than the CQ holds */
    SUBMITTERS = 3,
    TAKERS = 2,
    RUNNERS = 2,
    LOOKERS = 1,
    THREADS_MAX = SUBMITTERS + TAKERS + RUNNERS + LOOKERS,
    BUFFERS = 8,
    BUFFER_SIZE = 16,
};

#define SOON_NS 500000
#define OF_NOBODY (UINT64_C(1) << 62) /* the user_data of what only wakes waiters */
#define OF_RUNS (UINT64_C(1) << 63)   /* and of what batches begin with */

struct station {
    struct uring ring;
    const char *name;
    char *inbox;
    uint32_t total;     /* how many numbers there are: 0 and up */
    uint32_t next;      /* the first that nobody has taken to be submitted */
    uint32_t *came;     /* how often each has come */
    uint64_t had;       /* CQEs out of the inbox, as Ring._had */
    uint64_t first;     /* of the next batch */
    uint32_t left;      /* threads that submit or run, and have not ended */
    uint32_t waits;     /* places in the region of registered waits that are taken */
    uint32_t is_mortal; /* the ring is closed under the threads */
};

_Noreturn static void failed(const char *what, int line)
{
    (void)fprintf(stderr, "threads.c:%d: not so: %s\n", line, what);
    abort();
}

/* ---- a ring ---- */

static void station_free(struct station *at)
{
    free(at->inbox);
    free(at->came);
}

static int station_refuse(struct station *at, int error)
{
    CHECK(uring_exit(&at->ring) == 0);
    station_free(at);
    return error;
}

/* 0, or the negative errno of a kernel that does not make such rings. */
static int station_open(struct station *at, const char *name, uint32_t flags, uint32_t total)
{
    struct uring_params params = {.flags = flags | SETUP_CQSIZE, .cq_entries = CQ_ENTRIES};
    int ret;
    memset(at, 0, sizeof *at);
    at->name = name;
    params.sq_thread_idle = 1;
    ret = uring_setup(&at->ring, ENTRIES, &params);
    if (ret < 0)
        return ret;
    /* Exactly as much as is needed, for who writes beyond it; a resize needs it for the largest. */
    at->inbox = malloc((size_t)(flags & SETUP_DEFER_TASKRUN ? 2 * ENTRIES_MAX : CQ_ENTRIES) *
                       (flags & SETUP_CQE_MIXED ? MIXED_SIZE
                                                : slot_bytes(CQE_SIZE, flags & SETUP_CQE32)));
    at->came = calloc(total, sizeof *at->came);
    CHECK(at->inbox != NULL && at->came != NULL);
    at->total = total;
    at->first = OF_RUNS;
    CHECK(uring_map(&at->ring, &params, at->inbox) == 0);
    if (flags & R_DISABLED) {
        ret = uring_register_region(&at->ring, NULL, REGION_SIZE);
        CHECK(uring_register(&at->ring, REGISTER_ENABLE_RINGS, NULL, 0) == 0);
    }
    return ret < 0 ? station_refuse(at, ret) : 0;
}

/* May be torn, and is then thrown away; so no sanitizer shall look, nor find a memcpy() to see. */
__attribute__((no_sanitize("thread"), noinline)) static void glance(volatile char *out,
                                                                    const volatile char *in,
                                                                    size_t size)
{
    for (size_t i = 0; i < size; i++)
        out[i] = in[i];
}

static int64_t soon(void) { return monotonic_ns() + SOON_NS; }

/* Takes CQEs and counts them: how many, or a negative errno. */
static int64_t take(struct station *at)
{
    struct uring *ring = &at->ring;
    char out[AT_ONCE * MIXED_SIZE];
    uint64_t start = __atomic_load_n(&at->had, __ATOMIC_ACQUIRE);
    int64_t ret = uring_take(ring, start, AT_ONCE);
    uint32_t count = (uint32_t)ret;
    if (ret <= 0)
        return ret;
    CHECK(count <= AT_ONCE);
    glance(out, at->inbox, (size_t)count * ring->cqe_size);
    if (!__atomic_compare_exchange_n(&at->had, &start, start + count, 0, __ATOMIC_RELEASE,
                                     __ATOMIC_RELAXED))
        return 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t number;
        memcpy(&number, out + (size_t)i * ring->cqe_size, sizeof number);
        if (number == OF_NOBODY)
            continue;
        CHECK(number < at->total);
        __atomic_add_fetch(&at->came[number], 1, __ATOMIC_RELAXED);
    }
    return count;
}

/* Places SQEs, and has them taken: 0, or ESHUTDOWN when none was placed. */
static int hand_over(struct station *at, const char *sqes, const uint64_t *numbers, uint32_t count)
{
    for (;;) {
        struct uring *ring = &at->ring;
        uint32_t start = load_relaxed(&ring->placed);
        const char *user_data = (const char *)numbers;
        int64_t ret;
        if (count == 1 && ring->sqe_size == SQE_SIZE)
            ret = uring_submit_one(ring, start, sqes, *numbers);
        else if (ring->sqe_size == SQE_SIZE)
            ret = uring_submit(ring, start, sqes, user_data, count);
        else
            ret = uring_submit128(ring, start, sqes, user_data, count);
        if (ret == -ENOSPC && ring->setup_flags & SETUP_SQPOLL) {
            ret = uring_wait_sq(ring, soon());
            CHECK(ret > 0 || ret == -EAGAIN || ret == -ETIME || ret == -EINTR ||
                  (ret == -ESHUTDOWN && at->is_mortal));
        } else if (ret != -ESTALE && ret != -ENOSPC) {
            CHECK(ret >= 0 || (ret == -ESHUTDOWN && at->is_mortal));
            return ret < 0 ? (int)ret : 0;
        }
        sched_yield();
    }
}

/* ---- what the threads do ---- */

/* A NOP, at once or in a worker, or a time that passes. */
static void make_sqe(const struct uring *ring, char *sqe, uint64_t number)
{
    static const struct uring_timespec pause = {.nsec = 300000};
    uint64_t address = (uint64_t)(uintptr_t)&pause;
    uint32_t one = 1, cqe32 = NOP_CQE32;
    memset(sqe, 0, ring->sqe_size);
    if (number % 7 == 3)
        sqe[1] = SQE_ASYNC;
    if (number % 11 == 5) {
        sqe[0] = OP_TIMEOUT;
        memcpy(sqe + SQE_ADDR, &address, sizeof address);
        memcpy(sqe + SQE_LEN, &one, sizeof one);
    } else if (ring->is_mixed && number % 3 == 1) {
        memcpy(sqe + SQE_OP_FLAGS, &cqe32, sizeof cqe32);
    }
}

static void *submit_numbers(void *argument)
{
    struct station *at = argument;
    int ret = 0;
    for (uint32_t round = 0; ret == 0; round++) {
        char sqes[AT_ONCE * 2 * SQE_SIZE];
        uint64_t numbers[AT_ONCE];
        uint32_t count = 1 + round % AT_ONCE;
        uint32_t first = __atomic_fetch_add(&at->next, count, __ATOMIC_RELAXED);
        if (first >= at->total)
            break;
        count = count < at->total - first ? count : at->total - first;
        for (uint32_t i = 0; i < count; i++) {
            numbers[i] = first + i;
            make_sqe(&at->ring, sqes + (size_t)i * at->ring.sqe_size, numbers[i]);
        }
        ret = hand_over(at, sqes, numbers, count);
    }
    __atomic_sub_fetch(&at->left, 1, __ATOMIC_RELEASE);
    return NULL;
}

/* The same in a thread that enters by its index now and then; one at a time may. */
static void *submit_registered(void *argument)
{
    struct station *at = argument;
    int ret = uring_register_fd(&at->ring);
    CHECK(ret == 0 || (ret == -ESHUTDOWN && at->is_mortal));
    submit_numbers(argument);
    ret = uring_unregister_fd(&at->ring);
    CHECK(ret == 0 || (ret == -ESHUTDOWN && at->is_mortal));
    return NULL;
}

static uint32_t is_all_there(struct station *at)
{
    uint64_t placed = load_relaxed(&at->ring.placed);
    return __atomic_load_n(&at->left, __ATOMIC_ACQUIRE) == 0 &&
           __atomic_load_n(&at->had, __ATOMIC_RELAXED) == placed;
}

/* One of the ways to wait; `index` is this thread's own place in the region. */
static int wait_somehow(struct station *at, uint32_t round, uint32_t index)
{
    uint64_t start = __atomic_load_n(&at->had, __ATOMIC_RELAXED);
    int64_t min_ns = soon() - SOON_NS / 2;
    int ret;
    if (at->ring.region != NULL) {
        ret = uring_region_set(&at->ring, index, SOON_NS, SOON_NS / 2000);
        if (ret == 0)
            ret = uring_wait_registered(&at->ring, start, 3, min_ns, soon(), index);
    } else if (round % 3 == 0) {
        ret = uring_wait_min(&at->ring, start, 3, min_ns, soon());
    } else {
        ret = uring_wait(&at->ring, start, 1 + round % 4, soon());
    }
    sched_yield(); /* Valgrind runs one thread at a time, and one that waits as if it ran */
    return ret;
}

static void *take_numbers(void *argument)
{
    struct station *at = argument;
    uint32_t index = __atomic_fetch_add(&at->waits, 1, __ATOMIC_RELAXED);
    for (uint32_t round = 0; at->is_mortal || !is_all_there(at); round++) {
        int64_t ret = take(at);
        if (ret == 0)
            ret = wait_somehow(at, round, index);
        if (ret == -ESHUTDOWN)
            break;
        CHECK(ret >= 0 || ret == -EAGAIN || ret == -ETIME || ret == -EINTR);
    }
    return NULL;
}

static void *look(void *argument)
{
    struct station *at = argument;
    struct uring_counters counters = {0};
    char out[AT_ONCE * MIXED_SIZE];
    while (at->is_mortal || __atomic_load_n(&at->left, __ATOMIC_ACQUIRE) > 0) {
        uint64_t start = __atomic_load_n(&at->had, __ATOMIC_ACQUIRE);
        int64_t ret = uring_peek(&at->ring, start, AT_ONCE, out);
        if (ret >= 0 || ret == -EEXIST) /* the ring has an owner, who alone may enter */
            ret = uring_ready(&at->ring, start);
        if (ret >= 0)
            ret = uring_counters(&at->ring, &counters);
        if (ret < 0) {
            CHECK(ret == -ESHUTDOWN && at->is_mortal);
            break;
        }
        CHECK(counters.sq_tail - counters.sq_head <= counters.sq_entries);
        sched_yield();
    }
    return NULL;
}

/* A batch, in memory that has not a byte more than it needs. */
struct batch {
    struct uring_run run;
    char *sqes;
    uint64_t *numbers, *by_number;
};

static void batch_make(struct batch *batch, struct station *at, int is_numbered)
{
    memset(batch, 0, sizeof *batch);
    batch->sqes = malloc((size_t)RUN_COUNT * SQE_SIZE);
    batch->run.cqes = malloc((size_t)RUN_COUNT * at->ring.cqe_size);
    CHECK(batch->sqes != NULL && batch->run.cqes != NULL);
    for (uint32_t i = 0; i < RUN_COUNT; i++) {
        struct uring plain = {.sqe_size = SQE_SIZE};
        make_sqe(&plain, batch->sqes + (size_t)i * SQE_SIZE, i);
    }
    batch->run.sqes = batch->sqes;
    batch->run.count = RUN_COUNT;
    if (!is_numbered)
        return;
    batch->numbers = calloc(RUN_COUNT, sizeof(uint64_t));
    batch->by_number = calloc(2 * (size_t)RUN_COUNT, sizeof(uint64_t));
    CHECK(batch->numbers != NULL && batch->by_number != NULL);
    batch->run.numbers = batch->numbers;
    batch->run.by_number = batch->by_number;
}

/* The numbers fall, so that what is sorted by them is in another order than they are. */
static void batch_number(struct batch *batch, uint64_t first)
{
    if (batch->numbers == NULL)
        return;
    for (uint32_t i = 0; i < RUN_COUNT; i++) {
        batch->numbers[i] = first + RUN_COUNT - 1 - i;
        batch->by_number[2 * (size_t)i] = first + i;
        batch->by_number[2 * (size_t)i + 1] = RUN_COUNT - 1 - i;
    }
}

static void batch_check(const struct batch *batch, const struct uring *ring, uint64_t first)
{
    for (uint32_t i = 0; i < RUN_COUNT; i++) {
        const char *cqe = batch->run.cqes + (size_t)i * ring->cqe_size;
        uint64_t number;
        int32_t res;
        memcpy(&number, cqe, sizeof number);
        memcpy(&res, cqe + CQE_RES, sizeof res);
        CHECK(number == (batch->numbers ? batch->numbers[i] : first + i));
        CHECK(res == (i % 11 == 5 ? -ETIME : 0));
    }
}

static void *run_batches(void *argument)
{
    struct station *at = argument;
    struct uring *ring = &at->ring;
    int ret = 0;
    for (uint32_t done = 0; ret == 0 && done < at->total / 4; done += RUN_COUNT) {
        struct batch batch;
        uint64_t first = __atomic_fetch_add(&at->first, RUN_COUNT, __ATOMIC_RELAXED);
        batch_make(&batch, at, done / RUN_COUNT % 2 == 1);
        batch_number(&batch, first);
        ret = uring_run_begin(ring, &batch.run, first);
        while (ret == -EAGAIN || ret == -EINTR || ret == -ENOBUFS || ret == -ETIME) {
            if (ret == -ENOBUFS)
                (void)take(at); /* or somebody else does */
            else if (ret == -EAGAIN)
                (void)uring_run_wait(ring, &batch.run, soon());
            ret = uring_run(ring, &batch.run);
        }
        if (ret == 0)
            batch_check(&batch, ring, first);
        CHECK(ret == 0 || (ret == -ESHUTDOWN && at->is_mortal));
        while (uring_run_release(ring, &batch.run) == -EAGAIN) /* the closer reaps */
            sched_yield();
        free(batch.sqes);
        free(batch.run.cqes);
        free(batch.numbers);
        free(batch.by_number);
    }
    __atomic_sub_fetch(&at->left, 1, __ATOMIC_RELEASE);
    return NULL;
}

/* ---- one ring, all of them ---- */

/* As Ring._quiesce(): when nothing is in flight and nobody waits, the ring ends. */
static void station_close(struct station *at)
{
    struct uring *ring = &at->ring;
    char sqe[2 * SQE_SIZE] = {0};
    uint64_t number = OF_NOBODY;
    CHECK(uring_seal(ring) == 0);
    do {
        int64_t ret;
        while ((ret = take(at)) > 0)
            ;
        CHECK(ret == 0);
        for (int i = 0; i < CQ_ENTRIES && uring_waiters(ring) > 0; i++) {
            ret = uring_sealed_submit(ring, load_relaxed(&ring->placed), sqe,
                                      (const char *)&number, 1);
            CHECK(ret >= 0 || ret == -ENOSPC);
        }
        ret = uring_sealed_submit(ring, load_relaxed(&ring->placed), NULL, NULL, 0);
        CHECK(ret >= 0);
        (void)uring_sealed_wait(ring, __atomic_load_n(&at->had, __ATOMIC_RELAXED), 1,
                                soon());
    } while (__atomic_load_n(&at->had, __ATOMIC_RELAXED) != load_relaxed(&ring->placed) ||
             __atomic_load_n(&ring->runs, __ATOMIC_ACQUIRE) != NULL || uring_waiters(ring) > 0);
    CHECK(uring_exit(ring) == 0);
}

static int share(const char *name, uint32_t flags, uint32_t numbers, int is_mortal)
{
    static void *(*const works[THREADS_MAX])(void *) = {
        submit_registered, submit_numbers, submit_numbers, take_numbers,
        take_numbers,      run_batches,    run_batches,    look,
    };
    pthread_t threads[THREADS_MAX];
    struct station at;
    uint32_t sum = 0, total = is_mortal ? 8 * numbers : numbers; /* more than it comes to */
    int ret = station_open(&at, name, flags, total);
    if (ret < 0)
        return ret;
    at.left = SUBMITTERS + RUNNERS;
    at.is_mortal = (uint32_t)is_mortal;
    for (int i = 0; i < THREADS_MAX; i++)
        CHECK(pthread_create(&threads[i], NULL, works[i], &at) == 0);
    if (is_mortal) {
        while (load_relaxed(&at.next) < numbers / 2)
            sched_yield();
        station_close(&at);
    }
    for (int i = 0; i < THREADS_MAX; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    if (!is_mortal)
        station_close(&at);
    for (uint32_t i = 0; i < total; i++) {
        CHECK(at.came[i] == 1 || (is_mortal && at.came[i] == 0));
        sum += at.came[i];
    }
    (void)printf("%-22s %s: %u numbers and %u of batches came once\n", name,
           is_mortal ? "closed amid it" : "to its end", sum, (uint32_t)(at.first - OF_RUNS));
    station_free(&at);
    return 0;
}

/* ---- other sizes, while others look ---- */

static int resize_under_lookers(uint32_t total)
{
    struct station at;
    pthread_t lookers[2];
    uint32_t resized = 0;
    int ret = station_open(&at, "resized", SETUP_DEFER_TASKRUN | SINGLE_ISSUER, total);
    if (ret < 0)
        return ret;
    at.left = 1;
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&lookers[i], NULL, look, &at) == 0);
    for (uint32_t i = 0; i < total; i++) {
        struct uring_params params = {.flags = SETUP_CQSIZE, .sq_entries = 1u << i % 5};
        char sqe[SQE_SIZE];
        uint64_t number = i;
        params.cq_entries = 4 * params.sq_entries;
        make_sqe(&at.ring, sqe, number);
        CHECK(hand_over(&at, sqe, &number, 1) == 0);
        if (i % 4 == 0)
            (void)take(&at);
        ret = uring_resize(&at.ring, at.had, &params);
        CHECK(ret == 0 || ret == -EOVERFLOW || ret == -EINVAL); /* the last before 6.13 */
        resized += ret == 0;
    }
    __atomic_sub_fetch(&at.left, 1, __ATOMIC_RELEASE);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(lookers[i], NULL) == 0);
    station_close(&at);
    for (uint32_t i = 0; i < total; i++)
        CHECK(at.came[i] == 1);
    (void)printf("%-22s %u times: %u numbers came once\n", at.name, resized, total);
    station_free(&at);
    return 0;
}

/* ---- provided buffers that come back from many threads ---- */

struct lent {
    struct uring_buffers buffers;
    char *memory;
    pthread_mutex_t lock; /* guards the next two */
    uint32_t count, bids[BUFFERS];
    uint32_t is_over;
};

static void *give_back(void *argument)
{
    static const struct uring_mark had = {.is_final = 1}, lost = {.is_final = 0};
    struct lent *lent = argument;
    for (;;) {
        uint32_t bid = BUFFERS;
        pthread_mutex_lock(&lent->lock);
        if (lent->count > 0)
            bid = lent->bids[--lent->count];
        pthread_mutex_unlock(&lent->lock);
        if (bid < BUFFERS) {
            int behind = uring_buffers_behind(&lent->buffers, bid, 1);
            int ret = uring_buffers_return(&lent->buffers, bid, &had, NULL);
            CHECK(behind >= 0 && behind < BUFFERS);
            CHECK(ret == 0 || ret == -ESHUTDOWN);
            CHECK(uring_buffers_return(&lent->buffers, bid, &lost, NULL) == 0);
        } else if (__atomic_load_n(&lent->is_over, __ATOMIC_ACQUIRE)) {
            return NULL;
        }
        sched_yield();
    }
}

static int lent_make(struct lent *lent, struct uring *ring, int is_mapped)
{
    struct {
        uint64_t address;
        uint32_t entries;
        uint16_t bgid, flags;
        uint64_t resv[3];
    } request = {.entries = BUFFERS, .bgid = 1, .flags = is_mapped ? PBUF_RING_MMAP : 0};
    int ret;
    memset(lent, 0, sizeof *lent);
    pthread_mutex_init(&lent->lock, NULL);
    lent->memory = calloc(BUFFERS, BUFFER_SIZE); /* for Valgrind, which sees no kernel write */
    lent->buffers.memory = uring_address(lent->memory);
    lent->buffers.size = BUFFER_SIZE;
    lent->buffers.entries = BUFFERS;
    lent->buffers.bids = calloc(BUFFERS, sizeof(uint16_t));
    lent->buffers.places = calloc(BUFFERS, sizeof(uint16_t));
    CHECK(lent->memory != NULL && lent->buffers.bids != NULL && lent->buffers.places != NULL);
    if (!is_mapped) {
        lent->buffers.ring = mmap(NULL, (size_t)BUFFERS * BUF_SIZE, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(lent->buffers.ring != MAP_FAILED);
        request.address = uring_address(lent->buffers.ring);
    }
    CHECK(uring_buffers_init(&lent->buffers) == 0);
    ret = uring_register(ring, REGISTER_PBUF_RING, &request, 1);
    if (ret == 0 && is_mapped)
        ret = uring_buffers_map(ring, &lent->buffers, request.bgid);
    for (uint32_t bid = 0; ret == 0 && bid < BUFFERS; bid++)
        ret = uring_buffers_give(&lent->buffers, bid, BUFFER_SIZE);
    return ret;
}

/* Reads one number from the pipe into a buffer, which is then somebody's to give back. */
static void read_one(struct station *at, struct lent *lent, const int *ends, uint64_t number)
{
    char sqe[SQE_SIZE] = {OP_READ, SQE_BUFFER_SELECT}, out[CQE_SIZE];
    uint64_t read = 0;
    uint32_t flags, bid;
    uint16_t bgid = 1;
    int32_t res;
    memcpy(sqe + SQE_FD, &ends[0], sizeof ends[0]);
    memcpy(sqe + SQE_BUF_GROUP, &bgid, sizeof bgid);
    CHECK(write(ends[1], &number, sizeof number) == sizeof number);
    do {
        CHECK(hand_over(at, sqe, &number, 1) == 0);
        while (uring_wait(&at->ring, at->had, 1, -1) != 0)
            ;
        CHECK((uring_take(&at->ring, at->had++, 1) & UINT32_MAX) == 1);
        memcpy(out, at->inbox, sizeof out);
        memcpy(&res, out + CQE_RES, sizeof res);
        memcpy(&flags, out + CQE_FLAGS, sizeof flags);
        sched_yield();
    } while (res == -ENOBUFS); /* they are still to be given back */
    CHECK(res == sizeof number && (flags & CQE_BUFFER));
    bid = flags >> 16;
    CHECK(bid < BUFFERS);
    memcpy(&read, lent->memory + (size_t)bid * BUFFER_SIZE, sizeof read);
    CHECK(read == number);
    pthread_mutex_lock(&lent->lock);
    lent->bids[lent->count++] = bid;
    pthread_mutex_unlock(&lent->lock);
}

static int lend_buffers(uint32_t total, int is_mapped)
{
    struct station at;
    struct lent lent;
    pthread_t threads[3];
    const char *whose = is_mapped ? "of the kernel" : "ours";
    int ends[2], ret = station_open(&at, "buffers", 0, total);
    CHECK(ret == 0 && pipe(ends) == 0);
    ret = lent_make(&lent, &at.ring, is_mapped);
    for (int i = 0; ret == 0 && i < 3; i++)
        CHECK(pthread_create(&threads[i], NULL, give_back, &lent) == 0);
    for (uint64_t number = 0; ret == 0 && number < total; number++)
        read_one(&at, &lent, ends, number);
    uring_buffers_close(&lent.buffers); /* while they are still being given back */
    __atomic_store_n(&lent.is_over, 1, __ATOMIC_RELEASE);
    for (int i = 0; ret == 0 && i < 3; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    station_close(&at);
    if (!is_mapped)
        CHECK(munmap(lent.buffers.ring, (size_t)BUFFERS * BUF_SIZE) == 0);
    uring_buffers_free(&lent.buffers);
    if (ret == 0)
        (void)printf("%-22s %s: %u came back\n", at.name, whose, total);
    free(lent.memory);
    free(lent.buffers.bids);
    free(lent.buffers.places);
    station_free(&at);
    (void)close(ends[0]);
    (void)close(ends[1]);
    return ret;
}

/* ---- all of it ---- */

static int count_descriptors(void)
{
    int count = 0;
    DIR *open = opendir("/proc/self/fd");
    CHECK(open != NULL);
    while (readdir(open) != NULL) /* NOLINT(concurrency-mt-unsafe): all threads have ended */
        count++;
    (void)closedir(open);
    return count;
}

static int count_mapped_rings(void)
{
    char line[4096];
    int count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL)
        count += strstr(line, "[io_uring]") != NULL;
    (void)fclose(maps);
    return count;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        uint32_t flags;
    } shapes[] = {
        {"plain", 0},
        {"COOP_TASKRUN", COOP_TASKRUN | SETUP_TASKRUN_FLAG},
        {"SQPOLL", SETUP_SQPOLL},
        {"SQE128 | CQE32", SETUP_SQE128 | SETUP_CQE32},
        {"NO_MMAP | NO_SQARRAY", SETUP_NO_MMAP | SETUP_NO_SQARRAY}, /* 6.6 */
        {"registered waits", R_DISABLED},                           /* 6.13 */
        {"CQE_MIXED", SETUP_CQE_MIXED},                             /* 6.18 */
    };
    uint32_t total = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 2000;
    int descriptors = count_descriptors();
    alarm(SECONDS); /* a hang is a failure */
    setlinebuf(stdout);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int is_mortal = 0; is_mortal < 2; is_mortal++) {
            int ret = share(shapes[i].name, shapes[i].flags, total, is_mortal);
            if (ret == -EINVAL && shapes[i].flags != 0)
                (void)printf("%-22s not on this kernel\n", shapes[i].name);
            else
                CHECK(ret == 0);
        }
    CHECK(resize_under_lookers(total) == 0);
    for (int is_mapped = 0; is_mapped < 2; is_mapped++) {
        int ret = lend_buffers(total, is_mapped);
        CHECK(ret == 0 || (ret == -EINVAL && is_mapped)); /* 6.4 */
    }
    CHECK(count_descriptors() == descriptors);
    CHECK(count_mapped_rings() == 0);
    return 0;
}
