/* Owns the picture of a tape, a ladder: forward goes down on the left, a box a call; what its
 * derivative ran stands beside it on the right and comes up; the rungs are what is kept in between.
 * Arrows from one row to the next run straight, others through lanes at the sides. */
#include "cli/svg.h"
#include "cli/tape.h"
#include "core/ctx.h"
#include <stdlib.h>
#include <string.h>

enum {
    LEFT_W = 240,
    RIGHT_W = 372,
    RUNG_W = 150,
    LANE = 11,
    LINE = 17,
    PAD = 9,
    ROW_GAP = 16,
    BLOCK_GAP = 34,
    EDGE = 20,
    TOP = 112,
    MOST_LINES = 8,
    FOLD_ABOVE = 64, /* calls of a forward pass */
    TEXT = 320
};

static const char style_sheet[] =
    "<style>\n"
    "  svg { color-scheme: light dark }\n"
    "  text { font-family: system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif;\n"
    "         font-size: 12px; fill: #1f2328 }\n"
    "  .m { font-family: ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace }\n"
    "  .h1 { font-size: 17px; font-weight: 600 } .b { font-weight: 600 } .dim { fill: #59636e }\n"
    "  .ground { fill: #ffffff } .block { fill: #f6f8fa; stroke: #d8dee4 }\n"
    "  .box { fill: #ffffff; stroke-width: 1.4 } .line { fill: none; stroke-width: 1.4 }\n"
    "  .f { stroke: #0969da } .tf { fill: #0969da } .g { stroke: #bc4c00 } .tg { fill: #bc4c00 }\n"
    "  .k { stroke: #8250df; stroke-dasharray: 5 4 } .tk { fill: #8250df }\n"
    "  @media (prefers-color-scheme: dark) {\n"
    "    text { fill: #e6edf3 } .dim { fill: #9ba5b0 }\n"
    "    .ground { fill: #0d1117 } .block { fill: #151b23; stroke: #2d333b }\n"
    "    .box { fill: #0d1117 }\n"
    "    .f { stroke: #58a6ff } .tf { fill: #58a6ff } .g { stroke: #f0883e } .tg { fill: #f0883e "
    "}\n"
    "    .k { stroke: #bc8cff } .tk { fill: #bc8cff }\n"
    "  }\n"
    "</style>\n"
    "<defs>\n"
    "<marker id=\"af\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" "
    "markerHeight=\"7\" orient=\"auto\"><path class=\"tf\" d=\"M0 .8 7.5 4 0 7.2z\"/></marker>\n"
    "<marker id=\"ag\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" "
    "markerHeight=\"7\" orient=\"auto\"><path class=\"tg\" d=\"M0 .8 7.5 4 0 7.2z\"/></marker>\n"
    "<marker id=\"ak\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" "
    "markerHeight=\"7\" orient=\"auto\"><path class=\"tk\" d=\"M0 .8 7.5 4 0 7.2z\"/></marker>\n"
    "</defs>\n";

typedef struct row {
    int from, to; /* calls of the forward pass */
    int blocks;   /* folded blocks that look alike; 0: one call */
    int like;     /* the call where the block begins that they look like */
    double y, h;  /* of its boxes */
    bool opens;   /* a block begins here */
    int lines[2]; /* of text in its boxes, forward and backward */
} row;

typedef struct bus { /* from a row's box along a lane to every row that reads it */
    int from, to;    /* to: the furthest */
    int lane;
} bus;

typedef struct ladder {
    const tape_log *l;
    FILE *f;
    int n, calls; /* rows; calls of the forward pass */
    row *row;
    int *of;       /* the row of each call, of both passes */
    bool *edge[2]; /* [pass][from*n+to] */
    bus *bus[2];   /* by row; lane -1: none */
    int lanes[2];
    double x[2], width, height; /* left edges of both columns */
} ladder;

/* ---- rows ----------------------------------------------------------------------------------- */
static int block_end(const ladder *d, int at) {
    const char *scope = d->l->call[at].scope;
    int n = tape_block(scope), to = at + 1;
    for (; to < d->calls; to++) {
        const char *s = d->l->call[to].scope;
        if (*s && (tape_block(s) != n || strncmp(s, scope, (size_t)n) != 0)) break;
    }
    return to;
}

/* Whether two runs of calls are the same operations in the same parts of a block. */
static bool alike(const ladder *d, int a, int a_end, int b, int b_end) {
    if (a_end - a != b_end - b) return false;
    for (int i = 0; i < a_end - a; i++) {
        const tape_call *p = &d->l->call[a + i], *q = &d->l->call[b + i];
        if (p->op != q->op ||
            strcmp(p->scope + tape_block(p->scope), q->scope + tape_block(q->scope)))
            return false;
    }
    return true;
}

/* An earlier block that [at, to) looks like; -1: none. */
static int model_for(const ladder *d, int at, int to) {
    if (d->calls <= FOLD_ABOVE || to - at < 4) return -1;
    for (int b = 0; b < at; b = block_end(d, b))
        if (alike(d, b, block_end(d, b), at, to)) return b;
    return -1;
}

static void make_rows(ladder *d) {
    for (int at = 0, to; at < d->calls; at = to) {
        to = block_end(d, at);
        int like = model_for(d, at, to);
        row *last = d->n ? &d->row[d->n - 1] : NULL;
        if (like >= 0 && last && last->blocks && last->like == like) {
            last->to = to;
            last->blocks++;
        } else if (like >= 0) {
            d->row[d->n++] = (row){.from = at, .to = to, .blocks = 1, .like = like, .opens = true};
        } else {
            for (int i = at; i < to; i++)
                d->row[d->n++] = (row){.from = i, .to = i + 1, .opens = i == at};
        }
    }
}

/* A call of the walk back belongs beside the call whose vjp ran it; what a checkpoint computes
 * again, beside the checkpoint; what no vjp ran, beside what ran before it. */
static void place_calls(ladder *d) {
    for (int r = 0; r < d->n; r++)
        for (int i = d->row[r].from; i < d->row[r].to; i++) d->of[i] = r;
    int before = d->n - 1;
    for (int i = d->calls; i < d->l->n_calls; i++) {
        int of = d->l->call[i].of;
        before = d->of[i] = of >= 0 ? d->of[of] : before;
    }
}

/* ---- edges ---------------------------------------------------------------------------------- */
static void find_edges(ladder *d) {
    int *writer = tp_arena_alloc(d->l->c, (size_t)(d->l->n_tensors + 1) * sizeof *writer);
    for (int i = 0; writer && i <= d->l->n_tensors; i++) writer[i] = -1;
    for (int i = 0; writer && i < d->l->n_calls; i++) {
        const tape_call *k = &d->l->call[i];
        bool back = i >= d->calls;
        for (int j = 0; j < k->nin; j++) {
            int w = k->in[j] ? writer[k->in[j]] : -1;
            if (w >= 0 && (w >= d->calls) == back && d->of[w] != d->of[i])
                d->edge[back][d->of[w] * d->n + d->of[i]] = true;
            if (k->in[j] && ((k->op->inplace >> j) & 1)) writer[k->in[j]] = i;
        }
        for (int j = 0; j < k->nout; j++) writer[k->out[j]] = i;
    }
}

static bool overlap(const bus *a, const bus *b) {
    int lo = a->from < a->to ? a->from : a->to, hi = a->from + a->to - lo;
    int from = b->from < b->to ? b->from : b->to, to = b->from + b->to - from;
    return lo < to && from < hi;
}

/* Short ones first and close to the boxes. */
static void choose_lanes(ladder *d, int pass) {
    int step = pass ? -1 : 1;
    for (int r = 0; r < d->n; r++) {
        d->bus[pass][r] = (bus){r, r, -1};
        for (int t = r + 2 * step; t >= 0 && t < d->n; t += step)
            if (d->edge[pass][r * d->n + t]) d->bus[pass][r].to = t;
    }
    for (int length = 2; length < d->n; length++)
        for (int r = 0; r < d->n; r++) {
            bus *b = &d->bus[pass][r];
            if (abs(b->to - b->from) != length) continue;
            bool taken = true;
            for (b->lane = 0; taken; b->lane += taken) {
                taken = false;
                for (int o = 0; o < d->n; o++)
                    taken |=
                        o != r && d->bus[pass][o].lane == b->lane && overlap(b, &d->bus[pass][o]);
            }
            if (b->lane >= d->lanes[pass]) d->lanes[pass] = b->lane + 1;
        }
}

/* ---- text ----------------------------------------------------------------------------------- */
static void add(char *out, const char *s) {
    size_t n = strlen(out);
    snprintf(out + n, TEXT - n, "%s", s);
}

static void add_id(char *out, int id) {
    char s[32];
    snprintf(s, sizeof s, "%s%%%d", *out ? " " : "", id);
    add(out, s);
}

/* "q_proj.weight" of "model.layers.0.self_attn.q_proj.weight" */
static const char *tail(const char *name) {
    const char *from = name, *before = name;
    for (const char *s = name; *s; s++)
        if (*s == '.') {
            from = before;
            before = s + 1;
        }
    return from;
}

static void add_shape(char *out, const tp_tensor *t) {
    char s[TEXT];
    size_t n = (size_t)snprintf(s, sizeof s, " %s[", tp_dtype_name(t->dtype));
    for (int i = 0; i < t->ndim; i++)
        n += (size_t)snprintf(s + n, sizeof s - n, "%s%lld", i ? "," : "", (long long)t->shape[i]);
    snprintf(s + n, sizeof s - n, "]");
    add(out, s);
}

static void size_text(char out[32], double bytes) {
    static const char *const unit[] = {"B", "kB", "MB", "GB"};
    int u = 0;
    for (; bytes >= 1000 && u < 3; u++) bytes /= 1000;
    snprintf(out, 32, bytes < 10 && u ? "%.1f %s" : "%.0f %s", bytes, unit[u]);
}

/* What the calls of a row keep; their bytes. */
static double kept(const ladder *d, const row *r, char *ids) {
    double bytes = 0;
    bool *seen = tp_arena_alloc(d->l->c, (size_t)d->l->n_tensors + 1);
    for (int i = r->from; i < r->to && seen; i++) {
        const tape_call *k = &d->l->call[i];
        for (int j = 0; j < k->nin + k->nout; j++) {
            bool out = j >= k->nin;
            int at = out ? j - k->nin : j, id = out ? k->out[at] : k->in[at];
            if (!id || !(((out ? k->saved_out : k->saved_in) >> at) & 1) || seen[id]) continue;
            seen[id] = true;
            bytes += (double)d->l->tensor[id].bytes;
            add_id(ids, id);
        }
    }
    return bytes;
}

/* Which gradients call i, of the walk back, has made or added to: " ∂%3 ∂q_proj.weight". */
static void gradients_text(const ladder *d, int i, char *out) {
    const tape_call *k = &d->l->call[i];
    for (int e = 0; e < d->l->n_grads; e++) {
        const tape_event *g = &d->l->grad[e];
        bool ours = false;
        if (g->at < i || d->of[g->at] != d->of[i]) continue;
        for (int j = 0; j < k->nout; j++) ours |= k->out[j] == g->grad;
        for (int j = 0; j < k->nin; j++) ours |= k->in[j] == g->grad && ((k->op->inplace >> j) & 1);
        if (!ours) continue;
        const tp_tensor *t = d->l->tensor[g->id].t;
        char s[TEXT];
        if (t && t->name)
            snprintf(s, sizeof s, " \xe2\x88\x82%s", tail(t->name));
        else
            snprintf(s, sizeof s, " \xe2\x88\x82%%%d", g->id);
        if (!strstr(out, s)) add(out, s);
    }
}

/* Whether what stands beside the name of a call of the walk back fits there. */
static bool fits(const ladder *d, int i, char *text) {
    double name = 7.3 * (double)strlen(d->l->call[i].op->name), wide = 0;
    text[0] = 0;
    gradients_text(d, i, text);
    if (d->l->call[i].again) add(text, " computed again");
    for (const char *s = text; *s; s++) wide += (*s & 0xc0) == 0x80 ? 0 : 6.6;
    return name + wide < RIGHT_W - 24;
}

static int back_calls(const ladder *d, int r) {
    int n = 0;
    for (int i = d->calls; i < d->l->n_calls; i++) n += d->of[i] == r;
    return n;
}

static bool is_parameter(const ladder *d, int id) {
    return id && d->l->tensor[id].made < 0 && d->l->tensor[id].t && d->l->tensor[id].t->name;
}

static void count_lines(ladder *d, int r) {
    row *w = &d->row[r];
    int n = back_calls(d, r);
    w->lines[0] = 2;
    w->lines[1] = w->blocks ? 2 : n > MOST_LINES ? MOST_LINES : n;
    for (int i = d->calls; i < d->l->n_calls && !w->blocks && n <= MOST_LINES; i++) {
        char s[TEXT];
        w->lines[1] += d->of[i] == r && !fits(d, i, s);
    }
    const tape_call *k = &d->l->call[w->from];
    for (int j = 0; j < k->nin && !w->blocks; j++) w->lines[0] += is_parameter(d, k->in[j]);
}

/* ---- drawing -------------------------------------------------------------------------------- */
static void measure(ladder *d) {
    double y = TOP;
    for (int r = 0; r < d->n; r++) {
        row *w = &d->row[r];
        count_lines(d, r);
        int lines = w->lines[0] > w->lines[1] ? w->lines[0] : w->lines[1];
        if (r) y += w->opens ? BLOCK_GAP + 12 : ROW_GAP;
        w->y = y;
        w->h = lines * LINE + PAD;
        y += w->h;
    }
    d->height = y + EDGE + 18;
    d->x[0] = EDGE + 16 + d->lanes[0] * LANE;
    d->x[1] = d->x[0] + LEFT_W + RUNG_W;
    d->width = d->x[1] + RIGHT_W + 16 + d->lanes[1] * LANE + EDGE;
}

static double box_height(const row *w, int pass) { return w->lines[pass] * LINE + PAD; }

static void draw_blocks(const ladder *d) {
    for (int r = 0; r < d->n; r++) {
        if (!d->row[r].opens) continue;
        int to = r + 1;
        while (to < d->n && !d->row[to].opens) to++;
        double y = d->row[r].y - 26, end = d->row[to - 1].y + d->row[to - 1].h + 10;
        fprintf(d->f,
                "<rect class=\"block\" x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" "
                "rx=\"9\"/>\n",
                EDGE - 8, y, d->width - 2 * EDGE + 16, end - y);
        const char *scope = d->l->call[d->row[r].from].scope;
        char name[TEXT];
        snprintf(name, sizeof name, "%.*s", tape_block(scope), scope);
        if (!d->row[r].blocks)
            svg_text(d->f, d->x[0] + LEFT_W + RUNG_W / 2.0, y + 18,
                     "class=\"b\" text-anchor=\"middle\"", name);
    }
}

static void draw_box(const ladder *d, int r, int pass) {
    const row *w = &d->row[r];
    double width = pass ? RIGHT_W : LEFT_W;
    fprintf(d->f,
            "<rect class=\"box %s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" "
            "rx=\"6\"/>\n",
            pass ? "g" : "f", d->x[pass], w->y, width, box_height(w, pass));
}

static void draw_call(const ladder *d, const row *w) {
    const tape_call *k = &d->l->call[w->from];
    double x = d->x[0] + 10, y = w->y + LINE;
    char s[TEXT] = "";
    svg_text(d->f, x, y, "class=\"m b tf\"", k->op->name);
    int first = k->nout ? k->out[0] : k->in[0];
    add_id(s, first);
    if (d->l->tensor[first].t) add_shape(s, d->l->tensor[first].t);
    if (k->nout > 1) {
        char more[32];
        snprintf(more, sizeof more, " +%d", k->nout - 1);
        add(s, more);
    }
    svg_text(d->f, x, y += LINE, "class=\"m dim\"", s);
    for (int j = 0; j < k->nin; j++)
        if (is_parameter(d, k->in[j]))
            svg_text(d->f, x, y += LINE, "class=\"dim\"", tail(d->l->tensor[k->in[j]].t->name));
}

static void draw_back(const ladder *d, int r) {
    const row *w = &d->row[r];
    int n = back_calls(d, r), line = 0;
    for (int i = d->calls; i < d->l->n_calls && line < w->lines[1]; i++) {
        if (d->of[i] != r) continue;
        const tape_call *k = &d->l->call[i];
        char s[TEXT] = "";
        double x = d->x[1] + 10, y = w->y + LINE * ++line;
        if (line == w->lines[1] && n > MOST_LINES) {
            snprintf(s, sizeof s, "and %d more", n - line + 1);
            svg_text(d->f, x, y, "class=\"dim\"", s);
            return;
        }
        svg_text(d->f, x, y, "class=\"m b tg\"", k->op->name);
        if (!fits(d, i, s) && n <= MOST_LINES) y = w->y + LINE * ++line;
        if (*s)
            svg_text(d->f, d->x[1] + RIGHT_W - 10, y, "class=\"dim\" text-anchor=\"end\"", s + 1);
    }
}

static void draw_folded(const ladder *d, int r) {
    const row *w = &d->row[r];
    const tape_call *a = &d->l->call[w->from], *b = &d->l->call[w->to - 1],
                    *like = &d->l->call[w->like];
    char s[TEXT];
    snprintf(s, sizeof s, w->blocks > 1 ? "%.*s \xe2\x80\xa6 %.*s" : "%.*s", tape_block(a->scope),
             a->scope, tape_block(b->scope), b->scope);
    svg_text(d->f, d->x[0] + 10, w->y + LINE, "class=\"b tf\"", s);
    snprintf(s, sizeof s, "as %.*s: %d operations%s", tape_block(like->scope), like->scope,
             (w->to - w->from) / w->blocks, w->blocks > 1 ? " each" : "");
    svg_text(d->f, d->x[0] + 10, w->y + 2 * LINE, "class=\"dim\"", s);
    svg_text(d->f, d->x[1] + 10, w->y + LINE, "class=\"b tg\"",
             w->blocks > 1 ? "their derivatives" : "its derivative");
    snprintf(s, sizeof s, "%d operations%s", back_calls(d, r) / w->blocks,
             w->blocks > 1 ? " each" : "");
    svg_text(d->f, d->x[1] + 10, w->y + 2 * LINE, "class=\"dim\"", s);
}

static void shorten(char *ids, size_t most) {
    if (strlen(ids) <= most) return;
    ids[most - 1] = 0;
    char *space = strrchr(ids, ' ');
    if (space) *space = 0;
    add(ids, " \xe2\x80\xa6");
}

static void draw_rung(const ladder *d, const row *w) {
    char ids[TEXT] = "", size[32];
    double bytes = kept(d, w, ids), from = d->x[0] + LEFT_W, y = w->y + 26;
    if (!(bytes > 0) || !w->lines[1]) return;
    fprintf(d->f, "<path class=\"line k\" marker-end=\"url(#ak)\" d=\"M%.1f %.1fH%.1f\"/>\n",
            from + 2, y, d->x[1] - 2);
    size_text(size, bytes);
    shorten(ids, 18);
    if (!w->blocks)
        svg_text(d->f, from + RUNG_W / 2.0, y - 5, "class=\"m tk\" text-anchor=\"middle\"", ids);
    svg_text(d->f, from + RUNG_W / 2.0, y + 14, "class=\"dim\" text-anchor=\"middle\"", size);
}

/* From the lane's side of box a into that of box b. entry: how many have come in there before. */
static void draw_bus(const ladder *d, int pass, int a, int b, int entry) {
    const row *p = &d->row[a], *q = &d->row[b];
    int out = pass ? 1 : -1;
    double x = pass ? d->x[1] + RIGHT_W : d->x[0];
    double lane = x + out * (16 + LANE * d->bus[pass][a].lane), hp = box_height(p, pass);
    double y1 = p->y + (pass ? 6 : hp - 6), down = pass ? -1 : 1;
    double hq = box_height(q, pass), y2 = q->y + (pass ? hq - 13 - 6 * entry : 13 + 6 * entry);
    fprintf(d->f,
            "<path class=\"line %s\" marker-end=\"url(#a%s)\" d=\"M%.1f %.1fH%.1fQ%.1f %.1f %.1f "
            "%.1fV%.1fQ%.1f %.1f %.1f %.1fH%.1f\"/>\n",
            pass ? "g" : "f", pass ? "g" : "f", x, y1, lane - out * 6, lane, y1, lane,
            y1 + down * 6, y2 - down * 6, lane, y2, lane - out * 6, y2, x + out * 2);
}

static void draw_edges(const ladder *d, int pass) {
    int step = pass ? -1 : 1;
    const char *c = pass ? "g" : "f";
    double x = d->x[pass] + (pass ? RIGHT_W : LEFT_W) / 2.0;
    for (int b = 0; b < d->n; b++) {
        int entries = 0;
        for (int a = b - step; a >= 0 && a < d->n; a -= step) {
            if (!d->edge[pass][a * d->n + b]) continue;
            if (a != b - step) {
                draw_bus(d, pass, a, b, entries++);
                continue;
            }
            const row *p = &d->row[a], *q = &d->row[b];
            fprintf(d->f,
                    "<path class=\"line %s\" marker-end=\"url(#a%s)\" d=\"M%.1f %.1fV%.1f\"/>\n", c,
                    c, x, pass ? p->y : p->y + box_height(p, 0),
                    pass ? q->y + box_height(q, 1) + 2 : q->y - 2);
        }
    }
}

static void draw(const ladder *d, const char *title) {
    char s[TEXT], size[32];
    fprintf(d->f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"%.0f\" "
            "height=\"%.0f\" viewBox=\"0 0 %.0f %.0f\">\n<title>The tape of one training "
            "step</title>\n%s<rect class=\"ground\" width=\"%.0f\" height=\"%.0f\"/>\n",
            d->width, d->height, d->width, d->height, style_sheet, d->width, d->height);
    svg_text(d->f, EDGE - 8, 30, "class=\"h1\"", title);
    size_text(size, (double)d->l->peak);
    snprintf(s, sizeof s, "one micro-batch: %d operations forward, %d backward, %s at most",
             d->calls, d->l->n_calls - d->calls, size);
    svg_text(d->f, EDGE - 8, 50, "class=\"dim\"", s);
    svg_text(d->f, d->x[0] + LEFT_W / 2.0, 76, "class=\"b tf\" text-anchor=\"middle\"",
             "forward \xe2\x86\x93");
    svg_text(d->f, d->x[0] + LEFT_W + RUNG_W / 2.0, 76, "class=\"b tk\" text-anchor=\"middle\"",
             "kept \xe2\x86\x92");
    svg_text(d->f, d->x[1] + RIGHT_W / 2.0, 76, "class=\"b tg\" text-anchor=\"middle\"",
             "\xe2\x86\x91 backward");
    draw_blocks(d);
    draw_edges(d, 0);
    draw_edges(d, 1);
    for (int r = 0; r < d->n; r++) {
        const row *w = &d->row[r];
        draw_box(d, r, 0);
        if (w->lines[1]) draw_box(d, r, 1);
        if (w->blocks) {
            draw_folded(d, r);
        } else {
            draw_call(d, w);
            draw_back(d, r);
        }
        draw_rung(d, w);
    }
    fputs("</svg>\n", d->f);
}

void tape_svg(const tape_log *l, FILE *f, const char *title) {
    ladder d = {.l = l, .f = f};
    while (d.calls < l->n_calls && !l->call[d.calls].backward) d.calls++;
    d.row = tp_arena_alloc(l->c, (size_t)(d.calls + 1) * sizeof *d.row);
    d.of = tp_arena_alloc(l->c, (size_t)(l->n_calls + 1) * sizeof *d.of);
    if (!d.row || !d.of) return;
    make_rows(&d);
    place_calls(&d);
    for (int pass = 0; pass < 2; pass++) {
        d.edge[pass] = tp_arena_alloc(l->c, (size_t)d.n * (size_t)d.n + 1);
        d.bus[pass] = tp_arena_alloc(l->c, (size_t)(d.n + 1) * sizeof *d.bus[pass]);
    }
    if (tp_error_status(l->c)) return;
    find_edges(&d);
    choose_lanes(&d, 0);
    choose_lanes(&d, 1);
    measure(&d);
    if (!tp_error_status(l->c)) draw(&d, title);
}
