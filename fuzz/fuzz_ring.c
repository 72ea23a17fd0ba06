/*
 * The shim on rings of the real kernel, with any SQEs that confine.h and fold.h let through. Each
 * operation must post one terminal CQE and nothing after it, to the reader or into its place in a
 * batch; every wait must end; and nothing may be written beside the arena.
 *
 * All of it happens on one thread, which outlives the inputs: see confine.h. It leaves each input in
 * the file that FUZZ_LAST names, if that is set, for libFuzzer cannot write one from its root.
 */

#include "../uring/_buffers.h"

#include "input.h"

#include "fold.h"

#include <semaphore.h>

enum {
    OPERATIONS_MAX = 256, BATCH_MAX = 8, GROUP = 1, GROUP_ENTRIES = 8, GROUP_SIZE = 256,
    OPCODE_REGISTER_BUFFERS = 0, OPCODE_REGISTER_FILES = 2, OPCODE_REGISTER_PBUF_RING = 22,
    OPCODE_SYNC_CANCEL = 24, PBUF_RING_MMAP = 1,
};
#define RUN_NUMBERS (UINT64_C(1) << 63)
#define MILLISECOND INT64_C(1000000)
#define PATIENCE (60000 * MILLISECOND) /* far beyond what a busy machine takes: then it hangs */

static struct {
    struct uring *ring;
    struct uring_params params;
    char *inbox;
    uint64_t had, first_number;
    uint32_t count;                 /* of operations; each has its index as user_data */
    uint8_t is_ended[OPERATIONS_MAX], is_zero_copy[OPERATIONS_MAX];
    uint32_t ended;
    struct uring_run run;
    uint32_t is_running;
    struct uring_buffers group;
    uint16_t bids[GROUP_ENTRIES], places[GROUP_ENTRIES];
    uint32_t has_group, may_drain;
} test;

static void *allocated(size_t size)
{
    void *memory = calloc(1, size ? size : 1);
    HOLDS(memory != NULL);
    return memory;
}

/* ---- submitting ---- */

/* An SQE of the input's bytes; the opcode is mostly one that there is. */
static void take_sqe(char *out, size_t size, int is_of_batch)
{
    struct raw_sqe sqe;
    uint8_t bytes[2 * SQE_SIZE] = {0};
    uint8_t set = take8(); /* which eighths of it are not zero */
    for (uint32_t i = 0; i < size; i++)
        bytes[i] = i < 2 || (i < SQE_SIZE && set >> (i / 8) & 1) ? take8() : 0;
    memcpy(&sqe, bytes, sizeof sqe);
    if (sqe.opcode < 4 * ON_COUNT)
        sqe.opcode %= ON_COUNT;
    if (is_of_batch)
        fold_multishot(&sqe);
    fold(&sqe, test.count + 1, (int)test.may_drain);
    memcpy(bytes, &sqe, sizeof sqe);
    memcpy(out, bytes, size);
}

static void op_submit(void)
{
    int is_wide = test.params.flags & SETUP_SQE128 && take8() & 1;
    size_t size = SQE_SIZE << is_wide;
    uint32_t count = take_up_to(6), before = test.ring->placed;
    char *sqes = allocated(size * count);
    uint64_t *numbers = allocated(8 * (size_t)count);
    int64_t ret;
    if (test.count + count > OPERATIONS_MAX)
        count = 0;
    for (uint32_t i = 0; i < count; i++) {
        take_sqe(sqes + i * size, size, 0);
        numbers[i] = test.count + i;
        test.is_zero_copy[numbers[i]] = (uint8_t)is_zero_copy((uint8_t)sqes[i * size]);
    }
    ret = (is_wide ? uring_submit128 : uring_submit)(test.ring, before, sqes, (char *)numbers,
                                                     count);
    HOLDS(test.ring->placed == before || test.ring->placed == before + count);
    HOLDS(ret >= 0 || test.ring->placed == before || ret == -EAGAIN || ret == -EBUSY);
    test.count += test.ring->placed - before;
    free(sqes);
    free(numbers);
}

/* ---- taking ---- */

/*
 * Of a zero-copy send that its chain has cancelled the first CQE has no MORE, and the notification
 * comes all the same; whether it comes after another failure without MORE nobody can tell.
 */
static void note_cqe(const char *cqe)
{
    uint64_t number;
    uint32_t flags;
    int32_t res;
    memcpy(&number, cqe, sizeof number);
    memcpy(&res, cqe + CQE_RES, sizeof res);
    memcpy(&flags, cqe + CQE_FLAGS, sizeof flags);
    if (number == MESSAGES_FROM)
        return;
    HOLDS(number < test.count);
    if (test.is_zero_copy[number] && flags & CQE_NOTIF && test.is_ended[number])
        return;
    HOLDS(!test.is_ended[number]);
    if (flags & CQE_MORE)
        return;
    if (test.is_zero_copy[number] && !(flags & CQE_NOTIF) && res == -ECANCELED)
        return;
    test.is_ended[number] = 1;
    test.ended++;
}

static void take_all(uint32_t wanted)
{
    int64_t ret = uring_take(test.ring, test.had, wanted);
    HOLDS(ret >= 0 || ret == -EAGAIN || ret == -EBUSY);
    if (ret < 0)
        return;
    HOLDS((uint32_t)ret <= wanted);
    for (uint32_t i = 0; i < (uint32_t)ret; i++)
        note_cqe(test.inbox + (size_t)i * test.ring->cqe_size);
    test.had += (uint32_t)ret;
}

static void op_peek(void)
{
    uint32_t wanted = take_up_to(test.ring->cq_entries);
    char *first = allocated((size_t)wanted * test.ring->cqe_size);
    char *second = allocated((size_t)wanted * test.ring->cqe_size);
    int64_t ret = uring_peek(test.ring, test.had, wanted, first);
    if (ret > 0) { /* what was seen once is seen again, and taken */
        int64_t again = uring_peek(test.ring, test.had, (uint32_t)ret, second);
        HOLDS((uint32_t)again == (uint32_t)ret);
        for (uint32_t i = 0; i < (uint32_t)ret; i++)
            HOLDS(memcmp(first + (size_t)i * test.ring->cqe_size,
                         second + (size_t)i * test.ring->cqe_size, CQE_SIZE) == 0);
        HOLDS(uring_ready(test.ring, test.had) >= (uint32_t)ret);
    }
    free(first);
    free(second);
}

static int64_t soon(void) { return monotonic_ns() + take8() * MILLISECOND / 512; }

static void op_wait(void)
{
    uint32_t wanted = take_up_to(test.ring->cq_entries + 1), kind = take8() % 3;
    int64_t end_ns = soon();
    int ret = kind == 0 ? uring_wait_min(test.ring, test.had, wanted, soon(), end_ns)
                        : uring_wait(test.ring, test.had, wanted, end_ns);
    HOLDS(ret == 0 || ret == -EAGAIN || ret == -EINTR || ret == -ETIME || ret == -EBUSY);
    if (ret == -ETIME)
        HOLDS(monotonic_ns() >= end_ns);
}

/* ---- batches ---- */

static void end_run(void)
{
    for (uint32_t i = 0; i < test.run.count; i++) {
        uint64_t number;
        memcpy(&number, test.run.cqes + (size_t)i * test.ring->cqe_size, sizeof number);
        HOLDS(number == test.run.first_number + i || number == UINT64_MAX);
    }
    free((void *)(uintptr_t)test.run.sqes);
    free(test.run.cqes);
    test.is_running = 0;
}

static void check_run(int ret)
{
    HOLDS(ret == 0 || ret == -EAGAIN || ret == -EINTR || ret == -ENOBUFS || ret == -EBUSY ||
          ret == -EOVERFLOW || ret == -ESHUTDOWN);
    if (ret == 0 || !test.run.is_listed)
        end_run();
}

static void op_run(void)
{
    if (!test.is_running) {
        uint32_t count = take_up_to(BATCH_MAX);
        char *sqes = allocated((size_t)count * SQE_SIZE);
        for (uint32_t i = 0; i < count; i++)
            take_sqe(sqes + (size_t)i * SQE_SIZE, SQE_SIZE, 1);
        test.run = (struct uring_run){.sqes = sqes, .count = count};
        test.run.cqes = allocated((size_t)count * test.ring->cqe_size);
        test.is_running = 1;
        check_run(uring_run_begin(test.ring, &test.run, RUN_NUMBERS + test.first_number));
        test.first_number += count;
    } else if (take8() & 1) {
        check_run(uring_run(test.ring, &test.run));
    } else {
        (void)uring_run_wait(test.ring, &test.run, soon());
    }
}

/* ---- the rest ---- */

static void op_resize(void)
{
    struct uring_params params = {.flags = SETUP_CQSIZE, .sq_entries = 1u << take_up_to(4)};
    int ret;
    params.cq_entries = params.sq_entries << take_up_to(2);
    ret = uring_resize(test.ring, test.had, &params);
    HOLDS(ret <= 0 && ret != -ENOTRECOVERABLE);
}

static void op_give(void)
{
    uint32_t bid = take_up_to(GROUP_ENTRIES);
    if (!test.has_group)
        return;
    HOLDS(uring_buffers_give(&test.group, bid, GROUP_SIZE) ==
          (bid < GROUP_ENTRIES ? 0 : -EINVAL));
    HOLDS(uring_buffers_behind(&test.group, bid, take8()) < GROUP_ENTRIES);
}

static void op_counters(void)
{
    struct uring_counters counters;
    HOLDS(uring_counters(test.ring, &counters) == 0);
    HOLDS(counters.sq_tail - counters.sq_head <= counters.sq_entries);
    HOLDS(counters.sq_dropped == 0 && counters.cq_overflow == 0);
    if (take8() & 1)
        (void)uring_register_fd(test.ring);
    else if (!(test.params.flags & SETUP_REGISTERED_FD_ONLY))
        (void)uring_unregister_fd(test.ring);
}

static void act(void)
{
    switch (take8() % 12) {
    case 0: case 1: case 2: case 3:
        op_submit();
        break;
    case 4:
        take_all(take_up_to(test.ring->cq_entries));
        break;
    case 5:
        op_peek();
        break;
    case 6:
        op_wait();
        break;
    case 7: case 8:
        op_run();
        break;
    case 9:
        op_give();
        break;
    case 10:
        op_resize();
        break;
    default:
        op_counters();
    }
}

/* ---- the beginning and the end ---- */

static uint32_t take_setup_flags(void)
{
    enum { SINGLE = 1 << 12, COOP = 1 << 8, SUBMIT_ALL = 1 << 7 };
    static const uint32_t modes[] = {
        0, SINGLE | SETUP_DEFER_TASKRUN, COOP | SETUP_TASKRUN_FLAG, SUBMIT_ALL,
        SINGLE | SETUP_DEFER_TASKRUN | SETUP_TASKRUN_FLAG, SINGLE, SETUP_IOPOLL, SETUP_SQPOLL};
    static const uint32_t sizes[] = {0, SETUP_CQE32, SETUP_CQE_MIXED, SETUP_SQE128,
                                     SETUP_CQE_MIXED | SETUP_SQE128, 0, 0,
                                     SETUP_CQE32 | SETUP_SQE128};
    uint8_t mode = take8(), size = take8();
    uint32_t flags = modes[mode % 8] | sizes[size % 8] | SETUP_CQSIZE;
    if (mode & 8)
        flags |= SETUP_NO_SQARRAY;
    if (size & 8)
        flags |= SETUP_NO_MMAP;
    if (size & 16 && flags & SETUP_NO_MMAP)
        flags |= SETUP_REGISTERED_FD_ONLY;
    return flags;
}

static void register_all(void)
{
    struct iovec parts[2] = {{data, DATA_SIZE / 2}, {data + PAGE, DATA_SIZE / 2}};
    struct { uint64_t address; uint32_t entries; uint16_t bgid, flags; uint64_t rest[3]; } group = {
        .entries = GROUP_ENTRIES, .bgid = GROUP, .flags = PBUF_RING_MMAP};
    int32_t files[SLOTS] = {FIRST_FILE, FIRST_FILE + 1, FIRST_FILE + 2, FIRST_FILE + 4,
                            FIRST_FILE + 5, FIRST_FILE + 8, -1, -1};
    HOLDS(uring_register(test.ring, OPCODE_REGISTER_BUFFERS, parts, 2) == 0);
    HOLDS(uring_register(test.ring, OPCODE_REGISTER_FILES, files, SLOTS) == 0);
    if (test.ring->fd < 0)
        return;
    HOLDS(uring_register(test.ring, OPCODE_REGISTER_PBUF_RING, &group, 1) == 0);
    test.group = (struct uring_buffers){
        .memory = address_of(data), .size = GROUP_SIZE, .entries = GROUP_ENTRIES,
        .bids = test.bids, .places = test.places};
    HOLDS(uring_buffers_init(&test.group) == 0);
    HOLDS(uring_buffers_map(test.ring, &test.group, GROUP) == 0);
    test.has_group = 1;
}

/* The kernel is far behind with what it must free: memory of rings before. */
static void set_up(uint32_t entries)
{
    int ret;
    for (int tries = 0; tries < 1000; tries++) {
        struct uring_params params = test.params;
        ret = uring_setup(test.ring, entries, &params);
        if (ret != -ENOMEM) {
            test.params = params;
            break;
        }
        usleep(1000);
    }
    HOLDS(ret == 0);
}

static void begin(void)
{
    uint32_t flags = take_setup_flags(), entries = 1u << take_up_to(4), size;
    test.may_drain = entries & 5;
    test.ring = allocated(sizeof *test.ring);
    test.params.flags = flags;
    test.params.sq_thread_idle = 1;
    test.params.cq_entries = entries << take_up_to(2);
    if (test.params.cq_entries < 4)
        test.params.cq_entries = 4;
    set_up(entries);
    size = flags & SETUP_CQE_MIXED ? MIXED_SIZE : CQE_SIZE << !!(flags & SETUP_CQE32);
    /* One that can be resized has it for the largest CQ, which here has 64 entries. */
    test.inbox = allocated((flags & SETUP_DEFER_TASKRUN ? 64 : test.params.cq_entries) * size);
    HOLDS(uring_map(test.ring, &test.params, test.inbox) == 0);
    if (test.ring->fd >= 0) { /* out of the reach of Close, and once more where all can have it */
        HOLDS(dup2(test.ring->fd, RING_FILE) >= 0 && close(test.ring->fd) == 0);
        test.ring->fd = RING_FILE;
        HOLDS(dup2(test.ring->fd, FIRST_FILE + FILES - 1) >= 0);
    }
    register_all();
}

static void cancel_all(void)
{
    struct { uint64_t address; int32_t fd; uint32_t flags; int64_t sec, nsec; uint64_t rest[4]; }
        request = {.fd = -1, .flags = 1 | 4, .nsec = MILLISECOND};
    (void)uring_register(test.ring, OPCODE_SYNC_CANCEL, &request, 1);
}

/* Cancels until all has ended, as Ring.close() does. */
static void drain(void)
{
    int64_t end_ns = monotonic_ns() + PATIENCE;
    if (test.is_running)
        uring_run_stop(&test.run);
    while (test.ended < test.count || test.is_running) {
        HOLDS(monotonic_ns() < end_ns);
        (void)uring_submit(test.ring, test.ring->placed, NULL, NULL, 0);
        cancel_all();
        (void)uring_wait(test.ring, test.had, 1, monotonic_ns() + MILLISECOND);
        take_all(test.ring->cq_entries);
        if (test.is_running)
            check_run(uring_run_release(test.ring, &test.run));
    }
}

static void end(void)
{
    drain();
    HOLDS(uring_seal(test.ring) == 0);
    if (test.has_group)
        uring_buffers_free(&test.group);
    HOLDS(uring_exit(test.ring) == 0);
    check_canaries();
    free(test.ring);
    free(test.inbox);
}

static void drive(void)
{
    memset(&test, 0, sizeof test);
    memset(data, 0, DATA_SIZE);
    make_files();
    begin();
    while (input_left > 0 && test.count < OPERATIONS_MAX)
        act();
    end();
    drop_files();
}

/* ---- the thread ---- */

static sem_t is_given, is_done;

static void *drive_inputs(void *nothing)
{
    (void)nothing;
    confine();
    drop_files();
    make_arena();
    for (;;) {
        sem_wait(&is_given);
        drive();
        sem_post(&is_done);
    }
    return NULL;
}

/* So that a crash leaves its input behind. */
static void remember(const uint8_t *bytes, size_t size)
{
    static int fd = -1;
    const char *path = getenv("FUZZ_LAST");
    if (path == NULL)
        return;
    if (fd < 0)
        fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    HOLDS(fd >= 0 && pwrite(fd, bytes, size, 0) == (ssize_t)size);
    HOLDS(ftruncate(fd, (off_t)size) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static pthread_t thread;
    if (thread == 0) {
        HOLDS(sem_init(&is_given, 0, 0) == 0 && sem_init(&is_done, 0, 0) == 0);
        HOLDS(pthread_create(&thread, NULL, drive_inputs, NULL) == 0);
    }
    remember(bytes, size);
    begin_input(bytes, size);
    sem_post(&is_given);
    while (sem_wait(&is_done) < 0)
        ;
    return 0;
}
