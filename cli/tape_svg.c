/* Owns the picture of a tape, a ladder: forward goes down on the left, a box a call; what its
 * derivative ran stands beside it on the right and comes up; the rungs are what is kept in between.
 * Arrows from one row to the next run straight, others through lanes at the sides. */
#include "cli/svg.h"
#include "cli/tape_ladder.h"
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

typedef struct picture {
    ladder *d;
    const tape_log *l;
    FILE *f;
    double x[2], width, height; /* left edges of both columns */
} picture;

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
static double kept(const picture *p, const ladder_row *r, char *ids) {
    double bytes = 0;
    bool *seen = tp_arena_alloc(p->l->c, (size_t)p->l->n_tensors + 1);
    for (int i = r->from; i < r->to && seen; i++) {
        const tape_call *k = &p->l->call[i];
        for (int j = 0; j < k->nin + k->nout; j++) {
            bool out = j >= k->nin;
            int at = out ? j - k->nin : j, id = out ? k->out[at] : k->in[at];
            if (!id || !(((out ? k->saved_out : k->saved_in) >> at) & 1) || seen[id]) continue;
            seen[id] = true;
            bytes += (double)p->l->tensor[id].bytes;
            add_id(ids, id);
        }
    }
    return bytes;
}

/* Which gradients call i, of the walk back, has made or added to: " ∂%3 ∂q_proj.weight". */
static void gradients_text(const picture *p, int i, char *out) {
    const tape_call *k = &p->l->call[i];
    for (int e = 0; e < p->l->n_grads; e++) {
        const tape_event *g = &p->l->grad[e];
        bool ours = false;
        if (g->at < i || p->d->of[g->at] != p->d->of[i]) continue;
        for (int j = 0; j < k->nout; j++) ours |= k->out[j] == g->grad;
        for (int j = 0; j < k->nin; j++) ours |= k->in[j] == g->grad && ((k->op->inplace >> j) & 1);
        if (!ours) continue;
        const tp_tensor *t = p->l->tensor[g->id].t;
        char s[TEXT];
        if (t && t->name)
            snprintf(s, sizeof s, " \xe2\x88\x82%s", tail(t->name));
        else
            snprintf(s, sizeof s, " \xe2\x88\x82%%%d", g->id);
        if (!strstr(out, s)) add(out, s);
    }
}

/* Whether what stands beside the name of a call of the walk back fits there. */
static bool fits(const picture *p, int i, char *text) {
    double name = 7.3 * (double)strlen(p->l->call[i].op->name), wide = 0;
    text[0] = 0;
    gradients_text(p, i, text);
    if (p->l->call[i].again) add(text, " computed again");
    for (const char *s = text; *s; s++) wide += (*s & 0xc0) == 0x80 ? 0 : 6.6;
    return name + wide < RIGHT_W - 24;
}

static int back_calls(const picture *p, int r) {
    int n = 0;
    for (int i = p->d->calls; i < p->l->n_calls; i++) n += p->d->of[i] == r;
    return n;
}

static bool is_parameter(const picture *p, int id) {
    return id && p->l->tensor[id].made < 0 && p->l->tensor[id].t && p->l->tensor[id].t->name;
}

static void count_lines(picture *p, int r) {
    ladder_row *w = &p->d->row[r];
    int n = back_calls(p, r);
    w->lines[0] = 2;
    w->lines[1] = w->blocks ? 2 : n > MOST_LINES ? MOST_LINES : n;
    for (int i = p->d->calls; i < p->l->n_calls && !w->blocks && n <= MOST_LINES; i++) {
        char s[TEXT];
        w->lines[1] += p->d->of[i] == r && !fits(p, i, s);
    }
    const tape_call *k = &p->l->call[w->from];
    for (int j = 0; j < k->nin && !w->blocks; j++) w->lines[0] += is_parameter(p, k->in[j]);
}

/* ---- drawing -------------------------------------------------------------------------------- */
static void measure(picture *p) {
    double y = TOP;
    for (int r = 0; r < p->d->n; r++) {
        ladder_row *w = &p->d->row[r];
        count_lines(p, r);
        int lines = w->lines[0] > w->lines[1] ? w->lines[0] : w->lines[1];
        if (r) y += w->opens ? BLOCK_GAP + 12 : ROW_GAP;
        w->y = y;
        w->h = lines * LINE + PAD;
        y += w->h;
    }
    p->height = y + EDGE + 18;
    p->x[0] = EDGE + 16 + p->d->lanes[0] * LANE;
    p->x[1] = p->x[0] + LEFT_W + RUNG_W;
    p->width = p->x[1] + RIGHT_W + 16 + p->d->lanes[1] * LANE + EDGE;
}

static double box_height(const ladder_row *w, int pass) { return w->lines[pass] * LINE + PAD; }

static void draw_blocks(const picture *p) {
    for (int r = 0; r < p->d->n; r++) {
        if (!p->d->row[r].opens) continue;
        int to = r + 1;
        while (to < p->d->n && !p->d->row[to].opens) to++;
        double y = p->d->row[r].y - 26, end = p->d->row[to - 1].y + p->d->row[to - 1].h + 10;
        fprintf(p->f,
                "<rect class=\"block\" x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" "
                "rx=\"9\"/>\n",
                EDGE - 8, y, p->width - 2 * EDGE + 16, end - y);
        const char *scope = p->l->call[p->d->row[r].from].scope;
        char name[TEXT];
        snprintf(name, sizeof name, "%.*s", tape_block(scope), scope);
        if (!p->d->row[r].blocks)
            svg_text(p->f, p->x[0] + LEFT_W + RUNG_W / 2.0, y + 18,
                     "class=\"b\" text-anchor=\"middle\"", name);
    }
}

static void draw_box(const picture *p, int r, int pass) {
    const ladder_row *w = &p->d->row[r];
    double width = pass ? RIGHT_W : LEFT_W;
    fprintf(p->f,
            "<rect class=\"box %s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" "
            "rx=\"6\"/>\n",
            pass ? "g" : "f", p->x[pass], w->y, width, box_height(w, pass));
}

static void draw_call(const picture *p, const ladder_row *w) {
    const tape_call *k = &p->l->call[w->from];
    double x = p->x[0] + 10, y = w->y + LINE;
    char s[TEXT] = "";
    svg_text(p->f, x, y, "class=\"m b tf\"", k->op->name);
    int first = k->nout ? k->out[0] : k->in[0];
    add_id(s, first);
    if (p->l->tensor[first].t) add_shape(s, p->l->tensor[first].t);
    if (k->nout > 1) {
        char more[32];
        snprintf(more, sizeof more, " +%d", k->nout - 1);
        add(s, more);
    }
    svg_text(p->f, x, y += LINE, "class=\"m dim\"", s);
    for (int j = 0; j < k->nin; j++)
        if (is_parameter(p, k->in[j]))
            svg_text(p->f, x, y += LINE, "class=\"dim\"", tail(p->l->tensor[k->in[j]].t->name));
}

static void draw_back(const picture *p, int r) {
    const ladder_row *w = &p->d->row[r];
    int n = back_calls(p, r), line = 0;
    for (int i = p->d->calls; i < p->l->n_calls && line < w->lines[1]; i++) {
        if (p->d->of[i] != r) continue;
        const tape_call *k = &p->l->call[i];
        char s[TEXT] = "";
        double x = p->x[1] + 10, y = w->y + LINE * ++line;
        if (line == w->lines[1] && n > MOST_LINES) {
            snprintf(s, sizeof s, "and %d more", n - line + 1);
            svg_text(p->f, x, y, "class=\"dim\"", s);
            return;
        }
        svg_text(p->f, x, y, "class=\"m b tg\"", k->op->name);
        if (!fits(p, i, s) && n <= MOST_LINES) y = w->y + LINE * ++line;
        if (*s)
            svg_text(p->f, p->x[1] + RIGHT_W - 10, y, "class=\"dim\" text-anchor=\"end\"", s + 1);
    }
}

static void draw_folded(const picture *p, int r) {
    const ladder_row *w = &p->d->row[r];
    const tape_call *a = &p->l->call[w->from], *b = &p->l->call[w->to - 1],
                    *like = &p->l->call[w->like];
    char s[TEXT];
    snprintf(s, sizeof s, w->blocks > 1 ? "%.*s \xe2\x80\xa6 %.*s" : "%.*s", tape_block(a->scope),
             a->scope, tape_block(b->scope), b->scope);
    svg_text(p->f, p->x[0] + 10, w->y + LINE, "class=\"b tf\"", s);
    snprintf(s, sizeof s, "as %.*s: %d operations%s", tape_block(like->scope), like->scope,
             (w->to - w->from) / w->blocks, w->blocks > 1 ? " each" : "");
    svg_text(p->f, p->x[0] + 10, w->y + 2 * LINE, "class=\"dim\"", s);
    svg_text(p->f, p->x[1] + 10, w->y + LINE, "class=\"b tg\"",
             w->blocks > 1 ? "their derivatives" : "its derivative");
    snprintf(s, sizeof s, "%d operations%s", back_calls(p, r) / w->blocks,
             w->blocks > 1 ? " each" : "");
    svg_text(p->f, p->x[1] + 10, w->y + 2 * LINE, "class=\"dim\"", s);
}

static void shorten(char *ids, size_t most) {
    if (strlen(ids) <= most) return;
    ids[most - 1] = 0;
    char *space = strrchr(ids, ' ');
    if (space) *space = 0;
    add(ids, " \xe2\x80\xa6");
}

static void draw_rung(const picture *p, const ladder_row *w) {
    char ids[TEXT] = "", size[32];
    double bytes = kept(p, w, ids), from = p->x[0] + LEFT_W, y = w->y + 26;
    if (!(bytes > 0) || !w->lines[1]) return;
    fprintf(p->f, "<path class=\"line k\" marker-end=\"url(#ak)\" d=\"M%.1f %.1fH%.1f\"/>\n",
            from + 2, y, p->x[1] - 2);
    size_text(size, bytes);
    shorten(ids, 18);
    if (!w->blocks)
        svg_text(p->f, from + RUNG_W / 2.0, y - 5, "class=\"m tk\" text-anchor=\"middle\"", ids);
    svg_text(p->f, from + RUNG_W / 2.0, y + 14, "class=\"dim\" text-anchor=\"middle\"", size);
}

/* From the lane's side of box a into that of box b. entry: how many have come in there before. */
static void draw_bus(const picture *p, int pass, int a, int b, int entry) {
    const ladder_row *o = &p->d->row[a], *q = &p->d->row[b];
    int out = pass ? 1 : -1;
    double x = pass ? p->x[1] + RIGHT_W : p->x[0];
    double lane = x + out * (16 + LANE * p->d->bus[pass][a].lane), hp = box_height(o, pass);
    double y1 = o->y + (pass ? 6 : hp - 6), down = pass ? -1 : 1;
    double hq = box_height(q, pass), y2 = q->y + (pass ? hq - 13 - 6 * entry : 13 + 6 * entry);
    fprintf(p->f,
            "<path class=\"line %s\" marker-end=\"url(#a%s)\" d=\"M%.1f %.1fH%.1fQ%.1f %.1f %.1f "
            "%.1fV%.1fQ%.1f %.1f %.1f %.1fH%.1f\"/>\n",
            pass ? "g" : "f", pass ? "g" : "f", x, y1, lane - out * 6, lane, y1, lane,
            y1 + down * 6, y2 - down * 6, lane, y2, lane - out * 6, y2, x + out * 2);
}

static void draw_edges(const picture *p, int pass) {
    int step = pass ? -1 : 1;
    const char *c = pass ? "g" : "f";
    double x = p->x[pass] + (pass ? RIGHT_W : LEFT_W) / 2.0;
    for (int b = 0; b < p->d->n; b++) {
        int entries = 0;
        for (int a = b - step; a >= 0 && a < p->d->n; a -= step) {
            if (!p->d->edge[pass][a * p->d->n + b]) continue;
            if (a != b - step) {
                draw_bus(p, pass, a, b, entries++);
                continue;
            }
            const ladder_row *o = &p->d->row[a], *q = &p->d->row[b];
            fprintf(p->f,
                    "<path class=\"line %s\" marker-end=\"url(#a%s)\" d=\"M%.1f %.1fV%.1f\"/>\n", c,
                    c, x, pass ? o->y : o->y + box_height(o, 0),
                    pass ? q->y + box_height(q, 1) + 2 : q->y - 2);
        }
    }
}

static void draw(const picture *p, const char *title) {
    char s[TEXT], size[32];
    fprintf(p->f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"%.0f\" "
            "height=\"%.0f\" viewBox=\"0 0 %.0f %.0f\">\n<title>The tape of one training "
            "step</title>\n%s<rect class=\"ground\" width=\"%.0f\" height=\"%.0f\"/>\n",
            p->width, p->height, p->width, p->height, style_sheet, p->width, p->height);
    svg_text(p->f, EDGE - 8, 30, "class=\"h1\"", title);
    size_text(size, (double)p->l->peak);
    snprintf(s, sizeof s, "one micro-batch: %d operations forward, %d backward, %s at most",
             p->d->calls, p->l->n_calls - p->d->calls, size);
    svg_text(p->f, EDGE - 8, 50, "class=\"dim\"", s);
    svg_text(p->f, p->x[0] + LEFT_W / 2.0, 76, "class=\"b tf\" text-anchor=\"middle\"",
             "forward \xe2\x86\x93");
    svg_text(p->f, p->x[0] + LEFT_W + RUNG_W / 2.0, 76, "class=\"b tk\" text-anchor=\"middle\"",
             "kept \xe2\x86\x92");
    svg_text(p->f, p->x[1] + RIGHT_W / 2.0, 76, "class=\"b tg\" text-anchor=\"middle\"",
             "\xe2\x86\x91 backward");
    draw_blocks(p);
    draw_edges(p, 0);
    draw_edges(p, 1);
    for (int r = 0; r < p->d->n; r++) {
        const ladder_row *w = &p->d->row[r];
        draw_box(p, r, 0);
        if (w->lines[1]) draw_box(p, r, 1);
        if (w->blocks) {
            draw_folded(p, r);
        } else {
            draw_call(p, w);
            draw_back(p, r);
        }
        draw_rung(p, w);
    }
    fputs("</svg>\n", p->f);
}

void tape_svg(const tape_log *l, FILE *f, const char *title) {
    ladder d;
    if (!ladder_make(&d, l)) return;
    picture p = {.d = &d, .l = l, .f = f};
    measure(&p);
    if (!tp_error_status(l->c)) draw(&p, title);
}
