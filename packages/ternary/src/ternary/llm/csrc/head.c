/* Logits of the last hidden states, and the tokens with the largest ones. */
#include "llm.h"

#define HEAD_ROWS 4 /* activations that share one pass over the weights */

typedef struct {
    const llm_step *s;
    const llm_numeric *numeric;
    const int8_t *planes;
    const int32_t *sums;
    const float *x_scale;
    int64_t wanted, chunk;
} head_job;

static void head_chunk(void *context, int64_t index) {
    const head_job *job = context;
    const llm_model *m = job->s->model;
    const int64_t first = index * job->chunk;
    const int64_t count = m->vocabulary - first < job->chunk ? m->vocabulary - first : job->chunk;
    /* A block of weights stays in the cache for all the activations. */
    for (int64_t at = 0; at < count; at += 64) {
        const int64_t some = count - at < 64 ? count - at : 64, from = first + at;
        for (int64_t r = 0; r < job->wanted; r += HEAD_ROWS) {
            const int64_t rows = job->wanted - r < HEAD_ROWS ? job->wanted - r : HEAD_ROWS;
            job->numeric->dots(m->head + from * m->hidden, m->head_scale + from, some, m->hidden,
                               job->planes + r * 2 * m->hidden, job->sums + 2 * r, job->x_scale + r, rows,
                               job->s->logits + r * m->vocabulary + from, m->vocabulary);
        }
    }
}

/* Logits of the wanted rows of x; 0 if memory is short. */
int ternary_llm_head(const llm_step *s, const llm_numeric *numeric, const float *x) {
    const llm_model *m = s->model;
    int64_t wanted = 0;
    for (int64_t r = 0; r < s->rows; r++) wanted += s->row[r].want_logits != 0;
    if (!wanted) return 1;
    const int64_t per_row = 2 * m->hidden + 12;
    float *normed = malloc((size_t)(m->hidden * 4));
    int8_t *memory = malloc((size_t)(wanted * per_row) + 64);
    if (!normed || !memory) {
        free(normed);
        free(memory);
        return 0;
    }
    int8_t *planes = memory + (64 - (uintptr_t)memory % 64) % 64; /* loads that lie in one cache line take half as long */
    int32_t *sums = (int32_t *)(void *)(planes + wanted * 2 * m->hidden);
    float *x_scale = (float *)(void *)(sums + 2 * wanted);
    int64_t w = 0;
    for (int64_t r = 0; r < s->rows; r++) {
        if (!s->row[r].want_logits) continue;
        int8_t *to = planes + w * 2 * m->hidden;
        numeric->norm(x + r * m->hidden, m->final_norm, m->hidden, (float)m->epsilon, normed);
        x_scale[w] = numeric->widen(normed, m->hidden, to, to + m->hidden, sums + 2 * w);
        w++;
    }
    const int64_t parts = s->threads > 1 ? s->threads * 8 : 1;
    head_job job = {s, numeric, planes, sums, x_scale, wanted, ceil_div(m->vocabulary, parts)};
    ternary_in_parallel(head_chunk, &job, ceil_div(m->vocabulary, job.chunk), s->threads);
    free(normed);
    free(memory);
    return 1;
}

/* Whether token a ranks below token b: a smaller logit, or an equal one and a larger number. */
static int below(const float *logits, int64_t a, int64_t b) {
    return logits[a] < logits[b] || (logits[a] == logits[b] && a > b);
}

static void sink(const float *logits, int64_t *heap, int64_t size, int64_t at) {
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= size) return;
        if (child + 1 < size && below(logits, heap[child + 1], heap[child])) child++;
        if (!below(logits, heap[child], heap[at])) return;
        const int64_t swapped = heap[at];
        heap[at] = heap[child];
        heap[child] = swapped;
        at = child;
    }
}

/* Apply the repetition penalty to the seen tokens (each listed once), and find the k largest logits in falling order.
 * Returns how many were found: fewer than k where the vocabulary is smaller, -1 if a logit is not a number. */
EXPORT int64_t ternary_llm_top(float *logits, int64_t n, const int64_t *seen, int64_t seen_count, double penalty,
                               int64_t k, int64_t *ids, float *values) {
    const float by = (float)penalty;
    for (int64_t i = 0; i < seen_count; i++) {
        float *l = logits + seen[i];
        *l = *l > 0 ? *l / by : *l * by;
    }
    if (k > n) k = n;
    int broken = 0;
    for (int64_t i = 0; i < n; i++) broken |= logits[i] != logits[i];
    if (broken) return -1;
    for (int64_t i = 0; i < k; i++) ids[i] = i;
    for (int64_t i = k / 2 - 1; i >= 0; i--) sink(logits, ids, k, i);
    for (int64_t i = k; i < n && k; i++)
        if (logits[i] > logits[ids[0]]) {
            ids[0] = i;
            sink(logits, ids, k, 0);
        }
    for (int64_t size = k; size > 1;) { /* the smallest to the end */
        const int64_t smallest = ids[0];
        ids[0] = ids[--size];
        ids[size] = smallest;
        sink(logits, ids, size, 0);
    }
    for (int64_t i = 0; i < k; i++) values[i] = logits[ids[i]];
    return k;
}
