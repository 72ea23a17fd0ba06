/* What cffi parses: the door between Python and _shim.h. Sizes are the compiler's, names are ours. */

struct uring_params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd;
    ...;
};

/* One ring. Tests reach for the pointers; the package hands the struct around and never looks in. */
struct uring {
    int fd;
    uint32_t features;
    uint32_t *sq_head, *sq_tail, *sq_flags;
    char *sqes;
    uint32_t *cq_head, *cq_tail;
    char *cqes;
    ...;
};

struct uring_counters {
    uint32_t sq_head, sq_tail, sq_mask, sq_flags, sq_dropped, sq_entries;
    uint32_t cq_head, cq_tail, cq_mask, cq_flags, cq_overflow, cq_entries;
};

int uring_setup(struct uring *ring, uint32_t entries, struct uring_params *params);
int uring_map(struct uring *ring, const struct uring_params *params);
int uring_exit(struct uring *ring);

int64_t uring_submit(struct uring *ring, uint32_t tail, const char *sqes, const char *user_data,
                     uint32_t count);
int uring_wait(struct uring *ring, uint32_t wait_nr, int64_t deadline_ns);
int64_t uring_cq_copy(struct uring *ring, uint32_t head, uint32_t max_nr, char *out);
int uring_cq_seek(struct uring *ring, uint32_t head);
int uring_register(struct uring *ring, uint32_t opcode, void *arg, uint32_t nr_args);
int uring_counters(struct uring *ring, struct uring_counters *out);

int uring_seal(struct uring *ring);
int64_t uring_sealed_submit(struct uring *ring, uint32_t tail, const char *sqes,
                            const char *user_data, uint32_t count);
int uring_sealed_wait(struct uring *ring, uint32_t wait_nr, int64_t deadline_ns);
int uring_waiters(struct uring *ring);

uint64_t uring_address(const void *memory);
