/* Joining the pieces of an input into one. Each is the twin of the function of the same name in joins.py. */
#include "compose.h"

/* The order of numbers, the largest first (1) or the smallest (-1), or as they are (0); equals in their order. */
static void ordered(const int *number, int n, int way, int *order) {
    for (int i = 0; i < n; i++) {
        int at = i;
        for (; way && at && way * number[order[at - 1]] < way * number[i]; at--) order[at] = order[at - 1];
        order[at] = i;
    }
}

/* All pieces at their places in the box around them; later ones (0), or those with fewer drawn cells (1), lie above. */
JOIN(overlay) {
    int top = 0, left = 0, bottom = 0, right = 0, order[MOST_PIECES], low, high;
    for (int k = 0; k < in->n; k++) {
        const Piece *p = &in->piece[k];
        if (!k || p->y < top) top = p->y;
        if (!k || p->x < left) left = p->x;
        if (!k || p->y + p->h > bottom) bottom = p->y + p->h;
        if (!k || p->x + p->w > right) right = p->x + p->w;
    }
    Piece *q = added(out, top, left);
    if (!blank(q, bottom - top, right - left, out)) return 0;
    ordered(arg ? measure(in, 0, &low, &high) : order, in->n, arg, order);
    for (int k = 0; k < in->n; k++) {
        const Piece *p = &in->piece[order[k]];
        for (int r = 0; r < p->h; r++)
            for (int c = 0; c < p->w; c++)
                if (p->cells[r * p->w + c]) q->cells[(p->y - top + r) * q->w + p->x - left + c] = p->cells[r * p->w + c];
    }
    return 1;
}

/* Pieces in a row or a column, in an order. */
static int in_line(const Pieces *in, int column, const int *order, Pieces *out) {
    int h = 0, w = 0, at = 0;
    if (in->n < 2) return 0;
    for (int k = 0; k < in->n; k++) {
        const Piece *p = &in->piece[k];
        if (column) h += p->h, w = p->w > w ? p->w : w;
        else w += p->w, h = p->h > h ? p->h : h;
    }
    Piece *q = added(out, 0, 0);
    if (!blank(q, h, w, out)) return 0;
    for (int k = 0; k < in->n; k++) {
        const Piece *p = &in->piece[order[k]];
        for (int r = 0; r < p->h; r++)
            memcpy(q->cells + (column ? at + r : r) * w + (column ? 0 : at), p->cells + r * p->w, (size_t)p->w);
        at += column ? p->h : p->w;
    }
    return 1;
}

/* In a row (arg % 2 = 0) or a column (1), in their order (arg < 2) or the smallest box first. */
JOIN(beside) {
    int order[MOST_PIECES], low, high;
    ordered(arg < 2 ? order : measure(in, 1, &low, &high), in->n, arg < 2 ? 0 : -1, order);
    return in_line(in, arg % 2, order, out);
}

/* Along the direction in which all lie apart, as they lie: in a row unless the tops are farther apart than the sides. */
JOIN(line_up) {
    (void)arg;
    int order[MOST_PIECES], gap[2] = {0}, at[2][MOST_PIECES];
    for (int axis = 0; axis < 2; axis++) {
        for (int k = 0; k < in->n; k++) at[axis][k] = axis ? in->piece[k].y : in->piece[k].x;
        ordered(at[axis], in->n, -1, order);
        for (int k = 1; k < in->n; k++) {
            int d = at[axis][order[k]] - at[axis][order[k - 1]];
            if (k == 1 || d < gap[axis]) gap[axis] = d;
        }
    }
    int column = gap[1] > gap[0];
    ordered(at[column], in->n, -1, order);
    return in_line(in, column, order, out);
}

static int equal_sizes(const Pieces *in) {
    for (int k = 1; k < in->n; k++)
        if (in->piece[k].h != in->piece[0].h || in->piece[k].w != in->piece[0].w) return 0;
    return in->n > 1;
}

/* Pieces of equal size on one pile: the first (0) or the last (1) on top. */
JOIN(pile) {
    if (!equal_sizes(in)) return 0;
    Piece *q = added(out, 0, 0);
    if (!blank(q, in->piece[0].h, in->piece[0].w, out)) return 0;
    for (int k = 0; k < in->n; k++) {
        const uint8_t *cells = in->piece[arg ? in->n - 1 - k : k].cells;
        for (int i = 0; i < q->h * q->w; i++)
            if (!q->cells[i]) q->cells[i] = cells[i];
    }
    return 1;
}

/* Pieces of equal size: cells drawn in all of them (0), in exactly one (1), or in none (2, in colour 1). */
JOIN(pile_logic) {
    if (!equal_sizes(in)) return 0;
    Piece *q = added(out, 0, 0);
    if (!blank(q, in->piece[0].h, in->piece[0].w, out)) return 0;
    for (int i = 0; i < q->h * q->w; i++) {
        int times = 0, colour = 0;
        for (int k = 0; k < in->n; k++)
            if (in->piece[k].cells[i]) {
                times++;
                if (!colour) colour = in->piece[k].cells[i];
            }
        if (arg == 2) q->cells[i] = times == 0;
        else if (times == (arg ? 1 : in->n)) q->cells[i] = (uint8_t)colour;
    }
    return 1;
}

/* One cell of its commonest colour for each piece, in a row (0) or a column (1). */
JOIN(colours_in_line) {
    Piece *q = added(out, 0, 0);
    if (!blank(q, arg ? in->n : 1, arg ? 1 : in->n, out)) return 0;
    for (int k = 0; k < in->n; k++) q->cells[k] = (uint8_t)commonest(&in->piece[k]);
    return 1;
}

/* The piece with an index, from the end if negative. */
JOIN(take_index) {
    int k = arg < 0 ? in->n + arg : arg;
    if (in->n < 2 || k < 0 || k >= in->n) return 0;
    Piece *q = added(out, in->piece[k].y, in->piece[k].x);
    return copied(&in->piece[k], q, out);
}
