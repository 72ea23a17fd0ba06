/*
 * What cffi parses: the door between Python and the C of the other headers. Sizes are the
 * compiler's, names are ours.
 */

struct uring_params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd;
    ...;
};

/* One ring. Tests reach for the pointers; the package hands it around and never looks in. */
struct uring {
    int fd;
    uint32_t features;
    uint32_t *sq_head, *sq_tail, *sq_flags;
    char *sqes;
    uint32_t *cq_head, *cq_tail;
    char *cqes;
    uint32_t placed, cq_taken, inbox_count, wait_flags;
    uint64_t registration;
    uint32_t ring_index;
    ...;
};

struct uring_counters {
    uint32_t placed, sq_head, sq_tail, sq_mask, sq_flags, sq_dropped, sq_entries;
    uint32_t cq_head, cq_tail, cq_mask, cq_flags, cq_overflow, cq_entries;
};

struct uring_run {
    const char *sqes;
    char *cqes;
    const uint64_t *numbers, *by_number;
    uint32_t count, placed, ended;
    uint64_t first_number;
    ...;
};

struct uring_parts {
    const char *pattern;
    const int64_t *fds;
    const char *flags;
    const int64_t *offsets, *lengths;
    int64_t length;
    char **buffers;
    const int64_t *sizes;
    char *buffer;
    uint64_t size;
    uint32_t count;
};

struct uring_buffers {
    char *ring;
    uint64_t memory;
    uint32_t size, entries;
    uint16_t *bids, *places;
    uint16_t tail;
    ...;
};

struct uring_mark {
    uint32_t is_final;
};

enum { PART_OFFSET, PART_LENGTH, PART_ROOM, PART_FD, ... };

int uring_setup(struct uring *ring, uint32_t entries, struct uring_params *params);
int uring_map(struct uring *ring, const struct uring_params *params, char *inbox);
int uring_exit(struct uring *ring);

int64_t uring_submit(struct uring *ring, uint32_t start, const char *sqes, const char *user_data,
                     uint32_t count);
int64_t uring_submit128(struct uring *ring, uint32_t start, const char *sqes, const char *user_data,
                        uint32_t count);
int64_t uring_submit_one(struct uring *ring, uint32_t start, const char *sqe, uint64_t user_data);
int uring_wait(struct uring *ring, uint64_t start, uint32_t wait_nr, int64_t deadline_ns);
int64_t uring_take(struct uring *ring, uint64_t start, uint32_t max_nr);
int64_t uring_peek(struct uring *ring, uint64_t start, uint32_t max_nr, char *out);
int64_t uring_ready(struct uring *ring, uint64_t start);
int uring_is_increasing(const char *numbers, uint32_t count);
int uring_register(struct uring *ring, uint32_t opcode, void *arg, uint32_t nr_args);
int uring_register_blind(uint32_t opcode, void *arg, uint32_t nr_args);
int uring_register_fd(struct uring *ring);
int uring_unregister_fd(struct uring *ring);
int uring_counters(struct uring *ring, struct uring_counters *out);

int uring_run_begin(struct uring *ring, struct uring_run *run, uint64_t first_number);
int uring_run(struct uring *ring, struct uring_run *run);
int uring_run_wait(struct uring *ring, struct uring_run *run, int64_t deadline_ns);
void uring_run_stop(struct uring_run *run);
int uring_run_release(struct uring *ring, struct uring_run *run);
int uring_widen(int64_t *out, const char *in, uint32_t size, uint32_t is_signed, uint32_t count);
int64_t uring_encode_parts(char *sqes, const struct uring_parts *parts);

int uring_buffers_init(struct uring_buffers *buffers);
int uring_buffers_map(struct uring *ring, struct uring_buffers *buffers, uint32_t bgid);
void uring_buffers_free(struct uring_buffers *buffers);
int uring_buffers_give(struct uring_buffers *buffers, uint32_t bid, uint32_t length);
int uring_buffers_return(struct uring_buffers *buffers, uint32_t bid,
                         const struct uring_mark *mark, const void *lent);
int uring_buffers_behind(struct uring_buffers *buffers, uint32_t bid, uint32_t count);
void uring_buffers_close(struct uring_buffers *buffers);

int uring_seal(struct uring *ring);
int64_t uring_sealed_submit(struct uring *ring, uint32_t start, const char *sqes,
                            const char *user_data, uint32_t count);
int uring_sealed_wait(struct uring *ring, uint64_t start, uint32_t wait_nr, int64_t deadline_ns);
int uring_waiters(struct uring *ring);

int uring_wait_min(struct uring *ring, uint64_t start, uint32_t wait_nr, int64_t min_ns,
                   int64_t end_ns);
int uring_wait_registered(struct uring *ring, uint64_t start, uint32_t wait_nr, int64_t min_ns,
                          int64_t end_ns, uint32_t index);
int uring_register_region(struct uring *ring, char *memory, uint64_t size);
int uring_region_set(struct uring *ring, uint32_t index, int64_t timeout_ns, uint32_t min_usec);
int64_t uring_wait_sq(struct uring *ring, int64_t end_ns);
int uring_set_wait_flags(struct uring *ring, uint32_t flags);
int uring_set_cq_flags(struct uring *ring, uint32_t flags);
int uring_resize(struct uring *ring, uint64_t start, struct uring_params *params);

struct uring_alias {
    int fd;
    ...;
};
int uring_alias(struct uring_alias *alias, int fd);
void uring_alias_close(struct uring_alias *alias);

uint64_t uring_address(const void *memory);
