/*
 * What every fuzzer in C begins with: the bytes of the input, one after the other, and the way to
 * say that something does not hold. Behind its end an input has only zeros.
 */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static const uint8_t *input_at;
static size_t input_left;

static void begin_input(const uint8_t *bytes, size_t size)
{
    input_at = bytes;
    input_left = size;
}

static uint8_t take8(void)
{
    if (input_left == 0)
        return 0;
    input_left--;
    return *input_at++;
}

static uint16_t take16(void)
{
    uint16_t low = take8();
    return (uint16_t)(low | take8() << 8);
}

static uint32_t take32(void)
{
    uint32_t low = take16();
    return low | (uint32_t)take16() << 16;
}

/* A number that is often at the edge of something. */
static uint64_t take_edge(void)
{
    static const uint64_t edges[] = {
        0,         1,          2,          INT32_MAX,           UINT32_MAX,
        INT64_MAX, UINT64_MAX, UINT16_MAX, (uint64_t)INT64_MIN, (uint64_t)1 << 32,
    };
    uint8_t kind = take8();
    if (kind < 128)
        return kind;
    if (kind < 160)
        return edges[kind % (sizeof edges / sizeof *edges)] - (kind & 1);
    if (kind < 192)
        return UINT64_C(0) - take8();
    return kind < 224 ? take32() : take32() | (uint64_t)take32() << 32;
}

/* Up to `most`. */
static uint32_t take_up_to(uint32_t most) { return take8() % (most + 1); }

#define HOLDS(condition)                                                                   \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                       \
        }                                                                                  \
    } while (0)
