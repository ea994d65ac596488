/* svg: pictures as SVG, for runs and for the documentation: line charts, and the pieces that other
 * pictures share with them. A chart holds up to three panels side by side. Pictures need no script
 * and no font of their own, and follow a reader's light or dark colours.
 *
 * A chart is a plain value: fill it in, give it to plot_write. Texts are borrowed. */
#ifndef TP_SVG_H
#define TP_SVG_H
#include <stdbool.h>
#include <stdio.h>

enum { PLOT_POINTS = 128, PLOT_DOTS = 32, PLOT_SERIES = 4, PLOT_PANELS = 3 };

typedef enum plot_style {
    PLOT_LINE,   /* a line, with a dot at each point where there are at most PLOT_DOTS */
    PLOT_DASHED, /* a dashed line: what would be, or should be */
    PLOT_RINGS   /* open circles without a line: a second measurement of the same thing */
} plot_style;

typedef struct plot_series {
    const char *label;
    plot_style style;
    bool whiskers;                                           /* draw lo to hi at each point */
    double y[PLOT_POINTS], lo[PLOT_POINTS], hi[PLOT_POINTS]; /* y NaN: no point here, lines go on */
} plot_series;

typedef struct plot_panel {
    const char *title; /* what is measured and its unit: "Time per token, µs" */
    bool log_y;        /* logarithmic; else linear, with zero on the axis */
    bool close_y;      /* linear, around the values: for differences that zero would hide */
    int n_series;
    plot_series series[PLOT_SERIES];
} plot_panel;

typedef struct plot {
    const char *title, *subtitle, *x_label;
    bool log2_x; /* a tick at every point, equal steps for equal ratios; else linear from zero */
    int n_points, n_panels;
    double x[PLOT_POINTS]; /* ascending */
    plot_panel panel[PLOT_PANELS];
} plot;

/* Writes the picture. NULL, or the reason why it cannot be drawn: an infinite value (or one
 * that is not positive on a logarithmic axis), more points than there is room for, a failed write.
 */
const char *plot_write(const plot *p, FILE *f);

/* ---- what pictures of every kind are made of ------------------------------------------------- */
/* The head of a picture in the colours of all of them; style: rules of its own, "" for none. */
void svg_begin(FILE *f, int width, int height, const char *style, const char *title,
               const char *subtitle);
/* <text> at x, y with these attributes; s is any bytes: what cannot stand in XML becomes U+FFFD. */
void svg_text(FILE *f, double x, double y, const char *attributes, const char *s);
void svg_escape(FILE *f, const char *s); /* the same, for the inside of an element */
const char *svg_end(FILE *f);            /* NULL, or the reason why it is not written */
#endif
