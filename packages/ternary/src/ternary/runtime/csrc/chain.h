/* A chain of convolutions as the caller describes it. */
#ifndef TERNARY_CHAIN_H
#define TERNARY_CHAIN_H
#include "problem.h"

enum { PRODUCT, PRODUCT_8, DEPTHWISE, DENSE };
enum { ACT_NONE, ACT_CLAMP, ACT_HARDSWISH };

#define MOST_TAPS 64 /* of a float kernel; channels count too in a dense one */

typedef struct {
    /* PRODUCT: 1 x 1 with 2-bit tiles; PRODUCT_8: with signed bytes as tiles; DEPTHWISE: float taps; DENSE: float taps
     * of few channels, which are only summed up, each times its row of weights */
    int64_t kind;
    int64_t channels, out_channels;
    int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w; /* of float taps; else 1, 0 */
    int64_t activation;
    double low, high;         /* of ACT_CLAMP; float32 numbers */
    const void *weight;       /* tiles, or rows of taps along the channels */
    const float *scale, *bias; /* one per output channel; float taps have no scale */
} stage;

typedef struct {
    int64_t path, threads;
    int64_t batch, height, width, channels; /* x: float, NHWC, contiguous */
    int64_t count;
    const stage *stages;
    const float *x;
    float *y;      /* NHWC */
    void *scratch; /* ternary_chain_bytes of them, aligned to 64 */
} chain;

EXPORT int32_t ternary_run_chain(const chain *c);
EXPORT int64_t ternary_chain_bytes(const chain *c);
EXPORT int64_t ternary_chain_size(void);
EXPORT int64_t ternary_stage_size(void);

#endif
