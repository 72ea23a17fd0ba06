/*
 * The queues of the shim over the kernel of model.h: what is handed over reaches the kernel once
 * and whole, what the kernel posts reaches its reader once, in order and whole, and nobody waits
 * for what is there. In one of eight inputs somebody writes into the queues: then nothing of that
 * is asked, only that no memory is touched that is not the shim's.
 *
 * While a wait is blocked in the kernel the input may call the shim again, as another thread would.
 */

#include <setjmp.h>

#include "queues_runs.h"

enum { OWNED_MAX = 4 * OPERATIONS_MAX, SPINS_MAX = 10000 };

static struct test {
    struct uring *ring;
    struct uring_params params;
    char *inbox;
    uint64_t had;     /* how many CQEs were taken */
    uint32_t depth;   /* how many calls are blocked in the kernel */
    uint32_t is_sealed, spins;
    void *owned[OWNED_MAX];
    uint32_t owned_count;
    jmp_buf abandoned;
} test;

/* Memory of exactly this size, until the input ends or disown(). */
static void *own(size_t size)
{
    void *memory = malloc(size);
    HOLDS(memory != NULL || size == 0);
    HOLDS(test.owned_count < OWNED_MAX);
    test.owned[test.owned_count++] = memory;
    return memory;
}

static void disown(void *memory)
{
    for (uint32_t i = test.owned_count; i-- > 0;)
        if (test.owned[i] == memory) {
            test.owned[i] = test.owned[--test.owned_count];
            free(memory);
            return;
        }
}

static int model_sched_yield(void)
{
    if (test.spins++ < SPINS_MAX)
        return 0;
    /* Only the thread that would have to leave first, and is below this one, may be waited for. */
    HOLDS(test.depth > 0 || kernel.is_corrupt);
    longjmp(test.abandoned, 1);
}

/* ---- submitting ---- */

static int64_t glance_holds(int64_t ret)
{
    if (ret >= 0 && !kernel.is_corrupt)
        HOLDS(ret >> 32 <= (int64_t)(visible_count() - test.ring->inbox_start));
    return ret;
}

/* Of those that complete more than once every other one is a send that notifies. */
static uint8_t take_opcode(void)
{
    uint8_t opcode = take8();
    return (opcode & 3) == 3 ? OP_SEND_ZC : opcode;
}

/* The next operation, which counts once the shim has placed it. */
static void describe(uint32_t ahead, uint64_t user_data, int run, uint32_t place, int is_wide)
{
    uint32_t serial = kernel.operation_count + ahead;
    kernel.operations[serial] = (struct operation){
        .user_data = user_data, .opcode = take_opcode(), .flags = take8(), .is_wide = (uint8_t)is_wide,
        .run = run, .place = place};
}

static void op_submit(void)
{
    struct uring *ring = test.ring;
    uint32_t count = take_up_to(9), how = take8(), before = ring->placed, old_head = 0;
    int is_wide = !!(how & 1), has_wide = !!(kernel.flags & SETUP_SQE128);
    size_t size = SQE_SIZE << is_wide;
    char *sqes = own(count * size), *numbers = own(count * sizeof(uint64_t));
    uint32_t start = before + (how >= 250 ? how - 249u : 0);
    int64_t ret;
    if (kernel.operation_count + count > OPERATIONS_MAX)
        count = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t user_data = take_edge() & INT64_MAX;
        describe(i, user_data, NOBODY, 0, is_wide);
        sqe_bytes(kernel.operation_count + i, sqes + i * size, size);
        memcpy(numbers + i * sizeof user_data, &user_data, sizeof user_data);
    }
    old_head = *ring->sq_head;
    kernel.operation_count += count;
    if (is_wide)
        ret = uring_submit128(ring, start, sqes, numbers, count);
    else if (count == 1 && how & 2)
        ret = uring_submit_one(ring, start, sqes, *(const uint64_t *)(const void *)numbers);
    else if (test.is_sealed || how & 4)
        ret = uring_sealed_submit(ring, start, sqes, numbers, count);
    else
        ret = uring_submit(ring, start, sqes, numbers, count);
    glance_holds(ret);
    if (ret < 0 && ring->placed == before)
        kernel.operation_count -= count;
    else if (!kernel.is_corrupt && test.depth == 0)
        HOLDS(ring->placed == before + count && start == before);
    if (is_wide && !has_wide)
        HOLDS(ret == -EINVAL || ret == -ESHUTDOWN);
    if (ret == -ENOSPC && !(kernel.flags & SETUP_SQPOLL) && !kernel.is_corrupt)
        HOLDS(count > kernel.sq_entries - (*ring->sq_tail - old_head));
    disown(sqes);
    disown(numbers);
}

static void op_wait_sq(void)
{
    int64_t end_ns = take8() & 1 ? -1 : kernel.now_ns + take16() * 100;
    int64_t ret = uring_wait_sq(test.ring, end_ns);
    HOLDS(ret > 0 || ret == -EAGAIN || ret == -EINTR || ret == -ETIME || ret == -EBUSY ||
          ret == -ESHUTDOWN || kernel.is_corrupt);
}

/* ---- taking ---- */

/* How many CQEs must be found by who has had so many. */
static uint64_t ready_beyond(uint64_t had)
{
    return kernel.committed_count > had ? kernel.committed_count - had : 0;
}

/* That these are the `count` CQEs from `start` on. */
static void check_cqes(const char *cqes, uint64_t start, uint32_t count, uint32_t flags)
{
    uint32_t size = test.ring->cqe_size, all = 0;
    if (kernel.is_corrupt)
        return;
    HOLDS(start + count <= visible_count());
    for (uint32_t i = 0; i < count; i++) {
        const struct posted *cqe = &kernel.written[start + i];
        int is_wide = kernel.flags & SETUP_CQE32 || is_large(cqe);
        HOLDS(memcmp(cqes + (size_t)i * size, cqe, is_wide ? 2 * CQE_SIZE : CQE_SIZE) == 0);
        all |= cqe->flags & 0xffff;
    }
    HOLDS(flags == all);
}

static uint32_t at_least(uint64_t ready, uint32_t wanted)
{
    uint32_t least = ready < wanted ? (uint32_t)ready : wanted;
    return least < test.ring->cq_entries ? least : test.ring->cq_entries;
}

static void take_cqes(uint32_t wanted, int is_lost)
{
    uint32_t count;
    uint64_t had = test.had, ready = ready_beyond(had);
    int64_t ret = uring_take(test.ring, had, wanted);
    if (ret < 0) {
        HOLDS(ret == -EAGAIN || ret == -EBUSY || ret == -ESHUTDOWN || kernel.is_corrupt);
        HOLDS(ready == 0 || wanted == 0 || ret == -ESHUTDOWN || kernel.is_corrupt);
        return;
    }
    count = (uint32_t)ret;
    HOLDS(count <= wanted && count <= test.ring->cq_entries);
    check_cqes(test.inbox, had, count, (uint32_t)(ret >> 32));
    if (!kernel.is_corrupt)
        HOLDS(count >= at_least(ready, wanted));
    if (!is_lost) /* else who called was cut off, and comes again */
        test.had += count;
}

static void op_take(void)
{
    uint32_t wanted = take_up_to(test.ring->cq_entries + 1);
    take_cqes(wanted, take8() > 200);
}

static void op_peek(void)
{
    uint32_t wanted = take_up_to(test.ring->cq_entries);
    char *out = own((size_t)wanted * test.ring->cqe_size);
    uint64_t ready = ready_beyond(test.had);
    int64_t ret = uring_peek(test.ring, test.had, wanted, out);
    if (ret >= 0) {
        HOLDS((uint32_t)ret <= wanted);
        check_cqes(out, test.had, (uint32_t)ret, (uint32_t)(ret >> 32));
        if (!kernel.is_corrupt)
            HOLDS((uint32_t)ret >= at_least(ready, wanted));
    }
    disown(out);
}

static void op_ready(void)
{
    uint64_t before = ready_beyond(test.had);
    int64_t ret = uring_ready(test.ring, test.had);
    if (ret < 0 || kernel.is_corrupt)
        return;
    HOLDS(ret >= at_least(before, UINT32_MAX));
    if (test.ring->runs == NULL)
        HOLDS((uint64_t)ret <= visible_count() - test.had);
}

/* ---- waiting ---- */

static int64_t take_deadline(void)
{
    uint8_t kind = take8();
    return kind < 80 ? -1 : kernel.now_ns + (kind - 90) * INT64_C(10000);
}

static void check_wait(int ret, uint32_t wanted, int64_t end_ns, int by_region)
{
    uint64_t ready = visible_count() - test.ring->inbox_start;
    if (kernel.is_corrupt)
        return;
    if (ret == 0)
        HOLDS(ready >= wanted || ready >= test.ring->cq_entries || test.ring->runs != NULL);
    else if (ret == -ETIME && !by_region) /* whose times the input has set as it likes */
        HOLDS(end_ns >= 0 && kernel.now_ns >= end_ns);
    else
        HOLDS(ret == -ETIME || ret == -EAGAIN || ret == -EINTR || ret == -EBUSY || ret == -ESHUTDOWN);
}

static void op_wait(void)
{
    uint32_t wanted = take_up_to(test.ring->cq_entries + 2), kind = take8() % 4;
    int64_t end_ns = take_deadline(), min_ns = kernel.now_ns + take8() * INT64_C(5000);
    uint64_t had = test.had;
    int ret;
    if (kind == 1)
        ret = uring_wait_min(test.ring, had, wanted, min_ns, end_ns);
    else if (kind == 2 && test.ring->region != NULL)
        ret = uring_wait_registered(test.ring, had, wanted, min_ns, end_ns, take_up_to(7));
    else if (test.is_sealed)
        ret = uring_sealed_wait(test.ring, had, wanted, end_ns);
    else
        ret = uring_wait(test.ring, had, wanted, end_ns);
    check_wait(ret, kind == 1 || kind == 2 ? wanted > 0 : wanted, end_ns, kind == 2);
}

static void op_region(void)
{
    uint64_t size = 64 * (uint64_t)take_up_to(8);
    char *memory = take8() & 1 ? own(size) : NULL;
    uint32_t index = take_up_to(9);
    int ret;
    if (test.ring->region == NULL && test.depth == 0) {
        ret = uring_register_region(test.ring, memory, size);
        HOLDS(ret <= 0);
    }
    ret = uring_region_set(test.ring, index, (int64_t)take_edge(), take16());
    if (ret == 0)
        HOLDS((index + 1) * 64 <= test.ring->region_size);
}

/* ---- what else there is ---- */

static void op_resize(void)
{
    struct uring_params params = {.flags = SETUP_CQSIZE};
    struct uring *ring = test.ring;
    uint32_t was_sq = ring->sq_entries, was_cq = ring->cq_entries;
    int ret;
    params.sq_entries = 1u << take_up_to(4);
    params.cq_entries = params.sq_entries << take_up_to(2);
    if (take8() >= 250)
        kernel.mmaps_until_failure = 1 + take_up_to(1);
    ret = uring_resize(ring, test.had, &params);
    kernel.mmaps_until_failure = 0;
    if (ret == -ENOTRECOVERABLE)
        return;
    HOLDS(ret <= 0);
    if (ret < 0)
        HOLDS(ring->sq_entries == was_sq && ring->cq_entries == was_cq);
    else
        HOLDS(ring->sq_entries == kernel.sq_entries && ring->cq_entries == kernel.cq_entries);
}

static void op_registered(void)
{
    struct uring_counters counters;
    uint8_t how = take8() % 6;
    if (how == 0)
        (void)uring_register_fd(test.ring);
    else if (how == 1 && !(kernel.flags & SETUP_REGISTERED_FD_ONLY))
        (void)uring_unregister_fd(test.ring);
    else if (how == 2)
        (void)uring_set_wait_flags(test.ring, (take8() & 1u) << 7);
    else if (how == 3)
        (void)uring_set_cq_flags(test.ring, take8() & CQ_EVENTFD_DISABLED);
    else if (how == 4)
        (void)uring_register(test.ring, take8() % 20, NULL, 0);
    else if (uring_counters(test.ring, &counters) == 0 && !kernel.is_corrupt)
        HOLDS(counters.sq_entries == kernel.sq_entries && counters.cq_mask + 1 == kernel.cq_entries);
}

/*
 * Somebody who has the mapping writes into it. The tails move only so far that looking at each place
 * up to there takes no time.
 */
static void op_corrupt(void)
{
    uint32_t *counters[] = {test.ring->sq_head, test.ring->cq_head, test.ring->sq_flags,
                            test.ring->sq_dropped, test.ring->cq_overflow};
    uint8_t which = take8() % 8;
    if (which < 5)
        __atomic_store_n(counters[which], (uint32_t)take_edge(), __ATOMIC_RELAXED);
    else if (which == 5)
        *test.ring->sq_tail += take8();
    else if (which == 6)
        *test.ring->cq_tail += test.ring->is_mixed ? take8() : take32();
    else
        for (uint32_t i = 0; i < kernel.cq_entries * CQE_SIZE; i += 4)
            *counter(kernel.offsets.cq_off.cqes + i) = (uint32_t)take_edge();
}

static void act(void)
{
    switch (take8() % 16) {
    case 0: case 1: case 2:
        op_submit();
        break;
    case 3: case 4:
        op_take();
        break;
    case 5:
        op_peek();
        break;
    case 6:
        op_ready();
        break;
    case 7: case 8:
        op_wait();
        break;
    case 9: case 10: case 11:
        op_run(test.ring, take8() % RUNS_MAX);
        break;
    case 12:
        op_registered();
        break;
    case 13:
        if (test.depth == 0 && !kernel.is_corrupt) /* it takes what is ready at its word */
            op_resize();
        break;
    case 14:
        op_region();
        break;
    default:
        if (kernel.is_corrupt)
            op_corrupt();
        else if (kernel.flags & SETUP_SQPOLL)
            op_wait_sq();
        else if (take8() >= 240)
            test.is_sealed = uring_seal(test.ring) == 0;
        break;
    }
}

static void act_meanwhile(void)
{
    if (test.depth >= 2 || input_left == 0 || take8() > 100)
        return;
    test.depth++;
    act();
    test.depth--;
}

/* ---- the beginning and the end ---- */

static uint32_t take_setup_flags(void)
{
    static const uint32_t modes[] = {
        0, SETUP_SQPOLL, SETUP_IOPOLL, SETUP_DEFER_TASKRUN,
        SETUP_DEFER_TASKRUN | SETUP_TASKRUN_FLAG, 0, SETUP_TASKRUN_FLAG, SETUP_DEFER_TASKRUN};
    static const uint32_t sizes[] = {0, SETUP_CQE32, SETUP_CQE_MIXED, SETUP_SQE128,
                                     SETUP_CQE_MIXED, SETUP_CQE32 | SETUP_SQE128, 0,
                                     SETUP_CQE_MIXED | SETUP_SQE128};
    uint8_t mode = take8(), size = take8();
    uint32_t flags = modes[mode % 8] | sizes[size % 8] | SETUP_CQSIZE;
    if (mode & 8)
        flags |= SETUP_NO_SQARRAY;
    if (size & 8)
        flags |= SETUP_NO_MMAP | (mode & 16 ? SETUP_REGISTERED_FD_ONLY : 0);
    return flags;
}

/* Moves all counters to where they are after so many operations. */
static void begin_at(uint32_t sq, uint32_t cq)
{
    struct uring *ring = test.ring;
    *ring->sq_head = *ring->sq_tail = ring->placed = sq;
    *ring->cq_head = *ring->cq_tail = ring->cq_taken = cq;
    if (ring->is_mixed) /* whose first place is blotted out when it has been passed */
        memcpy(ring->cqes, blot, CQE_SIZE);
    kernel.cached_head = sq;
    kernel.cached_tail = cq;
}

static int begin(void)
{
    uint32_t flags = take_setup_flags(), sq = 1u << take_up_to(4), size, edge = take8();
    int is_old = edge & 64 && !(flags & (SETUP_NO_MMAP | SETUP_DEFER_TASKRUN | SETUP_CQE_MIXED));
    int ret;
    kernel.line = edge & 128 ? 128 : 64;
    kernel.now_ns = INT64_C(1) << 40;
    kernel.quiet = 4;
    test.ring = own(sizeof *test.ring);
    memset(test.ring, 0, sizeof *test.ring);
    test.params.flags = flags;
    test.params.features = FEAT_SINGLE_MMAP | (is_old ? 0 : FEAT_EXT_ARG);
    test.params.cq_entries = sq << take_up_to(2);
    if (flags & SETUP_CQE_MIXED && test.params.cq_entries < 4)
        test.params.cq_entries = 4;
    if (take8() >= 250)
        kernel.mmaps_until_failure = 1 + take_up_to(2);
    ret = uring_setup(test.ring, sq, &test.params);
    if (ret < 0)
        return ret;
    size = flags & SETUP_CQE_MIXED ? MIXED_SIZE : CQE_SIZE << !!(flags & SETUP_CQE32);
    /* One that can be resized has it for the largest CQ, which here has 64 entries. */
    test.inbox = own((flags & SETUP_DEFER_TASKRUN ? 64 : test.params.cq_entries) * size);
    ret = uring_map(test.ring, &test.params, test.inbox);
    kernel.mmaps_until_failure = 0;
    if (ret == 0 && edge & 1)
        begin_at(UINT32_MAX - take8() % 32, UINT32_MAX - take8() % 32);
    return ret;
}

/* Submits, waits and takes until everything has come that was promised. */
static void drain(void)
{
    struct uring *ring = test.ring;
    for (uint32_t rounds = 0;; rounds++) {
        int is_done = kernel.request_count == 0 && *ring->sq_head == *ring->sq_tail;
        HOLDS(rounds < 8 * OPERATIONS_MAX);
        if (kernel.flags & SETUP_SQPOLL && !(*ring->sq_flags & SQ_NEED_WAKEUP))
            consume(kernel.sq_entries); /* when the poller sleeps, it must be woken */
        (void)uring_sealed_submit(ring, ring->placed, test.inbox, test.inbox, 0);
        for (int i = 0; i < RUNS_MAX; i++)
            if (runs[i] != NULL) {
                check_run(ring, i, uring_run_release(ring, &runs[i]->run));
                is_done = 0;
            }
        (void)uring_sealed_wait(ring, test.had, 1, kernel.now_ns + 1000000);
        take_cqes(ring->cq_entries, 0);
        if (is_done && kernel.backlog_first == kernel.backlog_end &&
            test.had == kernel.written_count)
            break;
    }
    HOLDS(*ring->cq_overflow == 0 && *ring->sq_dropped == 0);
}

/* In the child of a fork the mappings are not there, and nobody looks for them. */
static void fork_away(void)
{
    struct uring *ring = test.ring;
    struct uring_params params = {0};
    struct uring_run run = {0};
    struct uring_counters counters;
    forget_memory();
    *fork_page = 0;
    HOLDS(uring_submit(ring, ring->placed, NULL, NULL, 0) == -EOWNERDEAD);
    HOLDS(uring_take(ring, test.had, 1) == -EOWNERDEAD);
    HOLDS(uring_peek(ring, test.had, 1, NULL) == -EOWNERDEAD);
    HOLDS(uring_ready(ring, test.had) == -EOWNERDEAD);
    HOLDS(uring_wait(ring, test.had, 1, -1) == -EOWNERDEAD);
    HOLDS(uring_wait_min(ring, test.had, 1, 0, -1) == -EOWNERDEAD);
    HOLDS(uring_wait_sq(ring, -1) == -EOWNERDEAD);
    HOLDS(uring_counters(ring, &counters) == -EOWNERDEAD);
    HOLDS(uring_run_begin(ring, &run, 0) == -EOWNERDEAD);
    HOLDS(uring_run(ring, &run) == -EOWNERDEAD);
    HOLDS(uring_run_wait(ring, &run, -1) == -EOWNERDEAD);
    HOLDS(uring_run_release(ring, &run) == -EOWNERDEAD);
    HOLDS(uring_seal(ring) == -EOWNERDEAD);
    HOLDS(uring_resize(ring, test.had, &params) == -EOWNERDEAD);
    HOLDS(uring_register(ring, 0, NULL, 0) == -EOWNERDEAD);
    HOLDS(uring_set_cq_flags(ring, 0) == -EOWNERDEAD);
    HOLDS(uring_exit(ring) == 0 && uring_exit(ring) == 0);
}

static void clean_up(void)
{
    forget_memory();
    memset(registered_here, 0, sizeof registered_here);
    while (test.owned_count > 0)
        free(test.owned[--test.owned_count]);
}

static void drive(void)
{
    if (begin() < 0) {
        HOLDS(uring_exit(test.ring) == 0);
        return;
    }
    while (input_left > 0 && kernel.operation_count < OPERATIONS_MAX && !kernel.is_gone)
        act();
    input_left = 0;
    if (kernel.is_gone) { /* a resize that found no memory has closed it */
        HOLDS(uring_ready(test.ring, test.had) == -ESHUTDOWN && uring_exit(test.ring) == 0);
        return;
    }
    if (!kernel.is_corrupt && kernel.serial % 8 == 7) {
        fork_away();
        return;
    }
    if (!test.is_sealed)
        HOLDS(uring_seal(test.ring) == 0);
    if (!kernel.is_corrupt)
        drain();
    HOLDS(uring_exit(test.ring) == 0);
    HOLDS(uring_take(test.ring, test.had, 1) == -ESHUTDOWN);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    begin_input(bytes, size);
    memset(&test, 0, sizeof test);
    memset(&kernel, 0, offsetof(struct kernel, operations));
    kernel.operation_count = kernel.taken_count = kernel.request_count = 0;
    kernel.backlog_first = kernel.backlog_end = 0;
    kernel.written_count = kernel.committed_count = 0;
    memset(runs, 0, sizeof runs);
    run_numbers = 0;
    kernel.is_corrupt = take8() % 8 == 7;
    if (setjmp(test.abandoned) == 0)
        drive();
    clean_up();
    return 0;
}
