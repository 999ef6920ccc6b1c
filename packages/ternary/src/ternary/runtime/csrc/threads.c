/* A pool of threads that outlives calls. It runs one job at a time; a second caller works alone.
 *
 * A helper joins a job while it is open. The caller works too, closes the job when no chunk is left, and waits only for
 * helpers that have joined: one that the system has not run yet on a busy machine is not waited for.
 *
 * Helpers join and leave by one word, the gate, and take the lock only to sleep: between the layers of a network a lock
 * that is taken for a moment would send them to sleep for longer than a job takes. */
#include "threads.h"

#if HAVE_THREADS
#include <pthread.h>

/* The gate: the helpers that work, whether the job is open, how many helpers it wants, and the number of the job. */
#define RUNNING(gate) ((gate) & 0xFFFF)
#define OPEN 0x10000u
#define WANTED(gate) ((gate) >> 17 & 0x7FFF)
#define NUMBER(gate) ((gate) >> 32)

static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    int started, fork_handled;
    int busy, sleeping, waiting; /* whether a job runs; helpers that sleep; whether the caller does */
    uint64_t gate;
    chunk_fn fn; /* this and what follows changes only while no helper works */
    void *context;
    int64_t next, chunks;
    ternary_ahead ahead;
    int64_t asked;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

#define SPIN 4000

static uint64_t gate(void) { return __atomic_load_n(&pool.gate, __ATOMIC_SEQ_CST); }

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

/* Return once there is another job than number `seen`. */
static void wait_for_a_job(uint64_t seen, const ternary_ahead *ahead) {
    /* The next layer of a network comes at once as a rule: look for it before going to sleep. */
    for (int i = 0; i < SPIN && NUMBER(gate()) == seen; i++) wait_a_moment(ahead);
    if (NUMBER(gate()) != seen) return;
    pthread_mutex_lock(&pool.lock);
    __atomic_add_fetch(&pool.sleeping, 1, __ATOMIC_SEQ_CST); /* before the look: the caller looks after it has begun */
    while (NUMBER(gate()) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
    __atomic_sub_fetch(&pool.sleeping, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&pool.lock);
}

/* Whether a helper works on the job that is there; its number. */
static int join(int index, uint64_t *seen) {
    uint64_t now = gate();
    for (;;) {
        *seen = NUMBER(now);
        if (!(now & OPEN) || index >= (int)WANTED(now)) return 0;
        if (__atomic_compare_exchange_n(&pool.gate, &now, now + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return 1;
    }
}

static void *worker(void *argument) {
    const int index = (int)(intptr_t)argument;
    uint64_t seen = 0;
    ternary_ahead ahead = {0};
    for (;;) {
        wait_for_a_job(seen, &ahead);
        ahead = (ternary_ahead){0};
        if (!join(index, &seen)) continue;
        ahead = pool.ahead;
        work();
        const uint64_t left = __atomic_sub_fetch(&pool.gate, 1, __ATOMIC_SEQ_CST);
        if (!RUNNING(left) && __atomic_load_n(&pool.waiting, __ATOMIC_SEQ_CST)) {
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
    pool.started = pool.busy = pool.sleeping = pool.waiting = 0;
    pool.gate = 0;
}

/* Start helpers until there are so many; with fewer the result is the same. */
static void start_helpers(int count) {
    if (!pool.fork_handled) pool.fork_handled = pthread_atfork(NULL, NULL, after_fork) == 0;
    while (pool.started < count) {
        pthread_attr_t attributes;
        pthread_t thread;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        const int failed = pthread_create(&thread, &attributes, worker, (void *)(intptr_t)pool.started);
        pthread_attr_destroy(&attributes);
        if (failed) return;
        pool.started++;
    }
}

static int take_pool(chunk_fn fn, void *context, int64_t chunks, int threads, const ternary_ahead *next) {
    if (__atomic_exchange_n(&pool.busy, 1, __ATOMIC_ACQUIRE)) return 0;
    start_helpers(threads - 1);
    const uint64_t wanted = (uint64_t)(pool.started < threads - 1 ? pool.started : threads - 1);
    pool.fn = fn;
    pool.context = context;
    pool.chunks = chunks;
    pool.next = 0;
    pool.ahead = next ? *next : (ternary_ahead){0};
    __atomic_store_n(&pool.asked, 0, __ATOMIC_RELAXED); /* a helper that waits may still count */
    __atomic_store_n(&pool.gate, (NUMBER(gate()) + 1) << 32 | wanted << 17 | OPEN, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&pool.sleeping, __ATOMIC_SEQ_CST)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.lock);
    }
    return 1;
}

/* Let nobody join any more, and return when those that have joined are done. */
static void close_job(const ternary_ahead *ahead) {
    __atomic_and_fetch(&pool.gate, ~(uint64_t)OPEN, __ATOMIC_SEQ_CST);
    for (int i = 0; i < SPIN && RUNNING(gate()); i++) wait_a_moment(ahead);
    if (!RUNNING(gate())) return;
    pthread_mutex_lock(&pool.lock);
    __atomic_store_n(&pool.waiting, 1, __ATOMIC_SEQ_CST); /* before the look: a helper looks after it has left */
    while (RUNNING(gate())) pthread_cond_wait(&pool.done, &pool.lock);
    __atomic_store_n(&pool.waiting, 0, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&pool.lock);
}

void ternary_in_parallel_before(chunk_fn fn, void *context, int64_t chunks, int64_t threads, const ternary_ahead *next) {
    if (threads > chunks) threads = chunks;
    if (threads > 256) threads = 256;
    if (threads < 2 || !take_pool(fn, context, chunks, (int)threads, next)) {
        for (int64_t c = 0; c < chunks; c++) fn(context, c);
        return;
    }
    work();
    const ternary_ahead ahead = next ? *next : (ternary_ahead){0};
    close_job(&ahead);
    __atomic_store_n(&pool.busy, 0, __ATOMIC_RELEASE);
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
