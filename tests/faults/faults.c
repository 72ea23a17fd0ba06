/*
 * Faults on demand: a library that is preloaded, and has the n-th call of a kind fail that the shim
 * makes, or the n-th allocation that Python makes.
 *
 * A call is the shim's when its module is on the stack. So the calls of others, of a sanitizer or
 * of the C library itself, are left alone, and each fault can be named by its call sites: the
 * return addresses in the module. Compiled by the tests; needs no header of Python's.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <time.h>

enum { CALL_SETUP, CALL_ENTER, CALL_REGISTER, CALL_MMAP, CALL_MUNMAP, CALL_MADVISE, CALL_CLOSE,
       CALL_POLL, CALL_NANOSLEEP, CALL_MALLOC };
enum { NOT_DONE, DONE, CUT }; /* the call is left out; made all the same; asks for less */
enum { NR_SETUP = 425, NR_ENTER = 426, NR_REGISTER = 427, DEPTH = 12, SITES_MAX = 4096 };

struct plan {
    int32_t call;          /* -1: no plan */
    int32_t error;         /* the errno; 0: `result` is what it returns */
    uint32_t first, count; /* the calls `first` .. `first + count - 1`, counted from 0, fail */
    int32_t opcode;        /* of io_uring_register(); -1: any */
    int32_t how, result, cut_to;
};

enum { PLANS = 2 }; /* the second makes a way for the first: what happens in case of an error */
static struct plan plans[PLANS] = {{.call = -1}, {.call = -1}};
static uint32_t matched[PLANS], hits[PLANS];
static uintptr_t sites[SITES_MAX]; /* where faults have hit, from the start of the module on */
static uint32_t sites_count;

/* ---- whose call it is ---- */

/* The place of an address in the shim's module; 0 when it is elsewhere. */
static uintptr_t shim_place(void *address)
{
    Dl_info found;
    const char *name;
    if (!dladdr(address, &found) || found.dli_fname == NULL)
        return 0;
    name = strrchr(found.dli_fname, '/');
    if (strncmp(name == NULL ? found.dli_fname : name + 1, "_uring.", 7) != 0)
        return 0;
    return (uintptr_t)address - (uintptr_t)found.dli_fbase;
}

static uint32_t shim_frames(uintptr_t *out)
{
    void *frames[DEPTH];
    uint32_t count = 0;
    int depth = backtrace(frames, DEPTH);
    for (int i = 0; i < depth; i++) {
        uintptr_t place = shim_place(frames[i]);
        if (place != 0)
            out[count++] = place;
    }
    return count;
}

static void note_sites(const uintptr_t *found, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = 0;
        while (at < sites_count && sites[at] != found[i])
            at++;
        if (at == sites_count && at < SITES_MAX)
            sites[sites_count++] = found[i];
    }
}

/* The plan that this call is to fail by, or NULL. */
static const struct plan *strikes(int call, int32_t opcode)
{
    uintptr_t found[DEPTH];
    uint32_t count = 0;
    for (int i = 0; i < PLANS; i++) {
        const struct plan *plan = &plans[i];
        uint32_t number;
        if (__atomic_load_n(&plan->call, __ATOMIC_ACQUIRE) != call ||
            (plan->opcode >= 0 && plan->opcode != opcode))
            continue;
        if (count == 0)
            count = shim_frames(found);
        if (count == 0)
            return NULL;
        number = __atomic_fetch_add(&matched[i], 1, __ATOMIC_RELAXED);
        if (number < plan->first || number - plan->first >= plan->count)
            continue;
        __atomic_add_fetch(&hits[i], 1, __ATOMIC_RELAXED);
        note_sites(found, count);
        return plan;
    }
    return NULL;
}

static long answer(const struct plan *plan)
{
    if (plan->error == 0)
        return plan->result;
    errno = plan->error;
    return -1;
}

/* ---- the calls ---- */

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

long syscall(long number, ...)
{
    static __typeof__(&syscall) real;
    const struct plan *plan = NULL;
    long a[6];
    int call = number == NR_SETUP ? CALL_SETUP : number == NR_ENTER ? CALL_ENTER : CALL_REGISTER;
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    if (real == NULL)
        real = REAL(syscall);
    if (number >= NR_SETUP && number <= NR_REGISTER)
        plan = strikes(call, (int32_t)(a[1] & 0xffff));
    if (plan != NULL && plan->how == NOT_DONE)
        return answer(plan);
    if (plan != NULL && plan->how == CUT && (uint32_t)a[1] > (uint32_t)plan->cut_to)
        a[1] = plan->cut_to;
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

void *mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset)
{
    static __typeof__(&mmap) real;
    const struct plan *plan = strikes(CALL_MMAP, 0);
    if (plan != NULL) {
        errno = plan->error;
        return MAP_FAILED;
    }
    if (real == NULL)
        real = REAL(mmap);
    return real(at, size, prot, flags, fd, offset);
}

void *mmap64(void *at, size_t size, int prot, int flags, int fd, off_t offset)
    __attribute__((alias("mmap")));

int munmap(void *at, size_t size)
{
    static __typeof__(&munmap) real;
    const struct plan *plan = strikes(CALL_MUNMAP, 0);
    if (real == NULL)
        real = REAL(munmap);
    return plan != NULL ? (int)answer(plan) : real(at, size);
}

int madvise(void *at, size_t size, int advice)
{
    static __typeof__(&madvise) real;
    const struct plan *plan = strikes(CALL_MADVISE, 0);
    if (real == NULL)
        real = REAL(madvise);
    return plan != NULL ? (int)answer(plan) : real(at, size, advice);
}

int close(int fd)
{
    static int (*real)(int);
    const struct plan *plan = strikes(CALL_CLOSE, 0);
    if (real == NULL)
        real = (int (*)(int))dlsym(RTLD_NEXT, "close");
    if (plan == NULL || plan->how == DONE) {
        int ret = real(fd);
        if (plan == NULL)
            return ret;
    }
    return (int)answer(plan);
}

int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    static __typeof__(&poll) real;
    const struct plan *plan = strikes(CALL_POLL, 0);
    if (real == NULL)
        real = REAL(poll);
    return plan != NULL ? (int)answer(plan) : real(fds, count, timeout);
}

int nanosleep(const struct timespec *time, struct timespec *left)
{
    static __typeof__(&nanosleep) real;
    const struct plan *plan = strikes(CALL_NANOSLEEP, 0);
    if (real == NULL)
        real = REAL(nanosleep);
    return plan != NULL ? (int)answer(plan) : real(time, left);
}

extern void *__libc_malloc(size_t size); /* dlsym() would allocate in here */

/* Only what the shim asks for itself: for a thread's variables the loader asks, and aborts. */
void *malloc(size_t size)
{
    void *caller = __builtin_return_address(0);
    int is_planned = 0;
    for (int i = 0; i < PLANS; i++)
        is_planned |= __atomic_load_n(&plans[i].call, __ATOMIC_ACQUIRE) == CALL_MALLOC;
    if (is_planned && shim_place(caller) != 0 && strikes(CALL_MALLOC, 0) != NULL)
        return NULL;
    return __libc_malloc(size);
}

/* ---- what the tests ask ---- */

void faults_plan(int32_t which, const struct plan *next)
{
    void *frames[2];
    int32_t call = next->call;
    (void)backtrace(frames, 2); /* the first one loads a library */
    __atomic_store_n(&plans[which].call, -1, __ATOMIC_SEQ_CST);
    matched[which] = hits[which] = 0;
    plans[which] = *next;
    plans[which].call = -1;
    __atomic_store_n(&plans[which].call, call, __ATOMIC_SEQ_CST);
}

uint32_t faults_matched(void) { return matched[0]; }
uint32_t faults_hits(void) { return hits[0] + hits[1]; }

uint32_t faults_sites(uint64_t *out)
{
    for (uint32_t i = 0; i < sites_count; i++)
        out[i] = sites[i];
    return sites_count;
}

/* ---- Python's allocations ---- */

struct allocator { /* PyMemAllocatorEx */
    void *ctx;
    void *(*malloc)(void *, size_t);
    void *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *);
};

static struct allocator former[3]; /* of the domains raw, mem and obj */
static __thread int is_short;      /* whether allocations of this thread are counted */
static uint32_t alloc_first, alloc_count, alloc_number, alloc_failed;

static int alloc_fails(void)
{
    if (!is_short)
        return 0;
    if (alloc_number++ < alloc_first || alloc_failed >= alloc_count)
        return 0;
    alloc_failed++;
    return 1;
}

static void *hooked_malloc(void *ctx, size_t size)
{
    struct allocator *own = ctx;
    return alloc_fails() ? NULL : own->malloc(own->ctx, size);
}

static void *hooked_calloc(void *ctx, size_t count, size_t size)
{
    struct allocator *own = ctx;
    return alloc_fails() ? NULL : own->calloc(own->ctx, count, size);
}

static void *hooked_realloc(void *ctx, void *memory, size_t size)
{
    struct allocator *own = ctx;
    return alloc_fails() ? NULL : own->realloc(own->ctx, memory, size);
}

static void hooked_free(void *ctx, void *memory)
{
    struct allocator *own = ctx;
    own->free(own->ctx, memory);
}

int faults_hook_allocators(void)
{
    typedef void access_allocator(int, struct allocator *);
    access_allocator *get = (access_allocator *)dlsym(RTLD_DEFAULT, "PyMem_GetAllocator");
    access_allocator *set = (access_allocator *)dlsym(RTLD_DEFAULT, "PyMem_SetAllocator");
    if (get == NULL || set == NULL)
        return -1;
    for (int domain = 0; domain < 3; domain++) {
        struct allocator hooked = {&former[domain], hooked_malloc, hooked_calloc, hooked_realloc,
                                   hooked_free};
        get(domain, &former[domain]);
        set(domain, &hooked);
    }
    return 0;
}

/* From the `first`-th allocation on, `count` fail, once the builtin `shorten` was called. */
void faults_plan_allocations(uint32_t first, uint32_t count)
{
    alloc_first = first;
    alloc_count = count;
    alloc_number = alloc_failed = 0;
}

uint32_t faults_allocations_failed(void) { return alloc_failed; }
uint32_t faults_allocations(void) { return alloc_number; }

/* Builtins without arguments: calling one allocates nothing, so that `relieve` always works. */
static void *none(void)
{
    void *result = dlsym(RTLD_DEFAULT, "_Py_NoneStruct");
    ((void (*)(void *))dlsym(RTLD_DEFAULT, "Py_IncRef"))(result);
    return result;
}

static void *shorten(void *self, void *args)
{
    void *result = none();
    (void)self, (void)args;
    is_short = 1;
    return result;
}

static void *relieve(void *self, void *args)
{
    (void)self, (void)args;
    is_short = 0;
    return none();
}

struct method { /* PyMethodDef */
    const char *name;
    void *(*function)(void *, void *);
    int flags;
    const char *doc;
};

void *faults_builtin(int is_end)
{
    static struct method methods[] = {{"shorten", shorten, 4, NULL}, {"relieve", relieve, 4, NULL}};
    void *(*make)(struct method *, void *, void *) =
        (void *(*)(struct method *, void *, void *))dlsym(RTLD_DEFAULT, "PyCFunction_NewEx");
    return make(&methods[is_end], NULL, NULL);
}
