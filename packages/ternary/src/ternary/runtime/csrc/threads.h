/* Runs the chunks of a job on the pool's threads. */
#ifndef TERNARY_THREADS_H
#define TERNARY_THREADS_H
#include "problem.h"

typedef void (*chunk_fn)(void *context, int64_t chunk);

/* Call fn(context, 0) to fn(context, chunks - 1), each once, on up to `threads` threads; return when all have ended. */
/* What the next job reads first: `begins` places, `stride` bytes apart, `pieces` pieces of ASKED_BYTES in turn. */
typedef struct {
    const char *from;
    int64_t stride, begins, pieces;
} ternary_ahead;

#define ASKED_BYTES 1024

void ternary_in_parallel(chunk_fn fn, void *context, int64_t chunks, int64_t threads);

/* The same; a thread that waits for the others asks meanwhile for what the next job reads. */
void ternary_in_parallel_before(chunk_fn fn, void *context, int64_t chunks, int64_t threads, const ternary_ahead *next);

#endif
