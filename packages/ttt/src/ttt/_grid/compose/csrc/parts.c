/* Cutting a piece into pieces, choosing among them and joining them. Each is the twin of the function in parts.py. */
#include "compose.h"

typedef struct {
    int top, bottom, left, right;
} Box;

static const Box NOWHERE = {LARGEST, -1, LARGEST, -1};

static inline void stretch(Box *box, int r, int c) {
    if (r < box->top) box->top = r;
    if (r > box->bottom) box->bottom = r;
    if (c < box->left) box->left = c;
    if (c > box->right) box->right = c;
}

/* Add the cells marked `mark` in `labels`, with their box, as a piece. */
static int add_marked(const Piece *in, const uint16_t *labels, int mark, Box box, Pieces *out) {
    Piece *p = added(out, in->y + box.top, in->x + box.left);
    if (!p || !blank(p, box.bottom - box.top + 1, box.right - box.left + 1, out)) return 0;
    for (int r = 0; r < p->h; r++) {
        int from = (r + box.top) * in->w + box.left;
        for (int c = 0; c < p->w; c++)
            if (labels[from + c] == mark) p->cells[r * p->w + c] = in->cells[from + c];
    }
    return 1;
}

/* Cut into connected sets of drawn cells, in reading order of their first cells. */
static int components(const Piece *in, int one_colour, int diagonal, Pieces *out) {
    static const int DY[8] = {-1, 0, 0, 1, -1, -1, 1, 1}, DX[8] = {0, -1, 1, 0, -1, 1, -1, 1};
    uint16_t labels[CELLS];
    int stack[CELLS];
    memset(labels, 0, sizeof *labels * (size_t)(in->h * in->w));
    for (int i = 0, mark = 0; i < in->h * in->w; i++) {
        if (!in->cells[i] || labels[i]) continue;
        int top = 0;
        Box box = NOWHERE;
        labels[i] = (uint16_t)++mark;
        stack[top++] = i;
        while (top) {
            int k = stack[--top], r = k / in->w, c = k % in->w;
            stretch(&box, r, c);
            for (int d = 0; d < (diagonal ? 8 : 4); d++) {
                int a = r + DY[d], b = c + DX[d], j = a * in->w + b;
                if (a < 0 || b < 0 || a >= in->h || b >= in->w || labels[j] || !in->cells[j]) continue;
                if (one_colour && in->cells[j] != in->cells[i]) continue;
                labels[j] = (uint16_t)mark;
                stack[top++] = j;
            }
        }
        if (!add_marked(in, labels, mark, box, out)) return 0;
    }
    return out->n > 0;
}

SPLIT(cut_pieces) { return components(in, 1, arg, out); }

SPLIT(cut_objects) { return components(in, 0, arg, out); }

SPLIT(cut_colours) {
    (void)arg;
    uint16_t labels[CELLS];
    Box box[10];
    for (int c = 0; c < 10; c++) box[c] = NOWHERE;
    for (int i = 0; i < in->h * in->w; i++) {
        labels[i] = in->cells[i];
        stretch(&box[in->cells[i]], i / in->w, i % in->w);
    }
    for (int c = 1; c < 10; c++)
        if (box[c].bottom >= 0 && !add_marked(in, labels, c, box[c], out)) return 0;
    return out->n > 0;
}

static int add_window(const Piece *in, int top, int left, int h, int w, Pieces *out) {
    Piece *p = added(out, in->y + top, in->x + left);
    if (!p || !blank(p, h, w, out)) return 0;
    for (int r = 0; r < h; r++) memcpy(p->cells + r * w, in->cells + (top + r) * in->w + left, (size_t)w);
    return 1;
}

/* Whether a row or column has one colour. */
static int full_line(const Piece *in, int column, int at, int colour) {
    for (int k = 0; k < (column ? in->h : in->w); k++)
        if (in->cells[column ? k * in->w + at : at * in->w + k] != colour) return 0;
    return 1;
}

/* Starts and lengths of the stretches between full lines of a colour. */
static int stretches(const Piece *in, int column, int colour, int *starts, int *lengths) {
    int n = 0, length = column ? in->w : in->h, open = 0;
    for (int i = 0; i < length; i++) {
        int cut = full_line(in, column, i, colour);
        if (!cut && !open) starts[n] = i, lengths[n] = 0, n++;
        open = !cut;
        if (open) lengths[n - 1]++;
    }
    return n;
}

/* Cut at the full lines of the drawn colour with most of them, else the longer side into halves, thirds or quarters. */
SPLIT(cut_panels) {
    (void)arg;
    int best = 0, most = 0, rows[LARGEST], heights[LARGEST], columns[LARGEST], widths[LARGEST], n, m;
    for (int colour = 1; colour < 10; colour++) {
        int lines = 0;
        for (int r = 0; r < in->h; r++) lines += full_line(in, 0, r, colour);
        for (int c = 0; c < in->w; c++) lines += full_line(in, 1, c, colour);
        if (lines > most) best = colour, most = lines;
    }
    if (best) {
        n = stretches(in, 0, best, rows, heights);
        m = stretches(in, 1, best, columns, widths);
    } else {
        int k = 2, tall = in->h > in->w, longer = tall ? in->h : in->w, shorter = tall ? in->w : in->h;
        while (k < 5 && longer != k * shorter) k++;
        if (k == 5) return 0;
        n = tall ? k : 1;
        m = tall ? 1 : k;
        for (int i = 0; i < n; i++) rows[i] = i * shorter, heights[i] = shorter;
        for (int i = 0; i < m; i++) columns[i] = i * shorter, widths[i] = shorter;
    }
    if (n * m < 2) return 0;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++)
            if (!add_window(in, rows[i], columns[j], heights[i], widths[j], out)) return 0;
    return 1;
}

/* Whether a corner of a box is marked: of the four cells around it, three of a colour and another inside the box. */
static int marked_corner(const Piece *in, int r, int c, int inside, int colour) {
    for (int d = 0; d < 4; d++)
        if ((in->cells[(r + d / 2) * in->w + c + d % 2] == colour) == (d == inside)) return 0;
    return 1;
}

/* Cut out what lies in boxes with marked corners, in reading order, smaller ones first. */
SPLIT(cut_marked) {
    (void)arg;
    for (int r = 0; r + 1 < in->h; r++)
        for (int c = 0; c + 1 < in->w; c++) {
            int colour = in->cells[r * in->w + c];
            if (!colour || !marked_corner(in, r, c, 3, colour)) continue;
            for (int h = 1; r + h + 1 < in->h; h++)
                for (int w = 1; c + w + 1 < in->w; w++) {
                    if (!marked_corner(in, r, c + w, 2, colour) || !marked_corner(in, r + h, c, 1, colour) ||
                        !marked_corner(in, r + h, c + w, 0, colour))
                        continue;
                    if (!add_window(in, r + 1, c + 1, h, w, out)) return 0;
                }
        }
    return out->n > 0;
}

SPLIT(cut_lines) {
    for (int i = 0; i < (arg ? in->w : in->h); i++)
        if (!add_window(in, arg ? 0 : i, arg ? i : 0, arg ? in->h : 1, arg ? 1 : in->w, out)) return 0;
    return out->n > 1;
}

/* Mark the cells of a colour, or all others, that are connected, over sides and corners, to cell `start`. */
static int flood(const Piece *in, int colour, int same, int start, int mark, uint16_t *labels, int *stack) {
    int top = 0, n = 0;
    labels[start] = (uint16_t)mark;
    stack[top++] = start;
    while (top) {
        int k = stack[--top];
        n++;
        for (int dy = -1; dy <= 1; dy++)
            for (int dx = -1; dx <= 1; dx++) {
                int r = k / in->w + dy, c = k % in->w + dx, j = r * in->w + c;
                if (r < 0 || c < 0 || r >= in->h || c >= in->w || labels[j] || (in->cells[j] == colour) != same) continue;
                labels[j] = (uint16_t)mark;
                stack[top++] = j;
            }
    }
    return n;
}

/* Label the parts between the cells of a colour from 2 on. Cells in the smallest part; 0 where it does not separate. */
static int parts_between(const Piece *in, int colour, uint16_t *labels) {
    int stack[CELLS], sides[4] = {0}, mark = 1, least = CELLS;
    memset(labels, 0, sizeof *labels * (size_t)(in->h * in->w));
    for (int i = 0; i < in->h * in->w; i++) {
        int r = i / in->w, c = i % in->w, edge[4] = {r == 0, c == 0, r == in->h - 1, c == in->w - 1};
        if (in->cells[i] != colour || !(edge[0] || edge[1] || edge[2] || edge[3])) continue;
        for (int k = 0; k < 4; k++) sides[k] |= edge[k];
        if (!labels[i]) flood(in, colour, 1, i, 1, labels, stack);
    }
    if (!(sides[0] && sides[1] && sides[2] && sides[3])) return 0;
    for (int i = 0; i < in->h * in->w; i++) {
        if (in->cells[i] == colour || labels[i]) continue;
        int n = flood(in, colour, 0, i, ++mark, labels, stack), open = 0;
        if (n < least) least = n;
        for (int k = 0; k < in->h * in->w && !open; k++)
            for (int d = 0; d < 9 && labels[k] == mark; d++) {
                int r = k / in->w + d / 3 - 1, c = k % in->w + d % 3 - 1;
                open |= r >= 0 && c >= 0 && r < in->h && c < in->w && labels[r * in->w + c] == 1;
            }
        if (!open) return 0;
    }
    return mark > 2 ? least : 0;
}

/* Cut into what lies between the cells of the colour, drawn or empty, whose smallest part is largest. */
SPLIT(cut_parts) {
    (void)arg;
    uint16_t labels[CELLS];
    int best = -1, most = 0;
    for (int colour = 0; colour < 10; colour++) {
        int least = parts_between(in, colour, labels);
        if (least > most) best = colour, most = least;
    }
    if (best < 0) return 0;
    parts_between(in, best, labels);
    Box box[CELLS];
    int last = 1;
    for (int i = 0; i < in->h * in->w; i++) {
        if (labels[i] < 2) continue;
        if (labels[i] > last) box[last = labels[i]] = NOWHERE;
        stretch(&box[labels[i]], i / in->w, i % in->w);
    }
    for (int k = 2; k <= last; k++)
        if (!add_marked(in, labels, k, box[k], out)) return 0;
    return 1;
}

/* Whether two pieces show the same: 0 the same cells drawn, 1 the same colours. */
static int alike(const Piece *a, const Piece *b, int colours) {
    if (a->h != b->h || a->w != b->w) return 0;
    for (int i = 0; i < a->h * a->w; i++)
        if (colours ? a->cells[i] != b->cells[i] : !a->cells[i] != !b->cells[i]) return 0;
    return 1;
}

/* Lines of symmetry: left-right, up-down, and the diagonal of a square. */
static int symmetries(const Piece *p) {
    int lr = 1, ud = 1, diagonal = p->h == p->w;
    for (int r = 0; r < p->h; r++)
        for (int c = 0; c < p->w; c++) {
            int v = p->cells[r * p->w + c];
            if (v != p->cells[r * p->w + p->w - 1 - c]) lr = 0;
            if (v != p->cells[(p->h - 1 - r) * p->w + c]) ud = 0;
            if (diagonal && v != p->cells[c * p->w + r]) diagonal = 0;
        }
    return lr + ud + diagonal;
}

static int holes(const Piece *p) {
    uint8_t outside[CELLS];
    int n = 0;
    reach_outside(p, outside);
    for (int i = 0; i < p->h * p->w; i++) n += !p->cells[i] && !outside[i];
    return n;
}

static int commonest_of(const int count[10]) {
    int best = 0;
    for (int c = 1; c < 10; c++)
        if (count[c] && (!best || count[c] > count[best])) best = c;
    return best;
}

/* The numbers that pieces are chosen by, in the order of PROPERTIES in parts.py. */
static int property(const Pieces *in, int k, int which) {
    const Piece *p = &in->piece[k];
    const int *count = in->measured->count[k];
    int colours = 0, most = 0, drawn = p->h * p->w - count[0], same = 0;
    for (int c = 1; c < 10; c++) {
        colours += count[c] > 0;
        if (count[c] > most) most = count[c];
    }
    switch (which) {
        case 0: return drawn;
        case 1: return p->h * p->w;
        case 2: return p->h;
        case 3: return p->w;
        case 4: return colours;
        case 5: return count[0];
        case 6: return symmetries(p);
        case 7: return p->y;
        case 8: return p->x;
        case 9: return drawn - most;
        case 10: return holes(p);
        case 11:
            for (int j = 0; j < in->n; j++) same += alike(p, &in->piece[j], 0);
            return same;
        case 12:
            for (int j = 0; j < in->n; j++) same += alike(p, &in->piece[j], 1);
            return same;
        case 13:
            for (int j = 0; j < in->n; j++) same += commonest_of(count) == commonest_of(in->measured->count[j]);
            return same;
    }
    return commonest_of(count);
}

/* A number of every piece, with its least and its largest value; measured once for each value of the search. */
const int *measure(const Pieces *in, int which, int *low, int *high) {
    Measured *m = in->measured;
    if (!m->counted) {
        for (int k = 0; k < in->n; k++) histogram(&in->piece[k], m->count[k]);
        m->counted = 1;
    }
    if (!(m->known >> which & 1)) {
        int *values = m->values[which];
        for (int k = 0; k < in->n; k++) {
            values[k] = property(in, k, which);
            if (!k || values[k] < m->low[which]) m->low[which] = values[k];
            if (!k || values[k] > m->high[which]) m->high[which] = values[k];
        }
        m->known |= 1u << which;
    }
    *low = m->low[which];
    *high = m->high[which];
    return m->values[which];
}

static int add_copy(const Piece *p, Pieces *out) {
    Piece *q = added(out, p->y, p->x);
    return q && copied(p, q, out);
}

/* `arg` is twice the property, plus one for the least instead of the most. */
static int filtered(const Pieces *in, int arg, int keep, Pieces *out) {
    int low, high;
    const int *values = measure(in, arg / 2, &low, &high);
    if (low == high) return 0;
    for (int k = 0; k < in->n; k++)
        if ((values[k] == (arg % 2 ? low : high)) == keep && !add_copy(&in->piece[k], out)) return 0;
    return 1;
}

JOIN(keep_extreme) { return filtered(in, arg, 1, out); }

JOIN(drop_extreme) { return filtered(in, arg, 0, out); }

/* The one with the most or the least; several only if they are drawn alike, then the first. */
JOIN(take_extreme) {
    int low, high, best = -1;
    if (in->n < 2) return 0;
    const int *values = measure(in, arg / 2, &low, &high);
    if (low == high) return 0;
    for (int k = 0; k < in->n; k++)
        if (values[k] == (arg % 2 ? low : high)) {
            if (best < 0) best = k;
            else if (!alike(&in->piece[best], &in->piece[k], 1)) return 0;
        }
    return add_copy(&in->piece[best], out);
}

/* The first of those with the most or the least. */
JOIN(take_first) {
    int low, high, k = 0;
    if (in->n < 2) return 0;
    const int *values = measure(in, arg / 2, &low, &high);
    if (low == high) return 0;
    while (values[k] != (arg % 2 ? low : high)) k++;
    return add_copy(&in->piece[k], out);
}

/* The one whose number no other has, where exactly one such is among three or more. */
JOIN(take_odd) {
    int low, high, best = -1;
    if (in->n < 3) return 0;
    const int *values = measure(in, arg, &low, &high);
    for (int k = 0; k < in->n; k++) {
        int times = 0;
        for (int j = 0; j < in->n; j++) times += values[j] == values[k];
        if (times > 1) continue;
        if (best >= 0) return 0;
        best = k;
    }
    return best >= 0 && add_copy(&in->piece[best], out);
}

/* The most first; equals stay in their order. */
JOIN(sort_by) {
    int low, high;
    if (in->n < 2) return 0;
    const int *values = measure(in, arg, &low, &high);
    for (int v = high; v >= low; v--)
        for (int k = 0; k < in->n; k++)
            if (values[k] == v && !add_copy(&in->piece[k], out)) return 0;
    return 1;
}
