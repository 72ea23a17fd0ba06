/*
 * Other sizes for the two queues of a living ring. The kernel makes new ones and copies what is in
 * the old ones. What it copies is not relied on: nothing, when a counter wraps on the way, and from
 * 6.13 until that was mended only half of an SQE or CQE of double size (io_register_resize_rings()
 * in io_uring/register.c). Nor does it say where the new SQ array is.
 */

#include "_waits.h"

#include <stdlib.h>

#define REGISTER_RESIZE_RINGS 33u

/*
 * Keeps everybody else out, and waits until who is inside has left; EBUSY for those who may stay
 * long. This thread has joined. Sequentially consistent as in uring_join().
 */
static int resize_begin(struct uring *ring)
{
    uint32_t none = 0, own = RESIZING;
    if (!__atomic_compare_exchange_n(&ring->closing, &none, RESIZING, 0, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST))
        return none == RESIZING ? -EBUSY : -ESHUTDOWN;
    while (__atomic_load_n(&ring->users, __ATOMIC_SEQ_CST) != 1) {
        if (uring_waiters(ring) > 0) {
            (void)__atomic_compare_exchange_n(&ring->closing, &own, 0, 0, __ATOMIC_SEQ_CST,
                                              __ATOMIC_SEQ_CST);
            return -EBUSY;
        }
        sched_yield();
    }
    return 0;
}

/* Lets them in again, unless the ring is closing by now. */
static void resize_end(struct uring *ring)
{
    uint32_t own = RESIZING;
    (void)__atomic_compare_exchange_n(&ring->closing, &own, 0, 0, __ATOMIC_SEQ_CST,
                                      __ATOMIC_SEQ_CST);
}

/* Copies the SQEs from `head` on between the queue and an array, around the end of the queue. */
static void sq_stash(const struct uring *ring, uint32_t head, uint32_t count, char *stash, int back)
{
    for (uint32_t i = 0; i < count; i++) {
        char *slot = ring->sqes + (size_t)((head + i) & ring->sq_mask) * ring->sqe_size;
        char *place = stash + (size_t)i * ring->sqe_size;
        memcpy(back ? slot : place, back ? place : slot, ring->sqe_size);
    }
}

/*
 * Where the SQ array is behind `cq_entries` CQEs: as rings_size() in io_uring/io_uring.c has it.
 * What it rounds up to is the size of a cache line, of which the place of the CQEs is a multiple.
 */
static uint32_t array_place(const struct uring *ring, uint32_t cq_entries)
{
    uint32_t line = (uint32_t)(ring->cqes - (char *)ring->ring_map);
    uint32_t end = (line + cq_entries * CQE_SIZE) * (ring->cqe_size / CQE_SIZE);
    return (end + line - 1) / line * line;
}

/*
 * Fits the request to that: a CQ so small that the rounding matters is made larger, and where the
 * array that we know is not where it should be, nothing is done.
 */
static int array_expect(const struct uring *ring, struct uring_params *p)
{
    uint32_t line = (uint32_t)(ring->cqes - (char *)ring->ring_map);
    if (ring->sq_array == 0)
        return 0;
    while (p->cq_entries * CQE_SIZE < line)
        p->cq_entries *= 2;
    return array_place(ring, ring->cq_entries) == ring->sq_array ? 0 : -EOPNOTSUPP;
}

/*
 * Replaces the mappings by those of the new queues. The old ones, which the kernel has forgotten,
 * go first: so there is address space for the new ones, as far as that can be had.
 */
static int resize_map(struct uring *ring, const struct uring_params *p)
{
    size_t sq_size = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
    size_t cq_size = p->cq_off.cqes + (size_t)p->cq_entries * ring->cqe_size;
    void *ring_map;
    munmap(ring->ring_map, ring->ring_map_size);
    munmap(ring->sqe_map, ring->sqe_map_size);
    ring->ring_map_size = sq_size > cq_size ? sq_size : cq_size;
    ring->sqe_map_size = (size_t)p->sq_entries * ring->sqe_size;
    ring->sqe_map = map_shared(ring->fd, ring->sqe_map_size, OFF_SQES);
    if (ring->sqe_map == NULL)
        return -ENOTRECOVERABLE;
    ring_map = map_shared(ring->fd, ring->ring_map_size, OFF_RING);
    if (ring_map == NULL) {
        munmap(ring->sqe_map, ring->sqe_map_size);
        return -ENOTRECOVERABLE;
    }
    ring_map_set(ring, ring_map);
    ring->sq_entries = p->sq_entries;
    point_into_map(ring, p);
    return 0;
}

/*
 * Since the kernel guards the swap (7.0 and the stable 6.18) it sets both flags afterwards, in case
 * one was lost. Nobody clears them where they mean nothing, and every look would enter the kernel.
 */
static void resize_clear_flags(const struct uring *ring)
{
    uint32_t wrong = SQ_NEED_WAKEUP; /* no SQPOLL with DEFER_TASKRUN */
    if (!(ring->setup_flags & SETUP_TASKRUN_FLAG))
        wrong |= SQ_TASKRUN;
    __atomic_fetch_and(ring->sq_flags, ~wrong, __ATOMIC_RELAXED);
}

/* A ring without mappings is closed at once: nobody can see what comes, or submit. */
static void resize_give_up(struct uring *ring)
{
    __atomic_store_n(&ring->closing, CLOSING, __ATOMIC_SEQ_CST);
    ring_map_set(ring, NULL);
    uring_unmap(ring);
    if (__atomic_exchange_n(&ring->is_open, 0, __ATOMIC_SEQ_CST))
        (void)close(ring->fd);
}

/* Nobody else is inside, so no lock is needed, though what is called here asks for them. */
static int resize(struct uring *ring, uint64_t start, struct uring_params *p)
{
    uint32_t head = load_acquire(ring->sq_head), count = load_relaxed(ring->sq_tail) - head;
    char *stash;
    int ret;
    if (ring->sealed)
        return -ESHUTDOWN;
    if (ring->memory != NULL || ring->is_mixed) /* not driven: no need for it was seen */
        return -EOPNOTSUPP;
    if (ring->runs != NULL) /* which has looked at the sizes */
        return -EBUSY;
    ret = array_expect(ring, p);
    if (ret < 0)
        return ret;
    if (cq_ready(ring, start) > p->cq_entries || count > p->sq_entries)
        return -EOVERFLOW;
    stash = malloc((size_t)count * ring->sqe_size + 1);
    if (stash == NULL)
        return -ENOMEM;
    sq_stash(ring, head, count, stash, 0);
    cq_publish(ring);
    ret = call_register(ring, REGISTER_RESIZE_RINGS, p, 1);
    if (ret < 0) {
        free(stash);
        return ret;
    }
    if (p->sq_off.array == 0 && ring->sq_array != 0) /* so up to 7.0 */
        p->sq_off.array = array_place(ring, p->cq_entries);
    ring->cq_entries = p->cq_entries; /* as many fit into the inbox: see the look above */
    cq_take(ring, p->cq_entries);     /* from the old queue, which stands as long as it is mapped */
    ret = resize_map(ring, p);
    if (ret == 0) {
        sq_stash(ring, head, count, stash, 1);
        cq_publish(ring);
        resize_clear_flags(ring);
    }
    free(stash);
    return ret;
}

/*
 * Gives the queues of a ring with DEFER_TASKRUN the sizes in `p`, which has CQSIZE and powers of
 * two. The inbox has room for the largest CQ there is. What is in flight, placed or unread stays;
 * `start` is as in uring_take(). A refusal leaves all as it was: EOVERFLOW when what is there does
 * not fit, EBUSY when somebody waits or a batch runs. ENOTRECOVERABLE: it is done, but there was no
 * memory to map the new queues, and the ring is closed. Twin: io_uring_resize_rings(3).
 */
static int uring_resize(struct uring *ring, uint64_t start, struct uring_params *p)
{
    int ret = uring_join(ring);
    if (ret < 0)
        return ret;
    ret = resize_begin(ring);
    if (ret == 0) {
        ret = resize(ring, start, p);
        if (ret == -ENOTRECOVERABLE)
            resize_give_up(ring);
        else
            resize_end(ring);
    }
    uring_part(ring);
    return ret;
}
