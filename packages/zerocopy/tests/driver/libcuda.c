/* A CUDA driver without a GPU: the functions that zerocopy calls, over shared memory, as strict as the documents permit.

   Device memory is a memory file, full of poison, so the kernel counts its users and frees it with the last one
   (cuMemRelease: "when all outstanding mappings to the memory are unmapped and when all outstanding references to the
   handle (including it's shareable counterparts) are also released"). A mapping has no access until it is granted
   (cuMemUnmap: "all mappings start with no accessibility setup"), and a write without access ends the process. A copy
   reads pinned memory at the next synchronization; a kernel runs then too. A process that was forked cannot use the driver. What a program must not do is written to the file "violations"
   in the folder EMULATED_DRIVER. Further variables: EMULATED_WITHOUT names what a device lacks, EMULATED_MEMORY its
   bytes, EMULATED_DAMAGE makes copies arrive wrong, EMULATED_SLOW is the time of a copy in milliseconds. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define STEP (2ul << 20)
#define MOST 512

typedef unsigned long long address_t;
struct properties { int type, handles, place, id; void *windows; unsigned char flags[8]; };
struct access { int place, id, flags; };
struct memory { int fd; size_t size; };
struct mapping { address_t at; size_t size; int mapped, writable; };
struct work { address_t device; char *host; size_t size; int out; };

static struct memory memories[MOST];
static struct mapping mappings[MOST];
static struct work queue[MOST];
static struct { char *at; size_t size; } pinned[MOST];
static int queued, owner, capturing, streams;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t used;
static __thread int contexts, capture_mode;

static void violation(const char *what) {
    char path[4096];
    snprintf(path, sizeof path, "%s/violations", getenv("EMULATED_DRIVER"));
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (fd < 0 || dprintf(fd, "%d: %s\n", getpid(), what) < 0) abort();
    close(fd);
}

static int lacks(const char *what) {
    const char *list = getenv("EMULATED_WITHOUT");
    return list && strstr(list, what);
}

static int ready(int in_context) {
    if (owner != getpid()) return 3;
    return in_context && !contexts ? 201 : 0;
}

static struct mapping *mapping_of(address_t at, size_t size) {
    for (int i = 0; i < MOST; i++)
        if (mappings[i].at && at >= mappings[i].at && at + size <= mappings[i].at + mappings[i].size) return &mappings[i];
    return NULL;
}

static int is_pinned(const char *at, size_t size) {
    for (int i = 0; i < MOST; i++)
        if (pinned[i].at && at >= pinned[i].at && at + size <= pinned[i].at + pinned[i].size) return 1;
    return 0;
}

#define NEED(in_context) do { int status_ = ready(in_context); if (status_) return status_; } while (0)

int cuGetErrorName(int status, const char **name) {
    *name = status == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : status == 801 ? "CUDA_ERROR_NOT_SUPPORTED" : "CUDA_ERROR";
    return 0;
}

int cuInit(unsigned flags) {
    if (owner && owner != getpid()) return 3;
    if (lacks("device")) return 100;
    owner = getpid();
    return flags;
}

int cuDeviceGet(int *device, int index) {
    NEED(0);
    *device = index;
    return index < 0 || index > 1 ? 101 : 0;
}

int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    NEED(0);
    memset(uuid, 0, 16);
    uuid[0] = 'a' + (visible ? atoi(visible) : device);
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    NEED(0);
    *value = attribute == 102 || attribute == 103;
    return device > 1 ? 101 : 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    NEED(0);
    *context = (void *)(size_t)(device + 1);
    return 0;
}

int cuCtxPushCurrent_v2(void *context) {
    NEED(0);
    contexts++;
    return context ? 0 : 201;
}

int cuCtxPopCurrent_v2(void **context) {
    NEED(1);
    contexts--;
    *context = NULL;
    return 0;
}

int cuMemGetAllocationGranularity(size_t *step, const struct properties *wanted, int option) {
    NEED(0);
    *step = STEP;
    return wanted->type == 1 && wanted->place == 1 && !option ? 0 : 1;
}

int cuMemCreate(address_t *handle, size_t size, const struct properties *wanted, address_t flags) {
    NEED(1);
    if (!size || size % STEP || wanted->type != 1 || wanted->handles != 1 || wanted->place != 1 || flags) return 1;
    if (used + size > 1ul << 30) return 2;
    for (int i = 0; i < MOST; i++) {
        if (memories[i].size) continue;
        char name[200];
        snprintf(name, sizeof name, "emulated-device-memory of %.150s", strrchr(getenv("EMULATED_DRIVER"), '/') + 1);
        int fd = memfd_create(name, MFD_CLOEXEC);
        if (fd < 0 || ftruncate(fd, size)) return 2;
        char *poison = mmap(NULL, size, PROT_WRITE, MAP_SHARED, fd, 0);
        memset(poison, 0xDB, size);
        munmap(poison, size);
        memories[i].fd = fd;
        memories[i].size = size;
        used += size;
        *handle = i + 1;
        return 0;
    }
    return 2;
}

int cuMemExportToShareableHandle(int *fd, address_t handle, int type, address_t flags) {
    NEED(0);
    if (type != 1 || flags || !handle || !memories[handle - 1].size) return 1;
    *fd = fcntl(memories[handle - 1].fd, F_DUPFD_CLOEXEC, 3);
    return 0;
}

int cuMemImportFromShareableHandle(address_t *handle, void *shared, int type) {
    struct stat status;
    NEED(1);
    if (type != 1 || fstat((int)(size_t)shared, &status) || !S_ISREG(status.st_mode)) return 1;
    for (int i = 0; i < MOST; i++)
        if (!memories[i].size) {
            memories[i].fd = fcntl((int)(size_t)shared, F_DUPFD_CLOEXEC, 3);
            memories[i].size = status.st_size;
            *handle = i + 1;
            return 0;
        }
    return 2;
}

int cuMemRelease(address_t handle) {
    NEED(0);
    if (!handle || !memories[handle - 1].size) {
        violation("a handle was released twice");
        return 1;
    }
    close(memories[handle - 1].fd);
    memories[handle - 1].size = 0;
    return 0;
}

int cuMemAddressReserve(address_t *at, size_t size, size_t alignment, address_t wanted, address_t flags) {
    NEED(0);
    if (!size || size % STEP || alignment || wanted || flags) return 1;
    for (int i = 0; i < MOST; i++)
        if (!mappings[i].at) {
            void *place = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (place == MAP_FAILED) return 2;
            mappings[i] = (struct mapping){(address_t)place, size, 0, 0};
            *at = mappings[i].at;
            return 0;
        }
    return 2;
}

int cuMemMap(address_t at, size_t size, size_t offset, address_t handle, address_t flags) {
    NEED(0);
    struct mapping *here = mapping_of(at, size);
    if (!here || here->mapped || offset || flags || !handle || memories[handle - 1].size != size) return 1;
    mmap((void *)at, size, PROT_NONE, MAP_SHARED | MAP_FIXED, memories[handle - 1].fd, 0);
    here->mapped = 1;
    return 0;
}

int cuMemSetAccess(address_t at, size_t size, const struct access *wanted, size_t count) {
    NEED(1);
    struct mapping *here = mapping_of(at, size);
    if (!here || !here->mapped || count != 1 || wanted->place != 1) return 1;
    here->writable = wanted->flags == 3;
    return mprotect((void *)at, size, PROT_READ | (here->writable ? PROT_WRITE : 0)) ? 1 : 0;
}

int cuMemUnmap(address_t at, size_t size) {
    NEED(0);
    struct mapping *here = mapping_of(at, size);
    if (!here || !here->mapped || here->at != at || here->size != size) return 1;
    for (int i = 0; i < queued; i++)
        if (queue[i].device >= at && queue[i].device < at + size) violation("memory was unmapped while work on it was queued");
    mmap((void *)at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    here->mapped = here->writable = 0;
    return 0;
}

int cuMemAddressFree(address_t at, size_t size) {
    NEED(0);
    struct mapping *here = mapping_of(at, size);
    if (!here || here->mapped || here->at != at || here->size != size) return 1;
    here->at = 0;
    return munmap((void *)at, size) ? 1 : 0;
}

int cuMemHostRegister_v2(void *at, size_t size, unsigned flags) {
    NEED(1);
    if ((flags != 8 && flags) || msync((void *)((size_t)at & ~4095ul), size, MS_ASYNC)) return 1;
    pthread_mutex_lock(&lock);
    int free = -1;
    for (int i = 0; i < MOST; i++) {
        if (!pinned[i].at) free = i;
        else if ((char *)at < pinned[i].at + pinned[i].size && pinned[i].at < (char *)at + size)
            violation("host memory was pinned twice");
    }
    if (free >= 0) pinned[free].at = at, pinned[free].size = size;
    pthread_mutex_unlock(&lock);
    return free < 0 ? 2 : 0;
}

int cuMemHostUnregister(void *at) {
    NEED(1);
    int found = 713;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST; i++) {
        if (!at || pinned[i].at != at) continue;
        for (int j = 0; j < queued; j++) {
            char *used = queue[j].host;
            if (used && used >= pinned[i].at && used < pinned[i].at + pinned[i].size)
                violation("memory was unpinned while a copy was queued");
        }
        pinned[i].at = NULL;
        found = 0;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

static void run(void) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < queued; i++) {
        struct work *one = &queue[i];
        if (one->host && one->out)
            memcpy(one->host, (void *)one->device, one->size);
        else if (one->host)
            memcpy((void *)one->device, one->host, one->size);
        else
            for (volatile char *byte = (char *)one->device; byte < (char *)one->device + one->size; byte += 4096)
                (void)*byte;
    }
    queued = 0;
    pthread_mutex_unlock(&lock);
}

static int enqueue(address_t device, char *host, size_t size, int out) {
    if (queued >= MOST / 2 || (host && !is_pinned(host, size))) run();
    pthread_mutex_lock(&lock);
    queue[queued++] = (struct work){device, host, size, out};
    pthread_mutex_unlock(&lock);
    if (host && !is_pinned(host, size)) run();
    return 0;
}

int cuMemcpyHtoDAsync_v2(address_t to, char *from, size_t size, void *stream) {
    NEED(1);
    struct mapping *here = mapping_of(to, size);
    if (!here || !here->writable || (stream && stream != &streams)) return 1;
    return enqueue(to, from, size, 0);
}

int cuMemcpyDtoHAsync_v2(char *to, address_t from, size_t size, void *stream) {
    NEED(1);
    if (!mapping_of(from, size) || stream != &streams) return 1;
    return enqueue(from, to, size, 1);
}

int cuStreamSynchronize(void *stream) {
    NEED(1);
    run();
    return stream && stream != &streams;
}

int cuStreamIsCapturing(void *stream, int *status) {
    NEED(1);
    *status = capturing;
    return stream && stream != &streams;
}

int cuStreamCreate(void **stream, unsigned flags) {
    NEED(1);
    *stream = &streams;
    streams++;
    return flags == 1 ? 0 : 1;
}

int cuStreamDestroy_v2(void *stream) {
    NEED(1);
    if (stream != &streams || !streams) return 400;
    streams--;
    return 0;
}

int cuEventCreate(void **event, unsigned flags) {
    NEED(1);
    *event = calloc(1, 1);
    return flags == 2 ? 0 : 1;
}

int cuEventRecord(void *event, void *stream) {
    NEED(1);
    *(char *)event = 1;
    return stream && stream != &streams;
}

int cuEventSynchronize(void *event) {
    NEED(1);
    if (*(char *)event) run();
    *(char *)event = 0;
    return 0;
}

int cuEventDestroy_v2(void *event) {
    NEED(1);
    free(event);
    return 0;
}

int cuThreadExchangeStreamCaptureMode(int *mode) {
    NEED(0);
    int before = capture_mode;
    capture_mode = *mode;
    *mode = before;
    return 0;
}

int cuCtxSynchronize(void) {
    NEED(1);
    if (capturing) violation("a graph that was being captured became invalid");  /* seen on a GPU, in every mode */
    if (capturing) return 900;
    run();
    return 0;
}

/* What only tests call: queue a kernel that reads memory, begin or end the capture of a graph, count queued work. */
void emulated_launch(address_t at, size_t size) { enqueue(at, NULL, size, 0); }
void emulated_capture(int on) { capturing = on; }
int emulated_queued(void) { return queued; }
