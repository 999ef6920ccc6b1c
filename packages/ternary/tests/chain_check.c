/* Runs random chains of convolutions on every path and several threads, on exactly sized buffers, and compares the bytes with
 * those of the portable path on one thread; for sanitizers. */
#include "chain.h"
#include <stdio.h>

static uint32_t state = 1;
static int draw(int n) {
    state = state * 1664525u + 1013904223u;
    return (int)((state >> 8) % (uint32_t)n);
}

#define MOST_STAGES 4

static float *floats(int64_t n) {
    float *made = malloc((size_t)n * sizeof *made + 1);
    for (int64_t i = 0; i < n; i++) made[i] = (float)(draw(2001) - 1000) / 250.0f;
    return made;
}

/* A random stage that takes so many channels; its buffers are the caller's. */
static stage any_stage(int64_t channels) {
    static const int64_t widths[] = {1, 3, 16, 17, 33, 48};
    stage s = {.kind = draw(4), .channels = channels, .kernel_h = 1, .kernel_w = 1, .stride_h = 1, .stride_w = 1};
    s.dilation_h = s.dilation_w = 1;
    if (s.kind == DENSE && channels > 3) s.kind = DEPTHWISE;
    s.out_channels = s.kind == DEPTHWISE ? channels : widths[draw(6)];
    s.activation = draw(3), s.low = -1.0, s.high = 2.5;
    if (s.kind == DEPTHWISE || s.kind == DENSE) {
        s.kernel_h = 1 + draw(3), s.kernel_w = 1 + draw(3), s.stride_h = 1 + draw(2), s.stride_w = 1 + draw(2);
        s.pad_h = draw(3), s.pad_w = draw(3), s.dilation_h = 1 + draw(2), s.dilation_w = 1 + draw(2);
        s.weight = floats(s.kernel_h * s.kernel_w * (s.kind == DENSE ? channels : 1) * s.out_channels);
    } else {
        const int64_t bytes = ceil_div(s.out_channels, 16) * ceil_div(channels, 16) * (s.kind == PRODUCT_8 ? 256 : 64);
        uint8_t *tiles = malloc((size_t)bytes);
        for (int64_t i = 0; i < bytes; i++)
            tiles[i] = s.kind == PRODUCT_8 ? (uint8_t)(draw(255) - 127)
                                           : (uint8_t)(draw(3) | draw(3) << 2 | draw(3) << 4 | draw(3) << 6);
        s.weight = tiles;
        s.scale = floats(s.out_channels);
    }
    s.bias = floats(s.out_channels);
    return s;
}

static int64_t side(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
    const int64_t room = size + 2 * pad - dilation * (kernel - 1) - 1;
    return room < 0 ? 0 : room / stride + 1;
}

static float *result(chain c, int64_t outputs, int64_t path, int64_t threads, int *wrong) {
    c.path = path, c.threads = threads;
    float *y = malloc((size_t)outputs * sizeof *y);
    const int64_t bytes = ternary_chain_bytes(&c);
    char *memory = malloc((size_t)bytes + 64);
    c.y = y, c.scratch = memory + (64 - (uintptr_t)memory % 64) % 64;
    *wrong |= ternary_run_chain(&c) != OK;
    free(memory);
    return y;
}

static int check(int *ran) {
    stage stages[MOST_STAGES];
    const int large = draw(15) == 0; /* only such work is shared among threads */
    chain c = {.batch = 1 + draw(2), .channels = 1 + draw(20)};
    c.height = large ? 50 + draw(30) : 1 + draw(12), c.width = large ? 50 + draw(30) : 1 + draw(12);
    int64_t height = c.height, width = c.width, channels = c.channels;
    c.stages = stages;
    const int wanted = 1 + draw(MOST_STAGES);
    for (int i = 0; i < wanted; i++) {
        const stage s = any_stage(channels);
        const int64_t h = side(height, s.kernel_h, s.stride_h, s.pad_h, s.dilation_h);
        const int64_t w = side(width, s.kernel_w, s.stride_w, s.pad_w, s.dilation_w);
        if (h < 1 || w < 1) {
            free((void *)s.weight), free((void *)s.scale), free((void *)s.bias);
            break;
        }
        stages[c.count++] = s;
        height = h, width = w, channels = s.out_channels;
    }
    int wrong = 0;
    if (c.count) {
        const int64_t outputs = c.batch * height * width * channels;
        float *x = floats(c.batch * c.height * c.width * c.channels);
        c.x = x;
        float *expected = result(c, outputs, PORTABLE, 1, &wrong);
        for (int path = 0; path < PATHS; path++) {
            if (!ternary_has_path(path)) continue;
            float *got = result(c, outputs, path, 1 + draw(3), &wrong);
            wrong |= memcmp(got, expected, (size_t)outputs * sizeof *got) != 0;
            free(got);
            ++*ran;
        }
        free(x), free(expected);
    }
    for (int64_t i = 0; i < c.count; i++)
        free((void *)stages[i].weight), free((void *)stages[i].scale), free((void *)stages[i].bias);
    return wrong;
}

int main(void) {
    int ran = 0, wrong = 0;
    for (int i = 0; i < 300; i++) wrong += check(&ran);
    chain none = {.path = PATHS};
    wrong += ternary_run_chain(&none) != NO_PATH || ternary_chain_size() != (int64_t)sizeof none;
    wrong += ternary_stage_size() != (int64_t)sizeof(stage);
    printf("%d chains, %d wrong\n", ran, wrong);
    return wrong != 0;
}
