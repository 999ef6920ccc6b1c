/* A pool of threads that outlives calls. It runs one job at a time; a second caller works alone.
 *
 * A helper joins a job while it is open. The caller works too, closes the job when no chunk is left, and waits only for
 * helpers that have joined: one that the system has not run yet on a busy machine is not waited for. */
#include "threads.h"

#if HAVE_THREADS
#include <pthread.h>

static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    int started, wanted, open, running, busy, fork_handled;
    uint64_t generation;
    chunk_fn fn;
    void *context;
    int64_t next, chunks;
    ternary_ahead ahead;
    int64_t asked;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

#define SPIN 4000

static void work(void) {
    const int64_t chunks = pool.chunks;
    for (;;) {
        const int64_t chunk = __atomic_fetch_add(&pool.next, 1, __ATOMIC_RELAXED);
        if (chunk >= chunks) return;
        pool.fn(pool.context, chunk);
    }
}

static void relax(void) {
#if HAVE_X86
    _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ volatile("yield");
#endif
}

/* Wait a moment, or use it to ask for a piece of what the next job reads. An address that is no memory does no harm. */
static void wait_a_moment(const ternary_ahead *ahead) {
    if (ahead->pieces) {
        const int64_t piece = __atomic_fetch_add(&pool.asked, 1, __ATOMIC_RELAXED);
        if (piece < ahead->pieces) {
            const uintptr_t from = (uintptr_t)ahead->from + (uintptr_t)(piece % ahead->begins * ahead->stride +
                                                                        piece / ahead->begins * ASKED_BYTES);
            for (int line = 0; line < ASKED_BYTES; line += 64) __builtin_prefetch((const void *)(from + line), 0, 2);
            return;
        }
    }
    relax();
}

static void *worker(void *argument) {
    const int index = (int)(intptr_t)argument;
    uint64_t seen = 0;
    ternary_ahead ahead = {0};
    for (;;) {
        /* The next layer of a network comes at once as a rule: look for it before going to sleep. */
        for (int i = 0; i < SPIN && __atomic_load_n(&pool.generation, __ATOMIC_ACQUIRE) == seen; i++)
            wait_a_moment(&ahead);
        pthread_mutex_lock(&pool.lock);
        while (pool.generation == seen) pthread_cond_wait(&pool.wake, &pool.lock);
        seen = pool.generation;
        const int mine = pool.open && index < pool.wanted;
        if (mine) __atomic_add_fetch(&pool.running, 1, __ATOMIC_RELAXED);
        ahead = mine ? pool.ahead : (ternary_ahead){0};
        pthread_mutex_unlock(&pool.lock);
        if (!mine) continue;
        work();
        if (__atomic_sub_fetch(&pool.running, 1, __ATOMIC_ACQ_REL) == 0) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.done);
            pthread_mutex_unlock(&pool.lock);
        }
    }
    return NULL;
}

/* A forked child has none of the threads and maybe a locked mutex: it starts with a new pool. */
static void after_fork(void) {
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.done, NULL);
    pool.started = pool.wanted = pool.open = pool.running = pool.busy = 0;
    pool.generation = 0;
}

static int take_pool(chunk_fn fn, void *context, int64_t chunks, int threads, const ternary_ahead *next) {
    pthread_mutex_lock(&pool.lock);
    if (pool.busy) {
        pthread_mutex_unlock(&pool.lock);
        return 0;
    }
    pool.busy = 1;
    if (!pool.fork_handled) pool.fork_handled = pthread_atfork(NULL, NULL, after_fork) == 0;
    while (pool.started < threads - 1) {
        pthread_attr_t attributes;
        pthread_t thread;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        const int failed = pthread_create(&thread, &attributes, worker, (void *)(intptr_t)pool.started);
        pthread_attr_destroy(&attributes);
        if (failed) break; /* fewer helpers, the same result */
        pool.started++;
    }
    pool.wanted = pool.started < threads - 1 ? pool.started : threads - 1;
    pool.open = 1;
    pool.running = 0;
    pool.fn = fn;
    pool.context = context;
    pool.chunks = chunks;
    pool.next = 0;
    pool.ahead = next ? *next : (ternary_ahead){0};
    __atomic_store_n(&pool.asked, 0, __ATOMIC_RELAXED); /* a helper that waits may still count */
    __atomic_add_fetch(&pool.generation, 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    return 1;
}

void ternary_in_parallel_before(chunk_fn fn, void *context, int64_t chunks, int64_t threads, const ternary_ahead *next) {
    if (threads > chunks) threads = chunks;
    if (threads > 256) threads = 256;
    if (threads < 2 || !take_pool(fn, context, chunks, (int)threads, next)) {
        for (int64_t c = 0; c < chunks; c++) fn(context, c);
        return;
    }
    work();
    pthread_mutex_lock(&pool.lock);
    pool.open = 0;
    pthread_mutex_unlock(&pool.lock);
    const ternary_ahead ahead = next ? *next : (ternary_ahead){0};
    for (int i = 0; i < SPIN && __atomic_load_n(&pool.running, __ATOMIC_ACQUIRE); i++) wait_a_moment(&ahead);
    pthread_mutex_lock(&pool.lock);
    while (__atomic_load_n(&pool.running, __ATOMIC_ACQUIRE)) pthread_cond_wait(&pool.done, &pool.lock);
    pool.busy = 0;
    pthread_mutex_unlock(&pool.lock);
}
#else
void ternary_in_parallel_before(chunk_fn fn, void *context, int64_t chunks, int64_t threads, const ternary_ahead *next) {
    (void)threads;
    (void)next;
    for (int64_t c = 0; c < chunks; c++) fn(context, c);
}
#endif

void ternary_in_parallel(chunk_fn fn, void *context, int64_t chunks, int64_t threads) {
    ternary_in_parallel_before(fn, context, chunks, threads, NULL);
}
