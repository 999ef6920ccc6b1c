/* One product or convolution, what a kernel has to bring for it, and the compiler's and machine's differences.
 *
 * Activations are quantized to int8 (one scale per image or row), multiplied with 2-bit weights in int32 without any
 * overflow, and scaled back to float. Every kernel returns the same integers and the same floats, bit for bit: rounding
 * is half to even, the epilogue is (float)sum * x_scale * w_scale + bias in that order, and all files are compiled with
 * -ffp-contract=off and without fast-math. docs/packing-format.md specifies the layouts.
 *
 * Weights enter products as codes 0, 1, 2 (value + 1), so sum(code * x) - sum(x) = sum(value * x).
 */
#ifndef TERNARY_PROBLEM_H
#define TERNARY_PROBLEM_H
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
#endif

#if defined(__GNUC__) && defined(__x86_64__)
#define HAVE_X86 1
#include <immintrin.h>
#define TARGET_AVX2 __attribute__((target("avx2")))
#define TARGET_VNNI __attribute__((target("avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define HAVE_AVXVNNI 1
#define TARGET_AVXVNNI __attribute__((target("avx2,avxvnni")))
#endif
#if defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define HAVE_AMX 1
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
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#else
#define INLINE static inline
#define UNROLL
#endif

enum { PORTABLE, AVX2, AVX512VNNI, NEON, AMX, AVXVNNI, PATHS };
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
    int64_t weight_bits;     /* 8: signed bytes as tiles (rows of taps if depthwise); any other value: 2 */
} problem;

/* ---- what a path has to bring ---- */

typedef struct {
    int rows, strips; /* the largest register tile: activation rows x strips of 16 outputs */
    int span;         /* tiles of 16 columns that lie together in a row of a panel */
    /* acc[rows][16 * strips] = panel x codes; strips lie `stride` bytes apart. A panel is [k16 / span][rows][16 * span
     * bytes], zero behind k16. */
    void (*multiply)(int rows, int strips, const uint8_t *tiles, int64_t stride, int64_t k16, const int8_t *panel,
                     int32_t *acc);
    /* The same for one row and strip; NULL: `multiply` does it. */
    void (*multiply_row)(const uint8_t *tiles, int64_t k16, const int8_t *panel, int32_t *acc);
    float (*quantize)(const float *x, int64_t rows, int64_t row, int64_t padded, int permute, int8_t *q, int32_t *sums);
    void (*finish)(const int32_t *acc, int64_t n, int32_t offset, float x_scale, const float *scale, const float *bias,
                   float *y);
    /* acc[n] += the products of `count` taps, at most 256, of which each has an activation and a weight per channel. */
    void (*taps)(const int8_t *const *q, const int8_t *const *w, int64_t count, int64_t n, int32_t *acc);
    /* The same three for weights of signed bytes: the register tile, the product with tiles of 256 bytes, the taps.
     * A product may be too large by `offset8` times the sum of the activations. */
    int rows8, strips8, offset8;
    void (*multiply8)(int rows, int strips, const uint8_t *tiles, int64_t stride, int64_t k16, const int8_t *panel,
                      int32_t *acc);
    void (*taps8)(const int8_t *const *q, const int8_t *const *w, int64_t count, int64_t n, int32_t *acc);
} path_table;

extern const path_table ternary_portable;
#if HAVE_X86
extern const path_table ternary_avx2, ternary_vnni;
void ternary_multiply8_vnni(int rows, int strips, const uint8_t *tiles, int64_t stride, int64_t k16,
                            const int8_t *panel, int32_t *acc);
void ternary_multiply_vnni_row(const uint8_t *tiles, int64_t k16, const int8_t *panel, int32_t *acc);
#endif
#if HAVE_AVXVNNI
extern const path_table ternary_avxvnni;
#endif
#if HAVE_AMX
extern const path_table ternary_amx;
int ternary_amx_allowed(void);
#endif
#if HAVE_NEON
extern const path_table ternary_neon;
#endif

/* The table of a path, or NULL if this build or this machine does not have it. */
const path_table *ternary_find_path(int64_t path);

EXPORT int32_t ternary_run(const problem *p);
EXPORT int32_t ternary_run_groups(const problem *p);
EXPORT int32_t ternary_has_path(int64_t path);
EXPORT int64_t ternary_problem_size(void);
EXPORT const char *ternary_path_name(int64_t path);

INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

INLINE int is_depthwise(const problem *p) {
    return p->groups > 1 && p->groups == p->channels && p->groups == p->out_channels;
}

#endif
