/* Joining the pieces of an input into one. Each is the twin of the function of the same name in joins.py. */
#include "compose.h"

/* All pieces at their places in the box around them; what is drawn later lies above. */
JOIN(overlay) {
    (void)arg;
    int top = 0, left = 0, bottom = 0, right = 0;
    for (int k = 0; k < in->n; k++) {
        const Piece *p = &in->piece[k];
        if (!k || p->y < top) top = p->y;
        if (!k || p->x < left) left = p->x;
        if (!k || p->y + p->h > bottom) bottom = p->y + p->h;
        if (!k || p->x + p->w > right) right = p->x + p->w;
    }
    Piece *q = added(out, top, left);
    if (!blank(q, bottom - top, right - left, out)) return 0;
    for (int k = 0; k < in->n; k++) {
        const Piece *p = &in->piece[k];
        for (int r = 0; r < p->h; r++)
            for (int c = 0; c < p->w; c++)
                if (p->cells[r * p->w + c]) q->cells[(p->y - top + r) * q->w + p->x - left + c] = p->cells[r * p->w + c];
    }
    return 1;
}

/* All pieces in a row (0) or a column (1), in their order. */
JOIN(beside) {
    int h = 0, w = 0, at = 0;
    if (in->n < 2) return 0;
    for (int k = 0; k < in->n; k++) {
        const Piece *p = &in->piece[k];
        if (arg) h += p->h, w = p->w > w ? p->w : w;
        else w += p->w, h = p->h > h ? p->h : h;
    }
    Piece *q = added(out, 0, 0);
    if (!blank(q, h, w, out)) return 0;
    for (int k = 0; k < in->n; k++) {
        const Piece *p = &in->piece[k];
        for (int r = 0; r < p->h; r++) memcpy(q->cells + (arg ? at + r : r) * w + (arg ? 0 : at), p->cells + r * p->w, (size_t)p->w);
        at += arg ? p->h : p->w;
    }
    return 1;
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
