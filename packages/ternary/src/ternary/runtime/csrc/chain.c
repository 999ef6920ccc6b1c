/* A chain of thin convolutions in one call: products of one pixel with its channels, depthwise kernels, activations.
 *
 * Products quantize their input once, with one scale an image, as they do alone. A depthwise kernel takes the floats that
 * the product before it makes, row by row from a ring that stays in cache, so the widest tensor of a block is never
 * stored. Every output is made by the same operations in the same order on every path and number of threads:
 * (float)sum * x_scale * scale + bias for products, taps from the first to the last plus bias for depthwise kernels. */
#include "chain_pieces.h"
#include "threads.h"

typedef struct {
    const chain *c;
    const path_table *path;
    const chain_pieces *pieces;
    const stage *product, *dense, *depthwise; /* the stages of the running job, NULL for none */
    const float *from;                   /* floats that it reads */
    float *to;                           /* floats that it writes */
    int64_t in_h, in_w;                  /* of what a dense kernel reads */
    int64_t height, width, out_h, out_w; /* of the depthwise kernel; pixels = height * width of the product */
    int64_t padded, k16, chunk;          /* bytes of a quantized pixel; tiles along K; pixels or rows of a chunk */
    float inverse, x_scale;
    int8_t *q;
    int32_t *sums;
    float *rings;      /* one of `ring` floats for each chunk of a depthwise job */
    int64_t ring;
    int32_t most; /* the largest magnitude written, atomically */
    int measured; /* whether the magnitudes of a product's results are wanted */
    int failed;
} run;

static void note_most(run *t, int32_t most) {
    int32_t known = __atomic_load_n(&t->most, __ATOMIC_RELAXED);
    while (most > known &&
           !__atomic_compare_exchange_n(&t->most, &known, most, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}

static void largest_chunk(void *context, int64_t index) {
    run *t = context;
    const int64_t pixels = t->height * t->width, first = index * t->chunk;
    const int64_t count = pixels - first < t->chunk ? pixels - first : t->chunk, channels = t->product->channels;
    note_most(t, t->pieces->largest(t->from + first * channels, count * channels));
}

static void round_chunk(void *context, int64_t index) {
    run *t = context;
    const int64_t pixels = t->height * t->width, first = index * t->chunk, channels = t->product->channels;
    const int64_t count = pixels - first < t->chunk ? pixels - first : t->chunk;
    t->pieces->round(t->from + first * channels, count, channels, t->padded, t->inverse, t->q + first * t->padded,
                     t->sums + first);
}

/* What a thread needs for `count` rows of a product: their panels. */
static int64_t panel_bytes(const run *t, int64_t count) {
    return count * ceil_div(t->k16, t->path->span) * t->path->span * 16 + 64;
}

/* The quantized pixels first … first + count - 1 times the weights, activated, to y; returns the largest magnitude if a
 * product reads them next. */
static int32_t multiply_pixels(const run *t, int64_t first, int64_t count, int8_t *memory, float *y) {
    const path_table *path = t->path;
    const stage *s = t->product;
    const int eight = s->kind == PRODUCT_8;
    const int most_rows = eight ? path->rows8 : path->rows, most_strips = eight ? path->strips8 : path->strips;
    const int64_t span = eight ? 1 : path->span, bytes = ceil_div(t->k16, span) * span * 16;
    const int64_t stride = t->k16 * (eight ? 256 : 64), strips = ceil_div(s->out_channels, 16);
    const int32_t factor = eight ? path->offset8 : 1;
    int8_t *panels = memory + (64 - (uintptr_t)memory % 64) % 64;
    int32_t most = 0;
    for (int64_t r = 0; r < count;) {
        const int64_t rows = ceil_div(count - r, ceil_div(count - r, most_rows));
        int8_t *panel = panels + r * bytes;
        for (int64_t m = 0; m < rows; m++) {
            const int8_t *q = t->q + (first + r + m) * t->padded;
            for (int64_t k = 0; k < t->k16; k += span) {
                const int64_t there = t->k16 - k < span ? t->k16 - k : span;
                int8_t *at = panel + (k * rows + m * span) * 16;
                if (span == 1) memcpy(at, q + k * 16, 16);
                else memcpy(at, q + k * 16, (size_t)there * 16);
                for (int64_t i = there; i < span; i++) memset(at + i * 16, 0, 16);
            }
        }
        r += rows;
    }
    const int one = !eight && count == 1 && path->multiply_row;
    for (int64_t strip = 0; strip < strips;) {
        const int64_t side = one || strips - strip == 1 ? 1 : most_strips, channel = strip * 16;
        const int64_t n = s->out_channels - channel < 16 * side ? s->out_channels - channel : 16 * side;
        const uint8_t *tiles = (const uint8_t *)s->weight + strip * stride;
        for (int64_t r = 0; r < count;) {
            const int64_t rows = ceil_div(count - r, ceil_div(count - r, most_rows));
            int32_t acc[32 * 2 * 16];
            if (one) path->multiply_row(tiles, t->k16, panels, acc);
            else if (eight) path->multiply8((int)rows, (int)side, tiles, stride, t->k16, panels + r * bytes, acc);
            else path->multiply((int)rows, (int)side, tiles, stride, t->k16, panels + r * bytes, acc);
            const int32_t largest = t->pieces->finish(s, t->measured, acc, side * 16, rows, channel, n,
                                                      t->sums + first + r, factor, t->x_scale, y + r * s->out_channels + channel);
            most = largest > most ? largest : most;
            r += rows;
        }
        strip += side;
    }
    return most;
}

static void product_chunk(void *context, int64_t index) {
    run *t = context;
    const int64_t pixels = t->height * t->width, first = index * t->chunk;
    const int64_t count = pixels - first < t->chunk ? pixels - first : t->chunk;
    int8_t *memory = malloc((size_t)panel_bytes(t, count));
    if (!memory) {
        t->failed = 1;
        return;
    }
    note_most(t, multiply_pixels(t, first, count, memory, t->to + first * t->product->out_channels));
    free(memory);
}

static int64_t out_side(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
    return (size + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
}

/* Row h of a dense kernel's results. */
static void dense_row(const run *t, int64_t h, float *to) {
    const stage *s = t->dense;
    const float *rows[MOST_TAPS];
    for (int64_t i = 0; i < s->kernel_h; i++) {
        const int64_t from = h * s->stride_h - s->pad_h + i * s->dilation_h;
        rows[i] = from < 0 || from >= t->in_h ? NULL : t->from + from * t->in_w * s->channels;
    }
    t->pieces->dense(s, rows, t->in_w, t->width, to);
}

static void dense_chunk(void *context, int64_t index) {
    run *t = context;
    const int64_t first = index * t->chunk, last = first + t->chunk < t->height ? first + t->chunk : t->height;
    for (int64_t h = first; h < last; h++) dense_row(t, h, t->to + h * t->width * t->dense->out_channels);
}

/* Output rows of a depthwise kernel; the rows that it reads are there, or the stage before it makes them into a ring. */
static void depthwise_chunk(void *context, int64_t index) {
    run *t = context;
    const stage *s = t->depthwise;
    const int64_t first = index * t->chunk, last = first + t->chunk < t->out_h ? first + t->chunk : t->out_h;
    const int64_t ring_rows = s->dilation_h * (s->kernel_h - 1) + 1, row = t->width * s->channels;
    const int making = t->product || t->dense;
    float *ring = t->rings + index * t->ring;
    int8_t *memory = t->product ? malloc((size_t)panel_bytes(t, t->width)) : NULL;
    if (t->product && !memory) {
        t->failed = 1;
        return;
    }
    int32_t most = 0;
    int64_t made = 0; /* rows before this one are in the ring, as far as it reaches */
    for (int64_t o = first; o < last; o++) {
        const int64_t top = o * s->stride_h - s->pad_h, below = top + ring_rows < t->height ? top + ring_rows : t->height;
        const float *rows[MOST_TAPS];
        if (made < top) made = top;
        for (; making && made < below; made++) {
            float *to = ring + made % ring_rows * row;
            if (t->product) multiply_pixels(t, made * t->width, t->width, memory, to);
            else dense_row(t, made, to);
        }
        for (int64_t i = 0; i < s->kernel_h; i++) {
            const int64_t h = top + i * s->dilation_h;
            rows[i] = h < 0 || h >= t->height ? NULL : making ? ring + h % ring_rows * row : t->from + h * row;
        }
        const int32_t largest = t->pieces->depthwise(s, rows, t->width, t->out_w, t->to + o * t->out_w * s->channels);
        most = largest > most ? largest : most;
    }
    note_most(t, most);
    free(memory);
}

#define PIXELS_OF_CHUNK 256
#define PANELS (128 * 1024)

/* Quantize the image at t->from for t->product, whose largest magnitude is known unless it is negative. */
static void quantize_image(run *t, int32_t most, int64_t threads) {
    const int64_t chunks = ceil_div(t->height * t->width, PIXELS_OF_CHUNK);
    t->chunk = PIXELS_OF_CHUNK;
    t->k16 = ceil_div(t->product->channels, 16);
    t->padded = t->k16 * 16;
    t->most = most;
    if (most < 0) {
        t->most = 0;
        ternary_in_parallel(largest_chunk, t, chunks, threads);
    }
    float absmax;
    memcpy(&absmax, &t->most, 4);
    const int finite = t->most < 0x7F800000;
    t->inverse = finite && absmax >= SMALLEST ? 127.0f / absmax : 0.0f;
    t->x_scale = absmax / 127.0f;
    if (t->inverse == 0.0f) {
        const int32_t none = finite ? 0 : 0x7FC00000;
        memcpy(&t->x_scale, &none, 4);
        memset(t->q, 0, (size_t)(t->height * t->width * t->padded));
        memset(t->sums, 0, (size_t)(t->height * t->width) * sizeof *t->sums);
    } else {
        ternary_in_parallel(round_chunk, t, chunks, threads);
    }
}

static void run_product(run *t, int64_t threads) {
    const int64_t unit = t->product->kind == PRODUCT_8 ? t->path->rows8 : t->path->rows;
    int64_t panels = PANELS / (unit * t->k16 * 16);
    panels = panels < 1 ? 1 : panels > 16 ? 16 : panels;
    const int64_t share = ceil_div(t->height * t->width, threads * 2);
    t->chunk = threads > 1 && share < panels * unit ? ceil_div(share, unit) * unit : panels * unit;
    ternary_in_parallel(product_chunk, t, ceil_div(t->height * t->width, t->chunk), threads);
}

static void set_out_size(const stage *s, int64_t *height, int64_t *width) {
    *height = out_side(*height, s->kernel_h, s->stride_h, s->pad_h, s->dilation_h);
    *width = out_side(*width, s->kernel_w, s->stride_w, s->pad_w, s->dilation_w);
}

/* The stages on one image; `spare` are two buffers for what lies between jobs. */
static void run_image(run *t, const float *x, float *y, float *const *spare) {
    const chain *c = t->c;
    int32_t most = -1; /* of what the next stage reads, where it is known */
    t->from = x;
    t->height = c->height;
    t->width = c->width;
    for (int64_t i = 0, turn = 0; i < c->count && !t->failed; i++, turn ^= 1) {
        const stage *s = c->stages + i, *next = i + 1 < c->count ? s + 1 : NULL;
        const int product = s->kind == PRODUCT || s->kind == PRODUCT_8;
        const int both = s->kind != DEPTHWISE && next && next->kind == DEPTHWISE;
        t->product = product ? s : NULL;
        t->dense = s->kind == DENSE ? s : NULL;
        t->depthwise = s->kind == DEPTHWISE ? s : both ? next : NULL;
        i += both;
        t->to = i + 1 == c->count ? y : spare[turn];
        t->measured = product && next && !both;
        const int64_t inputs = s->kind == DEPTHWISE ? 1 : s->channels;
        const int64_t work = t->height * t->width * s->out_channels * inputs * s->kernel_h * s->kernel_w;
        const int64_t threads = work < 1 << 20 || c->threads < 1 ? 1 : c->threads;
        if (product) quantize_image(t, most, threads);
        t->in_h = t->height;
        t->in_w = t->width;
        if (t->dense) set_out_size(s, &t->height, &t->width);
        t->most = 0;
        if (t->depthwise) {
            t->out_h = t->height;
            t->out_w = t->width;
            set_out_size(t->depthwise, &t->out_h, &t->out_w);
            /* A band makes the rows above and below it once more: bands are as large as they can be. */
            t->chunk = ceil_div(t->out_h, threads);
            ternary_in_parallel(depthwise_chunk, t, ceil_div(t->out_h, t->chunk), threads);
            t->height = t->out_h;
            t->width = t->out_w;
        } else if (t->dense) {
            t->chunk = ceil_div(t->height, threads * 2);
            ternary_in_parallel(dense_chunk, t, ceil_div(t->height, t->chunk), threads);
        } else {
            run_product(t, threads);
        }
        most = t->depthwise || t->measured ? t->most : -1;
        t->from = t->to;
    }
}

/* Sizes of what lies between stages. */
typedef struct {
    int64_t floats, bytes, pixels, ring; /* of a buffer, of a quantized image, of its sums, of a ring */
    int64_t image_out;
} sizes;

static int64_t aligned(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

static sizes sizes_of(const chain *c) {
    sizes most = {0};
    int64_t height = c->height, width = c->width;
    for (int64_t i = 0; i < c->count; i++) {
        const stage *s = c->stages + i;
        const int both = s->kind != DEPTHWISE && i + 1 < c->count && s[1].kind == DEPTHWISE;
        if (s->kind == PRODUCT || s->kind == PRODUCT_8) {
            const int64_t taken = height * width * ceil_div(s->channels, 16) * 16;
            most.bytes = taken > most.bytes ? taken : most.bytes;
            most.pixels = height * width > most.pixels ? height * width : most.pixels;
        } else {
            set_out_size(s, &height, &width);
        }
        const int64_t made = height * width * s->out_channels;
        const int64_t ring = both ? (s[1].dilation_h * (s[1].kernel_h - 1) + 1) * width * s->out_channels : 0;
        if (i + 1 < c->count && !both && made > most.floats) most.floats = made;
        if (aligned(ring * 4) / 4 > most.ring) most.ring = aligned(ring * 4) / 4;
    }
    most.image_out = height * width * c->stages[c->count - 1].out_channels;
    return most;
}

/* How much scratch memory a chain takes. */
EXPORT int64_t ternary_chain_bytes(const chain *c) {
    const sizes z = sizes_of(c);
    const int64_t threads = c->threads < 1 ? 1 : c->threads;
    return 2 * aligned(z.floats * 4) + aligned(z.bytes) + aligned(z.pixels * 4) + threads * z.ring * 4;
}

/* Run a chain; return OK or a reason. The caller has checked sizes, shapes and that every kernel fits its input. */
EXPORT int32_t ternary_run_chain(const chain *c) {
    run t = {.c = c, .path = ternary_find_path(c->path), .pieces = pieces_of(c->path)};
    if (!t.path) return NO_PATH;
    for (int64_t i = 0; i < c->count; i++) {
        const stage *s = c->stages + i;
        const int64_t taps = s->kernel_h * s->kernel_w * (s->kind == DENSE ? s->channels : 1);
        if (taps > MOST_TAPS) return BAD_ARGUMENT;
    }
    const sizes z = sizes_of(c);
    if (!c->batch || !z.image_out) return OK;
    const int64_t image_in = c->height * c->width * c->channels;
    char *at = c->scratch;
    float *spare[2] = {(void *)at, (void *)(at + aligned(z.floats * 4))};
    at += 2 * aligned(z.floats * 4);
    t.q = (int8_t *)at;
    at += aligned(z.bytes);
    t.sums = (void *)at;
    t.rings = (void *)(at + aligned(z.pixels * 4));
    t.ring = z.ring;
    for (int64_t b = 0; b < c->batch && !t.failed; b++)
        run_image(&t, c->x + b * image_in, c->y + b * z.image_out, spare);
    return t.failed ? NO_MEMORY : OK;
}

/* Sizes of `chain` and `stage`: the caller's layouts are checked against these. */
EXPORT int64_t ternary_chain_size(void) { return (int64_t)sizeof(chain); }
EXPORT int64_t ternary_stage_size(void) { return (int64_t)sizeof(stage); }
