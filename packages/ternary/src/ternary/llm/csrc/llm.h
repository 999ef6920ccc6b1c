/* A ternary language model in memory, one step through it, and the functions that each instruction set brings.
 *
 * All structures consist of 64-bit words in the order that _native.py writes them. Every float result has one order of
 * operations, so that all kernels and the numpy fallback return the same bits:
 *   - a sum over a vector of n floats has 16 lanes; lane l adds elements l, l + 16, ... in turn, and the lanes are
 *     added in halves: 8 pairs, 4 pairs, 2 pairs, 1 pair;
 *   - a score adds the products over the head's dimensions in turn; an output adds those over the positions in turn;
 *   - nothing is contracted to a fused multiply-add.
 */
#ifndef TERNARY_LLM_H
#define TERNARY_LLM_H
#include "problem.h"
#include "threads.h"

enum { SILU, RELU2 };

typedef struct {
    const uint8_t *tiles;
    const float *scale, *bias; /* one per output; bias may be NULL */
    int64_t outputs, inputs;
} llm_matrix;

typedef struct {
    const float *attention_norm, *attention_sub_norm, *feed_norm, *feed_sub_norm; /* the sub-norms may be NULL */
    llm_matrix q, k, v, o, gate, up, down;
} llm_layer;

typedef struct {
    int64_t layers, hidden, inner, heads, kv_heads, head_size, vocabulary, activation, cache_bits;
    double epsilon;
    const float *cosine, *sine; /* [positions][head_size / 2] */
    const float *final_norm;
    const int8_t *embedding, *head; /* [vocabulary][hidden] */
    const float *embedding_scale, *head_scale;
    const llm_layer *layer;
} llm_model;

/* Keys and values of one sequence. Keys: [layer][kv head][position / 16][head_size][16]; values:
 * [layer][kv head][position][head_size]; scales: [layer][kv head][position]. The capacity is a multiple of 16. */
typedef struct {
    void *keys, *values;
    float *key_scale, *value_scale;
    int64_t capacity;
} llm_cache;

/* One token of a step. Rows of one sequence follow one another in the order of their positions. */
typedef struct {
    int64_t token, position, want_logits;
    llm_cache *cache;
} llm_row;

typedef struct {
    const llm_model *model;
    int64_t path, threads, rows;
    const llm_row *row;
    void *scratch; /* of ternary_llm_scratch(model, rows) bytes */
    float *logits; /* [wanted rows][vocabulary] */
} llm_step;

/* Up to this many queries share the keys and values that they read. */
#define MOST_QUERIES 8

typedef struct {
    const llm_model *model;
    const llm_cache *cache;
    int64_t layer, kv_head;
    int64_t queries;
    const float *query[MOST_QUERIES]; /* rotated */
    int64_t length[MOST_QUERIES];     /* positions that the query sees */
    float *out[MOST_QUERIES];
    float *scores;    /* [queries][longest length rounded up to 16] */
    const void *next; /* what is read after the last head: asked for, never needed */
} attention;

typedef struct {
    void (*norm)(const float *x, const float *weight, int64_t n, float epsilon, float *y);
    void (*gate)(float *gate, const float *up, int64_t n, int64_t activation);
    void (*store)(const llm_model *m, const llm_cache *c, int64_t layer, int64_t kv_head, int64_t position,
                  const float *key, const float *value);
    void (*attend)(const attention *a);
    /* The 16-bit form of x in two planes of bytes, high * 256 + low, with their sums; returns the scale. */
    float (*widen)(const float *x, int64_t n, int8_t *high, int8_t *low, int32_t *sums);
    /* out[r][i] = the product of weight row i with activations r; planes lie 2 n bytes apart. */
    void (*dots)(const int8_t *weight, const float *scale, int64_t count, int64_t n, const int8_t *planes,
                 const int32_t *sums, const float *x_scale, int64_t rows, float *out, int64_t stride);
} llm_numeric;

extern const llm_numeric ternary_llm_portable;
#if HAVE_X86
extern const llm_numeric ternary_llm_avx2, ternary_llm_vnni;
#endif

const llm_numeric *ternary_llm_numeric(int64_t path);

/* head.c */
int ternary_llm_head(const llm_step *s, const llm_numeric *numeric, const float *x);

EXPORT int64_t ternary_llm_scratch(const llm_model *m, int64_t rows);
EXPORT int32_t ternary_llm_run(const llm_step *s);
EXPORT int64_t ternary_llm_top(float *logits, int64_t n, const int64_t *seen, int64_t seen_count, double penalty,
                               int64_t k, int64_t *ids, float *values);

#endif
