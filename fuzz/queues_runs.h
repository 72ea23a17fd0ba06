/* Batches on the queues of fuzz_queues.c: each operation's CQE stands in its place, and only there. */

#include "model_calls.h"

enum { RUNS_MAX = 3, RUN_COUNT_MAX = 12 };

struct run_of_test {
    struct uring_run run;
    struct posted expected[RUN_COUNT_MAX];
    uint8_t is_posted[RUN_COUNT_MAX];
};

static struct run_of_test *runs[RUNS_MAX];
static uint64_t run_numbers; /* so many were drawn */

static void *own(size_t size);
static void disown(void *memory);
static void describe(uint32_t ahead, uint64_t user_data, int run, uint32_t place, int is_wide);

static void note_of_run(int number, uint32_t place, const struct posted *cqe)
{
    struct run_of_test *run = runs[number];
    if (cqe->flags & CQE_NOTIF)
        return;
    run->expected[place] = *cqe;
    run->is_posted[place] = 1;
}

/* A batch is placed in whole chains: what the kernel finds last is the end of one. */
static void check_chain(const struct operation *last)
{
    if (last->run != NOBODY && is_linked((const char *)&last->opcode))
        HOLDS(last->place + 1 == runs[last->run]->run.count);
}

static int by_number(const void *a, const void *b)
{
    uint64_t one, other;
    memcpy(&one, a, 8);
    memcpy(&other, b, 8);
    return one < other ? -1 : one > other;
}

/* Gives each operation a number that nobody else has. */
static void number_run(struct uring_run *run, uint64_t *numbers, uint64_t *pairs)
{
    uint64_t first = UINT64_C(1) << 63 | run_numbers;
    for (uint32_t i = 0; i < run->count; i++) {
        uint64_t spread = take8() & 1 ? UINT64_C(1) << 62 : 0;
        numbers[i] = first + i + spread;
        pairs[2 * i] = numbers[i];
        pairs[2 * i + 1] = i;
    }
    qsort(pairs, run->count, 2 * sizeof *pairs, by_number);
    run->numbers = numbers;
    run->by_number = pairs;
}

static void free_run(int number)
{
    struct run_of_test *run = runs[number];
    runs[number] = NULL;
    disown((void *)(uintptr_t)run->run.sqes);
    disown(run->run.cqes);
    disown((void *)(uintptr_t)run->run.numbers);
    disown((void *)(uintptr_t)run->run.by_number);
    disown(run);
}

/* The run has ended: what it has got, and that nobody looks at its memory any more. */
static void end_run(const struct uring *ring, int number)
{
    struct run_of_test *run = runs[number];
    uint32_t size = ring->cqe_size;
    for (uint32_t i = 0; i < run->run.count && !kernel.is_corrupt; i++) {
        const char *cqe = run->run.cqes + (size_t)i * size;
        const struct posted *expected = &run->expected[i];
        int is_wide = kernel.flags & SETUP_CQE32 || is_large(expected);
        static const unsigned char unposted[CQE_SIZE] = {
            255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
        if (run->is_posted[i])
            HOLDS(memcmp(cqe, expected, is_wide ? 2 * CQE_SIZE : CQE_SIZE) == 0);
        else
            HOLDS(memcmp(cqe, unposted, CQE_SIZE) == 0);
    }
    if (!kernel.is_corrupt)
        HOLDS(run->run.placed == run->run.ended);
    free_run(number);
}

static void check_run(const struct uring *ring, int number, int ret)
{
    if (ret == 0 || !runs[number]->run.is_listed)
        end_run(ring, number);
    else
        HOLDS(ret == -EAGAIN || ret == -EINTR || ret == -ENOBUFS || ret == -EBUSY ||
              ret == -ESHUTDOWN || ret == -EOVERFLOW || ret == -ENOMEM || ret == -EIO ||
              kernel.is_corrupt);
}

static void op_run_begin(struct uring *ring, int number)
{
    uint32_t count = take_up_to(RUN_COUNT_MAX);
    struct run_of_test *run;
    uint64_t first = UINT64_C(1) << 63 | run_numbers;
    char *sqes;
    int ret;
    if (runs[number] != NULL || kernel.operation_count + count > OPERATIONS_MAX)
        return;
    runs[number] = run = own(sizeof *run);
    memset(run, 0, sizeof *run);
    run->run.count = count;
    run->run.sqes = sqes = own((size_t)count * SQE_SIZE);
    run->run.cqes = own((size_t)count * ring->cqe_size);
    if (take8() & 1)
        number_run(&run->run, own(count * sizeof(uint64_t)), own(2 * count * sizeof(uint64_t)));
    for (uint32_t i = 0; i < count; i++) {
        describe(i, run->run.numbers ? run->run.numbers[i] : first + i, number, i, 0);
        sqe_bytes(kernel.operation_count + i, sqes + (size_t)i * SQE_SIZE, SQE_SIZE);
    }
    run_numbers += count;
    kernel.operation_count += count;
    ret = uring_run_begin(ring, &run->run, first);
    if (ret == -ESHUTDOWN && !run->run.is_listed)
        kernel.operation_count -= count;
    check_run(ring, number, ret);
}

static void op_run(struct uring *ring, int number)
{
    uint8_t how = take8() % 8;
    if (runs[number] == NULL) {
        op_run_begin(ring, number);
    } else if (how < 4) {
        check_run(ring, number, uring_run(ring, &runs[number]->run));
    } else if (how < 6) {
        int64_t end_ns = kernel.now_ns + take8() * INT64_C(10000);
        int ret = uring_run_wait(ring, &runs[number]->run, end_ns);
        HOLDS(ret == 0 || ret == -EAGAIN || ret == -EINTR || ret == -ETIME || ret == -EBUSY ||
              ret == -ESHUTDOWN || kernel.is_corrupt);
    } else if (how == 6) {
        uring_run_stop(&runs[number]->run);
    } else {
        check_run(ring, number, uring_run_release(ring, &runs[number]->run));
    }
}
