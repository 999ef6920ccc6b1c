/* The bodies of norms, attention and the head in plain C. Each instruction set has a file that defines how many registers
 * 16 floats take, PARTS, and compiles them. */
#ifndef TERNARY_LLM_NUMERIC_H
#define TERNARY_LLM_NUMERIC_H
#include "llm.h"
#include <math.h>

#define LANES 16
#define PART (LANES / PARTS)
/* As long as a register: of longer ones GCC keeps every result in memory, and reads it back 8 bytes at a time. */
typedef float floats __attribute__((vector_size(4 * PART)));
typedef int32_t words __attribute__((vector_size(4 * PART)));
typedef int16_t shorts __attribute__((vector_size(2 * PART)));
typedef int8_t bytes __attribute__((vector_size(PART)));

INLINE void load(floats *to, const float *from) { memcpy(to, from, sizeof *to); }
INLINE void keep(float *to, const floats *from) { memcpy(to, from, sizeof *from); }
INLINE void choose(floats *to, const words *mask, const floats *other) {
    const words bits = ((words)*to & *mask) | ((words)*other & ~*mask);
    *to = (floats)bits;
}

INLINE float add_lanes(const floats *parts) {
    float a[LANES];
    for (int p = 0; p < PARTS; p++) keep(a + p * PART, parts + p);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) a[i] += a[i + half];
    return a[0];
}

/* e to the power of x, relative error below 2e-7; 0 below -87, and x is cut at 88. */
INLINE void exponential(floats *x) {
    const floats least = (floats){0} - 87.0f, most = (floats){0} + 88.0f, magic = (floats){0} + 12582912.0f;
    const words above = *x >= least, below = *x <= most;
    floats v = *x;
    choose(&v, &above, &least);
    choose(&v, &below, &most);
    floats n = v * 1.44269504f + magic;
    const words power = (words)n - 0x4B400000;
    n = n - magic;
    const floats r = (v - n * 0.693145752f) - n * 1.42860677e-6f;
    floats p = r * 1.3888889e-3f + 8.3333333e-3f;
    p = p * r + 4.1666667e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    p = p * (floats)((power + 127) << 23);
    const floats zero = {0};
    choose(&p, &above, &zero);
    *x = p;
}

INLINE void norm_body(const float *x, const float *weight, int64_t n, float epsilon, float *y) {
    floats sum[PARTS] = {{0}}, v, w;
    for (int64_t i = 0; i < n; i += LANES) UNROLL for (int p = 0; p < PARTS; p++) {
            load(&v, x + i + p * PART);
            sum[p] += v * v;
        }
    const float inverse = 1.0f / sqrtf(add_lanes(sum) / (float)n + epsilon);
    for (int64_t i = 0; i < n; i += PART) {
        load(&v, x + i);
        load(&w, weight + i);
        v = w * (v * inverse);
        keep(y + i, &v);
    }
}

/* gate = activation(gate) * up */
INLINE void gate_body(float *gate, const float *up, int64_t n, int64_t activation) {
    const floats zero = {0};
    for (int64_t i = 0; i < n; i += PART) {
        floats g, u;
        load(&g, gate + i);
        load(&u, up + i);
        if (activation == RELU2) {
            const words positive = g > zero;
            choose(&g, &positive, &zero);
            g = g * g * u;
        } else {
            floats e = -g;
            exponential(&e);
            g = g / (e + 1.0f) * u;
        }
        keep(gate + i, &g);
    }
}

INLINE float largest(const float *x, int64_t n) {
    float most = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        const float v = fabsf(x[i]);
        most = v > most ? v : most;
    }
    return most;
}

/* |v| <= 2^22: rounded half to even. */
INLINE int32_t nearest(float v) {
    const float shifted = v + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    return bits - 0x4B400000;
}

#define TINY 1e-30f

INLINE float inverse_of(float most, float limit) { return most >= TINY ? limit / most : 0.0f; }

INLINE void store_body(const llm_model *m, const llm_cache *c, int64_t layer, int64_t kv_head, int64_t position,
                       const float *key, const float *value) {
    const int64_t d = m->head_size, at = (layer * m->kv_heads + kv_head) * c->capacity;
    const int64_t block = (at + position / LANES * LANES) * d + position % LANES, line = (at + position) * d;
    const float limit = m->cache_bits == 8 ? 127.0f : 32767.0f;
    const float k_most = largest(key, d), v_most = largest(value, d);
    const float k_inverse = inverse_of(k_most, limit), v_inverse = inverse_of(v_most, limit);
    c->key_scale[at + position] = k_most >= TINY ? k_most / limit : 0.0f;
    c->value_scale[at + position] = v_most >= TINY ? v_most / limit : 0.0f;
    if (m->cache_bits == 8) {
        int8_t *k = (int8_t *)c->keys + block, *v = (int8_t *)c->values + line;
        for (int64_t i = 0; i < d; i++) {
            k[i * LANES] = (int8_t)nearest(key[i] * k_inverse);
            v[i] = (int8_t)nearest(value[i] * v_inverse);
        }
    } else {
        int16_t *k = (int16_t *)c->keys + block, *v = (int16_t *)c->values + line;
        for (int64_t i = 0; i < d; i++) {
            k[i * LANES] = (int16_t)nearest(key[i] * k_inverse);
            v[i] = (int16_t)nearest(value[i] * v_inverse);
        }
    }
}

/* Bytes of a number in the cache. */
enum { NARROW = 1, WIDE = 2 };

/* Positions that attention works on at a time. Meanwhile it asks for those that it reads some kilobytes later: the
 * processor itself looks ahead only to the end of a page, and not from the keys to the values. */
#define SOME (2 * LANES)
#define BYTES_BEHIND 8192

/* Address of what is read some kilobytes after position t, the values' positions counted behind the keys'. */
INLINE uintptr_t read_later(const attention *a, int64_t t, int64_t padded, const int width) {
    const int64_t bytes = a->model->head_size * width, far = BYTES_BEHIND / bytes / SOME * SOME;
    const int64_t at = (a->layer * a->model->kv_heads + a->kv_head) * a->cache->capacity;
    const uintptr_t keys = (uintptr_t)a->cache->keys, values = (uintptr_t)a->cache->values;
    t += far > SOME ? far : SOME;
    if (t < padded) return keys + (uintptr_t)((at + t) * bytes);
    t -= padded;
    if (t < padded) return values + (uintptr_t)((at + t) * bytes);
    t -= padded;
    if (a->kv_head + 1 == a->model->kv_heads) return (uintptr_t)a->next + (uintptr_t)(t * bytes);
    return keys + (uintptr_t)((at + a->cache->capacity + t) * bytes);
}

/* Ask for a cache line, with the first of its numbers: `at` counts numbers. */
INLINE void request(uintptr_t from, int64_t at, const int width) {
    const uintptr_t byte = (uintptr_t)(at * width);
    if (byte % 64 == 0) __builtin_prefetch((const void *)(from + byte), 0, 2);
}

/* Numbers of the cache from element `at` on, as floats. */
INLINE void cached(floats *to, const void *from, int64_t at, const int width) {
    words w;
#if HAVE_X86 && PARTS < 4 && !defined(__clang__) /* one instruction, of which GCC makes five; clang makes one */
    if (width == WIDE) __asm__("vpmovsxwd %1, %0" : "=v"(w) : "m"(*(const shorts *)((const int16_t *)from + at)));
    else __asm__("vpmovsxbd %1, %0" : "=v"(w) : "m"(*(const bytes *)((const int8_t *)from + at)));
#else
    if (width == WIDE) {
        shorts v;
        memcpy(&v, (const int16_t *)from + at, sizeof v);
        w = __builtin_convertvector(v, words);
    } else {
        bytes v;
        memcpy(&v, (const int8_t *)from + at, sizeof v);
        w = __builtin_convertvector(v, words);
    }
#endif
    *to = __builtin_convertvector(w, floats);
}

INLINE void softmax_body(float *score, int64_t length, int64_t padded) {
    float most = -INFINITY;
    for (int64_t t = 0; t < length; t++) most = score[t] > most ? score[t] : most;
    for (int64_t t = length; t < padded; t++) score[t] = -INFINITY;
    floats sum[PARTS] = {{0}}, v;
    for (int64_t t = 0; t < padded; t += LANES) UNROLL for (int p = 0; p < PARTS; p++) {
            load(&v, score + t + p * PART);
            v = v - most;
            exponential(&v);
            sum[p] += v;
            keep(score + t + p * PART, &v);
        }
    const float total = add_lanes(sum);
    for (int64_t t = 0; t < padded; t += PART) {
        load(&v, score + t);
        v = v / total;
        keep(score + t, &v);
    }
}

/* Vectors side by side, which keep sums from waiting for one another: with four queries, as many sums as leave registers
 * for what they are made of. */
#define MOST_KEYS 2
#define MOST_COLUMNS (PARTS == 1 ? 4 : 2)

/* Scores of some queries with the positions of `keys` vectors from t on. */
INLINE void score_body(const attention *a, const int first, const int count, const int width, const int keys, int64_t t,
                       uintptr_t later, float *const *scores) {
    const int64_t d = a->model->head_size, at = (a->layer * a->model->kv_heads + a->kv_head) * a->cache->capacity;
    const float scale = 1.0f / sqrtf((float)d);
    floats sum[MOST_KEYS][4] = {{{0}}}, k;
    for (int64_t j = 0; j < d; j++) UNROLL for (int b = 0; b < keys; b++) {
            const int64_t block = at + (t + b * PART) / LANES * LANES, lane = (t + b * PART) % LANES;
            request(later, (b * d + j) * PART, width);
            cached(&k, a->cache->keys, block * d + j * LANES + lane, width);
            UNROLL for (int i = 0; i < count; i++) sum[b][i] += k * a->query[first + i][j];
        }
    UNROLL for (int b = 0; b < keys; b++) {
        load(&k, a->cache->key_scale + at + t + b * PART);
        UNROLL for (int i = 0; i < count; i++) {
            sum[b][i] = sum[b][i] * k * scale;
            keep(scores[i] + t + b * PART, &sum[b][i]);
        }
    }
}

/* Outputs j to j + PART * `columns` of some queries: the values of the positions from t to `end` times their scores are
 * added to those of the positions before. */
INLINE void mix_body(const attention *a, const int first, const int count, const int width, const int columns, int64_t j,
                     int64_t t, int64_t end, uintptr_t later, float *const *scores) {
    const int64_t d = a->model->head_size, at = (a->layer * a->model->kv_heads + a->kv_head) * a->cache->capacity;
    floats sum[MOST_COLUMNS][4] = {{{0}}}, v;
    if (t)
        UNROLL for (int c = 0; c < columns; c++)
            UNROLL for (int i = 0; i < count; i++) load(&sum[c][i], a->out[first + i] + j + c * PART);
    for (const int64_t begin = t; t < end; t++) UNROLL for (int c = 0; c < columns; c++) {
            request(later, (t - begin) * d + j + c * PART, width);
            cached(&v, a->cache->values, (at + t) * d + j + c * PART, width);
            UNROLL for (int i = 0; i < count; i++) sum[c][i] += v * scores[i][t];
        }
    UNROLL for (int c = 0; c < columns; c++)
        UNROLL for (int i = 0; i < count; i++) keep(a->out[first + i] + j + c * PART, &sum[c][i]);
}

INLINE void attend_some(const attention *a, const int first, const int count, const int width, int64_t padded) {
    const int64_t d = a->model->head_size, at = (a->layer * a->model->kv_heads + a->kv_head) * a->cache->capacity;
    float *scores[4];
    for (int i = 0; i < count; i++) scores[i] = a->scores + (first + i) * padded;
    int64_t t = 0, longest = 0;
    for (; t + MOST_KEYS * PART <= padded; t += MOST_KEYS * PART)
        score_body(a, first, count, width, MOST_KEYS, t, read_later(a, t, padded, width), scores);
    for (; t < padded; t += PART) score_body(a, first, count, width, 1, t, read_later(a, t, padded, width), scores);
    for (int i = 0; i < count; i++) {
        const int64_t length = a->length[first + i];
        softmax_body(scores[i], length, padded);
        longest = length > longest ? length : longest;
        const float *value_scale = a->cache->value_scale + at;
        for (t = 0; t < length; t++) scores[i][t] = scores[i][t] * value_scale[t];
    }
    for (t = 0; t < longest; t += SOME) {
        const int64_t end = t + SOME < longest ? t + SOME : longest;
        const uintptr_t later = read_later(a, padded + t, padded, width);
        int64_t j = 0;
        for (; j + MOST_COLUMNS * PART <= d; j += MOST_COLUMNS * PART)
            mix_body(a, first, count, width, MOST_COLUMNS, j, t, end, later, scores);
        for (; j < d; j += PART) mix_body(a, first, count, width, 1, j, t, end, later, scores);
    }
}

INLINE void attend_body(const attention *a, const int width) {
    int64_t longest = 0;
    for (int64_t i = 0; i < a->queries; i++) longest = a->length[i] > longest ? a->length[i] : longest;
    const int64_t padded = ceil_div(longest, LANES) * LANES;
    int i = 0;
    for (; i + 4 <= a->queries; i += 4) attend_some(a, i, 4, width, padded);
    for (; i + 2 <= a->queries; i += 2) attend_some(a, i, 2, width, padded);
    for (; i < a->queries; i++) attend_some(a, i, 1, width, padded);
}

INLINE float widen_body(const float *x, int64_t n, int8_t *high, int8_t *low, int32_t *sums) {
    const float most = largest(x, n), inverse = inverse_of(most, 32512.0f);
    int32_t high_sum = 0, low_sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const int32_t v = nearest(x[i] * inverse), h = (v + 128) >> 8;
        high[i] = (int8_t)h;
        low[i] = (int8_t)(v - h * 256);
        high_sum += h;
        low_sum += v - h * 256;
    }
    sums[0] = high_sum;
    sums[1] = low_sum;
    return most >= TINY ? most / 32512.0f : 0.0f;
}

INLINE float logit(int32_t high, int32_t low, float x_scale, float scale) {
    return (float)((int64_t)high * 256 + low) * x_scale * scale;
}

INLINE void dots_body(const int8_t *weight, const float *scale, int64_t count, int64_t n, const int8_t *planes,
                      const float *x_scale, int64_t rows, float *out, int64_t stride) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t r = 0; r < rows; r++) {
            const int8_t *w = weight + i * n, *x = planes + r * 2 * n;
            int32_t high = 0, low = 0;
            for (int64_t j = 0; j < n; j++) {
                high += w[j] * x[j];
                low += w[j] * x[n + j];
            }
            out[r * stride + i] = logit(high, low, x_scale[r], scale[i]);
        }
}

/* The functions of an instruction set. */
#define NUMERIC(suffix, attribute, widen_function, dots_function)                                                      \
    attribute static void norm_##suffix(const float *x, const float *weight, int64_t n, float epsilon, float *y) {     \
        norm_body(x, weight, n, epsilon, y);                                                                           \
    }                                                                                                                  \
    attribute static void gate_##suffix(float *gate, const float *up, int64_t n, int64_t activation) {                 \
        gate_body(gate, up, n, activation);                                                                            \
    }                                                                                                                  \
    attribute static void store_##suffix(const llm_model *m, const llm_cache *c, int64_t layer, int64_t kv_head,       \
                                         int64_t position, const float *key, const float *value) {                     \
        store_body(m, c, layer, kv_head, position, key, value);                                                        \
    }                                                                                                                  \
    attribute static void attend_##suffix(const attention *a) {                                                        \
        if (a->model->cache_bits == 8) attend_body(a, NARROW);                                                         \
        else attend_body(a, WIDE);                                                                                     \
    }                                                                                                                  \
    const llm_numeric ternary_llm_##suffix = {norm_##suffix,   gate_##suffix,  store_##suffix,                         \
                                              attend_##suffix, widen_function, dots_function};

#define WIDEN(suffix, attribute)                                                                                       \
    attribute static float widen_##suffix(const float *x, int64_t n, int8_t *high, int8_t *low, int32_t *sums) {       \
        return widen_body(x, n, high, low, sums);                                                                      \
    }

#define PLAIN_DOTS(suffix, attribute)                                                                                  \
    attribute static void dots_##suffix(const int8_t *weight, const float *scale, int64_t count, int64_t n,            \
                                        const int8_t *planes, const int32_t *sums, const float *x_scale, int64_t rows, \
                                        float *out, int64_t stride) {                                                  \
        (void)sums;                                                                                                    \
        dots_body(weight, scale, count, n, planes, x_scale, rows, out, stride);                                        \
    }

#endif
