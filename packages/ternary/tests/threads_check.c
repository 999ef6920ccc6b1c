/* Runs many short jobs on the pool from several threads, with pauses in which helpers go to sleep; for sanitizers. */
#include "threads.h"
#include <pthread.h>
#include <stdio.h>
#include <time.h>

enum { CALLERS = 3, JOBS = 4000, MOST = 64 };

typedef struct {
    int count[MOST];
    int64_t sum;
} job;

static int wrong = 0;

static void one(void *context, int64_t chunk) {
    job *j = context;
    j->count[chunk]++;
    for (int64_t i = 0; i < chunk % 7 * 100; i++) __atomic_add_fetch(&j->sum, 1, __ATOMIC_RELAXED);
}

static void *call(void *given) {
    uint32_t state = *(const uint32_t *)given;
    for (int i = 0; i < JOBS; i++) {
        state = state * 1664525u + 1013904223u;
        const int64_t chunks = 1 + (state >> 8) % MOST, threads = 1 + (state >> 20) % 5;
        job j = {{0}, 0};
        ternary_in_parallel(one, &j, chunks, threads);
        for (int64_t c = 0; c < MOST; c++)
            if (j.count[c] != (c < chunks)) __atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
        const struct timespec pause = {0, (state >> 4) % 400000};
        if (i % 97 == 0) nanosleep(&pause, NULL);
    }
    return NULL;
}

int main(void) {
    pthread_t caller[CALLERS];
    uint32_t seed[CALLERS];
    for (int i = 0; i < CALLERS; i++) {
        seed[i] = (uint32_t)i + 1;
        if (pthread_create(&caller[i], NULL, call, &seed[i])) return 2;
    }
    for (int i = 0; i < CALLERS; i++) pthread_join(caller[i], NULL);
    printf("%d jobs, %d wrong\n", CALLERS * JOBS, wrong);
    return wrong != 0;
}
