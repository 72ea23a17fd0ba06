/*
 * Where operations of any kind may run without hurting anybody: memory, files and paths that are
 * all the fuzzer's own.
 *
 * The thread that drives rings gets a table of descriptors, a network and a root directory of its
 * own, the last a tmpfs of 4 MiB, before the first of them; the kernel's workers for its rings have
 * the same. The other threads keep theirs, for libFuzzer reads and writes its corpus there. That
 * takes root; without it, what could reach outside is refused by fold.h.
 *
 * The arena: structures that point somewhere are in a page that nothing can write any more, not
 * even the kernel, once it is filled. What operations move lies in another part, between canaries,
 * between pages that nobody may touch.
 */

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>

enum {
    PAGE = 4096,
    DATA_SIZE = 4 * PAGE,
    CANARY = 0xc5,
    IOVECS = 16,
    SLOTS = 8, /* of registered files */
    FIRST_MADE = 3, /* the descriptors that operations make are these */
    FIRST_FILE = 100,
    FILES = 16,
    RING_FILE = FIRST_FILE + FILES,
    PATHS = 6,
    ADDRESSES = 4,
};

struct structures { /* at most a page */
    struct iovec iovecs[IOVECS];
    struct msghdr messages[4];
    struct uring_timespec times[4];
    struct sockaddr_storage addresses[ADDRESSES];
    struct epoll_event event;
    uint64_t open_how[3];
    struct { uint64_t value, address; uint32_t flags, pad; } futexes[4];
    int32_t files[SLOTS];
    char paths[PATHS][8];
};
_Static_assert(sizeof(struct structures) <= PAGE, "it has one page");

static struct structures *structures;
static char *data;
static int is_confined;

static const char *const paths[PATHS] = {"a", "b", "a/c", "d", "../e", "./a/../f"};

static void fill_structures(void)
{
    struct sockaddr_un *local = (struct sockaddr_un *)&structures->addresses[0];
    struct sockaddr_in *inet = (struct sockaddr_in *)&structures->addresses[1];
    for (int i = 0; i < IOVECS; i++)
        structures->iovecs[i] = (struct iovec){data + i * 777, (size_t)(i * i * 7 % 900)};
    for (int i = 0; i < 4; i++) {
        structures->messages[i] = (struct msghdr){.msg_iov = &structures->iovecs[i],
                                                  .msg_iovlen = (size_t)i + 1,
                                                  .msg_control = i & 1 ? data + 512 * i : NULL,
                                                  .msg_controllen = i & 1 ? 128 : 0};
        structures->times[i].nsec = (int64_t[]){0, 1000, 300000, 2000000}[i];
        structures->futexes[i].address = (uint64_t)(uintptr_t)(data + 64 * i);
        structures->futexes[i].flags = 2; /* 32 bits */
    }
    structures->messages[2].msg_name = local;
    structures->messages[2].msg_namelen = sizeof *local;
    local->sun_family = AF_UNIX;
    strcpy(local->sun_path, "a");
    inet->sin_family = AF_INET;
    inet->sin_port = htons(1);
    inet->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    structures->addresses[2].ss_family = AF_INET6;
    structures->event.events = EPOLLIN | EPOLLOUT;
    structures->open_how[0] = O_CREAT | O_RDWR;
    structures->open_how[1] = 0600;
    for (int i = 0; i < SLOTS; i++)
        structures->files[i] = i & 1 ? -1 : FIRST_FILE + i;
    for (int i = 0; i < PATHS; i++)
        strcpy(structures->paths[i], paths[i]);
}

static void make_arena(void)
{
    size_t whole = 5 * PAGE + DATA_SIZE; /* guard, structures, guard, canary, data, canary */
    char *memory = mmap(NULL, whole + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    HOLDS(memory != MAP_FAILED);
    structures = (void *)(memory + PAGE);
    data = memory + 4 * PAGE;
    HOLDS(mprotect(structures, PAGE, PROT_READ | PROT_WRITE) == 0);
    HOLDS(mprotect(data - PAGE, DATA_SIZE + 2 * PAGE, PROT_READ | PROT_WRITE) == 0);
    memset(data - PAGE, CANARY, DATA_SIZE + 2 * PAGE);
    fill_structures();
    HOLDS(mprotect(structures, PAGE, PROT_READ) == 0);
}

static void check_canaries(void)
{
    for (int i = 0; i < PAGE; i++)
        HOLDS((uint8_t)data[i - PAGE] == CANARY && (uint8_t)data[DATA_SIZE + i] == CANARY);
}

/* ---- files ---- */

static void place_file(int fd, int index)
{
    HOLDS(fd >= 0 && dup2(fd, FIRST_FILE + index) >= 0);
    close(fd);
}

static void place_two(const int *fds, int index)
{
    place_file(fds[0], index);
    place_file(fds[1], index + 1);
}

/* A file that cannot grow: nobody can fill the machine's memory with it. */
static int small_file(void)
{
    int fd = memfd_create("fuzz", MFD_ALLOW_SEALING);
    HOLDS(fd >= 0 && ftruncate(fd, DATA_SIZE) == 0);
    HOLDS(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SEAL) == 0);
    return fd;
}

/* The same files for each input, as if nobody had used them. */
static void make_files(void)
{
    int two[2], epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    HOLDS(pipe2(two, O_NONBLOCK) == 0);
    place_two(two, 0);
    HOLDS(pipe(two) == 0);
    place_two(two, 2);
    HOLDS(socketpair(AF_UNIX, SOCK_STREAM, 0, two) == 0);
    place_two(two, 4);
    HOLDS(socketpair(AF_UNIX, SOCK_DGRAM, 0, two) == 0);
    place_two(two, 6);
    place_file(small_file(), 8);
    place_file(small_file(), 9);
    place_file(socket(AF_INET, SOCK_DGRAM, 0), 10);
    place_file(eventfd(1, 0), 11);
    epoll_ctl(epoll, EPOLL_CTL_ADD, FIRST_FILE + 2, &event);
    place_file(epoll, 12);
    place_file(is_confined ? open("/", O_RDONLY | O_DIRECTORY) : small_file(), 13);
    place_file(is_confined ? open("g", O_CREAT | O_RDWR, 0600) : small_file(), 14);
    /* The last is for a ring. */
}

static void drop_files(void)
{
    (void)syscall(SYS_close_range, FIRST_MADE, ~0u, 0);
    if (!is_confined)
        return;
    unlink("/a/c");
    for (const char *name = "abdefg"; *name; name++) {
        char path[] = {'/', *name, 0};
        if (unlink(path) < 0)
            rmdir(path);
    }
}

/* Of the calling thread. */
static void confine(void)
{
    HOLDS(unshare(CLONE_FILES) == 0);
    if (unshare(CLONE_NEWNS | CLONE_NEWNET) < 0)
        return;
    HOLDS(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
    HOLDS(mount("fuzz", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
                "size=4m,nr_inodes=64") == 0);
    HOLDS(chroot("/tmp") == 0 && chdir("/") == 0);
    is_confined = 1;
}
