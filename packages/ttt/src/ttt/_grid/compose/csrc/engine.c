/* Best-first enumeration of compositions: every value is stored once, found by its bytes; engine.py is its twin. */
#include <stdlib.h>

#include "compose.h"

#ifndef SOURCES
#define SOURCES "unknown"
#endif
#define EXPORT __attribute__((visibility("default")))
#define CHUNK (1 << 20)
#define LONGEST_ROW 40000 /* bytes of a value; what is longer is dropped */
#define PER_TRY 30        /* work units of an application, besides one for each byte of its argument */

enum { SIZES_FIT = 1, EXACT = 2 };
enum { ON_LIST = 1, GIVES_LIST = 2, MAPS = 4 };

/* A function with its argument and cost. `flags`: it takes a list, gives a list, or also works on each piece of one. */
typedef struct {
    int32_t function, arg, cost, flags;
} Primitive;

typedef struct {
    int32_t parent, primitive, cost, flags, length;
    uint8_t *row;
} Node;

typedef struct {
    int inputs, pairs, primitives, most_nodes, deepest, spare;
    int64_t work, most_work, memory, most_memory;
    const uint8_t *targets; /* h, w and cells of each training output */
    const uint8_t *output; /* h and w of each input's output, 0 where none is known */
    Primitive *primitive;
    Node *node;
    int nodes, level, at_primitive, at_node, *first; /* first[c]: first node of cost c */
    uint32_t *slot, slots;
    uint8_t **chunk, *row;
    int chunks, chunk_used, done;
    Pieces *in, *out; /* the argument of each input; the result of one */
    Measured *measured;
} Search;

static uint64_t hash(const uint8_t *bytes, int n) {
    uint64_t h = 0x9E3779B97F4A7C15u ^ (uint64_t)n, v;
    for (; n >= 8; n -= 8, bytes += 8) {
        memcpy(&v, bytes, 8);
        h = (h ^ v) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    v = 0;
    memcpy(&v, bytes, (size_t)n);
    h = (h ^ v) * 0xD6E8FEB86659FD93u;
    return h ^ h >> 32;
}

/* The slot of a value: its own, or the empty one where it belongs. */
static uint32_t find(const Search *s, const uint8_t *row, int length) {
    uint32_t at = (uint32_t)hash(row, length) & (s->slots - 1);
    while (s->slot[at]) {
        const Node *n = &s->node[s->slot[at] - 1];
        if (n->length == length && !memcmp(n->row, row, (size_t)length)) break;
        at = (at + 1) & (s->slots - 1);
    }
    return at;
}

static int fits(const Search *s, const uint8_t *row) {
    const uint8_t *t = s->targets;
    int exact = EXACT;
    if (row[0]) return 0;
    row++;
    for (int i = 0; i < s->pairs; i++) { /* a count, y, x, h, w and the cells */
        int n = row[3] * row[4];
        if (row[3] != t[0] || row[4] != t[1]) return 0;
        if (memcmp(row + 5, t + 2, (size_t)n)) exact = 0;
        row += 5 + n;
        t += 2 + n;
    }
    return SIZES_FIT | exact;
}

/* Store a value unless it is known. -1 where there is no memory. */
static int keep(Search *s, const uint8_t *row, int length, int parent, int primitive, int cost) {
    uint32_t at = find(s, row, length);
    if (s->slot[at]) return 0;
    if (s->nodes >= s->most_nodes || s->memory + length > s->most_memory) {
        s->done = 1;
        return 0;
    }
    if (!s->chunks || s->chunk_used + length > CHUNK) {
        uint8_t **more = realloc(s->chunk, sizeof *more * (size_t)(s->chunks + 1));
        if (!more) return -1;
        s->chunk = more;
        if (!(s->chunk[s->chunks] = malloc(CHUNK))) return -1;
        s->chunks++;
        s->chunk_used = 0;
    }
    uint8_t *to = s->chunk[s->chunks - 1] + s->chunk_used;
    memcpy(to, row, (size_t)length);
    s->chunk_used += length;
    s->memory += length;
    int flags = fits(s, to);
    s->node[s->nodes] = (Node){parent, primitive, cost, flags, length, to};
    s->slot[at] = (uint32_t)++s->nodes;
    if (flags & EXACT && cost + s->spare < s->deepest) s->deepest = cost + s->spare;
    return 0;
}

static void decode(Search *s, const Node *n) {
    uint8_t *row = n->row + 1;
    for (int i = 0; i < s->inputs; i++) {
        s->in[i].n = *row++;
        s->in[i].measured = &s->measured[i];
        s->measured[i].known = 0, s->measured[i].counted = 0;
        for (int k = 0; k < s->in[i].n; k++) {
            Piece *p = &s->in[i].piece[k];
            *p = (Piece){(int8_t)row[0], (int8_t)row[1], row[2], row[3], row + 4, 0, 0};
            row += 4 + p->h * p->w;
        }
    }
}

static int evaluate(const Function *f, int arg, const Pieces *in, const Piece *input, Pieces *out) {
    out->n = out->used = 0;
    if (f->join) return f->join(in, arg, out);
    if (f->split) return f->split(&in->piece[0], arg, out);
    for (int k = 0; k < in->n; k++) {
        Piece *p = added(out, in->piece[k].y, in->piece[k].x);
        if (!f->shape(&in->piece[k], input, arg, p, out)) return 0;
    }
    return 1;
}

/* Apply a primitive to the decoded value. */
static int attempt(Search *s, int parent, int which, int is_list) {
    const Primitive *p = &s->primitive[which];
    int length = 1, drawn = 0;
    if (!(is_list ? p->flags & (ON_LIST | MAPS) : !(p->flags & ON_LIST))) return 0;
    s->work += PER_TRY + s->node[parent].length;
    s->row[0] = p->flags & GIVES_LIST || (is_list && p->flags & MAPS);
    const uint8_t *own = s->node[0].row + 1;
    for (int i = 0; i < s->inputs; i++) {
        const Piece input = {0, 0, own[3], own[4], (uint8_t *)own + 5, s->output[2 * i], s->output[2 * i + 1]};
        own += 5 + input.h * input.w;
        if (!evaluate(&FUNCTIONS[p->function], p->arg, &s->in[i], &input, s->out) || !s->out->n) return 0;
        s->row[length++] = (uint8_t)s->out->n;
        for (int k = 0; k < s->out->n; k++) {
            const Piece *q = &s->out->piece[k];
            int cells = q->h * q->w;
            if (length + 4 + cells >= LONGEST_ROW || q->y > FARTHEST || q->x > FARTHEST || q->y < -FARTHEST ||
                q->x < -FARTHEST)
                return 0;
            const uint8_t head[4] = {(uint8_t)q->y, (uint8_t)q->x, (uint8_t)q->h, (uint8_t)q->w};
            memcpy(s->row + length, head, 4);
            memcpy(s->row + length + 4, q->cells, (size_t)cells);
            for (int c = 0; c < cells && !drawn; c++) drawn = q->cells[c];
            length += 4 + cells;
        }
        if (length >= LONGEST_ROW) return 0;
    }
    return drawn ? keep(s, s->row, length, parent, which, s->node[parent].cost + p->cost) : 0;
}

EXPORT void compose_close(Search *s) {
    if (!s) return;
    for (int i = 0; i < s->chunks; i++) free(s->chunk[i]);
    free(s->chunk), free(s->row), free(s->primitive), free(s->node), free(s->first), free(s->slot), free(s->in);
    free(s->out), free(s->measured), free((void *)s->targets), free((void *)s->output), free(s);
}

/* Which sources this was compiled from, by the rule of sources.py. */
EXPORT const char *compose_sources(void) { return SOURCES; }

/* The number of a function in the table, -1 if there is none of that name. */
EXPORT int compose_function(const char *name) {
    for (int i = 0; i < FUNCTION_COUNT; i++)
        if (!strcmp(FUNCTIONS[i].name, name)) return i;
    return -1;
}

/* Start from a row of the inputs as they are. Primitives come sorted by cost. NULL where there is no memory. */
EXPORT Search *compose_open(const uint8_t *row, int length, const uint8_t *targets, int targets_length,
                            const uint8_t *sizes, int inputs, int pairs, const Primitive *primitive, int primitives,
                            int most_nodes, int deepest, int spare, int64_t most_work, int64_t most_memory) {
    Search *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->inputs = inputs, s->pairs = pairs, s->primitives = primitives, s->most_nodes = most_nodes;
    s->deepest = deepest, s->spare = spare, s->most_work = most_work, s->most_memory = most_memory, s->level = 1;
    for (s->slots = 1024; s->slots < 2u * (uint32_t)most_nodes; s->slots *= 2) {}
    s->row = malloc(LONGEST_ROW + CELLS);
    s->primitive = malloc(sizeof *primitive * (size_t)primitives);
    s->node = malloc(sizeof *s->node * (size_t)most_nodes);
    s->first = calloc((size_t)deepest + 2, sizeof *s->first);
    s->slot = calloc(s->slots, sizeof *s->slot);
    s->in = malloc(sizeof *s->in * (size_t)inputs);
    s->out = malloc(sizeof *s->out);
    s->measured = malloc(sizeof *s->measured * (size_t)inputs);
    uint8_t *copy = malloc((size_t)targets_length), *output = malloc(2 * (size_t)inputs);
    s->targets = copy, s->output = output;
    if (!s->row || !s->primitive || !s->node || !s->first || !s->slot || !s->in || !s->out || !s->measured || !copy ||
        !output) {
        compose_close(s);
        return NULL;
    }
    memcpy(copy, targets, (size_t)targets_length);
    memcpy(output, sizes, 2 * (size_t)inputs);
    memcpy(s->primitive, primitive, sizeof *primitive * (size_t)primitives);
    if (keep(s, row, length, -1, -1, 0) || s->nodes != 1) {
        compose_close(s);
        return NULL;
    }
    s->first[1] = s->nodes;
    return s;
}

/* Go on for some work units: 0 while there is more to do, 1 at the end, -1 where there is no memory. */
EXPORT int compose_run(Search *s, int64_t units) {
    int64_t until = s->work + units;
    for (; !s->done && s->level <= s->deepest; s->level++, s->at_primitive = 0) {
        while (s->at_primitive < s->primitives) { /* all of one cost on all values that lack just that */
            int cost = s->primitive[s->at_primitive].cost, end = s->at_primitive, base = s->level - cost;
            while (end < s->primitives && s->primitive[end].cost == cost) end++;
            if (base >= 0) {
                if (s->at_node < s->first[base]) s->at_node = s->first[base];
                for (; s->at_node < s->first[base + 1]; s->at_node++) {
                    if (s->work >= s->most_work) s->done = 1;
                    if (s->done) return 1;
                    if (s->work >= until) return 0;
                    decode(s, &s->node[s->at_node]);
                    for (int p = s->at_primitive; p < end && !s->done; p++)
                        if (attempt(s, s->at_node, p, s->node[s->at_node].row[0]) < 0) return -1;
                }
            }
            s->at_primitive = end;
            s->at_node = 0;
        }
        s->first[s->level + 1] = s->nodes;
    }
    s->done = 1;
    return 1;
}

EXPORT int compose_nodes(const Search *s) { return s->nodes; }

EXPORT int64_t compose_work(const Search *s) { return s->work; }

/* Parent, primitive, cost, flags and length of a value, and where its bytes are. */
EXPORT const uint8_t *compose_node(const Search *s, int at, int32_t fields[5]) {
    const Node *n = &s->node[at];
    const int32_t all[5] = {n->parent, n->primitive, n->cost, n->flags, n->length};
    memcpy(fields, all, sizeof all);
    return n->row;
}

/* The same for all values at once. */
EXPORT void compose_fields(const Search *s, int32_t *fields) {
    for (int i = 0; i < s->nodes; i++) compose_node(s, i, fields + 5 * i);
}

/* The cells of values with one piece for each input, one row of `stride` bytes each. */
EXPORT void compose_cells(const Search *s, const int32_t *at, int count, int stride, uint8_t *cells) {
    for (int k = 0; k < count; k++) {
        const uint8_t *row = s->node[at[k]].row + 1;
        uint8_t *to = cells + (size_t)k * (size_t)stride;
        for (int i = 0; i < s->inputs; i++) {
            int n = row[3] * row[4];
            memcpy(to, row + 5, (size_t)n);
            to += n;
            row += 5 + n;
        }
    }
}

/* Height and width of the tests' pieces in such values. */
EXPORT void compose_test_sizes(const Search *s, const int32_t *at, int count, uint8_t *sizes) {
    for (int k = 0; k < count; k++) {
        const uint8_t *row = s->node[at[k]].row + 1;
        for (int i = 0; i < s->inputs; i++) {
            if (i >= s->pairs) *sizes++ = row[3], *sizes++ = row[4];
            row += 5 + row[3] * row[4];
        }
    }
}
