/* Owns the layout of the picture of routes: bands of tokens, a legend, and how a token's bytes
 * look. */
#include "cli/routes.h"
#include "cli/svg.h"
#include "data/text.h"
#include <math.h>
#include <string.h>

enum {
    BAND = 64, /* tokens side by side */
    CELL_W = 14,
    CELL_H = 20,
    DENSE_H = 5,
    ROW_GAP = 3,
    LEFT = 66, /* room for the names of blocks */
    RIGHT = 20,
    LEAST_W = 850, /* the legend's */
    SECOND = 424,  /* where the legend's second column begins */
    LEGEND_Y = 78,
    LEGEND_ROW = 21,
    TOP = LEGEND_Y + 3 * LEGEND_ROW + 12, /* of the first band */
    NUMBER_H = 16,                        /* the numbers of tokens above a band */
    LEVELS = 8,
    LABEL_CHARS = 12,
    LABEL = 96 /* bytes */
};

/* Colours stay light enough (dark enough) for black (white) marks upon the strongest. */
static const char style[] =
    "<style>\n"
    "  .t { font-size: 11px } .n { font-size: 10px }\n"
    "  .q0 { fill: #f0f4fa } .q1 { fill: #dbe7f5 } .q2 { fill: #c5d9f1 } .q3 { fill: #b0ccec }\n"
    "  .q4 { fill: #9abee7 } .q5 { fill: #85b1e3 } .q6 { fill: #6fa3de } .q7 { fill: #5a96d9 }\n"
    "  .b { fill: #c9d1d9 }\n"
    "  .k { fill: #10151b } .c { fill: none; stroke: #10151b; stroke-width: 1.2 }\n"
    "  .x { fill: none; stroke: #d1370a; stroke-width: 2 }\n"
    "  @media (prefers-color-scheme: dark) {\n"
    "    .q0 { fill: #161d28 } .q1 { fill: #1a2739 } .q2 { fill: #1d314b } .q3 { fill: #213b5c }\n"
    "    .q4 { fill: #24456e } .q5 { fill: #284f7f } .q6 { fill: #2b5991 } .q7 { fill: #2f63a2 }\n"
    "    .b { fill: #3d444d }\n"
    "    .k { fill: #f0f6fc } .c { stroke: #f0f6fc } .x { stroke: #ff7b3d }\n"
    "  }\n"
    "</style>\n";

/* ---- a token's text ------------------------------------------------------------------------- */
/* What shows nothing, or moves what is around it: controls, widths of zero, directions, private
 * and unassigned places. */
static bool invisible(uint32_t u) {
    static const uint32_t range[][2] = {
        {0x00, 0x1f},       {0x7f, 0xa0},       {0xad, 0xad},       {0x600, 0x605},
        {0x61c, 0x61c},     {0x180b, 0x180f},   {0x2000, 0x200f},   {0x2028, 0x202f},
        {0x205f, 0x206f},   {0x3000, 0x3000},   {0xe000, 0xf8ff},   {0xfdd0, 0xfdef},
        {0xfe00, 0xfe0f},   {0xfeff, 0xfeff},   {0xfff0, 0xfffb},   {0xfffe, 0xffff},
        {0x1d173, 0x1d17a}, {0x1fffe, 0x1ffff}, {0xe0000, 0x10ffff}};
    for (size_t i = 0; i < sizeof range / sizeof *range; i++)
        if (u >= range[i][0] && u <= range[i][1]) return true;
    return false;
}

static bool combining(uint32_t u) {
    return (u >= 0x300 && u <= 0x36f) || (u >= 0x483 && u <= 0x489) || (u >= 0x591 && u <= 0x5bd) ||
           (u >= 0x64b && u <= 0x65f) || (u >= 0x1ab0 && u <= 0x1aff) ||
           (u >= 0x1dc0 && u <= 0x1dff) || (u >= 0x20d0 && u <= 0x20ff) ||
           (u >= 0xfe20 && u <= 0xfe2f);
}

static int characters(const char *s) {
    int n = 0;
    for (; *s; s++) n += (*s & 0xc0) != 0x80;
    return n;
}

/* One character, or a byte that is none, as it is shown; returns how many bytes of s it was. */
static int show(char out[16], const char *s, size_t n) {
    uint32_t u;
    int used = tp_utf8_decode(&u, s, n);
    if (!used)
        snprintf(out, 16, "\\x%02X", (unsigned char)*s);
    else if (u == ' ')
        strcpy(out, "·");
    else if (u == '\n')
        strcpy(out, "↵");
    else if (u < 0x20 || u == 0x7f)
        snprintf(out, 16, "\\x%02X", (unsigned)u);
    else if (invisible(u))
        snprintf(out, 16, "U+%04X", (unsigned)u);
    else
        snprintf(out, 16, "%s%.*s", combining(u) ? "◌" : "", used, s);
    return used ? used : 1;
}

/* At most LABEL_CHARS characters; those of East Asia are twice as wide, escapes count by letter. */
static void label(char out[LABEL], const tp_tokenizer *t, int32_t id) {
    size_t n, at = 0;
    const char *s = (const char *)tp_tokenizer_token(t, id, &n);
    *out = 0;
    if (!s || !n) snprintf(out, LABEL, "#%d", (int)id);
    for (int width = 0; s && n;) {
        char one[16];
        int used = show(one, s, n), wide = characters(one);
        if (used >= 3 && wide == 1) wide = 2;
        if (width + wide > LABEL_CHARS || at + strlen(one) + 4 > LABEL) {
            strcpy(out + at, "…");
            return;
        }
        strcpy(out + at, one);
        at += strlen(one);
        width += wide;
        s += used;
        n -= (size_t)used;
    }
}

/* ---- a cell --------------------------------------------------------------------------------- */
/* In steps of half a standard deviation, so that a few far away do not take all colours. */
static int level(double x, const tp_route_summary *s) {
    double f = LEVELS / 2.0 + 2 * (x - s->mean) / s->deviation;
    if (!(f > 0)) return 0; /* NaN, too */
    return f < LEVELS ? (int)f : LEVELS - 1;
}

static void marks(FILE *f, double x, double y, bool chosen, bool decided) {
    double cx = x + CELL_W / 2.0, cy = y + CELL_H / 2.0;
    if (chosen != decided)
        fprintf(f, "<rect class=\"x\" x=\"%.0f\" y=\"%.0f\" width=\"%d\" height=\"%d\"/>\n", x + 1,
                y + 1, CELL_W - 3, CELL_H - 2);
    if (chosen)
        fprintf(f, "<circle class=\"k\" cx=\"%.1f\" cy=\"%.1f\" r=\"2.3\"/>\n", cx - 0.5, cy);
    if (decided)
        fprintf(f, "<circle class=\"c\" cx=\"%.1f\" cy=\"%.1f\" r=\"4.4\"/>\n", cx - 0.5, cy);
}

static void cells(const routes_picture *p, FILE *f, int64_t block, int64_t from, int64_t n, int y) {
    const tp_routes *r = p->routes;
    tp_route_summary s = tp_routes_summary(r, block);
    for (int64_t i = 0; i < n; i++) {
        int64_t t = from + i, at = block * r->tokens + t;
        int x = LEFT + (int)i * CELL_W;
        char text[LABEL];
        label(text, p->tokenizer, p->ids[t]);
        fprintf(f, "<rect class=\"q%d\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"><title>",
                level((double)r->logit[at], &s), x, y, CELL_W - 1, CELL_H);
        svg_escape(f, text);
        fprintf(f, " %.3g</title></rect>\n", (double)r->logit[at]);
        marks(f, x, y, r->chosen[at], r->decided[at]);
    }
}

/* ---- a band --------------------------------------------------------------------------------- */
static int rows_height(const routes_picture *p) {
    int64_t routed = p->routes->blocks, dense = p->model->layers - routed;
    return (int)(routed * (CELL_H + ROW_GAP) + dense * (DENSE_H + ROW_GAP));
}

/* Upright where it is no wider than its column, so that marks of punctuation can be told. */
static void draw_label(FILE *f, double x, int y, const char *text) {
    char turn[96];
    int n = characters(text) - !strncmp(text, "·", strlen("·"));
    if (n <= 1) {
        svg_text(f, x, y + 12, "class=\"t\" text-anchor=\"middle\"", text);
        return;
    }
    snprintf(turn, sizeof turn, "class=\"t\" text-anchor=\"end\" transform=\"rotate(-60 %.1f %d)\"",
             x + 4, y + 8);
    svg_text(f, x + 4, y + 8, turn, text);
}

/* The longest text of all, turned, in a font of 11 px. */
static int text_height(const routes_picture *p) {
    int most = 1;
    for (int64_t i = 0; i < p->routes->tokens; i++) {
        char text[LABEL];
        label(text, p->tokenizer, p->ids[i]);
        if (characters(text) > most) most = characters(text);
    }
    return 18 + most * 6;
}

static int band_height(const routes_picture *p) {
    return NUMBER_H + rows_height(p) + text_height(p);
}

static void draw_band(const routes_picture *p, FILE *f, int64_t from, int64_t n, int top) {
    int y = top + NUMBER_H + rows_height(p), bottom = y;
    for (int64_t layer = 0, block = 0; layer < p->model->layers; layer++) {
        bool routed = tp_mod_routed(p->model, layer);
        char name[32];
        y -= routed ? CELL_H : DENSE_H;
        if (routed) {
            snprintf(name, sizeof name, "layer %lld", (long long)layer);
            svg_text(f, LEFT - 8, y + CELL_H / 2.0 + 4, "class=\"t\" text-anchor=\"end\"", name);
            cells(p, f, block++, from, n, y);
        } else
            fprintf(f, "<rect class=\"b\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/>\n", LEFT,
                    y, (int)n * CELL_W - 1, DENSE_H);
        y -= ROW_GAP;
    }
    for (int64_t i = 0; i < n; i++) {
        char text[LABEL];
        double x = LEFT + ((double)i + 0.5) * CELL_W - 0.5;
        label(text, p->tokenizer, p->ids[from + i]);
        draw_label(f, x, bottom, text);
        if (i % 8) continue;
        snprintf(text, sizeof text, "%lld", (long long)(from + i));
        svg_text(f, LEFT + ((double)i + 0.5) * CELL_W - 0.5, top + NUMBER_H - 4,
                 "class=\"n dim\" text-anchor=\"middle\"", text);
    }
}

/* ---- the picture ---------------------------------------------------------------------------- */
static void legend_cell(FILE *f, int row, bool chosen, bool decided, const char *what) {
    int y = LEGEND_Y + row * LEGEND_ROW;
    fprintf(f, "<rect class=\"q5\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/>\n", SECOND,
            y - CELL_H / 2, CELL_W - 1, CELL_H - 1);
    marks(f, SECOND, y - CELL_H / 2.0 - 0.5, chosen, decided);
    svg_text(f, SECOND + 24, y + 4, "class=\"t\"", what);
}

static void legend(FILE *f) {
    int y = LEGEND_Y;
    svg_text(f, 20, y + 4, "class=\"t\"", "router's logit, −2σ");
    for (int i = 0; i < LEVELS; i++)
        fprintf(f, "<rect class=\"q%d\" x=\"%d\" y=\"%d\" width=\"14\" height=\"14\"/>\n", i,
                128 + 14 * i, y - 7);
    svg_text(f, 128 + 14 * LEVELS + 8, y + 4, "class=\"t\"", "+2σ from its layer's mean");
    y += LEGEND_ROW;
    fprintf(f, "<rect class=\"b\" x=\"20\" y=\"%d\" width=\"60\" height=\"%d\"/>\n",
            y - DENSE_H / 2, DENSE_H);
    svg_text(f, 90, y + 4, "class=\"t\"", "dense layer: every token goes in");
    svg_text(f, 20, y + LEGEND_ROW + 4, "class=\"t dim\"",
             "first layer at the bottom; a middle dot is a space");
    legend_cell(f, 0, true, true,
                "taken by the top-k choice (dot) and by the causal decision (ring)");
    legend_cell(f, 1, true, false,
                "top-k alone: the decision, which sees no later token, misses it");
    legend_cell(f, 2, false, true,
                "causal decision alone: other tokens of the row had higher logits");
}

const char *routes_draw(const routes_picture *p, FILE *f) {
    int64_t T = p->routes->tokens, widest = T < BAND ? T : BAND, bands = (T + BAND - 1) / BAND;
    int tall = band_height(p), width = LEFT + (int)widest * CELL_W + RIGHT;
    svg_begin(f, width > LEAST_W ? width : LEAST_W, TOP + (int)bands * tall, style, p->title,
              p->subtitle);
    legend(f);
    for (int64_t i = 0; i < bands; i++) {
        int64_t from = i * BAND, n = T - from < BAND ? T - from : BAND;
        draw_band(p, f, from, n, TOP + (int)i * tall);
    }
    return svg_end(f);
}
