/* bench_isoflop RESULTS DIR: the tables and pictures of bench/isoflop.sh, from its results.jsonl.
 *
 * For each task a table, a row for each budget and size: dense against Mixture-of-Depths, the mean
 * of the seeds and the distance from the lowest to the highest; and DIR/isoflop-TASK.svg, a panel
 * for each budget. */
#include "cli/svg.h"
#include "core/core.h"
#include "data/metrics.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SIZES = 8, MAX_BUDGETS = PLOT_PANELS, MAX_TASKS = 4 };

typedef struct runs { /* the seeds of one model, size and budget */
    int n;
    double sum, lo, hi; /* validation loss */
    double causal;      /* sum, with causal decisions */
    double steps, parameters, learning_rate;
} runs;

typedef struct task {
    char name[32];
    int n_sizes, n_budgets;
    double channels[MAX_SIZES], budget[MAX_BUDGETS]; /* both ascending, as the script has them */
    runs of[MAX_BUDGETS][MAX_SIZES][2];              /* dense, routed */
} task;

typedef struct results {
    int n;
    task task[MAX_TASKS];
    const char *wrong;
} results;

/* ---- reading -------------------------------------------------------------------------------- */
static const tp_metric *metric(const tp_metric *m, int n, const char *key) {
    for (int i = 0; i < n; i++)
        if (!strcmp(m[i].key, key)) return &m[i];
    return NULL;
}
static double number(const tp_metric *m, int n, const char *key) {
    const tp_metric *x = metric(m, n, key);
    return x && x->type == TP_METRIC_F64 ? x->f64 : NAN;
}

static task *task_named(results *r, const char *name) {
    for (int i = 0; i < r->n; i++)
        if (!strcmp(r->task[i].name, name)) return &r->task[i];
    if (r->n == MAX_TASKS || strlen(name) >= sizeof r->task[0].name) return NULL;
    task *t = &r->task[r->n++];
    strcpy(t->name, name);
    return t;
}

/* The place of v among the values seen; -1: no room. */
static int place(double *seen, int *n, int most, double v) {
    for (int i = 0; i < *n; i++)
        if (seen[i] == v) return i;
    if (*n == most) return -1;
    seen[*n] = v;
    return (*n)++;
}

static bool take(void *arg, int64_t step, const tp_metric *m, int n) {
    results *r = arg;
    const tp_metric *name = metric(m, n, "task");
    double loss = number(m, n, "val_loss"), budget = number(m, n, "budget");
    double channels = number(m, n, "channels"), capacity = number(m, n, "capacity");
    r->wrong = "a line lacks task, budget, channels, capacity or val_loss";
    if (!name || name->type != TP_METRIC_TEXT || !isfinite(loss) || !isfinite(budget) ||
        !isfinite(channels) || !isfinite(capacity))
        return false;
    r->wrong = "more tasks, sizes or budgets than there is room for";
    task *t = task_named(r, name->text);
    if (!t) return false;
    int size = place(t->channels, &t->n_sizes, MAX_SIZES, channels);
    int at = place(t->budget, &t->n_budgets, MAX_BUDGETS, budget);
    if (size < 0 || at < 0) return false;
    runs *of = &t->of[at][size][capacity > 0];
    of->lo = of->n ? fmin(of->lo, loss) : loss;
    of->hi = of->n ? fmax(of->hi, loss) : loss;
    of->n++;
    of->sum += loss;
    of->causal += number(m, n, "val_loss_causal");
    of->steps = (double)step;
    of->parameters = number(m, n, "parameters");
    of->learning_rate = number(m, n, "learning_rate");
    r->wrong = NULL;
    return true;
}

static const char *whole(const task *t) {
    for (int b = 0; b < t->n_budgets; b++)
        for (int s = 0; s < t->n_sizes; s++)
            if (!t->of[b][s][0].n || !t->of[b][s][1].n) return "a size lacks a model or a budget";
    return NULL;
}

/* ---- tables --------------------------------------------------------------------------------- */
static double mean(const runs *r) { return r->sum / r->n; }

static void cell(const runs *r) {
    printf(" %.0f | %g | %.3f (%.3f) |", r->steps, r->learning_rate, mean(r), r->hi - r->lo);
}

static void print_table(const task *t) {
    printf(
        "\n%s\n\n"
        "| FLOPs | parameters | steps | rate | dense | steps | rate | routed | causal | routed - "
        "dense |\n"
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        t->name);
    for (int b = 0; b < t->n_budgets; b++)
        for (int s = 0; s < t->n_sizes; s++) {
            const runs *dense = &t->of[b][s][0], *routed = &t->of[b][s][1];
            printf("| %.3g | %.2fM |", t->budget[b], dense->parameters / 1e6);
            cell(dense);
            cell(routed);
            printf(" %.3f | %+.3f |\n", routed->causal / routed->n, mean(routed) - mean(dense));
        }
}

/* ---- the picture ---------------------------------------------------------------------------- */
static void fill_series(plot_series *to, const task *t, int budget, int model) {
    for (int s = 0; s < t->n_sizes; s++) {
        const runs *r = &t->of[budget][s][model];
        to->y[s] = mean(r);
        to->lo[s] = r->lo;
        to->hi[s] = r->hi;
    }
}

static const char *draw(const task *t, FILE *f) {
    static plot g; /* large */
    char title[96], head[MAX_BUDGETS][96];
    snprintf(title, sizeof title, "Dense and Mixture-of-Depths at equal FLOPs: %s", t->name);
    g = (plot){.title = title,
               .subtitle =
                   "validation loss, nats: the mean of three seeds, whiskers from the lowest "
                   "to the highest",
               .x_label = "parameters, millions",
               .log2_x = true,
               .n_points = t->n_sizes,
               .n_panels = t->n_budgets};
    for (int s = 0; s < t->n_sizes; s++) /* four digits are enough to tell them apart */
        g.x[s] = round(t->of[0][s][0].parameters / 1e4) / 100;
    for (int b = 0; b < t->n_budgets; b++) {
        plot_panel *q = &g.panel[b];
        snprintf(head[b], sizeof head[b], "%.3g FLOPs", t->budget[b]);
        q->title = head[b];
        q->close_y = true;
        q->n_series = 2;
        q->series[0] = (plot_series){.label = "dense", .style = PLOT_LINE, .whiskers = true};
        q->series[1] =
            (plot_series){.label = "routed, capacity 0.125, every second block", .whiskers = true};
        for (int model = 0; model < 2; model++) fill_series(&q->series[model], t, b, model);
    }
    return plot_write(&g, f);
}

static int picture(const task *t, const char *dir) {
    char path[4096];
    if (snprintf(path, sizeof path, "%s/isoflop-%s.svg", dir, t->name) >= (int)sizeof path)
        return 1;
    FILE *f = fopen(path, "w");
    const char *wrong = f ? draw(t, f) : strerror(errno);
    if (f && fclose(f) && !wrong) wrong = strerror(errno);
    if (wrong) fprintf(stderr, "bench_isoflop: %s: %s\n", path, wrong);
    return wrong != NULL;
}

int main(int argc, char **argv) {
    static results r;
    tp_ctx *c;
    if (argc != 3) {
        fputs("usage: bench_isoflop RESULTS DIR        (bench/isoflop.sh calls it)\n", stderr);
        return 2;
    }
    if (tp_ctx_new(&c, NULL)) {
        fputs("bench_isoflop: out of memory\n", stderr);
        return 1;
    }
    int64_t bad = 0;
    int code = 0;
    if (tp_metrics_read(c, argv[1], take, &r, &bad)) {
        fprintf(stderr, "bench_isoflop: %s\n", tp_error(c));
        code = 1;
    } else if (bad || r.wrong || !r.n) {
        fprintf(stderr, "bench_isoflop: %s: %s\n", argv[1],
                r.wrong ? r.wrong : "it has lines that are no results");
        code = 1;
    }
    for (int i = 0; i < r.n && !code; i++) {
        const char *wrong = whole(&r.task[i]);
        if (wrong) fprintf(stderr, "bench_isoflop: %s: %s\n", argv[1], wrong);
        code = wrong != NULL;
        if (!code) print_table(&r.task[i]);
        if (!code) code = picture(&r.task[i], argv[2]);
    }
    tp_ctx_free(c);
    return code;
}
