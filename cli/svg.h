/* svg: line charts as SVG, for runs and for the documentation. One picture holds one or two panels
 * side by side; it needs no script and no font of its own, and follows a reader's light or dark
 * colours.
 *
 * A picture is a plain value: fill it in, give it to plot_write. Texts are borrowed. */
#ifndef TP_SVG_H
#define TP_SVG_H
#include <stdbool.h>
#include <stdio.h>

enum { PLOT_POINTS = 32, PLOT_SERIES = 4, PLOT_PANELS = 2 };

typedef enum plot_style {
    PLOT_LINE,   /* a line with a dot at each point */
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

/* <text> at x, y with these attributes; s is escaped. */
void svg_text(FILE *f, double x, double y, const char *attributes, const char *s);

/* Writes the picture. NULL, or the reason why it cannot be drawn: an infinite value (or one
 * that is not positive on a logarithmic axis), more points than there is room for, a failed write.
 */
const char *plot_write(const plot *p, FILE *f);
#endif
