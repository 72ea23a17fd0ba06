/*
 * Provided buffer rings: giving buffers to the kernel. The rules are those of _shim.h.
 *
 * Such a ring is an array of struct io_uring_buf shared with the kernel. We write at the tail, the
 * kernel takes at a head that only it knows. It names a buffer by its id (bid), and a bundle by the
 * id of its first buffer: the others are those that stand behind it in the ring, so we remember
 * what stands where.
 */

#include "_resize.h"

enum {
    BUF_ADDR = 0, /* struct io_uring_buf */
    BUF_LEN = 8,
    BUF_BID = 12,
    BUF_SIZE = 16,
    BUF_RING_TAIL = 14, /* struct io_uring_buf_ring: over the last field of the first entry */
};
#define OFF_PBUF_RING 0x80000000L
#define OFF_PBUF_SHIFT 16

struct uring_buffers {
    char *ring;          /* struct io_uring_buf[entries] */
    uint64_t memory;     /* the address of buffer 0; buffer i follows at i * size */
    uint32_t size;       /* of one buffer, in bytes */
    uint32_t entries;    /* a power of two; as many buffers as places */
    uint16_t *bids;      /* of the buffer at each place */
    uint16_t *places;    /* of each buffer: where it was given last, not wrapped to the ring */
    uint16_t tail;
    uint32_t generation; /* of the process that made it */
    uint32_t is_mapped;  /* `ring` is a mapping of the kernel's memory */
    uint32_t is_closed;
    pthread_mutex_t lock;
};

/* `buffers` is zeroed memory with its pointers and sizes set. */
static int uring_buffers_init(struct uring_buffers *buffers)
{
    buffers->generation = process_generation();
    if (buffers->generation == 0)
        return -ENOMEM;
    pthread_mutex_init(&buffers->lock, NULL);
    return 0;
}

/* Maps the array that the kernel made for group `bgid`. Twin: io_uring_setup_buf_ring(3). */
static int uring_buffers_map(struct uring *ring, struct uring_buffers *buffers, uint32_t bgid)
{
    long offset = OFF_PBUF_RING | (long)bgid << OFF_PBUF_SHIFT;
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    buffers->ring = map_shared(ring->fd, (size_t)buffers->entries * BUF_SIZE, offset);
    ret = buffers->ring == NULL ? -errno : 0;
    buffers->is_mapped = ret == 0;
    uring_part(ring);
    return ret;
}

/*
 * The array may be unmapped while the kernel has it: the pages are the kernel's own. Buffers may
 * still come back afterwards, when the collector lets go of all at once, and find it closed.
 */
static void uring_buffers_free(struct uring_buffers *buffers)
{
    pthread_mutex_lock(&buffers->lock);
    buffers->is_closed = 1;
    pthread_mutex_unlock(&buffers->lock);
    if (buffers->is_mapped && load_relaxed(fork_page) == buffers->generation)
        munmap(buffers->ring, (size_t)buffers->entries * BUF_SIZE);
    buffers->is_mapped = 0;
}

/*
 * Gives buffer `bid`, with `length` bytes, to the kernel. Nothing happens once the group is closed,
 * or in the child of a fork: the ring is the parent's.
 *
 * Release on the tail: the entry is visible before the tail that covers it. The tail shares its
 * place with the reserved field of entry 0, so an entry is written field by field.
 * Twin: io_uring_buf_ring_add(3) and io_uring_buf_ring_advance(3).
 */
static int uring_buffers_give(struct uring_buffers *buffers, uint32_t bid, uint32_t length)
{
    int ret = 0;
    if (load_relaxed(fork_page) != buffers->generation)
        return -EOWNERDEAD;
    if (bid >= buffers->entries || length > buffers->size)
        return -EINVAL;
    pthread_mutex_lock(&buffers->lock);
    if (buffers->is_closed) {
        ret = -ESHUTDOWN;
    } else {
        uint16_t place = (uint16_t)(buffers->tail & (buffers->entries - 1));
        char *entry = buffers->ring + (size_t)place * BUF_SIZE;
        uint64_t address = buffers->memory + (uint64_t)bid * buffers->size;
        uint16_t id = (uint16_t)bid;
        memcpy(entry + BUF_ADDR, &address, sizeof address);
        memcpy(entry + BUF_LEN, &length, sizeof length);
        memcpy(entry + BUF_BID, &id, sizeof id);
        buffers->bids[place] = id;
        buffers->places[bid] = buffers->tail++;
        __atomic_store_n((uint16_t *)(void *)(buffers->ring + BUF_RING_TAIL), buffers->tail,
                         __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&buffers->lock);
    return ret;
}

/* Whether the completions that one look at the queue has found are had: see _leases.py. */
struct uring_mark {
    uint32_t is_final;
};

/*
 * Gives a buffer back when the last view of it is gone, if it was had. The destructor of `lent`: in
 * C, because a signal handler that raised at the start of one in Python would lose the buffer.
 */
static int uring_buffers_return(struct uring_buffers *buffers, uint32_t bid,
                                const struct uring_mark *mark, const void *lent)
{
    (void)lent;
    return mark->is_final ? uring_buffers_give(buffers, bid, buffers->size) : 0;
}

/* The buffer that stands `count` places behind buffer `bid` in the ring. */
static int uring_buffers_behind(struct uring_buffers *buffers, uint32_t bid, uint32_t count)
{
    int found;
    if (bid >= buffers->entries)
        return -EINVAL;
    pthread_mutex_lock(&buffers->lock);
    found = buffers->bids[(buffers->places[bid] + count) & (buffers->entries - 1)];
    pthread_mutex_unlock(&buffers->lock);
    return found;
}

/* From here on nothing is given any more. */
static void uring_buffers_close(struct uring_buffers *buffers)
{
    pthread_mutex_lock(&buffers->lock);
    buffers->is_closed = 1;
    pthread_mutex_unlock(&buffers->lock);
}
