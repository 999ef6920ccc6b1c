/* One step through a ternary language model: any number of tokens, of one sequence or of several, in one call. */
#include "llm.h"

typedef struct {
    const llm_step *s;
    const llm_model *m;
    const llm_layer *layer;
    const path_table *path;
    const llm_numeric *numeric;
    int64_t index, rows, groups; /* the layer's number; tokens; panels of up to path->rows of them */
    int64_t widest;              /* largest number of inputs of a product */
    float *x, *wide, *mixed;     /* hidden states; q, k, v or gate of each row; attention's output and norms */
    int8_t *q, *panels;
    int32_t *sums;
    float *x_scale;
    int failed;
} work;

/* ---- activations ---- */

enum { BEFORE_ATTENTION, AFTER_ATTENTION, BEFORE_FEED, AFTER_FEED };

typedef struct {
    work *w;
    int stage;
} row_job;

static int64_t inputs_of(const work *w, int stage) {
    return stage == AFTER_ATTENTION ? w->m->heads * w->m->head_size : stage == AFTER_FEED ? w->m->inner : w->m->hidden;
}

static int64_t panel_bytes(const work *w, int64_t inputs) {
    return ceil_div(ceil_div(inputs, 16), w->path->span) * w->path->span * 16;
}

static int64_t first_row(const work *w, int64_t group) { return group * w->rows / w->groups; }

/* The group of a row: the last one that does not start behind it. */
static int64_t group_of(const work *w, int64_t row) {
    int64_t group = row * w->groups / w->rows;
    while (group + 1 < w->groups && first_row(w, group + 1) <= row) group++;
    return group;
}

/* Norm and quantize one row for the product that follows, and lay it into its panel. */
static void quantize_row(void *context, int64_t row) {
    const row_job *job = context;
    work *w = job->w;
    const llm_layer *l = w->layer;
    const int64_t n = inputs_of(w, job->stage), bytes = panel_bytes(w, n), wide = w->widest;
    const float *norms[] = {l->attention_norm, l->attention_sub_norm, l->feed_norm, l->feed_sub_norm};
    const float *from = job->stage == AFTER_ATTENTION ? w->mixed + row * wide
                        : job->stage == AFTER_FEED    ? w->wide + row * 2 * wide
                                                      : w->x + row * w->m->hidden;
    if (norms[job->stage]) {
        float *to = w->mixed + row * wide;
        w->numeric->norm(from, norms[job->stage], n, (float)w->m->epsilon, to);
        from = to;
    }
    int8_t *q = w->rows == 1 ? w->panels : w->q + row * bytes;
    w->x_scale[row] = w->path->quantize(from, 1, n, ceil_div(n, 16) * 16, 1, q, w->sums + row);
    memset(q + ceil_div(n, 16) * 16, 0, (size_t)(bytes - ceil_div(n, 16) * 16));
    if (w->rows == 1) return;
    const int64_t group = group_of(w, row), first = first_row(w, group), count = first_row(w, group + 1) - first;
    const int64_t piece = w->path->span * 16;
    int8_t *panel = w->panels + first * bytes + (row - first) * piece;
    for (int64_t at = 0; at < bytes; at += piece) memcpy(panel + at * count, q + at, (size_t)piece);
}

static void quantize(work *w, int stage) {
    row_job job = {w, stage};
    ternary_in_parallel(quantize_row, &job, w->rows, w->s->threads);
}

/* ---- products ---- */

enum { STORE, ADD, GATED };

typedef struct {
    work *w;
    int kind;
    const llm_matrix *matrix[3]; /* STORE: side by side in a row of `wide`; GATED: gate and up */
    int matrices;
    int64_t inputs, chunk_strips, chunk_groups, group_chunks;
} product;

#define STRIPS_A_ROW 16

/* Strips of 16 outputs that `multiply` takes at once. Of one row many: gate and up then take turns less often, so that
 * the processor's own prefetcher can follow. */
static int64_t strips_at_once(const work *w) { return w->rows == 1 ? STRIPS_A_ROW : w->path->strips; }

/* The product of one group of rows with up to strips_at_once() strips from `strip` on, as floats: [row][32], of one row
 * as many as there are. */
static void multiply(const work *w, const llm_matrix *a, int64_t strip, int strips, int64_t group, float *out) {
    const int64_t k16 = ceil_div(a->inputs, 16), stride = k16 * 64;
    const int64_t first = first_row(w, group), rows = first_row(w, group + 1) - first;
    const int8_t *panel = w->panels + first * panel_bytes(w, a->inputs);
    const uint8_t *tiles = a->tiles + strip * stride;
    const int64_t most = a->outputs - strip * 16;
    int32_t acc[32 * 2 * 16];
    if (rows == 1 && w->path->multiply_row)
        for (int s = 0; s < strips; s++) w->path->multiply_row(tiles + s * stride, k16, panel, acc + s * 16);
    else if (rows == 1)
        for (int s = 0; s < strips; s++) w->path->multiply(1, 1, tiles + s * stride, stride, k16, panel, acc + s * 16);
    else w->path->multiply((int)rows, strips, tiles, stride, k16, panel, acc);
    for (int64_t r = 0; r < rows; r++)
        w->path->finish(acc + r * strips * 16, most < 16 * strips ? most : 16 * strips, w->sums[first + r],
                        w->x_scale[first + r], a->scale + strip * 16, a->bias ? a->bias + strip * 16 : NULL,
                        out + r * 32);
}

static void product_chunk(void *context, int64_t chunk) {
    const product *p = context;
    work *w = p->w;
    const int64_t first_group = chunk % p->group_chunks * p->chunk_groups;
    const int64_t last_group = first_group + p->chunk_groups < w->groups ? first_group + p->chunk_groups : w->groups;
    int64_t strip = chunk / p->group_chunks * p->chunk_strips, column = 0, left = p->chunk_strips;
    float out[32 * 32], up[32 * 32];
    for (int i = 0; i < (p->kind == GATED ? 1 : p->matrices) && left > 0; column += p->matrix[i++]->outputs) {
        const llm_matrix *a = p->matrix[i];
        const int64_t strips = ceil_div(a->outputs, 16);
        for (; strip < strips && left > 0;) {
            int64_t some = strips - strip < left ? strips - strip : left;
            some = some < strips_at_once(w) ? some : strips_at_once(w);
            const int64_t n = a->outputs - strip * 16 < some * 16 ? a->outputs - strip * 16 : some * 16;
            for (int64_t g = first_group; g < last_group; g++) {
                multiply(w, a, strip, (int)some, g, out);
                if (p->kind == GATED) multiply(w, p->matrix[1], strip, (int)some, g, up);
                for (int64_t r = first_row(w, g), at = 0; r < first_row(w, g + 1); r++, at += 32) {
                    if (p->kind == ADD) {
                        float *to = w->x + r * w->m->hidden + strip * 16;
                        for (int64_t j = 0; j < n; j++) to[j] += out[at + j];
                        continue;
                    }
                    if (p->kind == GATED) w->numeric->gate(out + at, up + at, n, w->m->activation);
                    memcpy(w->wide + r * 2 * w->widest + column + strip * 16, out + at, (size_t)n * 4);
                }
            }
            strip += some;
            left -= some;
        }
        strip -= strips;
    }
}

#define PANEL_BYTES (192 * 1024)

static void multiply_all(work *w, int kind, const llm_matrix *a, const llm_matrix *b, const llm_matrix *c) {
    product p = {w, kind, {a, b, c}, c ? 3 : b ? 2 : 1, a->inputs, 0, 0, 0};
    int64_t strips = 0;
    for (int i = 0; i < (kind == GATED ? 1 : p.matrices); i++) strips += ceil_div(p.matrix[i]->outputs, 16);
    const int64_t panel = ceil_div(w->rows, w->groups) * panel_bytes(w, a->inputs);
    p.chunk_groups = PANEL_BYTES / panel < 1 ? 1 : PANEL_BYTES / panel;
    p.group_chunks = ceil_div(w->groups, p.chunk_groups);
    /* Enough pieces to share, long enough that a thread reads memory in a row. */
    const int64_t pieces = w->s->threads > 1 ? w->s->threads * 4 : 1;
    p.chunk_strips = ceil_div(ceil_div(strips, pieces), w->path->strips) * w->path->strips;
    ternary_in_parallel(product_chunk, &p, p.group_chunks * ceil_div(strips, p.chunk_strips), w->s->threads);
}

/* ---- attention ---- */

static void rotate(const llm_model *m, int64_t position, float *x) {
    const int64_t half = m->head_size / 2;
    const float *c = m->cosine + position * half, *s = m->sine + position * half;
    for (int64_t i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * c[i] - b * s[i];
        x[i + half] = b * c[i] + a * s[i];
    }
}

static void store_row(void *context, int64_t row) {
    work *w = context;
    const llm_model *m = w->m;
    const llm_row *r = w->s->row + row;
    float *q = w->wide + row * 2 * w->widest, *k = q + m->heads * m->head_size, *v = k + m->kv_heads * m->head_size;
    for (int64_t h = 0; h < m->heads; h++) rotate(m, r->position, q + h * m->head_size);
    for (int64_t h = 0; h < m->kv_heads; h++) {
        rotate(m, r->position, k + h * m->head_size);
        w->numeric->store(m, r->cache, w->index, h, r->position, k + h * m->head_size, v + h * m->head_size);
    }
}

/* The queries of one key/value head: all heads of its group, of rows that follow one another in a sequence. */
static void attend_chunk(void *context, int64_t chunk) {
    work *w = context;
    const llm_model *m = w->m;
    const int64_t kv_head = chunk % m->kv_heads, group = m->heads / m->kv_heads, d = m->head_size;
    const int64_t per_chunk = group >= MOST_QUERIES ? 1 : MOST_QUERIES / group;
    const int64_t begin = chunk / m->kv_heads * per_chunk;
    const int64_t end = begin + per_chunk < w->rows ? begin + per_chunk : w->rows;
    float *scores = NULL;
    int64_t have = 0;
    for (int64_t row = begin; row < end;) {
        const llm_row *r = w->s->row;
        int64_t last = row + 1;
        while (last < end && r[last].cache == r[row].cache) last++;
        const int64_t padded = ceil_div(r[last - 1].position + 1, 16) * 16, queries = (last - row) * group;
        if (padded * MOST_QUERIES > have) {
            free(scores);
            have = padded * MOST_QUERIES;
            scores = malloc((size_t)have * 4);
            if (!scores) {
                w->failed = 1;
                return;
            }
        }
        attention a = {.model = m, .cache = r[row].cache, .layer = w->index, .kv_head = kv_head, .scores = scores,
                       .next = w->layer->o.tiles};
        for (int64_t i = 0; i < queries;) {
            a.queries = queries - i < MOST_QUERIES ? queries - i : MOST_QUERIES;
            for (int64_t j = 0; j < a.queries; j++) {
                const int64_t at = row + (i + j) / group, head = kv_head * group + (i + j) % group;
                a.query[j] = w->wide + at * 2 * w->widest + head * d;
                a.length[j] = r[at].position + 1;
                a.out[j] = w->mixed + at * w->widest + head * d;
            }
            w->numeric->attend(&a);
            i += a.queries;
        }
        row = last;
    }
    free(scores);
}

static void attend(work *w) {
    const llm_model *m = w->m;
    const int64_t group = m->heads / m->kv_heads, per_chunk = group >= MOST_QUERIES ? 1 : MOST_QUERIES / group;
    ternary_in_parallel(store_row, w, w->rows, w->s->threads);
    ternary_in_parallel(attend_chunk, w, ceil_div(w->rows, per_chunk) * m->kv_heads, w->s->threads);
}

/* ---- a step ---- */

static void embed_row(void *context, int64_t row) {
    const work *w = context;
    const llm_model *m = w->m;
    const int64_t token = w->s->row[row].token;
    const int8_t *from = m->embedding + token * m->hidden;
    const float scale = m->embedding_scale[token];
    float *to = w->x + row * m->hidden;
    for (int64_t i = 0; i < m->hidden; i++) to[i] = (float)from[i] * scale;
}

static int64_t widest_input(const llm_model *m) {
    const int64_t qkv = (m->heads + 2 * m->kv_heads) * m->head_size;
    int64_t widest = m->hidden > m->inner ? m->hidden : m->inner;
    widest = widest > qkv ? widest : qkv;
    return ceil_div(widest, 64) * 64;
}

/* Bytes of scratch memory that a step with so many rows needs. */
EXPORT int64_t ternary_llm_scratch(const llm_model *m, int64_t rows) {
    const int64_t widest = widest_input(m);
    return rows * (m->hidden * 4 + widest * (8 + 4 + 1 + 1) + 8) + 64 * 8;
}

static void *take(char **memory, int64_t bytes) {
    char *at = *memory + (64 - (uintptr_t)*memory % 64) % 64;
    *memory = at + bytes;
    return at;
}

/* Run the rows of a step; OK or a reason. The caller has checked tokens, positions and sizes. */
EXPORT int32_t ternary_llm_run(const llm_step *s) {
    const llm_model *m = s->model;
    work w = {.s = s, .m = m, .rows = s->rows, .path = ternary_find_path(s->path)};
    if (!w.path) return NO_PATH;
    if (s->rows < 1) return OK;
    w.numeric = ternary_llm_numeric(s->path);
    w.widest = widest_input(m);
    w.groups = ceil_div(s->rows, w.path->rows);
    char *memory = s->scratch;
    w.x = take(&memory, s->rows * m->hidden * 4);
    w.wide = take(&memory, s->rows * w.widest * 8);
    w.mixed = take(&memory, s->rows * w.widest * 4);
    w.q = take(&memory, s->rows * w.widest);
    w.panels = take(&memory, s->rows * w.widest);
    w.sums = take(&memory, s->rows * 4);
    w.x_scale = take(&memory, s->rows * 4);
    ternary_in_parallel(embed_row, &w, s->rows, s->threads);
    for (w.index = 0; w.index < m->layers && !w.failed; w.index++) {
        const llm_layer *l = w.layer = m->layer + w.index;
        quantize(&w, BEFORE_ATTENTION);
        multiply_all(&w, STORE, &l->q, &l->k, &l->v);
        attend(&w);
        quantize(&w, AFTER_ATTENTION);
        multiply_all(&w, ADD, &l->o, NULL, NULL);
        quantize(&w, BEFORE_FEED);
        multiply_all(&w, GATED, &l->gate, &l->up, NULL);
        quantize(&w, AFTER_FEED);
        multiply_all(&w, ADD, &l->down, NULL, NULL);
    }
    if (w.failed || !ternary_llm_head(s, w.numeric, w.x)) return NO_MEMORY;
    return OK;
}

/* Sizes of the structures: the caller's layout of them is checked against these. */
EXPORT int64_t ternary_llm_sizes(int64_t which) {
    const int64_t sizes[] = {sizeof(llm_model), sizeof(llm_layer), sizeof(llm_cache), sizeof(llm_row), sizeof(llm_step)};
    return which >= 0 && which < 5 ? sizes[which] : -1;
}
