/* tapir plot: curves of runs, side by side, from their metrics.jsonl. */
#include "cli/cli.h"
#include "cli/svg.h"
#include "data/metrics.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct args {
    char *run[PLOT_SERIES], *out;
    const char *metric[PLOT_PANELS];
    int n_runs, n_metrics;
    bool log;
} a = {.out = "plot.svg"};

static const struct argp_option options[] = {
    {"metrics", 'm', "NAME[,NAME]", 0,
     "What to draw, a panel each: names from metrics.jsonl (eval/greedy,eval/pass@1 or "
     "train_loss,val_loss, whichever the runs have)",
     0},
    {"out", 'o', "FILE", 0, "Where the picture goes (plot.svg)", 0},
    {"log", 'l', NULL, 0, "A logarithmic axis", 0},
    {0}};

static error_t parse(int key, char *arg, struct argp_state *s) {
    switch (key) {
    case 'm':
        a.n_metrics = 0;
        for (char *name = strtok(arg, ","); name; name = strtok(NULL, ",")) {
            if (a.n_metrics == PLOT_PANELS) argp_error(s, "at most %d metrics", PLOT_PANELS);
            a.metric[a.n_metrics++] = name;
        }
        if (!a.n_metrics) argp_error(s, "--metrics needs a name");
        break;
    case 'o':
        a.out = arg;
        break;
    case 'l':
        a.log = true;
        break;
    case ARGP_KEY_ARG:
        if (a.n_runs == PLOT_SERIES) argp_error(s, "at most %d runs", PLOT_SERIES);
        a.run[a.n_runs++] = arg;
        break;
    case ARGP_KEY_NO_ARGS:
        argp_error(s, "which run?");
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

/* ---- values --------------------------------------------------------------------------------- */
typedef struct curve { /* a metric of a run */
    int64_t *step;
    double *value;
    int64_t n, cap;
    bool named; /* by a line at least, though perhaps without a number */
} curve;
typedef struct reading {
    tp_ctx *c;
    const char *name;
    curve *to;
} reading;

static bool take(void *arg, int64_t step, const tp_metric *m, int n) {
    reading *r = arg;
    curve *k = r->to;
    for (int i = 0; i < n; i++) {
        if (m[i].type == TP_METRIC_TEXT || strcmp(m[i].key, r->name)) continue;
        k->named = true;
        if (!isfinite(m[i].f64)) continue;
        if (k->n == k->cap) {
            k->cap = 2 * k->cap + 64;
            int64_t *steps = tp_realloc(r->c, k->step, (size_t)k->cap * sizeof *steps);
            if (steps) k->step = steps;
            double *values = tp_realloc(r->c, k->value, (size_t)k->cap * sizeof *values);
            if (values) k->value = values;
            if (!steps || !values) return false;
        }
        k->step[k->n] = step;
        k->value[k->n++] = m[i].f64;
    }
    return true;
}

static tp_status read_curve(tp_ctx *c, const char *run, const char *metric, curve *out) {
    char path[4096];
    reading r = {c, metric, out};
    if (snprintf(path, sizeof path, "%s/metrics.jsonl", run) >= (int)sizeof path)
        return tp_fail(c, TP_EARG, "%.40s…: the path is too long", run);
    tp_status st = tp_metrics_read(c, path, take, &r, NULL);
    return st ? st : tp_error_status(c);
}

/* The curves of every run; how many values each metric has. */
static tp_status read_all(tp_ctx *c, curve k[][PLOT_SERIES], int64_t found[PLOT_PANELS]) {
    tp_status st = TP_OK;
    for (int m = 0; m < a.n_metrics; m++) {
        found[m] = 0;
        for (int r = 0; r < a.n_runs && !st; r++) {
            k[m][r].n = 0;
            k[m][r].named = false;
            st = read_curve(c, a.run[r], a.metric[m], &k[m][r]);
            found[m] += k[m][r].n;
        }
    }
    return st;
}

static tp_status none(tp_ctx *c, const char *metric, const curve k[]) {
    for (int r = 0; r < a.n_runs; r++)
        if (k[r].named)
            return tp_fail(c, TP_EARG, "%s: metrics.jsonl has %s, but never as a finite number",
                           a.run[r], metric);
    return tp_fail(c, TP_EARG, "no run has a metric %s: the names are those in metrics.jsonl",
                   metric);
}

/* What was asked for, or else the first of the usual that the runs have. */
static tp_status choose(tp_ctx *c, curve k[][PLOT_SERIES]) {
    static const char *const usual[][2] = {
        {"eval/greedy", "eval/pass@1"}, {"train_loss", "val_loss"}, {"reward", "loss"}};
    int64_t found[PLOT_PANELS];
    if (a.n_metrics) {
        tp_status st = read_all(c, k, found);
        for (int m = 0; m < a.n_metrics && !st; m++)
            if (!found[m]) st = none(c, a.metric[m], k[m]);
        return st;
    }
    for (size_t u = 0; u < sizeof usual / sizeof *usual; u++) {
        memcpy(a.metric, usual[u], sizeof usual[u]);
        a.n_metrics = 2;
        tp_status st = read_all(c, k, found);
        if (st) return st;
        if (!found[0]) continue;
        if (!found[1]) a.n_metrics = 1;
        return TP_OK;
    }
    return tp_fail(c, TP_EARG, "no run has logged anything yet: --metrics names what to draw");
}

/* ---- picture -------------------------------------------------------------------------------- */
static int by_step(const void *x, const void *y) {
    double p = *(const double *)x, q = *(const double *)y;
    return (p > q) - (p < q);
}

/* The steps of all curves if there is room for a point each, else the ends of equal parts. */
static tp_status steps(tp_ctx *c, curve k[][PLOT_SERIES], plot *p) {
    int64_t n = 0, at = 0, different = 0;
    for (int m = 0; m < a.n_metrics; m++)
        for (int r = 0; r < a.n_runs; r++) n += k[m][r].n;
    double *all = tp_malloc(c, (size_t)n * sizeof *all);
    if (!all) return tp_error_status(c);
    for (int m = 0; m < a.n_metrics; m++)
        for (int r = 0; r < a.n_runs; r++)
            for (int64_t i = 0; i < k[m][r].n; i++) all[at++] = (double)k[m][r].step[i];
    qsort(all, (size_t)n, sizeof *all, by_step);
    for (int64_t i = 0; i < n; i++)
        if (!i || all[i] != all[i - 1]) all[different++] = all[i];
    p->n_points = different < PLOT_POINTS ? (int)different : PLOT_POINTS;
    for (int i = 0; i < p->n_points; i++)
        p->x[i] =
            different <= PLOT_POINTS ? all[i] : all[different - 1] * (double)(i + 1) / PLOT_POINTS;
    tp_free(all);
    return TP_OK;
}

/* A point is the mean of what lies behind the point before it. */
static void fill(const curve *k, const plot *p, plot_series *s) {
    int64_t i = 0;
    for (int j = 0; j < p->n_points; j++) {
        double sum = 0, n = 0;
        for (; i < k->n && (double)k->step[i] <= p->x[j]; i++) sum += k->value[i], n++;
        s->y[j] = n > 0 ? sum / n : NAN;
    }
}

static const char *last_part(const char *run) {
    const char *slash = strrchr(run, '/');
    return slash && slash[1] ? slash + 1 : run;
}

/* The folder's name, with its path where another run has the same. */
static const char *name_of(int run) {
    const char *name = last_part(a.run[run]);
    for (int r = 0; r < a.n_runs; r++)
        if (r != run && !strcmp(last_part(a.run[r]), name)) return a.run[run];
    return name;
}

/* Zero is left out where all values are far from it, as losses are. */
static bool far_from_zero(const plot *p, const plot_panel *q) {
    double min = INFINITY, max = -INFINITY;
    for (int r = 0; r < q->n_series; r++)
        for (int i = 0; i < p->n_points; i++) {
            min = fmin(min, q->series[r].y[i]);
            max = fmax(max, q->series[r].y[i]);
        }
    return min > max / 4;
}

static tp_status draw(tp_ctx *c, curve k[][PLOT_SERIES], plot *p) {
    char title[256] = "";
    for (int r = 0; r < a.n_runs; r++) {
        size_t n = strlen(title);
        snprintf(title + n, sizeof title - n, "%s%s", r ? ", " : "", name_of(r));
    }
    *p = (plot){.title = title, .subtitle = "", .x_label = "step", .n_panels = a.n_metrics};
    tp_status st = steps(c, k, p);
    if (st) return st;
    for (int m = 0; m < a.n_metrics; m++) {
        plot_panel *q = &p->panel[m];
        q->title = a.metric[m];
        q->log_y = a.log;
        q->n_series = a.n_runs;
        for (int r = 0; r < a.n_runs; r++) {
            q->series[r].label = name_of(r);
            fill(&k[m][r], p, &q->series[r]);
        }
        q->close_y = !a.log && far_from_zero(p, q);
    }
    FILE *f = fopen(a.out, "w");
    if (!f) return tp_fail(c, TP_EIO, "cannot write %s: %s", a.out, strerror(errno));
    const char *wrong = plot_write(p, f);
    if (fclose(f) && !wrong) wrong = strerror(errno);
    return wrong ? tp_fail(c, TP_EARG, "%s cannot be drawn: %s", a.out, wrong) : TP_OK;
}

int cmd_plot(int argc, char **argv) {
    const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "RUN…",
        .doc = "Draws metrics of up to four runs, an SVG that every browser shows: `tapir plot "
               "runs/a runs/b --metrics train_loss,val_loss`. Where there are many steps, a point "
               "is the mean of its neighbourhood."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    static curve k[PLOT_PANELS][PLOT_SERIES];
    tp_ctx *c;
    tp_status st = tp_ctx_new(&c, NULL);
    if (st) return tp_say_failure(argv[0], NULL, st);
    plot *p = tp_malloc(c, sizeof *p);
    st = p ? choose(c, k) : tp_error_status(c);
    if (!st) st = draw(c, k, p);
    int code = st ? tp_say_failure(argv[0], c, st) : EXIT_DONE;
    if (!st) printf("%s\n", a.out);
    for (int m = 0; m < PLOT_PANELS; m++)
        for (int r = 0; r < PLOT_SERIES; r++) tp_free(k[m][r].step), tp_free(k[m][r].value);
    tp_free(p);
    tp_ctx_free(c);
    return code;
}
