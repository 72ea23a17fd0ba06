/*
 * The functions of the shim that look at no queue: columns of parts that are encoded, and groups of
 * provided buffers, whose other side is played here.
 */

#include "../uring/_buffers.h"

#include "input.h"

enum { PARTS_MAX = 16, GROUP_MAX = 32 };

/* Memory of just this size, with bytes of the input in it. */
static void *filled(size_t size)
{
    uint8_t *memory = malloc(size);
    HOLDS(memory != NULL || size == 0);
    for (size_t i = 0; i < size; i++)
        memory[i] = take8();
    return memory;
}

/* ---- columns ---- */

static int64_t value_at(const char *column, uint32_t size, int is_signed, uint32_t place)
{
    int64_t value = 0;
    for (uint32_t i = 0; i < size; i++) /* little-endian, as everything that is fuzzed here */
        value |= (int64_t)((uint64_t)(uint8_t)column[place * size + i] << (8 * i));
    if (is_signed && size < 8 && value >> (8 * size - 1) & 1)
        value -= INT64_C(1) << (8 * size);
    return value;
}

static void widen(void)
{
    uint32_t size = take_up_to(9), is_signed = take8() & 1, count = take_up_to(PARTS_MAX);
    char *in = filled((size_t)size * count);
    int64_t *out = malloc(count * sizeof *out);
    int is_known = size == 1 || size == 2 || size == 4 || size == 8;
    int ret = uring_widen(out, in, size, is_signed, count);
    HOLDS(ret == (is_known || count == 0 ? 0 : -EINVAL));
    for (uint32_t i = 0; is_known && i < count; i++)
        HOLDS(out[i] == value_at(in, size, (int)is_signed, i));
    free(in);
    free(out);
}

static void increasing(void)
{
    uint32_t count = take_up_to(PARTS_MAX);
    uint64_t *numbers = malloc(count * sizeof *numbers);
    int is_increasing = 1;
    for (uint32_t i = 0; i < count; i++) {
        numbers[i] = i > 0 && take8() > 8 ? numbers[i - 1] + take8() : take_edge();
        is_increasing &= i == 0 || numbers[i] > numbers[i - 1];
    }
    HOLDS(uring_is_increasing((const char *)numbers, count) == is_increasing);
    free(numbers);
}

/* A column of numbers that mostly fit. */
static int64_t *column(uint32_t count)
{
    int64_t *numbers = malloc(count * sizeof *numbers);
    for (uint32_t i = 0; i < count; i++)
        numbers[i] = take8() > 16 ? take8() : (int64_t)take_edge();
    return numbers;
}

/* An encoded part lies in its buffer, and has what its columns say. */
static void check_part(const struct uring_parts *parts, const char *sqe, uint32_t i, uint64_t before)
{
    int64_t offset;
    uint64_t address;
    uint32_t length;
    int32_t fd;
    memcpy(&offset, sqe + SQE_OFF, sizeof offset);
    memcpy(&address, sqe + SQE_ADDR, sizeof address);
    memcpy(&length, sqe + SQE_LEN, sizeof length);
    memcpy(&fd, sqe + SQE_FD, sizeof fd);
    HOLDS(offset == parts->offsets[i] && offset >= 0);
    HOLDS(length == (parts->lengths ? parts->lengths[i] : parts->length));
    HOLDS(parts->fds == NULL || fd == parts->fds[i]);
    HOLDS(sqe[1] == (char)(parts->pattern[1] | (parts->flags ? parts->flags[i] : 0)));
    if (parts->buffers) {
        HOLDS(address == (uint64_t)(uintptr_t)parts->buffers[i] && length <= parts->sizes[i]);
    } else {
        HOLDS(address == (uint64_t)(uintptr_t)parts->buffer + before);
        HOLDS(before + length <= parts->size);
    }
}

static void encode(void)
{
    uint32_t count = take_up_to(PARTS_MAX), how = take8();
    struct uring_parts parts = {.count = count, .size = take16(), .length = take8()};
    char *memory = filled(0), *sqes = malloc((size_t)count * SQE_SIZE);
    char *pattern = filled(SQE_SIZE), *flags = filled(count);
    int64_t *offsets = column(count), *lengths = column(count), *fds = column(count);
    int64_t *sizes = malloc(count * sizeof *sizes), ret;
    char **buffers = malloc(count * sizeof *buffers);
    uint64_t used = 0;
    for (uint32_t i = 0; i < count; i++) {
        sizes[i] = take16(); /* nobody looks into them here */
        buffers[i] = memory + take8();
    }
    parts.pattern = pattern;
    parts.offsets = offsets;
    parts.fds = how & 1 ? fds : NULL;
    parts.flags = how & 2 ? flags : NULL;
    parts.lengths = how & 4 ? lengths : NULL;
    parts.buffers = how & 8 ? buffers : NULL;
    parts.sizes = how & 8 ? sizes : NULL;
    parts.buffer = memory;
    parts.length = how & 16 ? (int64_t)take_edge() : parts.length;
    ret = uring_encode_parts(sqes, &parts);
    HOLDS(ret >= 0 && ret >> 3 <= count);
    for (uint32_t i = 0; i < (ret ? ret >> 3 : count); i++) {
        check_part(&parts, sqes + (size_t)i * SQE_SIZE, i, used);
        used += (uint64_t)(parts.lengths ? parts.lengths[i] : parts.length);
    }
    free(memory);
    free(sqes);
    free(pattern);
    free(flags);
    free(offsets);
    free(lengths);
    free(fds);
    free(sizes);
    free(buffers);
}

/* ---- groups of provided buffers ---- */

struct given {
    uint32_t length;
    uint16_t bid;
};

/* What the kernel finds at a place of the ring. */
static void check_entry(const struct uring_buffers *group, uint16_t place, const struct given *given)
{
    const char *entry = group->ring + (size_t)(place & (group->entries - 1)) * BUF_SIZE;
    uint64_t address;
    uint32_t length;
    uint16_t bid;
    memcpy(&address, entry + BUF_ADDR, sizeof address);
    memcpy(&length, entry + BUF_LEN, sizeof length);
    memcpy(&bid, entry + BUF_BID, sizeof bid);
    HOLDS(bid == given->bid && length == given->length && length <= group->size);
    HOLDS(address == group->memory + (uint64_t)bid * group->size);
}

/* Lets the bytes of the input give buffers, and takes them as the kernel would. */
static void drive_group(struct uring_buffers *group)
{
    struct given last[GROUP_MAX] = {{0}};
    uint16_t places[GROUP_MAX] = {0}, tail = group->tail, seen;
    uint32_t mask = group->entries - 1;
    for (uint32_t steps = 0; input_left > 0 && steps < 400; steps++) {
        uint32_t bid = take8() % (group->entries + 1), kind = take8();
        uint32_t length = kind & 1 ? group->size : take8() * 2u;
        struct uring_mark mark = {kind & 4};
        int is_given = bid < group->entries && length <= group->size, ret;
        if (kind & 2) {
            uint32_t behind = take8();
            ret = uring_buffers_behind(group, bid, behind);
            if (bid >= group->entries)
                HOLDS(ret == -EINVAL);
            else
                HOLDS(ret == last[(places[bid] + behind) & mask].bid);
            continue;
        }
        if (kind & 8) {
            length = group->size;
            is_given = bid < group->entries && mark.is_final;
            ret = uring_buffers_return(group, bid, &mark, NULL);
            HOLDS(ret == (mark.is_final && bid >= group->entries ? -EINVAL : 0));
        } else {
            ret = uring_buffers_give(group, bid, length);
            HOLDS(ret == (is_given ? 0 : -EINVAL));
        }
        if (is_given) {
            last[tail & mask] = (struct given){length, (uint16_t)bid};
            places[bid] = tail++;
        }
        memcpy(&seen, group->ring + BUF_RING_TAIL, sizeof seen);
        HOLDS(group->tail == tail && (seen == tail || !is_given));
        if (is_given)
            check_entry(group, (uint16_t)(tail - 1), &last[(uint16_t)(tail - 1) & mask]);
    }
}

static void provide(void)
{
    struct uring_buffers *group = calloc(1, sizeof *group);
    uint8_t edge = take8();
    HOLDS(group != NULL);
    group->entries = 1u << take_up_to(5);
    group->size = 1 + take8();
    group->memory = take_edge() >> 1;
    group->ring = calloc(group->entries, BUF_SIZE);
    group->bids = calloc(group->entries, sizeof *group->bids);
    group->places = calloc(group->entries, sizeof *group->places);
    HOLDS(group->ring && group->bids && group->places);
    if (edge & 1)
        group->tail = (uint16_t)(UINT16_MAX - edge % 32);
    HOLDS(uring_buffers_init(group) == 0);
    drive_group(group);
    if (edge & 2) {
        *fork_page = 0; /* as in the child of a fork, where the ring is the parent's */
        HOLDS(uring_buffers_give(group, 0, 1) == -EOWNERDEAD);
    } else {
        uring_buffers_close(group);
        HOLDS(uring_buffers_give(group, 0, 1) == -ESHUTDOWN);
    }
    uring_buffers_free(group);
    free(group->ring);
    free(group->bids);
    free(group->places);
    free(group);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static void (*const subjects[])(void) = {widen, increasing, encode, provide};
    begin_input(bytes, size);
    subjects[take8() % 4]();
    return 0;
}
