/* Shapes that repaint a piece and keep its size. Each is the twin of the function of the same name in painting.py. */
#include "compose.h"

static const int DY[8] = {-1, 0, 0, 1, -1, -1, 1, 1}; /* up, left, right, down, then the diagonals */
static const int DX[8] = {0, -1, 1, 0, -1, 1, -1, 1};

SHAPE(keep_colour) {
    (void)input;
    if (!copied(in, out, memory)) return 0;
    for (int i = 0; i < in->h * in->w; i++)
        if (out->cells[i] != arg) out->cells[i] = 0;
    return 1;
}

SHAPE(drop_colour) {
    (void)input;
    if (!copied(in, out, memory)) return 0;
    for (int i = 0; i < in->h * in->w; i++)
        if (out->cells[i] == arg) out->cells[i] = 0;
    return 1;
}

SHAPE(paint) {
    (void)input;
    if (!copied(in, out, memory)) return 0;
    for (int i = 0; i < in->h * in->w; i++)
        if (out->cells[i]) out->cells[i] = (uint8_t)arg;
    return 1;
}

SHAPE(paint_commonest) {
    (void)arg;
    return paint(in, input, commonest(in), out, memory);
}

void reach_outside(const Piece *p, uint8_t *outside) {
    int stack[CELLS], top = 0, n = p->h * p->w;
    memset(outside, 0, (size_t)n);
    for (int i = 0; i < n; i++) {
        int r = i / p->w, c = i % p->w;
        if (!p->cells[i] && (r == 0 || c == 0 || r == p->h - 1 || c == p->w - 1)) outside[i] = 1, stack[top++] = i;
    }
    while (top) {
        int i = stack[--top], r = i / p->w, c = i % p->w;
        for (int d = 0; d < 4; d++) {
            int a = r + DY[d], b = c + DX[d], j = a * p->w + b;
            if (a >= 0 && b >= 0 && a < p->h && b < p->w && !p->cells[j] && !outside[j]) outside[j] = 1, stack[top++] = j;
        }
    }
}

/* Empty cells that no path of empty cells joins to the border take colour `arg`, or the commonest for 0. */
SHAPE(fill_holes) {
    (void)input;
    uint8_t outside[CELLS];
    if (!copied(in, out, memory)) return 0;
    int colour = arg ? arg : commonest(in);
    reach_outside(in, outside);
    for (int i = 0; i < in->h * in->w; i++)
        if (!in->cells[i] && !outside[i]) out->cells[i] = (uint8_t)colour;
    return 1;
}

SHAPE(holes_only) {
    (void)input, (void)arg;
    uint8_t outside[CELLS];
    if (!blank(out, in->h, in->w, memory)) return 0;
    int colour = commonest(in);
    reach_outside(in, outside);
    for (int i = 0; i < in->h * in->w; i++)
        if (!in->cells[i] && !outside[i]) out->cells[i] = (uint8_t)colour;
    return 1;
}

/* Whether any of the eight neighbours is empty, or beyond the edge. */
static int at_edge(const Piece *in, int r, int c) {
    for (int d = 0; d < 8; d++)
        if (!colour_at(in, r + DY[d], c + DX[d])) return 1;
    return 0;
}

static int edges(const Piece *in, int want, Piece *out, Pieces *memory) {
    if (!copied(in, out, memory)) return 0;
    for (int r = 0; r < in->h; r++)
        for (int c = 0; c < in->w; c++)
            if (at_edge(in, r, c) != want) out->cells[r * in->w + c] = 0;
    return 1;
}

SHAPE(outline) {
    (void)input, (void)arg;
    return edges(in, 1, out, memory);
}

SHAPE(inner) {
    (void)input, (void)arg;
    return edges(in, 0, out, memory);
}

/* Keep the drawn cells that empty cells join to the border, over sides and corners (0), or all others (1). */
SHAPE(outer_edge) {
    (void)input;
    uint8_t reached[CELLS];
    int stack[CELLS], top = 0, n = in->h * in->w;
    if (!copied(in, out, memory)) return 0;
    for (int i = 0; i < n; i++) {
        int r = i / in->w, c = i % in->w;
        reached[i] = r == 0 || c == 0 || r == in->h - 1 || c == in->w - 1;
        if (reached[i] && !in->cells[i]) stack[top++] = i;
    }
    while (top) {
        int i = stack[--top];
        for (int d = 0; d < 8; d++) {
            int r = i / in->w + DY[d], c = i % in->w + DX[d], j = r * in->w + c;
            if (r < 0 || c < 0 || r >= in->h || c >= in->w || reached[j]) continue;
            reached[j] = 1;
            if (!in->cells[j]) stack[top++] = j;
        }
    }
    for (int i = 0; i < n; i++)
        if (reached[i] == arg) out->cells[i] = 0;
    return 1;
}

/* Empty cells inside the drawn box take the commonest colour. */
SHAPE(fill_box) {
    (void)input, (void)arg;
    int top, bottom, left, right, colour = commonest(in);
    if (!drawn_box(in, &top, &bottom, &left, &right) || !copied(in, out, memory)) return 0;
    for (int r = top; r <= bottom; r++)
        for (int c = left; c <= right; c++)
            if (!in->cells[r * in->w + c]) out->cells[r * in->w + c] = (uint8_t)colour;
    return 1;
}

/* Empty cells take the colour of the first drawn neighbour: of 4 (arg 0) or 8 (arg 1). */
SHAPE(grow) {
    (void)input;
    if (!copied(in, out, memory)) return 0;
    for (int r = 0; r < in->h; r++)
        for (int c = 0; c < in->w; c++)
            for (int d = 0; d < (arg ? 8 : 4) && !out->cells[r * in->w + c]; d++)
                out->cells[r * in->w + c] = (uint8_t)colour_at(in, r + DY[d], c + DX[d]);
    return 1;
}

/* Empty cells with a drawn one among eight neighbours take a colour. */
SHAPE(surround) {
    (void)input;
    if (!copied(in, out, memory)) return 0;
    for (int r = 0; r < in->h; r++)
        for (int c = 0; c < in->w; c++)
            for (int d = 0; d < 8 && !out->cells[r * in->w + c]; d++)
                if (colour_at(in, r + DY[d], c + DX[d])) out->cells[r * in->w + c] = (uint8_t)arg;
    return 1;
}

/* Drawn cells fall up, left, right or down, in their order. */
SHAPE(fall) {
    (void)input;
    if (!blank(out, in->h, in->w, memory)) return 0;
    int upright = arg == 0 || arg == 3, back = arg >= 2, lines = upright ? in->w : in->h, n = upright ? in->h : in->w;
    for (int l = 0; l < lines; l++)
        for (int k = 0, to = 0; k < n; k++) {
            int i = back ? n - 1 - k : k, from = upright ? i * in->w + l : l * in->w + i;
            if (!in->cells[from]) continue;
            int j = back ? n - 1 - to : to;
            to++;
            out->cells[upright ? j * in->w + l : l * in->w + j] = in->cells[from];
        }
    return 1;
}

/* For each cell the first drawn colour in direction d, itself left out; 0 where there is none. */
static void seen(const Piece *in, int d, uint8_t *view) {
    int n = in->h * in->w, step = DY[d] * in->w + DX[d], back = step > 0; /* the next cell comes first */
    for (int k = 0; k < n; k++) {
        int i = back ? n - 1 - k : k, r = i / in->w + DY[d], c = i % in->w + DX[d];
        int inside = r >= 0 && c >= 0 && r < in->h && c < in->w;
        view[i] = !inside ? 0 : in->cells[i + step] ? in->cells[i + step] : view[i + step];
    }
}

/* Drawn cells send a line over empty cells to each direction of the bit mask; the first direction wins. */
SHAPE(rays) {
    (void)input;
    uint8_t view[CELLS];
    if (!copied(in, out, memory)) return 0;
    for (int d = 0; d < 8; d++) {
        if (!(arg >> d & 1)) continue;
        seen(in, d < 4 ? 3 - d : 11 - d, view); /* a line that runs up is seen by looking down */
        for (int i = 0; i < in->h * in->w; i++)
            if (!out->cells[i]) out->cells[i] = view[i];
    }
    return 1;
}

/* Empty cells between two cells of equal colour take it: bit 0 in columns, 1 in rows, 2 and 3 along diagonals. */
SHAPE(join_equal) {
    (void)input;
    static const int ahead[4] = {0, 1, 4, 5}, behind[4] = {3, 2, 7, 6};
    uint8_t here[CELLS], there[CELLS];
    if (!copied(in, out, memory)) return 0;
    for (int k = 0; k < 4; k++) {
        if (!(arg >> k & 1)) continue;
        seen(in, ahead[k], here);
        seen(in, behind[k], there);
        for (int i = 0; i < in->h * in->w; i++)
            if (!out->cells[i] && here[i] == there[i]) out->cells[i] = here[i];
    }
    return 1;
}

/* Drawn cells without a neighbour of their colour are removed. */
SHAPE(drop_dots) {
    (void)input, (void)arg;
    if (!copied(in, out, memory)) return 0;
    for (int r = 0; r < in->h; r++)
        for (int c = 0; c < in->w; c++) {
            int own = in->cells[r * in->w + c], alone = 1;
            for (int d = 0; d < 8; d++)
                if (own && colour_at(in, r + DY[d], c + DX[d]) == own) alone = 0;
            if (alone) out->cells[r * in->w + c] = 0;
        }
    return 1;
}

/* Empty cells take the commonest colour, drawn ones become empty. */
SHAPE(invert) {
    (void)input, (void)arg;
    int colour = commonest(in);
    if (!colour || !blank(out, in->h, in->w, memory)) return 0;
    for (int i = 0; i < in->h * in->w; i++) out->cells[i] = in->cells[i] ? 0 : (uint8_t)colour;
    return 1;
}

/* Exchange the two drawn colours of a piece that has exactly two. */
SHAPE(swap_colours) {
    (void)input, (void)arg;
    int count[10], pair[2], n = 0;
    histogram(in, count);
    for (int c = 1; c < 10; c++)
        if (count[c]) {
            if (n == 2) return 0;
            pair[n++] = c;
        }
    if (n != 2 || !copied(in, out, memory)) return 0;
    for (int i = 0; i < in->h * in->w; i++)
        if (in->cells[i]) out->cells[i] = (uint8_t)(in->cells[i] == pair[0] ? pair[1] : pair[0]);
    return 1;
}

/* Empty cells of the drawn box take what their mirror image shows: by bits left-right, up-down, turned, diagonal. */
SHAPE(mirror_fill) {
    (void)input;
    int top, bottom, left, right;
    if (!drawn_box(in, &top, &bottom, &left, &right) || !copied(in, out, memory)) return 0;
    if (arg & 8 && bottom - top != right - left) return 0;
    for (int r = top; r <= bottom; r++)
        for (int c = left; c <= right; c++) {
            int a = top + bottom - r, b = left + right - c;
            uint8_t *cell = out->cells + r * in->w + c;
            if (!*cell && arg & 1) *cell = in->cells[r * in->w + b];
            if (!*cell && arg & 2) *cell = in->cells[a * in->w + c];
            if (!*cell && arg & 4) *cell = in->cells[a * in->w + b];
            if (!*cell && arg & 8) *cell = in->cells[(top + c - left) * in->w + left + r - top];
        }
    return 1;
}

/* Fill in the empty cells from a pattern of p rows and q columns; 0 where the drawn cells contradict it. */
static int tiled_with(const Piece *in, int p, int q, Piece *out) {
    uint8_t pattern[CELLS];
    memset(pattern, 0, (size_t)(p * q));
    for (int r = 0; r < in->h; r++)
        for (int c = 0; c < in->w; c++) {
            int v = in->cells[r * in->w + c];
            uint8_t *slot = pattern + (r % p) * q + c % q;
            if (v && *slot && *slot != v) return 0;
            if (v) *slot = (uint8_t)v;
        }
    for (int i = 0; i < p * q; i++)
        if (!pattern[i]) return 0;
    for (int r = 0; r < in->h; r++)
        for (int c = 0; c < in->w; c++) out->cells[r * in->w + c] = pattern[(r % p) * q + c % q];
    return 1;
}

/* Empty cells are filled in from the smallest repeating pattern, by its cells, then its rows. */
SHAPE(mend_tiling) {
    (void)input, (void)arg;
    if (!blank(out, in->h, in->w, memory)) return 0;
    for (int size = 2; size * 2 <= in->h * in->w; size++)
        for (int p = 1; p <= in->h && p <= size; p++)
            if (size % p == 0 && size / p <= in->w && tiled_with(in, p, size / p, out)) return 1;
    return 0;
}

static int moved(const Piece *in, int arg, int around, Piece *out, Pieces *memory) {
    if (!blank(out, in->h, in->w, memory)) return 0;
    for (int r = 0; r < in->h; r++)
        for (int c = 0; c < in->w; c++) {
            int a = r - DY[arg], b = c - DX[arg];
            if (around) a = (a + in->h) % in->h, b = (b + in->w) % in->w;
            out->cells[r * in->w + c] = (uint8_t)colour_at(in, a, b);
        }
    return 1;
}

SHAPE(shift) {
    (void)input;
    return moved(in, arg, 0, out, memory);
}

SHAPE(roll) {
    (void)input;
    return moved(in, arg, 1, out, memory);
}

/* Growing to the sides until nothing is empty: all colours (0), or all but the commonest (1). */
SHAPE(spread) {
    (void)input;
    Piece old = *in;
    uint8_t cells[CELLS];
    int still = arg ? commonest(in) : -1;
    if (!commonest(in) || !copied(in, out, memory)) return 0;
    old.cells = cells;
    for (int more = 1; more;) {
        more = 0;
        memcpy(cells, out->cells, (size_t)(in->h * in->w));
        for (int r = 0; r < in->h; r++)
            for (int c = 0; c < in->w; c++)
                for (int d = 0; d < 4 && !out->cells[r * in->w + c]; d++) {
                    int colour = colour_at(&old, r + DY[d], c + DX[d]);
                    if (colour == still) continue;
                    out->cells[r * in->w + c] = (uint8_t)colour;
                    if (colour) more = 1;
                }
    }
    return 1;
}

SHAPE(solid) {
    (void)input, (void)arg;
    if (!blank(out, in->h, in->w, memory)) return 0;
    memset(out->cells, commonest(in), (size_t)(in->h * in->w));
    return 1;
}

/* The input's frame with the piece at its place and the input's own cells: over, under, or without. */
static int on_frame(const Piece *in, const Piece *input, int order, Piece *out, Pieces *memory) {
    if (!blank(out, input->h, input->w, memory)) return 0;
    for (int r = 0; r < out->h; r++)
        for (int c = 0; c < out->w; c++) {
            int mine = colour_at(in, r - in->y, c - in->x), theirs = input->cells[r * out->w + c];
            int first = order == 2 ? theirs : mine, last = order == 1 ? theirs : order == 2 ? mine : 0;
            out->cells[r * out->w + c] = (uint8_t)(first ? first : last);
        }
    out->y = out->x = 0;
    return 1;
}

SHAPE(in_frame) {
    (void)arg;
    return on_frame(in, input, 0, out, memory);
}

SHAPE(over_input) {
    (void)arg;
    return on_frame(in, input, 1, out, memory);
}

SHAPE(under_input) {
    (void)arg;
    return on_frame(in, input, 2, out, memory);
}

static int masked(const Piece *in, const Piece *input, int drawn, Piece *out, Pieces *memory) {
    if (!copied(in, out, memory)) return 0;
    for (int r = 0; r < in->h; r++)
        for (int c = 0; c < in->w; c++)
            if ((colour_at(input, r + in->y, c + in->x) != 0) != drawn) out->cells[r * in->w + c] = 0;
    return 1;
}

SHAPE(mask_by_input) {
    (void)arg;
    return masked(in, input, 1, out, memory);
}

SHAPE(mask_by_empty) {
    (void)arg;
    return masked(in, input, 0, out, memory);
}
