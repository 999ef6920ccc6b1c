/* A linear layer with a scale for each output and group of inputs: the tiles and pieces of a path, group by group.
 *
 * Activations have one scale a row, as without groups. A group's columns are filled up to whole tiles, in the weights
 * too. The sum of each group is finished on its own, in the order of the groups, and the first one has the bias:
 * y = sum0 * x_scale * scale0 + bias, then y = sum * x_scale * scale + y. */
#include "problem.h"
#include "threads.h"

typedef struct {
    const problem *p;
    const path_table *path;
    int64_t group, tiles, padded; /* columns of a group; its tiles; columns with their filling */
    int64_t panel;                /* bytes of a row of a group in a panel */
    int64_t strips, chunk_rows, row_chunks, chunk_strips, strip_chunks;
    int8_t *q;      /* rows of groups of `padded` bytes, in the order of tiles */
    int32_t *sums;  /* of the activations of each row and group */
    float *x_scale; /* per row */
    int failed;
} groups_plan;

static void quantize_row(void *context, int64_t row) {
    groups_plan *t = context;
    const int64_t groups = t->p->groups;
    t->x_scale[row] = t->path->quantize(t->p->x + row * t->p->channels, groups, t->group, t->padded, 1,
                                        t->q + row * groups * t->padded, t->sums + row * groups);
}

/* One group of `rows` rows as a panel: [tiles / span][rows][16 * span], zero behind the group's tiles. */
static void lay_panel(const groups_plan *t, int64_t first, int64_t rows, int64_t group, int8_t *panel) {
    const int64_t span = t->path->span, whole = t->panel / 16;
    for (int64_t m = 0; m < rows; m++) {
        const int8_t *q = t->q + ((first + m) * t->p->groups + group) * t->padded;
        for (int64_t k = 0; k < whole; k++) {
            int8_t *to = panel + ((k / span * rows + m) * span + k % span) * 16;
            if (k < t->tiles) memcpy(to, q + k * 16, 16);
            else memset(to, 0, 16);
        }
    }
}

#define MOST_ROWS 32
#define MOST_STRIPS 2

/* Strips of outputs of `rows` rows, whose panels of all groups lie one after the other. */
static void multiply_strips(const groups_plan *t, int64_t first, int64_t rows, int64_t strip, int64_t last,
                            const int8_t *panels) {
    const problem *p = t->p;
    const path_table *path = t->path;
    const int64_t stride = p->groups * t->tiles * 64, panel = t->panel * rows;
    const int one = rows == 1 && path->multiply_row != NULL;
    const int64_t most = one ? 1 : path->strips;
    for (int64_t count; strip < last; strip += count) {
        count = last - strip < most ? last - strip : most;
        for (int64_t g = 0; g < p->groups; g++) {
            int32_t acc[MOST_ROWS * MOST_STRIPS * 16];
            const uint8_t *weight = p->weight + strip * stride + g * t->tiles * 64;
            if (one) path->multiply_row(weight, t->tiles, panels + g * panel, acc);
            else path->multiply((int)rows, (int)count, weight, stride, t->tiles, panels + g * panel, acc);
            for (int64_t m = 0; m < rows; m++)
                for (int64_t s = 0; s < count; s++) {
                    const int64_t n = (strip + s) * 16, left = p->out_channels - n;
                    float *y = p->y + (first + m) * p->out_channels + n;
                    path->finish(acc + (m * count + s) * 16, left < 16 ? left : 16, t->sums[(first + m) * p->groups + g],
                                 t->x_scale[first + m], p->scale + ((strip + s) * p->groups + g) * 16,
                                 g ? y : p->bias ? p->bias + n : NULL, y);
                }
        }
    }
}

static void groups_chunk(void *context, int64_t chunk) {
    groups_plan *t = context;
    const int64_t first = chunk / t->strip_chunks * t->chunk_rows, strip = chunk % t->strip_chunks * t->chunk_strips;
    const int64_t left = t->p->batch - first, count = left < t->chunk_rows ? left : t->chunk_rows;
    const int64_t last = strip + t->chunk_strips < t->strips ? strip + t->chunk_strips : t->strips;
    int8_t *memory = malloc((size_t)(t->path->rows * t->panel * t->p->groups + 64));
    if (!memory) {
        t->failed = 1;
        return;
    }
    int8_t *panels = memory + (64 - (uintptr_t)memory % 64) % 64;
    for (int64_t r = 0; r < count;) {
        /* Panels as equal as they can be, so that none has one row beside others. */
        const int64_t rows = ceil_div(count - r, ceil_div(count - r, t->path->rows));
        for (int64_t g = 0; g < t->p->groups; g++) lay_panel(t, first + r, rows, g, panels + g * t->panel * rows);
        multiply_strips(t, first + r, rows, strip, last, panels);
        r += rows;
    }
    free(memory);
}

static void *take(int64_t bytes, int *failed) {
    void *memory = malloc((size_t)(bytes > 0 ? bytes : 1));
    if (!memory) *failed = 1;
    return memory;
}

#define MOST_COLUMNS 500000 /* as of products without groups */

/* Solve one problem whose `channels` are `groups` times the columns of a group: `batch` rows, 2-bit weights as tiles of
 * 16 outputs, `scale` in the same order, 16 for each strip and group. Return OK or a reason. */
EXPORT int32_t ternary_run_groups(const problem *p) {
    groups_plan t = {.p = p, .path = ternary_find_path(p->path)};
    if (!t.path) return NO_PATH;
    if (p->groups < 1 || p->channels % p->groups || p->channels / p->groups > MOST_COLUMNS || p->sums) return BAD_ARGUMENT;
    if (p->batch <= 0 || p->out_channels <= 0) return OK;
    t.group = p->channels / p->groups;
    t.tiles = ceil_div(t.group, 16);
    t.padded = t.tiles * 16;
    t.panel = ceil_div(t.tiles, t.path->span) * t.path->span * 16;
    t.strips = ceil_div(p->out_channels, 16);
    const int64_t threads = p->batch * p->out_channels * p->channels < 1 << 20 ? 1 : p->threads;
    const int64_t panels = ceil_div(p->batch, t.path->rows), unit = t.path->rows;
    t.chunk_rows = threads > 1 ? ceil_div(panels, threads * 2) * unit : panels * unit;
    t.row_chunks = ceil_div(p->batch, t.chunk_rows);
    const int64_t parts = threads > 1 ? ceil_div(threads * 2, t.row_chunks) : 1;
    t.chunk_strips = ceil_div(ceil_div(t.strips, parts), t.path->strips) * t.path->strips;
    t.strip_chunks = ceil_div(t.strips, t.chunk_strips);
    t.q = take(p->batch * p->groups * t.padded, &t.failed);
    t.sums = take(p->batch * p->groups * (int64_t)sizeof(int32_t), &t.failed);
    t.x_scale = take(p->batch * (int64_t)sizeof(float), &t.failed);
    if (!t.failed) {
        ternary_in_parallel(quantize_row, &t, p->batch, p->channels * p->batch < 1 << 15 ? 1 : threads);
        ternary_in_parallel(groups_chunk, &t, t.row_chunks * t.strip_chunks, threads);
    }
    free(t.q);
    free(t.sums);
    free(t.x_scale);
    return t.failed ? NO_MEMORY : OK;
}
