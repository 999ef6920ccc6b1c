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

static void *worker(void *argument) {
    const int index = (int)(intptr_t)argument;
    uint64_t seen = 0;
    for (;;) {
        /* The next layer of a network comes at once as a rule: look for it before going to sleep. */
        for (int i = 0; i < SPIN && __atomic_load_n(&pool.generation, __ATOMIC_ACQUIRE) == seen; i++) relax();
        pthread_mutex_lock(&pool.lock);
        while (pool.generation == seen) pthread_cond_wait(&pool.wake, &pool.lock);
        seen = pool.generation;
        const int mine = pool.open && index < pool.wanted;
        if (mine) __atomic_add_fetch(&pool.running, 1, __ATOMIC_RELAXED);
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

static int take_pool(chunk_fn fn, void *context, int64_t chunks, int threads) {
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
    __atomic_add_fetch(&pool.generation, 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    return 1;
}

void ternary_in_parallel(chunk_fn fn, void *context, int64_t chunks, int64_t threads) {
    if (threads > chunks) threads = chunks;
    if (threads > 256) threads = 256;
    if (threads < 2 || !take_pool(fn, context, chunks, (int)threads)) {
        for (int64_t c = 0; c < chunks; c++) fn(context, c);
        return;
    }
    work();
    pthread_mutex_lock(&pool.lock);
    pool.open = 0;
    pthread_mutex_unlock(&pool.lock);
    for (int i = 0; i < SPIN && __atomic_load_n(&pool.running, __ATOMIC_ACQUIRE); i++) relax();
    pthread_mutex_lock(&pool.lock);
    while (__atomic_load_n(&pool.running, __ATOMIC_ACQUIRE)) pthread_cond_wait(&pool.done, &pool.lock);
    pool.busy = 0;
    pthread_mutex_unlock(&pool.lock);
}
#else
void ternary_in_parallel(chunk_fn fn, void *context, int64_t chunks, int64_t threads) {
    (void)threads;
    for (int64_t c = 0; c < chunks; c++) fn(context, c);
}
#endif
