/* Runs every path of the core over odd shapes on exactly sized buffers and compares with plain sums; for sanitizers. */
#include "problem.h"
#include <stdio.h>

static uint32_t state = 1;
static int draw(int n) {
    state = state * 1664525u + 1013904223u;
    return (int)((state >> 8) % (uint32_t)n);
}

static void put(uint8_t *packed, int64_t row_bytes, int64_t row, int64_t k, int value) {
    uint8_t *byte = packed + row * row_bytes + k / 4;
    *byte = (uint8_t)((*byte & ~(3 << 2 * (k % 4))) | (value + 1) << 2 * (k % 4));
}

static int check(int path, int threads, int dense_only) {
    problem p = {.path = path, .threads = threads, .batch = draw(4), .height = 1 + draw(6), .width = 1 + draw(6)};
    int64_t inner = draw(3) == 0 ? 16 * (1 + draw(3)) : 1 + draw(40), outer = 1 + draw(40);
    p.groups = dense_only ? 1 : 1 + draw(4);
    if (!dense_only && draw(4) == 0) inner = outer = 1, p.groups = 2 + draw(70);
    p.kernel_h = 1 + draw(3), p.kernel_w = 1 + draw(3), p.stride_h = 1 + draw(2), p.stride_w = 1 + draw(2);
    p.pad_h = draw(3), p.pad_w = draw(3), p.dilation_h = 1 + draw(2), p.dilation_w = 1 + draw(2);
    if (dense_only)
        p.height = p.width = p.kernel_h = p.kernel_w = p.stride_h = p.stride_w = 1, p.pad_h = p.pad_w = 0,
        p.batch = draw(3) ? draw(30) : 1, inner = 1 + draw(600);
    p.channels = inner * p.groups, p.out_channels = outer * p.groups;
    const int64_t oh = (p.height + 2 * p.pad_h - p.dilation_h * (p.kernel_h - 1) - 1) / p.stride_h + 1;
    const int64_t ow = (p.width + 2 * p.pad_w - p.dilation_w * (p.kernel_w - 1) - 1) / p.stride_w + 1;
    if (p.height + 2 * p.pad_h < p.dilation_h * (p.kernel_h - 1) + 1) return 0;
    if (p.width + 2 * p.pad_w < p.dilation_w * (p.kernel_w - 1) + 1) return 0;
    const int64_t taps = p.kernel_h * p.kernel_w, k = inner * taps, image = p.height * p.width * p.channels;
    const int64_t strips = ceil_div(outer, 16), k16 = ceil_div(k, 16), outputs = p.batch * oh * ow * p.out_channels;

    float *x = malloc((size_t)(p.batch * image) * 4 + 1), *y = malloc((size_t)outputs * 4 + 1);
    int32_t *sums = malloc((size_t)outputs * 4 + 1);
    float *scale = malloc((size_t)p.out_channels * 4), *bias = malloc((size_t)p.out_channels * 4);
    int8_t *values = malloc((size_t)(p.out_channels * k));
    const int depthwise = is_depthwise(&p);
    const int64_t bytes = depthwise ? taps * ceil_div(p.channels, 4)
                          : p.groups > 1 ? p.out_channels * ceil_div(k, 4) : strips * k16 * 64;
    uint8_t *weight = malloc((size_t)bytes);
    memset(weight, 0x55, (size_t)bytes);
    for (int64_t i = 0; i < p.batch * image; i++) x[i] = i % image ? (float)(draw(255) - 127) : 127.0f;
    for (int64_t o = 0; o < p.out_channels; o++) {
        scale[o] = (float)(1 + draw(5)), bias[o] = (float)draw(9);
        for (int64_t i = 0; i < k; i++) {
            const int value = values[o * k + i] = (int8_t)(draw(3) - 1);
            if (depthwise) put(weight, ceil_div(p.channels, 4), i, o, value);
            else if (p.groups > 1) put(weight, ceil_div(k, 4), o, i, value);
            else put(weight + (o / 16 * k16 + i / 16) * 64, 4, o % 16, i % 16, value);
        }
    }
    p.x = x, p.weight = weight, p.scale = scale, p.bias = bias;
    p.sums = sums;
    int wrong = ternary_run(&p) != OK;
    p.sums = NULL, p.y = y;
    wrong |= ternary_run(&p) != OK;
    for (int64_t at = 0; at < outputs && !wrong; at++) {
        const int64_t o = at % p.out_channels, pixel = at / p.out_channels, b = pixel / (oh * ow);
        int64_t sum = 0;
        for (int64_t i = 0; i < k; i++) {
            const int64_t tap = i / inner, h = pixel % (oh * ow) / ow * p.stride_h - p.pad_h + tap / p.kernel_w * p.dilation_h;
            const int64_t w = pixel % ow * p.stride_w - p.pad_w + tap % p.kernel_w * p.dilation_w;
            if (h < 0 || h >= p.height || w < 0 || w >= p.width) continue;
            const int64_t c = o / outer * inner + i % inner;
            sum += values[o * k + i] * (int64_t)x[((b * p.height + h) * p.width + w) * p.channels + c];
        }
        wrong = sums[at] != sum || y[at] != (float)sum * 1.0f * scale[o] + bias[o];
    }
    free(x), free(y), free(sums), free(scale), free(bias), free(values), free(weight);
    return wrong;
}

/* A product whose groups of columns have scales of their own. */
static int check_groups(int path, int threads) {
    problem p = {.path = path, .threads = threads, .batch = 1 + draw(40), .height = 1, .width = 1, .kernel_h = 1,
                 .kernel_w = 1, .stride_h = 1, .stride_w = 1, .dilation_h = 1, .dilation_w = 1};
    const int64_t group = draw(2) ? 16 * (1 + draw(8)) : 1 + draw(100), tiles = ceil_div(group, 16);
    p.groups = 1 + draw(6), p.channels = p.groups * group, p.out_channels = 1 + draw(80);
    const int64_t strips = ceil_div(p.out_channels, 16), bytes = strips * p.groups * tiles * 64;
    float *x = malloc((size_t)(p.batch * p.channels) * 4), *y = malloc((size_t)(p.batch * p.out_channels) * 4);
    float *scale = malloc((size_t)(strips * p.groups) * 64), *bias = malloc((size_t)p.out_channels * 4);
    int8_t *values = malloc((size_t)(p.out_channels * p.channels));
    uint8_t *weight = malloc((size_t)bytes);
    memset(weight, 0x55, (size_t)bytes);
    for (int64_t i = 0; i < p.batch * p.channels; i++) x[i] = i % p.channels ? (float)(draw(255) - 127) : 127.0f;
    for (int64_t i = 0; i < strips * p.groups * 16; i++) scale[i] = (float)(1 + draw(5));
    for (int64_t o = 0; o < p.out_channels; o++) {
        bias[o] = (float)draw(9);
        for (int64_t i = 0; i < p.channels; i++) {
            const int64_t g = i / group, k = i % group;
            const int value = values[o * p.channels + i] = (int8_t)(draw(3) - 1);
            put(weight + ((o / 16 * p.groups + g) * tiles + k / 16) * 64, 4, o % 16, k % 16, value);
        }
    }
    p.x = x, p.weight = weight, p.scale = scale, p.bias = draw(2) ? bias : NULL, p.y = y;
    int wrong = ternary_run_groups(&p) != OK;
    for (int64_t at = 0; at < p.batch * p.out_channels && !wrong; at++) {
        const int64_t o = at % p.out_channels, row = at / p.out_channels;
        float wanted = p.bias ? bias[o] : 0.0f;
        for (int64_t g = 0; g < p.groups; g++) {
            int64_t sum = 0;
            for (int64_t i = g * group; i < (g + 1) * group; i++)
                sum += values[o * p.channels + i] * (int64_t)x[row * p.channels + i];
            wanted = (float)sum * scale[(o / 16 * p.groups + g) * 16 + o % 16] + wanted;
        }
        wrong = y[at] != wanted;
    }
    p.channels++; /* which the groups do not divide, unless there is one */
    wrong |= p.groups > 1 && ternary_run_groups(&p) != BAD_ARGUMENT;
    free(x), free(y), free(scale), free(bias), free(values), free(weight);
    return wrong;
}

int main(void) {
    int ran = 0, wrong = 0;
    for (int path = 0; path < PATHS; path++) {
        if (!ternary_has_path(path)) continue;
        for (int i = 0; i < 150; i++, ran++) wrong += check(path, 1 + i % 3, i % 3 == 0);
        for (int i = 0; i < 60; i++, ran++) wrong += check_groups(path, 1 + i % 3);
    }
    problem none = {.path = PATHS};
    wrong += ternary_run(&none) != NO_PATH || ternary_run_groups(&none) != NO_PATH || ternary_problem_size() != (int64_t)sizeof none;
    printf("%d problems, %d wrong\n", ran, wrong);
    return wrong != 0;
}
