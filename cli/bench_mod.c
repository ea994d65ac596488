/* tapir bench mod CONFIG: a step with Mixture-of-Depths beside one of the dense model of the same
 * weights, at rows of 256 to 2048 tokens: counted FLOPs, time, and what routing itself takes. */
#include "cli/bench.h"
#include "core/ctx.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTHS = 4 };
static const int64_t length[LENGTHS] = {256, 512, 1024, 2048};

/* ---- what each op of a step takes ------------------------------------------------------------ */
/* The tape is told of every op as it ends, recorded or not: the time since the one before is its.
 */
static struct {
    tp_status (*record)(tp_ctx *c, const tp_call *k);
    double last, routing, all;
} watch;

static tp_status watched(tp_ctx *c, const tp_call *k) {
    if (c->backend) tp_sync(c);
    double now = tp_now(), took = now - watch.last;
    watch.all += took;
    if (strstr(c->scope, ".route")) watch.routing += took;
    tp_status st = watch.record(c, k);
    watch.last = tp_now();
    return st;
}

static double median(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, tp_by_value);
    return n % 2 ? x[n / 2] : 0.5 * (x[n / 2 - 1] + x[n / 2]);
}

/* The part of a step's ops that choose tokens, take them, and put results back; the median of
 * `steps` steps. */
static tp_status routing_share(tp_side *s, int steps, double *share) {
    tp_status st = TP_OK;
    double part[TP_SIDE_STEPS] = {0};
    watch.record = s->c->record;
    s->c->record = watched;
    for (int i = 0; i < steps && !st; i++) {
        watch.routing = watch.all = 0;
        watch.last = tp_now();
        st = tp_side_step(s);
        part[i] = watch.all > 0 ? watch.routing / watch.all : 0;
    }
    s->c->record = watch.record;
    *share = median(part, steps);
    return st;
}

/* ---- one length ------------------------------------------------------------------------------ */
typedef struct found {
    int64_t T, rows;
    double flops[2], seconds[2], ratio, share; /* [0] routed, [1] dense */
} found;

/* In the order A B, B A, …: neither side is always the one that follows the other. */
static int alternate(const char *command, tp_side s[2], int steps, found *f) {
    tp_status st = TP_OK;
    double ratio[TP_SIDE_STEPS];
    int all = s[0].warmup + steps;
    for (int i = 0; i < 2 * all; i++) {
        tp_side *now = &s[(i + i / 2) % 2];
        if ((st = tp_side_step(now))) return tp_side_failed(command, now, st);
        tp_progress(false, "%s  rows of %lld, step %d of %d", command, (long long)f->T, i + 1,
                    2 * all);
    }
    tp_progress_clear();
    for (int i = 0; i < steps; i++) ratio[i] = s[0].took[i] / s[1].took[i];
    f->ratio = median(ratio, steps);
    for (int i = 0; i < 2; i++) {
        f->flops[i] = s[i].plan.step_flops;
        f->seconds[i] = median(s[i].took, steps);
    }
    st = routing_share(&s[0], steps, &f->share);
    return st ? tp_side_failed(command, &s[0], st) : EXIT_DONE;
}

static int at_length(const char *command, char *const words[], int n, const tp_config *cfg,
                     int steps, int warmup, found *f) {
    char capacity[48], context[48], batch[48], dense[] = "mod.capacity=0";
    char *all[300];
    tp_side *s = calloc(2, sizeof *s);
    if (!s) return tp_say_failure(command, NULL, TP_ENOMEM);
    f->rows = cfg->train.batch * cfg->model.context / f->T;
    if (f->rows < 1) f->rows = 1;
    snprintf(capacity, sizeof capacity, "mod.capacity=%.17g", cfg->mod.capacity);
    snprintf(context, sizeof context, "model.context=%lld", (long long)f->T);
    snprintf(batch, sizeof batch, "train.batch=%lld", (long long)f->rows);
    for (int i = 0; i < n; i++) all[i] = words[i];
    all[n] = context;
    all[n + 1] = batch;
    int code = EXIT_DONE;
    for (int i = 0; i < 2 && !code; i++) {
        all[n + 2] = i ? dense : capacity;
        s[i].warmup = warmup;
        code = tp_side_open(command, &s[i], all, n + 3, true);
    }
    if (!code) code = alternate(command, s, steps, f);
    tp_side_close(&s[0]);
    tp_side_close(&s[1]);
    free(s);
    return code;
}

/* ---- the table ------------------------------------------------------------------------------- */
static void print_json(const tp_config *cfg, const found *f) {
    printf("{\"capacity\":%g,\"every\":%lld,\"lengths\":[", cfg->mod.capacity,
           (long long)cfg->mod.every);
    for (int i = 0; i < LENGTHS; i++, f++)
        printf("%s{\"context\":%lld,\"batch\":%lld,\"gflops\":%.6g,\"dense_gflops\":%.6g,"
               "\"flop_ratio\":%.4f,\"ms\":%.6g,\"dense_ms\":%.6g,\"time_ratio\":%.4f,"
               "\"routing_share\":%.4f}",
               i ? "," : "", (long long)f->T, (long long)f->rows, f->flops[0] / 1e9,
               f->flops[1] / 1e9, f->flops[0] / f->flops[1], 1e3 * f->seconds[0],
               1e3 * f->seconds[1], f->ratio, f->share);
    puts("]}");
}

static void print_row(const found *f) {
    printf("%5lld x %-5lld %8.2f %8.2f  %5.3f   %8.1f %8.1f  %5.3f   %5.2f %%\n", (long long)f->T,
           (long long)f->rows, f->flops[0] / 1e9, f->flops[1] / 1e9, f->flops[0] / f->flops[1],
           1e3 * f->seconds[0], 1e3 * f->seconds[1], f->ratio, 100 * f->share);
    fflush(stdout);
}

int tp_bench_mod(const char *command, char *const words[], int n, int steps, int warmup,
                 bool json) {
    tp_config cfg;
    found f[LENGTHS] = {{0}};
    if (n < 1) return tp_say(command, "which config? `tapir bench mod CONFIG`");
    int code = tp_read_config(command, &cfg, words, n);
    if (code) return code;
    if (*cfg.model.init_from)
        return tp_say(command,
                      "model.init_from has either routed blocks or none, and this compares "
                      "the two: leave it out");
    if (cfg.mod.capacity == 0) cfg.mod.capacity = 0.125;
    if (!json)
        printf("capacity %g in every %lld%s block; the median of %d steps in turns\n"
               "tokens x rows  GFLOP: routed, dense, ratio   ms: routed, dense, ratio   routing\n",
               cfg.mod.capacity, (long long)cfg.mod.every,
               cfg.mod.every == 1   ? "st"
               : cfg.mod.every == 2 ? "nd"
               : cfg.mod.every == 3 ? "rd"
                                    : "th",
               steps);
    for (int i = 0; i < LENGTHS && !code; i++) {
        f[i].T = length[i];
        code = at_length(command, words, n, &cfg, steps, warmup, &f[i]);
        if (!code && !json) print_row(&f[i]);
    }
    if (!code && json) print_json(&cfg, f);
    return code;
}
