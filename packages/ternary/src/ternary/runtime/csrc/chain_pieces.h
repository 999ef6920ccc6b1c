/* The loops of a chain over floats, compiled for each instruction set. */
#ifndef TERNARY_CHAIN_PIECES_H
#define TERNARY_CHAIN_PIECES_H
#include "chain.h"
#include "pieces.h"

INLINE int32_t magnitude(float v) {
    int32_t bits;
    memcpy(&bits, &v, 4);
    return bits & 0x7FFFFFFF; /* absolute values compare as integers, and NaN above infinity */
}

INLINE int32_t largest_body(const float *x, int64_t n) {
    int32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        const int32_t bits = magnitude(x[i]);
        most = bits > most ? bits : most;
    }
    return most;
}

INLINE void permute_plain(int8_t *q, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        int8_t t[16];
        memcpy(t, q + i, 16);
        for (int j = 0; j < 16; j++) q[i + j] = t[(j & 3) * 4 + (j >> 2)];
    }
}

INLINE void round_body(const float *x, int64_t rows, int64_t row, int64_t padded, float inverse, int8_t *q, int32_t *sums,
                       void (*permute)(int8_t *, int64_t)) {
    for (int64_t r = 0; r < rows; r++) {
        const float *from = x + r * row;
        int8_t *to = q + r * padded;
        int32_t sum = 0;
        for (int64_t i = 0; i < row; i++) {
            const int32_t v = round_even(from[i] * inverse);
            to[i] = (int8_t)v;
            sum += v;
        }
        for (int64_t i = row; i < padded; i++) to[i] = 0;
        sums[r] = sum;
        permute(to, padded);
    }
}

#if defined(__GNUC__) && !defined(__clang__)
#define LOOP _Pragma("GCC unroll 1") /* one that gcc unrolls is no vector any more */
#else
#define LOOP
#endif
#if defined(__GNUC__)
#define ALIGNED __attribute__((aligned(64)))
#else
#define ALIGNED
#endif
#define LANES 16 /* channels that are activated side by side; loops over them become vectors */
#if defined(__GNUC__)
typedef float floats __attribute__((vector_size(4 * LANES)));
#endif

/* to[l] = the activation of `value`, for l below `count`; with `measured`, also the largest magnitude of each lane. */
#define EACH(value, count, to, change)                                                                                 \
    LOOP for (int64_t l = 0; l < (count); l++) {                                                                       \
        float v = (value);                                                                                             \
        change;                                                                                                        \
        (to)[l] = v;                                                                                                   \
        const int32_t bits = magnitude(v);                                                                             \
        if (measured) peak[l] = bits > peak[l] ? bits : peak[l];                                                       \
    }
#define CLAMP(v, low, high)                                                                                            \
    v = v < low ? low : v;                                                                                             \
    v = v > high ? high : v
#define HARDSWISH                                                                                                      \
    float gate = v + 3.0f;                                                                                             \
    CLAMP(gate, 0.0f, 6.0f);                                                                                           \
    v = v * gate / 6.0f
#define ACTIVATE(value, count, to)                                                                                     \
    if (activation == ACT_CLAMP) EACH(value, count, to, CLAMP(v, low, high))                                           \
    else if (activation == ACT_HARDSWISH) EACH(value, count, to, HARDSWISH)                                            \
    else EACH(value, count, to, )

INLINE int32_t largest_of(const int32_t *peak) {
    int32_t most = 0;
    for (int l = 0; l < LANES; l++) most = peak[l] > most ? peak[l] : most;
    return most;
}

/* Scale, shift and activate `rows` rows of sums; n channels of them count. The result is 0 unless `measured`. */
INLINE int32_t finish_rows_body(const stage *s, const int64_t activation, const int measured, const int32_t *acc,
                                int64_t acc_stride, int64_t rows, int64_t channel, int64_t n, const int32_t *sums,
                                int32_t factor, float x_scale, float *y) {
    const float low = (float)s->low, high = (float)s->high;
    int32_t peak[LANES] ALIGNED = {0};
    for (int64_t c = 0; c < n; c += LANES) {
        const float *restrict scale = s->scale + channel + c, *restrict bias = s->bias + channel + c;
        const int64_t count = n - c < LANES ? n - c : LANES;
        for (int64_t m = 0; m < rows; m++) {
            const int32_t *restrict from = acc + m * acc_stride + c, offset = factor * sums[m];
            float *restrict to = y + m * s->out_channels + c;
#define SCALED (float)(from[l] - offset) * x_scale * scale[l] + bias[l]
            if (count == LANES) {
                ACTIVATE(SCALED, LANES, to)
            } else {
                ACTIVATE(SCALED, count, to)
            }
        }
    }
    return largest_of(peak);
}

/* Where the taps of an output column lie: row and column of the kernel, then its channels. */
typedef struct {
    const float *x[MOST_TAPS], *w[MOST_TAPS];
    int64_t count;
} taps;

/* The taps of one output column. In a dense kernel each of the channels is one. */
INLINE void find_taps(const stage *s, const float *const *rows, int64_t width, int64_t column, int64_t channels,
                      int64_t weights, taps *t) {
    t->count = 0;
    for (int64_t i = 0; i < s->kernel_h; i++)
        for (int64_t j = 0; rows[i] && j < s->kernel_w; j++) {
            const int64_t at = column * s->stride_w - s->pad_w + j * s->dilation_w;
            for (int64_t c = 0; at >= 0 && at < width && c < channels; c++) {
                t->x[t->count] = rows[i] + at * s->channels + c;
                t->w[t->count++] = (const float *)s->weight + ((i * s->kernel_w + j) * channels + c) * weights;
            }
        }
}

#define SIDE_BY_SIDE 4 /* columns that share what they read of the weights */

/* How many columns from this one on have all taps, as it has: SIDE_BY_SIDE or 1. */
INLINE int64_t columns_from(const stage *s, int64_t column, int64_t width, int64_t out_w) {
    const int64_t left = column * s->stride_w - s->pad_w;
    const int64_t right = left + (SIDE_BY_SIDE - 1) * s->stride_w + (s->kernel_w - 1) * s->dilation_w;
    return left >= 0 && right < width && column + SIDE_BY_SIDE <= out_w ? SIDE_BY_SIDE : 1;
}

/* Channels c … of `side` output columns: the sums of their taps, shifted and activated. `step` floats lie between the
 * inputs of two columns; in a dense kernel one input goes to all channels. */
INLINE void float_taps_body(const stage *s, const int64_t activation, const int measured, const int dense,
                            const int64_t side, const taps *t, const int64_t count, int64_t step, int64_t n, float *y,
                            int32_t *peak) {
    const float low = (float)s->low, high = (float)s->high;
    int64_t c = 0;
#if defined(__GNUC__)
    for (; c + LANES <= n; c += LANES) {
        const float *restrict bias = s->bias + c;
        floats sum[SIDE_BY_SIDE] = {{0}};
        for (int64_t i = 0; i < count; i++) {
            const float *x = t->x[i];
            floats w;
            memcpy(&w, t->w[i] + c, sizeof w);
            UNROLL for (int64_t p = 0; p < side; p++) {
                if (dense) {
                    sum[p] += x[p * step] * w;
                } else {
                    floats a;
                    memcpy(&a, x + p * step + c, sizeof a);
                    sum[p] += a * w;
                }
            }
        }
        UNROLL for (int64_t p = 0; p < side; p++) {
            float value[LANES] ALIGNED;
            memcpy(value, &sum[p], sizeof value);
            ACTIVATE(value[l] + bias[l], LANES, y + p * n + c)
        }
    }
#endif
    for (int64_t p = 0; p < side; p++)
        for (int64_t o = c; o < n; o++) {
            float value = 0.0f;
            for (int64_t i = 0; i < count; i++) value += t->x[i][p * step + (dense ? 0 : o)] * t->w[i][o];
            ACTIVATE(value + s->bias[o], 1, y + p * n + o)
        }
}

/* One output row of a float kernel; rows[i] is the input row of its i-th line of taps, NULL outside the image. Absent taps
 * are skipped, as if they were zero. */
INLINE int32_t float_row_body(const stage *s, const int64_t activation, const int dense, const float *const *rows,
                              int64_t width, int64_t out_w, float *out) {
    const int64_t n = s->out_channels, step = s->stride_w * s->channels, channels = dense ? s->channels : 1;
    int32_t peak[LANES] ALIGNED = {0};
    for (int64_t column = 0; column < out_w;) {
        const int64_t side = columns_from(s, column, width, out_w);
        taps t;
        find_taps(s, rows, width, column, channels, n, &t);
        float *y = out + column * n;
        if (side > 1 && !dense && t.count == 9)
            float_taps_body(s, activation, 1, 0, SIDE_BY_SIDE, &t, 9, step, n, y, peak);
        else if (side > 1) float_taps_body(s, activation, !dense, dense, SIDE_BY_SIDE, &t, t.count, step, n, y, peak);
        else float_taps_body(s, activation, !dense, dense, 1, &t, t.count, step, n, y, peak);
        column += side;
    }
    return largest_of(peak);
}

/* Call a body with the activation as a constant. */
#define BY_ACTIVATION(call)                                                                                            \
    if (s->activation == ACT_CLAMP) return call(ACT_CLAMP);                                                            \
    if (s->activation == ACT_HARDSWISH) return call(ACT_HARDSWISH);                                                    \
    return call(ACT_NONE)

typedef struct {
    int32_t (*largest)(const float *x, int64_t n);
    void (*round)(const float *x, int64_t rows, int64_t row, int64_t padded, float inverse, int8_t *q, int32_t *sums);
    /* The largest magnitude that they wrote: the first only if it is `measured`, the last never. */
    int32_t (*finish)(const stage *s, int measured, const int32_t *acc, int64_t acc_stride, int64_t rows, int64_t channel,
                      int64_t n, const int32_t *sums, int32_t factor, float x_scale, float *y);
    int32_t (*depthwise)(const stage *s, const float *const *rows, int64_t width, int64_t out_w, float *out);
    int32_t (*dense)(const stage *s, const float *const *rows, int64_t width, int64_t out_w, float *out);
} chain_pieces;

#define FINISH(act)                                                                                                    \
    measured ? finish_rows_body(s, act, 1, acc, acc_stride, rows, channel, n, sums, factor, x_scale, y)                \
             : finish_rows_body(s, act, 0, acc, acc_stride, rows, channel, n, sums, factor, x_scale, y)
#define DEPTHWISE_ROW(act) float_row_body(s, act, 0, rows, width, out_w, out)
#define DENSE_ROW(act) float_row_body(s, act, 1, rows, width, out_w, out)
#define CHAIN_PIECES(suffix, attribute, permute)                                                                       \
    attribute static int32_t largest_##suffix(const float *x, int64_t n) { return largest_body(x, n); }                \
    attribute static void round_##suffix(const float *x, int64_t rows, int64_t row, int64_t padded, float inverse,     \
                                         int8_t *q, int32_t *sums) {                                                   \
        round_body(x, rows, row, padded, inverse, q, sums, permute);                                                   \
    }                                                                                                                  \
    attribute static int32_t finish_##suffix(const stage *s, int measured, const int32_t *acc, int64_t acc_stride,     \
                                             int64_t rows, int64_t channel, int64_t n, const int32_t *sums,            \
                                             int32_t factor, float x_scale, float *y) {                                \
        BY_ACTIVATION(FINISH);                                                                                         \
    }                                                                                                                  \
    attribute static int32_t depthwise_##suffix(const stage *s, const float *const *rows, int64_t width,               \
                                                int64_t out_w, float *out) {                                           \
        BY_ACTIVATION(DEPTHWISE_ROW);                                                                                  \
    }                                                                                                                  \
    attribute static int32_t dense_##suffix(const stage *s, const float *const *rows, int64_t width, int64_t out_w,    \
                                            float *out) {                                                              \
        BY_ACTIVATION(DENSE_ROW);                                                                                      \
    }                                                                                                                  \
    static const chain_pieces pieces_##suffix = {largest_##suffix, round_##suffix, finish_##suffix,                    \
                                                 depthwise_##suffix, dense_##suffix};

CHAIN_PIECES(portable, , permute_plain)
#if HAVE_X86
CHAIN_PIECES(avx2, TARGET_AVX2, permute_avx2)
CHAIN_PIECES(vnni, TARGET_VNNI, permute_avx2)
#endif

static const chain_pieces *pieces_of(int64_t path) {
#if HAVE_X86
    if (path == AVX512VNNI || path == AMX) return &pieces_vnni;
    if (path == AVX2 || path == AVXVNNI) return &pieces_avx2;
#endif
    (void)path;
    return &pieces_portable;
}

#endif
