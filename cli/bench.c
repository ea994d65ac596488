/* tapir bench step CONFIG: tokens per second of training, on random tokens. */
#include "cli/cli.h"
#include "core/ctx.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_STEPS = 1000 };
static char *words[256];
static int n_words;
static bool json;
static int steps = 10, warmup = 2;
static const struct argp_option options[] = {{"json", 'J', NULL, 0, "One line for machines", 0},
                                             {"steps", 'n', "N", 0, "Steps that are timed (10)", 0},
                                             {"warmup", 'w', "N", 0, "Steps before (2)", 0},
                                             {0}};

static error_t parse(int key, char *arg, struct argp_state *s) {
    if (key == 'J')
        json = true;
    else if (key == 'n' || key == 'w') {
        char *end;
        long v = strtol(arg, &end, 10);
        if (*end || end == arg || v < (key == 'n') || v > MAX_STEPS)
            argp_error(s, "a number of steps is from %d to %d, got \"%s\"", key == 'n', MAX_STEPS,
                       arg);
        *(key == 'n' ? &steps : &warmup) = (int)v;
    } else if (key == ARGP_KEY_ARG && n_words < 256)
        words[n_words++] = arg;
    else if (key == ARGP_KEY_ARG)
        argp_error(s, "too many arguments");
    else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

static int by_time(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static tp_status fake(tp_ctx *c, const tp_config *cfg, tp_fake_batch *f) {
    f->of = tp_share_of(cfg, 0, 1);
    f->T = cfg->model.context;
    f->vocab = cfg->model.vocab;
    int64_t n = 2 * f->of.rows * f->T;
    if (!(f->ids = tp_malloc(c, (size_t)n * sizeof *f->ids))) return tp_error_status(c);
    for (int64_t i = 0; i < n; i++)
        f->ids[i] = (int32_t)(tp_uniform(1, TP_RNG_TEST, 0, (uint64_t)i) * (double)f->vocab);
    return TP_OK;
}

static tp_status measure(const char *command, tp_ctx *c, const tp_config *cfg) {
    tp_trainer t = {0};
    tp_plan plan;
    tp_fake_batch f = {0};
    char error[512] = "";
    double took[MAX_STEPS];
    uint64_t allocs = 0;
    tp_status st = tp_plan_make(&plan, cfg, 1, error, sizeof error);
    if (st) return tp_fail(c, st, "%s", error);
    if (!json) tp_plan_print(stdout, cfg, &plan);
    st = tp_trainer_new(&t, c, cfg, NULL);
    if (!st) st = fake(c, cfg, &f);
    tp_step_in in = {
        .targets = cfg->train.batch * cfg->model.context, .next = tp_fake_next, .arg = &f};
    for (int i = 0; i < warmup + steps && !st && !tp_interrupted(); i++) {
        tp_step_out out;
        in.step = i;
        if (i == warmup) allocs = tp_system_allocs(c);
        double start = tp_now();
        st = tp_trainer_step(&t, &in, &out);
        if (i >= warmup) took[i - warmup] = tp_now() - start;
        tp_progress(false, "%s  step %d of %d", command, i + 1, warmup + steps);
    }
    tp_progress_clear();
    double peak = tp_measure_peak(c);
    if (!st && tp_interrupted()) st = TP_EINTERRUPT;
    if (!st) {
        qsort(took, (size_t)steps, sizeof *took, by_time);
        double median = took[steps / 2], flops = plan.step_flops / median;
        double tokens = (double)plan.tokens_per_step / median;
        if (json)
            printf("{\"tokens_per_s\":%.6g,\"gflops\":%.6g,\"peak_fraction\":%.4f,\"peak_rss_mb\":%"
                   ".1f,"
                   "\"ms_per_step\":%.6g,\"ms_min\":%.6g,\"ms_max\":%.6g,\"peak_gflops\":%.6g,"
                   "\"planned_mb\":%.1f,\"pool_peak_mb\":%.1f,\"system_allocs\":%llu,\"threads\":%"
                   "d}\n",
                   tokens, flops / 1e9, flops / peak, tp_peak_rss_mb(), 1e3 * median, 1e3 * took[0],
                   1e3 * took[steps - 1], peak / 1e9, (double)plan.peak_bytes / 1e6,
                   (double)tp_memory_peak(c) / 1e6,
                   (unsigned long long)(tp_system_allocs(c) - allocs), tp_threads(c));
        else
            printf("time per step    %.1f ms   (median of %d; %.1f to %.1f)\n"
                   "tokens/s         %.1f\n"
                   "GFLOP/s          %.1f   (%.1f %% of %.1f measured on %d thread%s)\n"
                   "peak memory      %.1f MB pool (%.1f planned), %.1f MB resident\n"
                   "system allocs    %llu in the timed steps\n",
                   1e3 * median, steps, 1e3 * took[0], 1e3 * took[steps - 1], tokens, flops / 1e9,
                   100 * flops / peak, peak / 1e9, tp_threads(c), tp_threads(c) == 1 ? "" : "s",
                   (double)tp_memory_peak(c) / 1e6, (double)plan.peak_bytes / 1e6, tp_peak_rss_mb(),
                   (unsigned long long)(tp_system_allocs(c) - allocs));
    }
    tp_trainer_clear(&t);
    tp_free(f.ids);
    return st;
}

int cmd_bench(int argc, char **argv) {
    const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "step CONFIG [KEY=VALUE…]",
        .doc =
            "Times whole training steps (forward, backward, update) on random tokens and prints "
            "tokens/s, "
            "GFLOP/s, the fraction of this machine's measured peak, and memory. The config needs "
            "model.vocab; no corpus is read."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    tp_catch_signals();
    if (n_words < 1 || strcmp(words[0], "step"))
        return tp_say(argv[0], "what to measure? `tapir bench step CONFIG` is there");
    tp_config cfg;
    tp_ctx *c;
    int code = tp_open_config(argv[0], &cfg, &c, words + 1, n_words - 1);
    if (code) return code;
    tp_status st = tp_config_vocab(c, &cfg);
    if (!st) st = measure(argv[0], c, &cfg);
    if (st) code = tp_say_failure(argv[0], c, st);
    tp_ctx_free(c);
    return code;
}
