/* Runs the chunks of a job on the pool's threads. */
#ifndef TERNARY_THREADS_H
#define TERNARY_THREADS_H
#include "problem.h"

typedef void (*chunk_fn)(void *context, int64_t chunk);

/* Call fn(context, 0) to fn(context, chunks - 1), each once, on up to `threads` threads; return when all have ended. */
void ternary_in_parallel(chunk_fn fn, void *context, int64_t chunks, int64_t threads);

#endif
