/*
 * A ring's beginning and end: its descriptor, and the memory that it shares with the kernel. The
 * rules are those of _shim.h.
 */

#include "_shim.h"

static size_t whole_pages(size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (size + page - 1) / page * page;
}

/* Of an SQE or CQE: twice as much with the flag that says so. */
static uint32_t slot_bytes(uint32_t size, uint32_t doubled) { return doubled ? 2 * size : size; }

/* `wanted`, as the kernel rounds and clamps it. */
static uint32_t granted_entries(uint32_t wanted, uint32_t most)
{
    uint32_t entries = 1;
    while (entries < wanted && entries < most)
        entries *= 2;
    return entries;
}

/*
 * NO_MMAP (6.5): the ring in memory of ours. The kernel takes as much from either address on as it
 * needs and is not told how much there is, so this counts generously, and uring_map() looks again.
 * Twin: io_uring_queue_init_mem(3).
 */
static int lend_memory(struct uring *ring, uint32_t entries, struct uring_params *p)
{
    uint32_t sq = granted_entries(entries, ENTRIES_MAX);
    uint32_t cq = granted_entries(p->flags & SETUP_CQSIZE ? p->cq_entries : 2 * sq,
                                  2 * ENTRIES_MAX);
    size_t cq_size = (size_t)cq * slot_bytes(CQE_SIZE, p->flags & SETUP_CQE32);
    size_t sqe_size = (size_t)sq * slot_bytes(SQE_SIZE, p->flags & SETUP_SQE128);
    size_t start = whole_pages(RINGS_MAX + cq_size + sq * sizeof(uint32_t));
    size_t size = start + whole_pages(sqe_size);
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    ring->memory = memory;
    ring->memory_size = size;
    ring->memory_sqes = start;
    p->cq_off.user_addr = (uint64_t)(uintptr_t)memory;
    p->sq_off.user_addr = (uint64_t)(uintptr_t)(ring->memory + start);
    return madvise(memory, size, MADV_DONTFORK) < 0 ? -errno : 0;
}

/* Nobody else is inside. Done before by a resize that failed. */
static void uring_unmap(struct uring *ring)
{
    if (ring->memory != NULL) {
        munmap(ring->memory, ring->memory_size);
    } else if (ring->ring_map != NULL) {
        munmap(ring->ring_map, ring->ring_map_size);
        munmap(ring->sqe_map, ring->sqe_map_size);
    }
    if (ring->region_is_ours)
        munmap(ring->region, ring->region_size);
    ring->region_is_ours = 0;
    ring->memory = NULL;
    ring_map_set(ring, NULL);
}

/* `ring` is zeroed memory; uring_exit() undoes this, with or without a uring_map() in between. */
static int uring_setup(struct uring *ring, uint32_t entries, struct uring_params *params)
{
    int ret = 0;
    ring->generation = process_generation();
    if (ring->generation == 0)
        return -ENOMEM;
    if (params->flags & SETUP_NO_MMAP)
        ret = lend_memory(ring, entries, params);
    if (ret == 0) {
        long fd = syscall(__NR_io_uring_setup, entries, params);
        ret = fd < 0 ? -errno : (int)fd;
    }
    if (ret < 0) {
        uring_unmap(ring);
        return ret;
    }
    ring->fd = ret;
    if (params->flags & SETUP_REGISTERED_FD_ONLY) {
        ring->fd = -1;
        note_registered(ring, (uint32_t)ret);
    }
    ring->is_open = 1;
    return 0;
}

static void *map_shared(int fd, size_t size, long offset)
{
    void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset);
    if (map == MAP_FAILED)
        return NULL;
    if (madvise(map, size, MADV_DONTFORK) != 0) {
        int error = errno;
        munmap(map, size);
        errno = error;
        return NULL;
    }
    return map;
}

static void point_into_map(struct uring *ring, const struct uring_params *p)
{
    char *map = ring->ring_map;
    ring->sq_head = (uint32_t *)(void *)(map + p->sq_off.head);
    ring->sq_tail = (uint32_t *)(void *)(map + p->sq_off.tail);
    ring->sq_flags = (uint32_t *)(void *)(map + p->sq_off.flags);
    ring->sq_dropped = (uint32_t *)(void *)(map + p->sq_off.dropped);
    ring->sq_mask = *(uint32_t *)(void *)(map + p->sq_off.ring_mask);
    ring->sqes = ring->sqe_map;
    ring->cq_head = (uint32_t *)(void *)(map + p->cq_off.head);
    ring->cq_tail = (uint32_t *)(void *)(map + p->cq_off.tail);
    ring->cq_flags = (uint32_t *)(void *)(map + p->cq_off.flags);
    ring->cq_overflow = (uint32_t *)(void *)(map + p->cq_off.overflow);
    ring->cq_mask = *(uint32_t *)(void *)(map + p->cq_off.ring_mask);
    ring->cqes = map + p->cq_off.cqes;
    if (!(p->flags & SETUP_NO_SQARRAY)) { /* slot i always holds SQE i: written once, here */
        uint32_t *array = (uint32_t *)(void *)(map + p->sq_off.array);
        ring->sq_array = p->sq_off.array;
        for (uint32_t i = 0; i < p->sq_entries; i++)
            array[i] = i;
    }
}

/*
 * `inbox` has room for cq_entries CQEs and outlives the ring.
 * Twin: io_uring_queue_mmap(3), for kernels with FEAT_SINGLE_MMAP.
 */
static int uring_map(struct uring *ring, const struct uring_params *p, char *inbox)
{
    size_t sq_size = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
    size_t cq_size;
    char *ring_map;

    if (!(p->features & FEAT_SINGLE_MMAP))
        return -EOPNOTSUPP;
    ring->setup_flags = p->flags;
    ring->features = p->features;
    ring->sq_entries = p->sq_entries;
    ring->cq_entries = p->cq_entries;
    ring->sqe_size = slot_bytes(SQE_SIZE, p->flags & SETUP_SQE128);
    ring->is_mixed = !!(p->flags & SETUP_CQE_MIXED);
    ring->slot_size = slot_bytes(CQE_SIZE, p->flags & SETUP_CQE32);
    ring->cqe_size = ring->is_mixed ? MIXED_SIZE : ring->slot_size;
    cq_size = p->cq_off.cqes + (size_t)p->cq_entries * ring->slot_size;
    ring->ring_map_size = sq_size > cq_size ? sq_size : cq_size;
    ring->sqe_map_size = (size_t)p->sq_entries * ring->sqe_size;

    if (ring->memory != NULL) {
        if (ring->ring_map_size > ring->memory_sqes ||
            ring->sqe_map_size > ring->memory_size - ring->memory_sqes)
            return -EOVERFLOW; /* the kernel's structs have outgrown lend_memory() */
        ring->sqe_map = ring->memory + ring->memory_sqes;
        ring_map = ring->memory;
    } else {
        ring->sqe_map = map_shared(ring->fd, ring->sqe_map_size, OFF_SQES);
        if (ring->sqe_map == NULL)
            return -errno;
        ring_map = map_shared(ring->fd, ring->ring_map_size, OFF_RING);
        if (ring_map == NULL) {
            int error = errno;
            munmap(ring->sqe_map, ring->sqe_map_size);
            return -error;
        }
    }
    ring->inbox = inbox;
    ring_map_set(ring, ring_map);
    pthread_mutex_init(&ring->sq_lock, NULL);
    pthread_mutex_init(&ring->cq_lock, NULL);
    point_into_map(ring, p);
    return 0;
}

/*
 * Refuses whoever comes, waits until whoever is inside has left, unmaps, closes the descriptor.
 * Those who are blocked in uring_wait() must have been woken before (uring_waiters() is 0). In the
 * child of a fork the mappings were never there, and their addresses may be somebody else's by now.
 * Another thread's registration stays until that thread ends, and in the kernel the ring with it.
 */
static int uring_exit(struct uring *ring)
{
    if (!__atomic_exchange_n(&ring->is_open, 0, __ATOMIC_SEQ_CST))
        return 0;
    __atomic_store_n(&ring->closing, CLOSING, __ATOMIC_SEQ_CST);
    if (!is_forked(ring)) {
        while (__atomic_load_n(&ring->users, __ATOMIC_SEQ_CST) != 0)
            sched_yield();
        if (is_registered_here(ring))
            (void)unregister_here(ring); /* fails only when somebody has done it behind our back */
        uring_unmap(ring);
    }
    return ring->fd >= 0 && close(ring->fd) < 0 ? -errno : 0;
}
