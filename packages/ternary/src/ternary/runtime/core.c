/* Packed ternary matrix products and convolutions on a CPU. Knows nothing of Python, torch or files.
 *
 * Activations are quantized to int8 (one scale per image or row), multiplied with 2-bit weights in int32 without any
 * overflow, and scaled back to float. Every path gives the same integers and the same floats, bit for bit: rounding is
 * half to even, the epilogue is (float)sum * x_scale * w_scale + bias in that order, and the file is to be compiled
 * with -ffp-contract=off and without fast-math. The layouts are specified in docs/packing-format.md.
 *
 * Weights enter products as codes 0, 1, 2 (value + 1), so sum(code * x) - sum(x) = sum(value * x).
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#define HAVE_THREADS 1
#include <pthread.h>
#endif

#if defined(__GNUC__) && defined(__x86_64__)
#define HAVE_X86 1
#include <immintrin.h>
#define TARGET_AVX2 __attribute__((target("avx2")))
#define TARGET_VNNI __attribute__((target("avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#if defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define HAVE_AMX 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#define TARGET_AMX                                                                                                     \
    __attribute__((target("avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,amx-tile,amx-int8")))
#endif
#elif defined(__GNUC__) && defined(__aarch64__) && !defined(__ARM_BIG_ENDIAN)
#define HAVE_NEON 1
#include <arm_neon.h>
#if defined(__clang__)
#define TARGET_NEON __attribute__((target("dotprod")))
#else
#define TARGET_NEON __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#else
#define INLINE static inline
#define UNROLL
#endif

enum { PORTABLE, AVX2, AVX512VNNI, NEON, AMX, PATHS };
enum { OK, NO_MEMORY, NO_PATH, BAD_ARGUMENT };

/* One problem: an image batch times a kernel. A linear layer is a batch of 1 x 1 images. */
typedef struct {
    int64_t path, threads;
    int64_t batch, height, width, channels;    /* x: float, NHWC, contiguous */
    int64_t out_channels, groups;
    int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    const float *x;
    const uint8_t *weight;   /* tiles (groups = 1), rows (groups > 1), or rows of taps (depthwise) */
    const float *scale;      /* one per output channel */
    const float *bias;       /* one per output channel, or NULL */
    float *y;                /* NHWC, or NULL */
    int32_t *sums;           /* NHWC integer accumulators instead of y, or NULL */
} problem;

/* ---- what a path has to bring ---- */

typedef struct {
    int rows, strips; /* the largest register tile: activation rows x strips of 16 outputs */
    int span;         /* tiles of 16 columns that lie together in a row of a panel */
    /* acc[rows][16 * strips] = panel x codes; strips lie `stride` bytes apart. A panel is [k16 / span][rows][16 * span
     * bytes], zero behind k16. */
    void (*multiply)(int rows, int strips, const uint8_t *tiles, int64_t stride, int64_t k16, const int8_t *panel,
                     int32_t *acc);
    /* The same for one row and strip, read from its first tile or from its last; NULL: `multiply` does it. */
    void (*multiply_row)(const uint8_t *tiles, int64_t k16, const int8_t *panel, int32_t *acc, int backwards);
    float (*quantize)(const float *x, int64_t rows, int64_t row, int64_t padded, int permute, int8_t *q, int32_t *sums);
    void (*finish)(const int32_t *acc, int64_t n, int32_t offset, float x_scale, const float *scale, const float *bias,
                   float *y);
    /* acc[n] += the products of `count` taps, at most 256, of which each has an activation and a weight per channel. */
    void (*taps)(const int8_t *const *q, const int8_t *const *w, int64_t count, int64_t n, int32_t *acc);
} path_table;

/* ---- plain C pieces, compiled once per path ---- */

INLINE int32_t round_even(float v) {
    /* |v| <= 128: adding 1.5 * 2^23 leaves the integer, rounded half to even, in the low mantissa bits. */
    float shifted = v + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    return bits - 0x4B400000;
}

/* Below this the reciprocal would overflow; such rows count as zero. */
#define SMALLEST 1e-30f

/* Quantize with one scale: rows of `row` floats become `padded` bytes each, with their sum. */
INLINE float quantize_body(const float *x, int64_t rows, int64_t row, int64_t padded, int8_t *q, int32_t *sums,
                           void (*permute)(int8_t *, int64_t)) {
    int32_t most = 0; /* absolute values compare as integers, and NaN above infinity */
    for (int64_t i = 0; i < rows * row; i++) {
        int32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7FFFFFFF;
        most = bits > most ? bits : most;
    }
    float absmax;
    memcpy(&absmax, &most, 4);
    const int finite = most < 0x7F800000;
    const float inverse = finite && absmax >= SMALLEST ? 127.0f / absmax : 0.0f;
    if (inverse == 0.0f) {
        memset(q, 0, (size_t)(rows * padded));
        if (sums) memset(sums, 0, (size_t)rows * sizeof *sums);
        if (finite) return 0.0f;
        most = 0x7FC00000;
        memcpy(&absmax, &most, 4);
        return absmax;
    }
    for (int64_t r = 0; r < rows; r++) {
        const float *from = x + r * row;
        int8_t *to = q + r * padded;
        int32_t sum = 0;
        for (int64_t i = 0; i < row; i++) {
            int32_t v = round_even(from[i] * inverse);
            to[i] = (int8_t)v;
            sum += v;
        }
        for (int64_t i = row; i < padded; i++) to[i] = 0;
        if (sums) sums[r] = sum;
        if (permute) permute(to, padded);
    }
    return absmax / 127.0f;
}

INLINE void finish_body(const int32_t *acc, int64_t n, int32_t offset, float x_scale, const float *scale,
                        const float *bias, float *y) {
    if (bias)
        for (int64_t i = 0; i < n; i++) y[i] = (float)(acc[i] - offset) * x_scale * scale[i] + bias[i];
    else
        for (int64_t i = 0; i < n; i++) y[i] = (float)(acc[i] - offset) * x_scale * scale[i];
}

#define TAPS_PER_FLUSH 256 /* 256 * 127 fits 16 bits */

INLINE void taps_body(const int8_t *const *q, const int8_t *const *w, int64_t count, int64_t n, int32_t *acc) {
    int64_t c = 0;
#if defined(__GNUC__)
    typedef int8_t bytes __attribute__((vector_size(32)));
    typedef int16_t words __attribute__((vector_size(64)));
    for (; c + 32 <= n; c += 32) {
        words sum = {0};
        for (int64_t t = 0; t < count; t++) {
            bytes x, y;
            memcpy(&x, q[t] + c, 32);
            memcpy(&y, w[t] + c, 32);
            sum += __builtin_convertvector(x, words) * __builtin_convertvector(y, words);
        }
        for (int l = 0; l < 32; l++) acc[c + l] += sum[l];
    }
#endif
    for (; c < n; c++)
        for (int64_t t = 0; t < count; t++) acc[c] += q[t][c] * w[t][c];
}

/* Columns of a group of 16 in the order 0 4 8 12, 1 5 9 13, 2 6 10 14, 3 7 11 15: a 4 x 4 transposition. */
static void permute_portable(int8_t *q, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        int8_t t[16];
        memcpy(t, q + i, 16);
        for (int j = 0; j < 16; j++) q[i + j] = t[(j & 3) * 4 + (j >> 2)];
    }
}

#define PIECES(suffix, attribute)                                                                                      \
    attribute static float quantize_##suffix(const float *x, int64_t rows, int64_t row, int64_t padded, int permute,   \
                                             int8_t *q, int32_t *sums) {                                               \
        return permute ? quantize_body(x, rows, row, padded, q, sums, permute_##suffix)                                \
                       : quantize_body(x, rows, row, padded, q, sums, NULL);                                           \
    }                                                                                                                  \
    attribute static void finish_##suffix(const int32_t *acc, int64_t n, int32_t offset, float x_scale,                \
                                          const float *scale, const float *bias, float *y) {                           \
        finish_body(acc, n, offset, x_scale, scale, bias, y);                                                          \
    }                                                                                                                  \
    attribute static void taps_##suffix(const int8_t *const *q, const int8_t *const *w, int64_t count, int64_t n,      \
                                        int32_t *acc) {                                                                \
        taps_body(q, w, count, n, acc);                                                                                \
    }

/* ---- portable path ---- */

static void multiply_portable(int rows, int strips, const uint8_t *tiles, int64_t stride, int64_t k16,
                              const int8_t *panel, int32_t *acc) {
    memset(acc, 0, sizeof *acc * 16 * (size_t)rows * (size_t)strips);
    for (int s = 0; s < strips; s++)
        for (int64_t k = 0; k < k16; k++) {
            const uint8_t *tile = tiles + s * stride + k * 64;
            for (int m = 0; m < rows; m++) {
                const int8_t *x = panel + (k * rows + m) * 16;
                int32_t *a = acc + (m * strips + s) * 16;
                for (int n = 0; n < 16; n++) {
                    int32_t sum = 0;
                    for (int i = 0; i < 4; i++)
                        for (int j = 0; j < 4; j++) sum += (tile[n * 4 + i] >> 2 * j & 3) * x[4 * j + i];
                    a[n] += sum;
                }
            }
        }
}

PIECES(portable, )

#if HAVE_X86 || HAVE_NEON
/* Weights lie in the order in which they are read: ask for them this many bytes ahead, into the second-level cache. A
 * core's own prefetcher stops at the end of a page, and sums leave loads little room to run ahead in the reorder buffer.
 * An address past the end is harmless: a prefetch never faults. */
#define BYTES_AHEAD 8192
#define FETCH(tile, ahead, level) __builtin_prefetch((const void *)((uintptr_t)(tile) + (uintptr_t)(ahead)), 0, level)
#define FETCH_AHEAD(tile) FETCH(tile, BYTES_AHEAD, 2)

/* A path whose tile is one strip wide: its body, compiled for each number of rows. */
#define ROWS(name, n) case n: multiply_##name##_body(n, t, k16, panel, a, 16 * strips); break;
#define BY_STRIPS(name, attribute, cases)                                                                              \
    attribute static void multiply_##name(int rows, int strips, const uint8_t *tiles, int64_t stride, int64_t k16,     \
                                          const int8_t *panel, int32_t *acc) {                                         \
        for (int s = 0; s < strips; s++) {                                                                             \
            const uint8_t *t = tiles + s * stride;                                                                     \
            int32_t *a = acc + s * 16;                                                                                 \
            switch (rows) { cases }                                                                                    \
        }                                                                                                              \
    }
#endif

/* ---- x86 ---- */

#if HAVE_X86
INLINE int32_t load32(const int8_t *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return v;
}

TARGET_AVX2 static void permute_avx2(int8_t *q, int64_t n) {
    const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int64_t i = 0; i < n; i += 16)
        _mm_storeu_si128((void *)(q + i), _mm_shuffle_epi8(_mm_loadu_si128((const void *)(q + i)), order));
}

/* A code is at most 2 and an activation at most 127 in magnitude, so a 16-bit sum of pairs grows by at most 508 a step:
 * 64 steps (16 tiles of 4) end at 32512, then the sums move to 32 bits. */
#define TILES_PER_FLUSH 16

TARGET_AVX2 INLINE void multiply_avx2_body(const int rows, const uint8_t *tiles, int64_t k16, const int8_t *panel,
                                           int32_t *acc, int64_t acc_stride) {
    const __m256i three = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
    for (int m = 0; m < rows; m++) memset(acc + m * acc_stride, 0, 64);
    for (int64_t start = 0; start < k16; start += TILES_PER_FLUSH) {
        const int64_t end = start + TILES_PER_FLUSH < k16 ? start + TILES_PER_FLUSH : k16;
        __m256i a[6][2];
        UNROLL for (int m = 0; m < rows; m++) a[m][0] = a[m][1] = _mm256_setzero_si256();
        for (int64_t k = start; k < end; k++) {
            FETCH_AHEAD(tiles + k * 64);
            const __m256i low = _mm256_loadu_si256((const void *)(tiles + k * 64));
            const __m256i high = _mm256_loadu_si256((const void *)(tiles + k * 64 + 32));
            UNROLL for (int j = 0; j < 4; j++) {
                const __m256i wl = _mm256_and_si256(_mm256_srli_epi32(low, 2 * j), three);
                const __m256i wh = _mm256_and_si256(_mm256_srli_epi32(high, 2 * j), three);
                UNROLL for (int m = 0; m < rows; m++) {
                    const __m256i x = _mm256_set1_epi32(load32(panel + (k * rows + m) * 16 + 4 * j));
                    a[m][0] = _mm256_add_epi16(a[m][0], _mm256_maddubs_epi16(wl, x));
                    a[m][1] = _mm256_add_epi16(a[m][1], _mm256_maddubs_epi16(wh, x));
                }
            }
        }
        UNROLL for (int m = 0; m < rows; m++)
            UNROLL for (int h = 0; h < 2; h++) {
                void *at = acc + m * acc_stride + 8 * h;
                const __m256i wide = _mm256_madd_epi16(a[m][h], ones);
                _mm256_storeu_si256(at, _mm256_add_epi32(_mm256_loadu_si256(at), wide));
            }
    }
}

BY_STRIPS(avx2, TARGET_AVX2, ROWS(avx2, 1) ROWS(avx2, 2) ROWS(avx2, 3) ROWS(avx2, 4) ROWS(avx2, 5) ROWS(avx2, 6))
PIECES(avx2, TARGET_AVX2)

/* One activation row: a chain for each two-bit field of two tiles, enough to hide the instruction's latency. Fields stay
 * where they are, scaled by 1, 4, 16, 64, and the sums are shifted back at the end; 32 bits hold that for more than
 * 500,000 columns (checked by the entry point). Written out, since compilers copy the sums from register to register
 * here, which costs a fifth of the time. The last operand is four activations in memory, broadcast.
 * The loop waits for memory alone: a second request, a quarter as far ahead and into the first-level cache, takes some
 * 3 % off the time from DRAM. */
#define FIELD(sum, tile, j)                                                                                            \
    __asm__("vpdpbusd %2%{1to16%}, %1, %0"                                                                             \
            : "+v"(sum)                                                                                                \
            : "v"(_mm512_and_si512(w##tile, _mm512_set1_epi8((char)(3 << 2 * j)))),                                    \
              "m"(*(const int8_t(*)[4])(panel + (k + tile * step) * 16 + 4 * j)))
#define TILE(tile)                                                                                                     \
    FETCH(tiles + (k + tile * step) * 64, step * BYTES_AHEAD, 2);                                                      \
    FETCH(tiles + (k + tile * step) * 64, step * BYTES_AHEAD / 4, 3);                                                  \
    const __m512i w##tile = _mm512_loadu_si512(tiles + (k + tile * step) * 64);                                        \
    FIELD(a##tile, tile, 0);                                                                                           \
    FIELD(b##tile, tile, 1);                                                                                           \
    FIELD(c##tile, tile, 2);                                                                                           \
    FIELD(d##tile, tile, 3)

TARGET_VNNI INLINE void multiply_vnni_row_body(const uint8_t *tiles, int64_t k16, const int8_t *panel, int32_t *acc,
                                               const int64_t step) {
    __m512i a0 = _mm512_setzero_si512(), b0 = a0, c0 = a0, d0 = a0, a1 = a0, b1 = a0, c1 = a0, d1 = a0;
    int64_t k = step > 0 ? 0 : k16 - 1;
    for (int64_t pairs = k16 / 2; pairs; pairs--, k += 2 * step) {
        TILE(0);
        TILE(1);
    }
    if (k16 % 2) {
        TILE(0);
    }
    const __m512i a = _mm512_add_epi32(a0, a1), b = _mm512_srai_epi32(_mm512_add_epi32(b0, b1), 2);
    const __m512i c = _mm512_srai_epi32(_mm512_add_epi32(c0, c1), 4);
    const __m512i d = _mm512_srai_epi32(_mm512_add_epi32(d0, d1), 6);
    _mm512_storeu_si512(acc, _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d)));
}

TARGET_VNNI static void multiply_vnni_row(const uint8_t *tiles, int64_t k16, const int8_t *panel, int32_t *acc,
                                          int backwards) {
    if (backwards) multiply_vnni_row_body(tiles, k16, panel, acc, -1);
    else multiply_vnni_row_body(tiles, k16, panel, acc, 1);
}

TARGET_VNNI INLINE void multiply_vnni_body(const int rows, const int strips, const uint8_t *tiles, int64_t stride,
                                           int64_t k16, const int8_t *panel, int32_t *acc) {
    const __m512i three = _mm512_set1_epi8(3);
    __m512i a[12][2];
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int s = 0; s < strips; s++) a[m][s] = _mm512_setzero_si512();
    for (int64_t k = 0; k < k16; k++) {
        __m512i w[2];
        UNROLL for (int s = 0; s < strips; s++) {
            FETCH_AHEAD(tiles + s * stride + k * 64);
            w[s] = _mm512_loadu_si512(tiles + s * stride + k * 64);
        }
        UNROLL for (int j = 0; j < 4; j++) {
            __m512i c[2];
            UNROLL for (int s = 0; s < strips; s++) c[s] = _mm512_and_si512(_mm512_srli_epi32(w[s], 2 * j), three);
            UNROLL for (int m = 0; m < rows; m++) {
                const __m512i x = _mm512_set1_epi32(load32(panel + (k * rows + m) * 16 + 4 * j));
                UNROLL for (int s = 0; s < strips; s++) a[m][s] = _mm512_dpbusd_epi32(a[m][s], c[s], x);
            }
        }
    }
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int s = 0; s < strips; s++) _mm512_storeu_si512(acc + (m * strips + s) * 16, a[m][s]);
}

#define VNNI_CASE(n)                                                                                                   \
    case n:                                                                                                            \
        if (strips == 2) multiply_vnni_body(n, 2, tiles, stride, k16, panel, acc);                                     \
        else multiply_vnni_body(n, 1, tiles, stride, k16, panel, acc);                                                 \
        break;

TARGET_VNNI static void multiply_vnni(int rows, int strips, const uint8_t *tiles, int64_t stride, int64_t k16,
                                      const int8_t *panel, int32_t *acc) {
    switch (rows) {
    VNNI_CASE(2) VNNI_CASE(3) VNNI_CASE(4) VNNI_CASE(5) VNNI_CASE(6) VNNI_CASE(7)
    VNNI_CASE(8) VNNI_CASE(9) VNNI_CASE(10) VNNI_CASE(11) VNNI_CASE(12)
    }
}

#define permute_vnni permute_avx2
PIECES(vnni, TARGET_VNNI)
#endif

/* ---- x86 with matrix registers ---- */

#if HAVE_AMX
/* A product of 16 rows x 64 columns with 64 columns x 16 outputs takes 16 cycles. A field of a packed tile, 4 columns of
 * 16 outputs, is one row of the right operand, so 4 tiles give its 16 rows; the left operand is 64 bytes of each panel
 * row. Registers 0 to 3: sums of up to 2 x 16 rows and 2 strips; 4 and 5: rows; 6 and 7: strips.
 * Written out, since the compilers' own functions do not say that they read and write memory. */
#define TILE_LOAD(number, from, stride)                                                                                \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #number : : "r"(from), "r"((int64_t)(stride)) : "memory")
#define TILE_STORE(number, to, stride)                                                                                 \
    __asm__ volatile("tilestored %%tmm" #number ", (%0,%1,1)" : : "r"(to), "r"((int64_t)(stride)) : "memory")
#define TILE_ZERO(number) __asm__ volatile("tilezero %%tmm" #number : :)
#define TILE_MULTIPLY(sum, row, strip)                                                                                 \
    __asm__ volatile("tdpbsud %%tmm" #strip ", %%tmm" #row ", %%tmm" #sum : :)

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* Rows of the right operand for up to 4 tiles of a strip; what stands behind them meets zeros. */
TARGET_AMX INLINE void unpack_amx(const uint8_t *tiles, int64_t count, uint8_t *to) {
    const __m512i three = _mm512_set1_epi8(3);
    for (int64_t t = 0; t < count; t++) {
        FETCH_AHEAD(tiles + t * 64);
        const __m512i w = _mm512_loadu_si512(tiles + t * 64);
        UNROLL for (int j = 0; j < 4; j++)
            _mm512_store_si512(to + (t * 4 + j) * 64, _mm512_and_si512(_mm512_srli_epi32(w, 2 * j), three));
    }
}

TARGET_AMX INLINE void multiply_amx_body(const int halves, const int strips, int rows, const uint8_t *tiles,
                                         int64_t stride, int64_t k16, const int8_t *panel, int32_t *acc) {
    uint8_t codes[2][2][1024] __attribute__((aligned(64)));
    const int64_t steps = (k16 + 3) / 4;
    memset(codes, 0, sizeof codes);
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    for (int s = 0; s < strips; s++) unpack_amx(tiles + s * stride, k16 < 4 ? k16 : 4, codes[0][s]);
    for (int64_t k = 0; k < steps; k++) {
        /* The next step's codes are written while this one's are multiplied: what was just stored is slow to load. */
        const int64_t next = 4 * (k + 1), count = k16 - next < 4 ? k16 - next : 4;
        for (int s = 0; s < strips; s++) unpack_amx(tiles + s * stride + next * 64, count, codes[(k + 1) & 1][s]);
        const int8_t *from = panel + k * rows * 64;
        TILE_LOAD(6, codes[k & 1][0], 64);
        TILE_LOAD(4, from, 64);
        TILE_MULTIPLY(0, 4, 6);
        if (strips == 2) {
            TILE_LOAD(7, codes[k & 1][1], 64);
            TILE_MULTIPLY(1, 4, 7);
        }
        if (halves == 2) {
            TILE_LOAD(5, from + 16 * 64, 64);
            TILE_MULTIPLY(2, 5, 6);
            if (strips == 2) TILE_MULTIPLY(3, 5, 7);
        }
    }
    TILE_STORE(0, acc, 64 * strips);
    if (strips == 2) TILE_STORE(1, acc + 16, 64 * strips);
    if (halves == 2) {
        TILE_STORE(2, acc + 16 * 16 * strips, 64 * strips);
        if (strips == 2) TILE_STORE(3, acc + 16 * 16 * strips + 16, 64 * strips);
    }
}

TARGET_AMX static void multiply_amx(int rows, int strips, const uint8_t *tiles, int64_t stride, int64_t k16,
                                    const int8_t *panel, int32_t *acc) {
    tile_shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.bytes[i] = 64;
        shapes.rows[i] = 16;
    }
    const int first = rows < 16 ? rows : 16, second = rows - first;
    shapes.rows[0] = shapes.rows[1] = shapes.rows[4] = (uint8_t)first;
    if (second) shapes.rows[2] = shapes.rows[3] = shapes.rows[5] = (uint8_t)second;
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
    if (second && strips == 2) multiply_amx_body(2, 2, rows, tiles, stride, k16, panel, acc);
    else if (second) multiply_amx_body(2, 1, rows, tiles, stride, k16, panel, acc);
    else if (strips == 2) multiply_amx_body(1, 2, rows, tiles, stride, k16, panel, acc);
    else multiply_amx_body(1, 1, rows, tiles, stride, k16, panel, acc);
    __asm__ volatile("tilerelease" : :); /* else every switch to another thread saves 8 KiB */
}

/* The machine has the registers, and the kernel lets this process use them. */
static int amx_allowed(void) {
    static int known; /* 0 not asked yet, 1 no, 2 yes */
    int state = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (!state) {
        unsigned a, b, c, d;
        const int has = __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 24 & 1 && d >> 25 & 1;
        /* arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA): from Linux 5.16 on, for all threads to come. */
        state = has && syscall(SYS_arch_prctl, 0x1023, 18) == 0 ? 2 : 1;
        __atomic_store_n(&known, state, __ATOMIC_RELAXED);
    }
    return state == 2;
}
#endif

/* ---- ARM ---- */

#if HAVE_NEON
static void permute_neon(int8_t *q, int64_t n) {
    static const uint8_t order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    for (int64_t i = 0; i < n; i += 16) vst1q_s8(q + i, vqtbl1q_s8(vld1q_s8(q + i), vld1q_u8(order)));
}

TARGET_NEON INLINE void multiply_neon_body(const int rows, const uint8_t *tiles, int64_t k16, const int8_t *panel,
                                           int32_t *acc, int64_t acc_stride) {
    const uint8x16_t three = vdupq_n_u8(3);
    int32x4_t a[4][4];
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int q = 0; q < 4; q++) a[m][q] = vdupq_n_s32(0);
    for (int64_t k = 0; k < k16; k++) {
        uint8x16_t w[4];
        FETCH_AHEAD(tiles + k * 64);
        UNROLL for (int q = 0; q < 4; q++) w[q] = vld1q_u8(tiles + k * 64 + 16 * q);
        UNROLL for (int j = 0; j < 4; j++) {
            int8x16_t c[4];
            UNROLL for (int q = 0; q < 4; q++) {
                c[q] = vreinterpretq_s8_u8(vandq_u8(w[q], three));
                w[q] = vshrq_n_u8(w[q], 2);
            }
            UNROLL for (int m = 0; m < rows; m++) {
                int32_t four;
                memcpy(&four, panel + (k * rows + m) * 16 + 4 * j, 4);
                const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
                UNROLL for (int q = 0; q < 4; q++) a[m][q] = vdotq_s32(a[m][q], c[q], x);
            }
        }
    }
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int q = 0; q < 4; q++) vst1q_s32(acc + m * acc_stride + 4 * q, a[m][q]);
}

BY_STRIPS(neon, TARGET_NEON, ROWS(neon, 1) ROWS(neon, 2) ROWS(neon, 3) ROWS(neon, 4))
PIECES(neon, TARGET_NEON)
#endif

static const path_table *find_path(int64_t path) {
    static const path_table portable = {4, 1, 1, multiply_portable, NULL, quantize_portable, finish_portable,
                                        taps_portable};
    if (path == PORTABLE) return &portable;
#if HAVE_X86
    static const path_table avx2 = {6, 1, 1, multiply_avx2, NULL, quantize_avx2, finish_avx2, taps_avx2};
    static const path_table vnni = {12, 2, 1, multiply_vnni, multiply_vnni_row, quantize_vnni, finish_vnni, taps_vnni};
    if (path == AVX2 && __builtin_cpu_supports("avx2")) return &avx2;
    const int has_vnni = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                         __builtin_cpu_supports("avx512vnni");
    if (path == AVX512VNNI && has_vnni) return &vnni;
#if HAVE_AMX
    static const path_table amx = {32, 2, 4, multiply_amx, multiply_vnni_row, quantize_vnni, finish_vnni, taps_vnni};
    if (path == AMX && has_vnni && amx_allowed()) return &amx;
#endif
#endif
#if HAVE_NEON
    static const path_table neon = {4, 1, 1, multiply_neon, NULL, quantize_neon, finish_neon, taps_neon};
#if defined(__APPLE__)
    if (path == NEON) return &neon; /* every ARM Mac has the dot product */
#elif defined(__linux__)
    if (path == NEON && getauxval(AT_HWCAP) >> 20 & 1) return &neon;
#endif
#endif
    return NULL;
}

/* ---- threads: a pool that outlives calls; one job at a time, a second caller works alone ---- */

typedef void (*chunk_fn)(void *context, int64_t chunk);

#if HAVE_THREADS
static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    int started, wanted, running, busy, fork_handled;
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
        const int mine = index < pool.wanted;
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
    pool.started = pool.wanted = pool.running = pool.busy = 0;
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
    pool.running = pool.wanted;
    pool.fn = fn;
    pool.context = context;
    pool.chunks = chunks;
    pool.next = 0;
    __atomic_add_fetch(&pool.generation, 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    return 1;
}

static void in_parallel(chunk_fn fn, void *context, int64_t chunks, int64_t threads) {
    if (threads > chunks) threads = chunks;
    if (threads > 256) threads = 256;
    if (threads < 2 || !take_pool(fn, context, chunks, (int)threads)) {
        for (int64_t c = 0; c < chunks; c++) fn(context, c);
        return;
    }
    work();
    for (int i = 0; i < SPIN && __atomic_load_n(&pool.running, __ATOMIC_ACQUIRE); i++) relax();
    pthread_mutex_lock(&pool.lock);
    while (__atomic_load_n(&pool.running, __ATOMIC_ACQUIRE)) pthread_cond_wait(&pool.done, &pool.lock);
    pool.busy = 0;
    pthread_mutex_unlock(&pool.lock);
}
#else
static void in_parallel(chunk_fn fn, void *context, int64_t chunks, int64_t threads) {
    (void)threads;
    for (int64_t c = 0; c < chunks; c++) fn(context, c);
}
#endif

/* ---- one problem ---- */

typedef struct {
    const problem *p;
    const path_table *path;
    int64_t out_h, out_w, pixels;       /* output pixels of the whole batch */
    int64_t group_in, group_out, k, k16; /* per group; k16 = tiles along K */
    int64_t padded;                     /* bytes a group's channels take in a quantized pixel */
    int direct;                         /* quantized pixels are in tile order and have their sums */
    int64_t image_in;                   /* floats in an image */
    int8_t *q, *taps;                   /* quantized batch; depthwise weights as int8 */
    int32_t *sums;                      /* per input pixel and group, if direct */
    float *x_scale;                     /* per image */
    uint8_t *tiles;                     /* rows of all groups as tiles, if groups > 1 */
    int64_t chunk_rows, row_chunks, chunk_strips, strip_chunks;
    int backwards;                      /* the last strip comes first, where a single row is multiplied */
    int failed;
} plan;

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static void quantize_chunk(void *context, int64_t image) {
    plan *t = context;
    const problem *p = t->p;
    const int64_t pixels = p->height * p->width, rows = pixels * p->groups;
    const float *x = p->x + image * t->image_in;
    t->x_scale[image] =
        t->direct ? t->path->quantize(x, rows, t->group_in, t->padded, 1, t->q + image * rows * t->padded,
                                      t->sums + image * rows)
                  : t->path->quantize(x, pixels, p->channels, p->channels, 0, t->q + image * t->image_in, NULL);
}

/* Where tile k of row m lies in a panel. */
INLINE int8_t *place(int8_t *panel, int64_t k, int64_t m, int64_t rows, int64_t span) {
    return panel + ((k / span * rows + m) * span + k % span) * 16;
}

/* The activations of one output pixel and group into row m of a panel; gives their sum. */
INLINE int32_t pack_row_body(const plan *t, int64_t pixel, int64_t group, int64_t rows, int64_t m, int8_t *panel,
                             int8_t *scratch, const int64_t span) {
    const problem *p = t->p;
    const int64_t image = pixel / (t->out_h * t->out_w), at = pixel % (t->out_h * t->out_w);
    const int64_t top = at / t->out_w * p->stride_h - p->pad_h, left = at % t->out_w * p->stride_w - p->pad_w;
    int8_t *gathered = scratch;
    int64_t k = 0;
    int32_t sum = 0;
    for (int64_t i = 0; i < p->kernel_h; i++)
        for (int64_t j = 0; j < p->kernel_w; j++) {
            const int64_t h = top + i * p->dilation_h, w = left + j * p->dilation_w;
            const int inside = h >= 0 && h < p->height && w >= 0 && w < p->width;
            const int64_t from = inside ? ((image * p->height + h) * p->width + w) * p->groups + group : 0;
            const int8_t *q = t->q + from * t->padded;
            if (!t->direct) {
                if (inside) memcpy(gathered, q, (size_t)t->padded);
                else memset(gathered, 0, (size_t)t->padded);
                gathered += t->padded;
                continue;
            }
            for (int64_t c = 0; c < t->padded; c += 16, k++) {
                if (inside) memcpy(place(panel, k, m, rows, span), q + c, 16);
                else memset(place(panel, k, m, rows, span), 0, 16);
            }
            if (inside) sum += t->sums[from];
        }
    if (!t->direct) {
        memset(gathered, 0, (size_t)(t->k16 * 16 - t->k));
        for (int64_t c = 0; c < t->k; c++) sum += scratch[c];
        for (; k < t->k16; k++) {
            int8_t *to = place(panel, k, m, rows, span);
            for (int j = 0; j < 16; j++) to[j] = scratch[k * 16 + (j & 3) * 4 + (j >> 2)];
        }
    }
    for (; k % span; k++) memset(place(panel, k, m, rows, span), 0, 16);
    return sum;
}

static int32_t pack_row(const plan *t, int64_t pixel, int64_t group, int64_t rows, int64_t m, int8_t *panel,
                        int8_t *scratch) {
    return t->path->span == 1 ? pack_row_body(t, pixel, group, rows, m, panel, scratch, 1)
                              : pack_row_body(t, pixel, group, rows, m, panel, scratch, 4);
}

static void emit(const plan *t, const int32_t *acc, int64_t pixel, int64_t channel, int64_t n, int32_t offset) {
    const problem *p = t->p;
    const int64_t at = pixel * p->out_channels + channel;
    if (p->sums)
        for (int64_t i = 0; i < n; i++) p->sums[at + i] = acc[i] - offset;
    else
        t->path->finish(acc, n, offset, t->x_scale[pixel / (t->out_h * t->out_w)], p->scale + channel,
                        p->bias ? p->bias + channel : NULL, p->y + at);
}

#define MAX_ROWS 32
#define MAX_STRIPS 2

static void multiply_chunk(void *context, int64_t chunk) {
    plan *t = context;
    const path_table *path = t->path;
    const int64_t group = chunk / (t->row_chunks * t->strip_chunks), rest = chunk % (t->row_chunks * t->strip_chunks);
    const int64_t first = rest / t->strip_chunks * t->chunk_rows;
    const int64_t count = t->pixels - first < t->chunk_rows ? t->pixels - first : t->chunk_rows;
    const int64_t strips = ceil_div(t->group_out, 16), first_strip = rest % t->strip_chunks * t->chunk_strips;
    const int64_t last_strip = first_strip + t->chunk_strips < strips ? first_strip + t->chunk_strips : strips;
    const int64_t stride = t->k16 * 64, bytes = ceil_div(t->k16, path->span) * path->span * 16;
    const uint8_t *tiles = (t->tiles ? t->tiles : t->p->weight) + group * strips * stride;

    /* One row of a 1 x 1 kernel lies ready as it was quantized. */
    const int ready = count == 1 && t->direct && t->p->groups * t->p->kernel_h * t->p->kernel_w == 1 &&
                      t->p->pad_h + t->p->pad_w == 0 && t->image_in == t->p->channels;
    int8_t *memory = NULL;
    int32_t *offsets = ready ? t->sums + first : NULL;
    const int8_t *panels = t->q + first * t->padded;
    if (!ready) {
        const size_t panel_bytes = (size_t)ceil_div(count * bytes, 64) * 64;
        memory = malloc(panel_bytes + (size_t)ceil_div(count * 4, 64) * 64 + (size_t)bytes + 64);
        if (!memory) {
            t->failed = 1;
            return;
        }
        int8_t *aligned = memory + (64 - (uintptr_t)memory % 64) % 64;
        offsets = (int32_t *)(void *)(aligned + panel_bytes);
        int8_t *scratch = (int8_t *)(offsets + ceil_div(count * 4, 64) * 16);
        panels = aligned;
        for (int64_t r = 0; r < count;) {
            /* Panels as equal as they can be: 16 rows are 8 + 8, not 12 + 4. */
            const int64_t rows = ceil_div(count - r, ceil_div(count - r, path->rows));
            for (int64_t m = 0; m < rows; m++)
                offsets[r + m] = pack_row(t, first + r + m, group, rows, m, aligned + r * bytes, scratch);
            r += rows;
        }
    }
    const int one = count == 1 && path->multiply_row;
    const int64_t most_strips = one ? 1 : path->strips;
    for (int64_t done = first_strip; done < last_strip;) {
        const int64_t n_strips = last_strip - done < most_strips ? last_strip - done : most_strips;
        const int64_t s = one && t->backwards ? first_strip + last_strip - 1 - done : done;
        const int64_t n = (t->group_out - s * 16) < 16 * n_strips ? t->group_out - s * 16 : 16 * n_strips;
        for (int64_t r = 0; r < count;) {
            const int64_t rows = ceil_div(count - r, ceil_div(count - r, path->rows));
            int32_t acc[MAX_ROWS * MAX_STRIPS * 16];
            if (one) path->multiply_row(tiles + s * stride, t->k16, panels, acc, t->backwards);
            else path->multiply((int)rows, (int)n_strips, tiles + s * stride, stride, t->k16, panels + r * bytes, acc);
            for (int64_t m = 0; m < rows; m++)
                emit(t, acc + m * n_strips * 16, first + r + m, group * t->group_out + s * 16, n, offsets[r + m]);
            r += rows;
        }
        done += n_strips;
    }
    free(memory);
}

/* One output row of a depthwise convolution. */
static void depthwise_chunk(void *context, int64_t line) {
    plan *t = context;
    const problem *p = t->p;
    const int64_t image = line / t->out_h, top = line % t->out_h * p->stride_h - p->pad_h;
    int32_t *acc = malloc((size_t)p->channels * sizeof *acc);
    if (!acc) {
        t->failed = 1;
        return;
    }
    for (int64_t column = 0; column < t->out_w; column++) {
        const int64_t left = column * p->stride_w - p->pad_w;
        const int8_t *q[TAPS_PER_FLUSH], *weight[TAPS_PER_FLUSH];
        int64_t count = 0;
        memset(acc, 0, (size_t)p->channels * sizeof *acc);
        for (int64_t tap = 0; tap < p->kernel_h * p->kernel_w; tap++) {
            const int64_t h = top + tap / p->kernel_w * p->dilation_h, w = left + tap % p->kernel_w * p->dilation_w;
            if (h < 0 || h >= p->height || w < 0 || w >= p->width) continue;
            if (count == TAPS_PER_FLUSH) {
                t->path->taps(q, weight, count, p->channels, acc);
                count = 0;
            }
            q[count] = t->q + ((image * p->height + h) * p->width + w) * p->channels;
            weight[count++] = t->taps + tap * p->channels;
        }
        t->path->taps(q, weight, count, p->channels, acc);
        emit(t, acc, line * t->out_w + column, 0, p->channels, 0);
    }
    free(acc);
}

static void unpack_taps(const plan *t) {
    const int64_t channels = t->p->channels, taps = t->p->kernel_h * t->p->kernel_w, row = ceil_div(channels, 4);
    for (int64_t i = 0; i < taps; i++)
        for (int64_t c = 0; c < channels; c++)
            t->taps[i * channels + c] = (int8_t)((t->p->weight[i * row + c / 4] >> 2 * (c % 4) & 3) - 1);
}

/* Rows of ceil(k / 4) bytes per output channel into tiles per group, filled up with the code of zero. */
static void rows_to_tiles(const plan *t) {
    const int64_t row = ceil_div(t->k, 4), strips = ceil_div(t->group_out, 16);
    memset(t->tiles, 0x55, (size_t)(t->p->groups * strips * t->k16 * 64));
    for (int64_t o = 0; o < t->p->out_channels; o++) {
        const int64_t group = o / t->group_out, n = o % t->group_out;
        uint8_t *to = t->tiles + (group * strips + n / 16) * t->k16 * 64 + n % 16 * 4;
        for (int64_t b = 0; b < row; b++) to[b / 4 * 64 + b % 4] = t->p->weight[o * row + b];
    }
}

#define MOST_COLUMNS 500000 /* 4 * 128 * 127 * k16 stays below 2^31 */
#define PANEL_BYTES (192 * 1024)

static void lay_out_chunks(plan *t, int64_t threads) {
    const int64_t unit = t->path->rows, strips = ceil_div(t->group_out, 16);
    int64_t panels = PANEL_BYTES / (unit * t->k16 * 16 + 1);
    panels = panels < 1 ? 1 : panels > 16 ? 16 : panels;
    t->chunk_rows = panels * unit;
    if (threads > 1 && t->pixels > unit) { /* enough chunks for every thread before weights are shared out */
        const int64_t share = ceil_div(ceil_div(t->pixels, threads * 2), unit) * unit;
        if (share < t->chunk_rows) t->chunk_rows = share;
    }
    t->row_chunks = ceil_div(t->pixels, t->chunk_rows);
    const int64_t parts = t->row_chunks * t->p->groups < threads * 2 ? ceil_div(threads * 2, t->row_chunks * t->p->groups) : 1;
    t->chunk_strips = threads > 1 ? ceil_div(ceil_div(strips, parts), t->path->strips) * t->path->strips : strips;
    t->strip_chunks = ceil_div(strips, t->chunk_strips);
}

static void *take(int64_t bytes, int *failed) {
    void *memory = malloc((size_t)(bytes > 0 ? bytes : 1));
    if (!memory) *failed = 1;
    return memory;
}

static int is_depthwise(const problem *p) {
    return p->groups > 1 && p->groups == p->channels && p->groups == p->out_channels;
}

/* Of a matrix larger than the second-level cache, the part read last is still there: a call with the weights of the
 * call before goes through them from the other end. */
static int from_other_end(const uint8_t *weight) {
#if defined(__GNUC__)
    static __thread const uint8_t *last;
    static __thread int backwards;
    backwards = weight == last && !backwards;
    last = weight;
    return backwards;
#else
    (void)weight;
    return 0;
#endif
}

/* Solve one problem; OK or a reason. The caller has checked that the buffers have the sizes that the shapes ask for. */
EXPORT int32_t ternary_run(const problem *p) {
    plan t = {.p = p, .path = find_path(p->path)};
    if (!t.path) return NO_PATH;
    t.out_h = (p->height + 2 * p->pad_h - p->dilation_h * (p->kernel_h - 1) - 1) / p->stride_h + 1;
    t.out_w = (p->width + 2 * p->pad_w - p->dilation_w * (p->kernel_w - 1) - 1) / p->stride_w + 1;
    t.pixels = p->batch * t.out_h * t.out_w;
    t.group_in = p->channels / p->groups;
    t.group_out = p->out_channels / p->groups;
    t.k = t.group_in * p->kernel_h * p->kernel_w;
    t.k16 = ceil_div(t.k, 16);
    if (t.k > MOST_COLUMNS) return BAD_ARGUMENT;
    if (t.pixels <= 0 || p->out_channels <= 0) return OK;

    const int depthwise = is_depthwise(p);
    const int64_t images = p->batch * p->height * p->width * p->groups;
    t.direct = !depthwise && (t.group_in % 16 == 0 || (p->kernel_h * p->kernel_w == 1 && p->groups == 1));
    t.padded = t.direct ? ceil_div(t.group_in, 16) * 16 : t.group_in;
    t.image_in = p->height * p->width * p->channels;
    t.q = take(images * t.padded, &t.failed);
    t.x_scale = take(p->batch * (int64_t)sizeof(float), &t.failed);
    if (t.direct) t.sums = take(images * (int64_t)sizeof(int32_t), &t.failed);
    if (depthwise) t.taps = take(t.k * p->channels, &t.failed);
    else if (p->groups > 1) t.tiles = take(p->groups * ceil_div(t.group_out, 16) * t.k16 * 64, &t.failed);
    if (!t.failed) {
        /* A thread costs some microseconds to wake: small work stays where it is. */
        const int64_t work = t.pixels * t.group_out * t.k * p->groups;
        const int64_t threads = work < 1 << 20 ? 1 : p->threads;
        in_parallel(quantize_chunk, &t, p->batch, t.image_in * p->batch < 1 << 15 ? 1 : threads);
        if (depthwise) {
            unpack_taps(&t);
            in_parallel(depthwise_chunk, &t, p->batch * t.out_h, threads);
        } else {
            if (t.tiles) rows_to_tiles(&t);
            lay_out_chunks(&t, threads);
            t.backwards = threads == 1 && from_other_end(p->weight);
            in_parallel(multiply_chunk, &t, p->groups * t.row_chunks * t.strip_chunks, threads);
        }
    }
    free(t.q);
    free(t.x_scale);
    free(t.sums);
    free(t.taps);
    free(t.tiles);
    return t.failed ? NO_MEMORY : OK;
}

/* 1 if this build has the path and this machine can run it. */
EXPORT int32_t ternary_has_path(int64_t path) { return find_path(path) != NULL; }

/* Size of `problem`: the caller's layout of it is checked against this. */
EXPORT int64_t ternary_problem_size(void) { return (int64_t)sizeof(problem); }
