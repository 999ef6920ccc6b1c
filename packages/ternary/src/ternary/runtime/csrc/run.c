/* One problem from its float activations to its outputs, in chunks over the threads. */
#include "pieces.h"
#include "processor.h"
#include "threads.h"

#if HAVE_NEON && defined(__linux__)
#include <sys/auxv.h>
#endif

const path_table *ternary_find_path(int64_t path) {
    if (path == PORTABLE) return &ternary_portable;
#if HAVE_X86
    const int has_vnni = (ternary_processor() & HAS_VNNI) != 0;
    if (path == AVX2 && ternary_processor() & HAS_AVX2) return &ternary_avx2;
    if (path == AVX512VNNI && has_vnni) return &ternary_vnni;
#if HAVE_AVXVNNI
    if (path == AVXVNNI && ternary_processor() & HAS_AVXVNNI) return &ternary_avxvnni;
#endif
#if HAVE_AMX
    if (path == AMX && has_vnni && ternary_amx_allowed()) return &ternary_amx;
#endif
#endif
#if HAVE_NEON
#if defined(__APPLE__)
    if (path == NEON) return &ternary_neon; /* every ARM Mac has the dot product */
#elif defined(__linux__)
    if (path == NEON && getauxval(AT_HWCAP) >> 20 & 1) return &ternary_neon;
#endif
#endif
    return NULL;
}

typedef struct {
    const problem *p;
    const path_table *path;
    path_table bytes;                   /* for weights of 8 bits: the path, with the parts for them in their places */
    int64_t tile_bytes;
    int32_t factor;                     /* products are too large by so many times the sum of the activations */
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
    int failed;
} plan;

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

/* The activations of one output pixel and group into row m of a panel; returns their sum. */
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
    const int64_t stride = t->k16 * t->tile_bytes, bytes = ceil_div(t->k16, path->span) * path->span * 16;
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
    for (int64_t s = first_strip; s < last_strip;) {
        const int64_t n_strips = last_strip - s < most_strips ? last_strip - s : most_strips;
        const int64_t n = (t->group_out - s * 16) < 16 * n_strips ? t->group_out - s * 16 : 16 * n_strips;
        for (int64_t r = 0; r < count;) {
            const int64_t rows = ceil_div(count - r, ceil_div(count - r, path->rows));
            int32_t acc[MAX_ROWS * MAX_STRIPS * 16];
            if (one) path->multiply_row(tiles + s * stride, t->k16, panels, acc);
            else path->multiply((int)rows, (int)n_strips, tiles + s * stride, stride, t->k16, panels + r * bytes, acc);
            for (int64_t m = 0; m < rows; m++)
                emit(t, acc + m * n_strips * 16, first + r + m, group * t->group_out + s * 16, n,
                     t->factor * offsets[r + m]);
            r += rows;
        }
        s += n_strips;
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
            weight[count++] = (t->taps ? t->taps : (const int8_t *)p->weight) + tap * p->channels;
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
#define MOST_COLUMNS8 66000 /* 255 * 127 * k stays below 2^31 */
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

/* Solve one problem; return OK or a reason. The caller has checked that each buffer has the size its shape requires. */
EXPORT int32_t ternary_run(const problem *p) {
    plan t = {.p = p, .path = ternary_find_path(p->path)};
    if (!t.path) return NO_PATH;
    const int eight = p->weight_bits == 8;
    t.tile_bytes = eight ? 256 : 64;
    t.factor = eight ? t.path->offset8 : 1;
    if (eight) {
        t.bytes = *t.path;
        t.bytes.rows = t.path->rows8;
        t.bytes.strips = t.path->strips8;
        t.bytes.span = 1;
        t.bytes.multiply = t.path->multiply8;
        t.bytes.multiply_row = NULL;
        t.bytes.taps = t.path->taps8;
        t.path = &t.bytes;
    }
    t.out_h = (p->height + 2 * p->pad_h - p->dilation_h * (p->kernel_h - 1) - 1) / p->stride_h + 1;
    t.out_w = (p->width + 2 * p->pad_w - p->dilation_w * (p->kernel_w - 1) - 1) / p->stride_w + 1;
    t.pixels = p->batch * t.out_h * t.out_w;
    t.group_in = p->channels / p->groups;
    t.group_out = p->out_channels / p->groups;
    t.k = t.group_in * p->kernel_h * p->kernel_w;
    t.k16 = ceil_div(t.k, 16);
    if (t.k > (eight ? MOST_COLUMNS8 : MOST_COLUMNS)) return BAD_ARGUMENT;
    if (t.pixels <= 0 || p->out_channels <= 0) return OK;

    const int depthwise = is_depthwise(p);
    const int64_t images = p->batch * p->height * p->width * p->groups;
    t.direct = !depthwise && (t.group_in % 16 == 0 || (p->kernel_h * p->kernel_w == 1 && p->groups == 1));
    t.padded = t.direct ? ceil_div(t.group_in, 16) * 16 : t.group_in;
    t.image_in = p->height * p->width * p->channels;
    t.q = take(images * t.padded, &t.failed);
    t.x_scale = take(p->batch * (int64_t)sizeof(float), &t.failed);
    if (t.direct) t.sums = take(images * (int64_t)sizeof(int32_t), &t.failed);
    if (depthwise && !eight) t.taps = take(t.k * p->channels, &t.failed);
    else if (p->groups > 1 && !eight) t.tiles = take(p->groups * ceil_div(t.group_out, 16) * t.k16 * 64, &t.failed);
    if (!t.failed) {
        /* A thread costs some microseconds to wake: small work stays where it is. */
        const int64_t work = t.pixels * t.group_out * t.k * p->groups;
        const int64_t threads = work < 1 << 20 ? 1 : p->threads;
        ternary_in_parallel(quantize_chunk, &t, p->batch, t.image_in * p->batch < 1 << 15 ? 1 : threads);
        if (depthwise) {
            if (!eight) unpack_taps(&t);
            ternary_in_parallel(depthwise_chunk, &t, p->batch * t.out_h, threads);
        } else {
            if (t.tiles) rows_to_tiles(&t);
            lay_out_chunks(&t, threads);
            ternary_in_parallel(multiply_chunk, &t, p->groups * t.row_chunks * t.strip_chunks, threads);
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
EXPORT int32_t ternary_has_path(int64_t path) { return ternary_find_path(path) != NULL; }

/* Size of `problem`: the caller's layout of it is checked against this. */
EXPORT int64_t ternary_problem_size(void) { return (int64_t)sizeof(problem); }

#ifndef SOURCES
#define SOURCES ""
#endif
/* The digest of the sources that this was compiled from. */
EXPORT const char *ternary_sources(void) { return SOURCES; }

/* The name of a path, or NULL for a number that none has. */
EXPORT const char *ternary_path_name(int64_t path) {
    static const char *const names[PATHS] = {
        [PORTABLE] = "portable", [AVX2] = "avx2", [AVX512VNNI] = "avx512vnni", [NEON] = "neon", [AMX] = "amx",
        [AVXVNNI] = "avxvnni"};
    return path >= 0 && path < PATHS ? names[path] : NULL;
}
