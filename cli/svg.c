/* Owns the layout and the SVG of a picture: scales, ticks, texts, lines.
 *
 * All lengths are in SVG user units (pixels at natural size). Texts are placed by their anchor and
 * never measured: legends have a row per series and labels of the x axis are thinned by an upper
 * bound of their width, so any sans-serif font fits. */
#include "cli/svg.h"
#include "data/text.h"
#include <math.h>
#include <string.h>

enum {
    PANEL_W = 350,
    PANEL_H = 240,
    LEFT = 62, /* room for the labels of the y axis */
    GAP = 90,
    RIGHT = 28,
    LEGEND_ROW = 19,
    PANEL_TITLE_Y = 84,
    LABEL = 64, /* bytes of a tick's label */
    CHAR_W = 7  /* of a digit at 12 px, in the widest of the usual fonts */
};

/* Colours are told apart by the colour-blind too (blue, vermilion, green, grey); two sets. */
static const char style_sheet[] =
    "<style>\n"
    "  svg { color-scheme: light dark }\n"
    "  text { font-family: system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif;\n"
    "         font-size: 12px; fill: #1f2328 }\n"
    "  .h1 { font-size: 17px; font-weight: 600 } .h2 { font-size: 14px; font-weight: 600 }\n"
    "  .dim { fill: #59636e } .ground { fill: #ffffff }\n"
    "  .grid { stroke: #e3e6ea } .axis { stroke: #818b98 }\n"
    "  .s { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round }\n"
    "  .w { stroke-width: 1.3; fill: none }\n"
    "  .l0 { stroke: #0969da } .d0 { fill: #0969da }\n"
    "  .l1 { stroke: #c4480a } .d1 { fill: #c4480a }\n"
    "  .l2 { stroke: #1a7f37 } .d2 { fill: #1a7f37 }\n"
    "  .l3 { stroke: #6e7781 } .d3 { fill: #6e7781 }\n"
    "  @media (prefers-color-scheme: dark) {\n"
    "    text { fill: #e6edf3 } .dim { fill: #9ba5b0 } .ground { fill: #0d1117 }\n"
    "    .grid { stroke: #262c36 } .axis { stroke: #6e7681 }\n"
    "    .l0 { stroke: #58a6ff } .d0 { fill: #58a6ff }\n"
    "    .l1 { stroke: #ff8f4d } .d1 { fill: #ff8f4d }\n"
    "    .l2 { stroke: #4ac26b } .d2 { fill: #4ac26b }\n"
    "    .l3 { stroke: #8d96a0 } .d3 { fill: #8d96a0 }\n"
    "  }\n"
    "</style>\n";

/* ---- scales --------------------------------------------------------------------------------- */
typedef struct scale {
    bool log;
    double lo, hi;         /* ends of the axis, in data's units */
    double from, to;       /* the same ends in pixels */
    int n;                 /* ticks */
    double tick[64];       /* ascending */
    char label[64][LABEL]; /* "" where a tick has none */
} scale;

static double at(const scale *s, double v) {
    double f = s->log ? log(v / s->lo) / log(s->hi / s->lo) : (v - s->lo) / (s->hi - s->lo);
    return s->from + f * (s->to - s->from);
}

/* 1, 2 or 5 times a power of ten, not below v. */
static double nice_above(double v) {
    double p = pow(10, floor(log10(v)));
    static const double m[] = {1, 2, 5};
    for (int i = 0; i < 3; i++)
        if (m[i] * p >= v * (1 - 1e-9)) return m[i] * p;
    return 10 * p;
}

/* 12345 as "12 345", with a thin space; fractions as they are. */
static void number(char out[LABEL], double v) {
    if (v > -1e9 && v < 9999.5) {
        snprintf(out, LABEL, "%.6g", v);
        return;
    }
    long k = (long)(v + 0.5);
    if (k >= 1000000)
        snprintf(out, LABEL, "%ld\xe2\x80\x89%03ld\xe2\x80\x89%03ld", k / 1000000, k / 1000 % 1000,
                 k % 1000);
    else
        snprintf(out, LABEL, "%ld\xe2\x80\x89%03ld", k / 1000, k % 1000);
}

/* At most, in pixels: the bytes that continue a UTF-8 character take no room. */
static double width(const char *s) {
    int n = 0;
    for (; *s; s++) n += (*s & 0xc0) != 0x80;
    return n * CHAR_W;
}

static void add_tick(scale *s, double v, bool labelled) {
    if (s->n == 64) return;
    s->label[s->n][0] = 0;
    if (labelled) number(s->label[s->n], v);
    s->tick[s->n++] = v;
}

/* min < max */
static void ticks_linear(scale *s, double min, double max, int wanted) {
    double step = nice_above((max - min) / wanted);
    int first = (int)floor(min / step + 1e-9), last = (int)ceil(max / step - 1e-9);
    s->lo = first * step;
    s->hi = last * step;
    for (int i = first; i <= last; i++) add_tick(s, i * step, true);
}

/* 1-2-5 ticks that enclose min to max; only decades are labelled where there are many. */
static void ticks_log(scale *s, double min, double max) {
    s->log = true;
    double p = pow(10, floor(log10(min)));
    bool dense = log10(max / min) > 3.6;
    s->lo = 5 * p <= min ? 5 * p : 2 * p <= min ? 2 * p : p;
    s->hi = nice_above(max);
    if (s->hi <= s->lo * 1.01) s->hi = 10 * s->lo;
    static const double m[] = {1, 2, 5};
    for (; p > 0 && isfinite(p) && p <= s->hi; p *= 10)
        for (int i = 0; i < 3; i++)
            if (m[i] * p >= s->lo * 0.999 && m[i] * p <= s->hi * 1.001)
                add_tick(s, m[i] * p, !dense || i == 0);
}

/* A tick at each point; every second, third … label is left out where they would touch. */
static void ticks_points(scale *s, const plot *p) {
    s->log = true;
    s->lo = p->x[0];
    s->hi = p->n_points > 1 ? p->x[p->n_points - 1] : 2 * p->x[0];
    double need = 0, room = fabs(s->to - s->from) / (p->n_points > 1 ? p->n_points - 1 : 1);
    for (int i = 0; i < p->n_points; i++) {
        char t[LABEL];
        number(t, p->x[i]);
        need = fmax(need, width(t) + 6);
    }
    int every = (int)ceil(need / room);
    for (int i = 0; i < p->n_points; i++) add_tick(s, p->x[i], (p->n_points - 1 - i) % every == 0);
}

/* ---- pieces --------------------------------------------------------------------------------- */
void svg_escape(FILE *f, const char *s) {
    for (size_t left = strlen(s); left;) {
        uint32_t code;
        int n = tp_utf8_decode(&code, s, left);
        bool stands =
            n && (code >= 0x20 || code == '\n' || code == '\t') && (code & 0xfffe) != 0xfffe;
        if (!stands)
            fputs("\xef\xbf\xbd", f);
        else if (*s == '&')
            fputs("&amp;", f);
        else if (*s == '<')
            fputs("&lt;", f);
        else if (*s == '>')
            fputs("&gt;", f);
        else
            fwrite(s, 1, (size_t)n, f);
        s += n ? n : 1;
        left -= (size_t)(n ? n : 1);
    }
}

void svg_text(FILE *f, double x, double y, const char *attributes, const char *s) {
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, attributes);
    svg_escape(f, s);
    fputs("</text>\n", f);
}

static void line(FILE *f, const char *class, double x1, double y1, double x2, double y2) {
    fprintf(f, "<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", class, x1,
            y1, x2, y2);
}

/* A few points are seen one by one, of many the line. */
static bool dotted(const plot *p, const plot_series *s) {
    int n = 0;
    for (int i = 0; i < p->n_points; i++) n += !isnan(s->y[i]);
    return n <= PLOT_DOTS;
}

static void dot(FILE *f, const plot *p, const plot_series *s, int colour, double x, double y) {
    if (s->style == PLOT_LINE && dotted(p, s))
        fprintf(f, "<circle class=\"d%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.2\"/>\n", colour, x, y);
    else if (s->style == PLOT_RINGS)
        fprintf(f, "<circle class=\"s l%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"5.5\"/>\n", colour, x, y);
}

static const char *dashes(plot_style s) {
    return s == PLOT_DASHED ? " stroke-dasharray=\"2 6\"" : "";
}

static void legend(FILE *f, const plot *p, const plot_panel *q, double x) {
    for (int i = 0; i < q->n_series; i++) {
        const plot_series *s = &q->series[i];
        double y = PANEL_TITLE_Y + LEGEND_ROW * (i + 1);
        if (s->style != PLOT_RINGS)
            fprintf(f, "<path class=\"s l%d\"%s d=\"M%.1f %.1fh26\"/>\n", i, dashes(s->style), x,
                    y - 4);
        dot(f, p, s, i, x + 13, y - 4);
        svg_text(f, x + 34, y, "", s->label);
    }
}

static void draw_series(FILE *f, const plot *p, const plot_series *s, int colour, const scale *sx,
                        const scale *sy) {
    char class[16];
    snprintf(class, sizeof class, "w l%d", colour);
    for (int i = 0; i < p->n_points && s->whiskers; i++) {
        double x = at(sx, p->x[i]), lo = at(sy, s->lo[i]), hi = at(sy, s->hi[i]);
        line(f, class, x, lo, x, hi);
        line(f, class, x - 4, lo, x + 4, lo);
        line(f, class, x - 4, hi, x + 4, hi);
    }
    if (s->style != PLOT_RINGS) {
        fprintf(f, "<path class=\"s l%d\"%s d=\"", colour, dashes(s->style));
        bool begun = false;
        for (int i = 0; i < p->n_points; i++) {
            if (isnan(s->y[i])) continue;
            fprintf(f, "%s%.1f %.1f", begun ? "L" : "M", at(sx, p->x[i]), at(sy, s->y[i]));
            begun = true;
        }
        fputs("\"/>\n", f);
    }
    for (int i = 0; i < p->n_points; i++)
        if (!isnan(s->y[i])) dot(f, p, s, colour, at(sx, p->x[i]), at(sy, s->y[i]));
}

static void draw_panel(FILE *f, const plot *p, const plot_panel *q, double left, double top) {
    scale sx = {.from = left, .to = left + PANEL_W}, sy = {.from = top + PANEL_H, .to = top};
    double min = q->log_y || q->close_y ? INFINITY : 0, max = q->close_y ? -INFINITY : 0;
    for (int i = 0; i < q->n_series; i++)
        for (int j = 0; j < p->n_points; j++) {
            const plot_series *s = &q->series[i];
            min = fmin(min, s->whiskers ? s->lo[j] : s->y[j]);
            max = fmax(max, s->whiskers ? s->hi[j] : s->y[j]);
        }
    if (q->log_y)
        ticks_log(&sy, min, max);
    else
        ticks_linear(&sy, min, max > min ? max : min + 1, 6);
    if (p->log2_x)
        ticks_points(&sx, p);
    else
        ticks_linear(&sx, 0, p->x[p->n_points - 1] > 0 ? p->x[p->n_points - 1] : 1, 8);
    svg_text(f, left, PANEL_TITLE_Y, "class=\"h2\"", q->title);
    legend(f, p, q, left);
    for (int i = 0; i < sy.n; i++) {
        double y = at(&sy, sy.tick[i]);
        line(f, "grid", left, y, left + PANEL_W, y);
        svg_text(f, left - 9, y + 4, "text-anchor=\"end\" class=\"dim\"", sy.label[i]);
    }
    for (int i = 0; i < sx.n; i++) {
        double x = at(&sx, sx.tick[i]);
        line(f, "axis", x, top + PANEL_H, x, top + PANEL_H + 5);
        svg_text(f, x, top + PANEL_H + 20, "text-anchor=\"middle\" class=\"dim\"", sx.label[i]);
    }
    line(f, "axis", left, top + PANEL_H, left + PANEL_W, top + PANEL_H);
    svg_text(f, left + PANEL_W / 2.0, top + PANEL_H + 42, "text-anchor=\"middle\"", p->x_label);
    for (int i = 0; i < q->n_series; i++) draw_series(f, p, &q->series[i], i, &sx, &sy);
}

/* ---- the picture ---------------------------------------------------------------------------- */
void svg_begin(FILE *f, int width, int height, const char *style, const char *title,
               const char *subtitle) {
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"%d\" height=\"%d\" "
            "viewBox=\"0 0 %d %d\">\n%s%s<rect class=\"ground\" width=\"%d\" height=\"%d\"/>\n",
            width, height, width, height, style_sheet, style, width, height);
    svg_text(f, 20, 30, "class=\"h1\"", title);
    svg_text(f, 20, 51, "class=\"dim\"", subtitle);
}

const char *svg_end(FILE *f) {
    fputs("</svg>\n", f);
    return fflush(f) || ferror(f) ? "it could not be written" : NULL;
}

/* what is beyond 1e300 either way has no decade to stand in */
static bool drawable(double v, bool log) { return fabs(v) < 1e300 && (!log || v > 1e-300); }

static const char *check(const plot *p) {
    if (p->n_points < 1 || p->n_points > PLOT_POINTS) return "a plot has from 1 to 128 points";
    if (p->n_panels < 1 || p->n_panels > PLOT_PANELS) return "a plot has from 1 to 3 panels";
    for (int i = 0; i < p->n_points; i++)
        if (!drawable(p->x[i], p->log2_x) || p->x[i] < 0 || (i && p->x[i] <= p->x[i - 1]))
            return "x has to be finite, ascending and, on a logarithmic axis, positive";
    for (int k = 0; k < p->n_panels; k++) {
        const plot_panel *q = &p->panel[k];
        if (q->n_series < 1 || q->n_series > PLOT_SERIES) return "a panel has from 1 to 4 series";
        for (int i = 0; i < q->n_series; i++)
            for (int j = 0; j < p->n_points; j++) {
                const plot_series *s = &q->series[i];
                if (isnan(s->y[j]) && !s->whiskers) continue;
                if (!drawable(s->y[j], q->log_y) ||
                    (s->whiskers && (!drawable(s->lo[j], q->log_y) || !(s->lo[j] <= s->hi[j]) ||
                                     !drawable(s->hi[j], q->log_y))))
                    return "y has to be finite and, on a logarithmic axis, positive";
            }
    }
    return NULL;
}

const char *plot_write(const plot *p, FILE *f) {
    const char *wrong = check(p);
    if (wrong) return wrong;
    int rows = 0;
    for (int i = 0; i < p->n_panels; i++)
        if (p->panel[i].n_series > rows) rows = p->panel[i].n_series;
    int width = LEFT + p->n_panels * PANEL_W + (p->n_panels - 1) * GAP + RIGHT;
    int top = PANEL_TITLE_Y + LEGEND_ROW * rows + 18, height = top + PANEL_H + 58;
    svg_begin(f, width, height, "", p->title, p->subtitle);
    for (int i = 0; i < p->n_panels; i++)
        draw_panel(f, p, &p->panel[i], LEFT + i * (PANEL_W + GAP), top);
    return svg_end(f);
}
