/* tapir bench step CONFIG: tokens per second of training, on random tokens; with --against, the
 * ratio of two settings of it that take their steps in turn. */
#include "cli/bench.h"
#include "core/ctx.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_STEPS = 1000 };
static char *words[256], *against[256]; /* against: what the second setting changes */
static int n_words, n_against;
static bool json;
static int steps = 10, warmup = 2;
static const struct argp_option options[] = {
    {"json", 'J', NULL, 0, "One line for machines", 0},
    {"steps", 'n', "N", 0, "Steps that are timed (10)", 0},
    {"warmup", 'w', "N", 0, "Steps before (2)", 0},
    {"against", 'a', "KEY=VALUE", 0,
     "Also time the config with this change, in turns, and "
     "print the ratio; may be repeated",
     0},
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
    } else if (key == 'a' && n_against < 256)
        against[n_against++] = arg;
    else if (key == 'a')
        argp_error(s, "too many changes");
    else if (key == ARGP_KEY_ARG && n_words < 256)
        words[n_words++] = arg;
    else if (key == ARGP_KEY_ARG)
        argp_error(s, "too many arguments");
    else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

static tp_status fake(tp_ctx *c, const tp_config *cfg, const tp_comm *comm, tp_fake_batch *f) {
    f->of = tp_share_of(cfg, tp_comm_rank(comm), tp_comm_size(comm));
    f->T = cfg->model.context;
    f->vocab = cfg->model.vocab;
    int64_t n = 2 * f->of.rows * f->T;
    if (!(f->ids = tp_malloc(c, (size_t)n * sizeof *f->ids))) return tp_error_status(c);
    for (int64_t i = 0; i < n; i++)
        f->ids[i] = (int32_t)(tp_uniform(1, TP_RNG_TEST, 0, (uint64_t)i) * (double)f->vocab);
    return TP_OK;
}

/* One setting under test: its training, and the seconds that each timed step took. */
typedef struct side {
    tp_ctx *c;
    tp_config cfg;
    tp_comm *comm; /* the ranks that were started together */
    tp_plan plan;
    tp_trainer t;
    tp_fake_batch f;
    int64_t step;
    double took[MAX_STEPS];
    uint64_t allocs; /* system allocations before the timed steps */
} side;

/* Told once: by the rank where it began. */
static int side_failed(const char *command, side *s, tp_status st) {
    if (s->comm && tp_comm_failed_elsewhere(s->comm)) return EXIT_FAILED;
    return tp_say_failure(command, s->c, st);
}

/* Fills c and cfg from CONFIG, its words and, for the second side, those of --against. An exit
 * code; the failure has been told. */
static int side_open(const char *command, side *s, bool second) {
    char *all[512];
    int n = 0;
    for (int i = 1; i < n_words; i++) all[n++] = words[i];
    for (int i = 0; second && i < n_against; i++) all[n++] = against[i];
    int code = tp_open_config(command, &s->cfg, &s->c, all, n);
    if (second) s->cfg.dist.backend = TP_CFG_BACKEND_SELF;
    if (!code) code = tp_open_ranks(command, &s->cfg, &s->c, &s->comm);
    if (code) return code;
    char error[512] = "";
    int ranks = tp_comm_size(s->comm);
    bool root = tp_comm_rank(s->comm) == 0;
    tp_status st = tp_config_vocab(s->c, &s->cfg);
    if (!st && n_against && ranks > 1)
        st = tp_fail(s->c, TP_EARG,
                     "--against compares two trainings of one process, not of %d ranks", ranks);
    if (!st && (st = tp_plan_make(&s->plan, &s->cfg, ranks, error, sizeof error)))
        st = tp_fail(s->c, st, "%s", error);
    if (!st) st = tp_plan_fits(s->c, &s->plan);
    if (!st && !json && !n_against && root) tp_plan_print(stdout, &s->cfg, &s->plan);
    if (!st) st = tp_trainer_new(&s->t, s->c, &s->cfg, s->comm);
    if (!st) st = fake(s->c, &s->cfg, s->comm, &s->f);
    return st ? side_failed(command, s, st) : EXIT_DONE;
}

static void side_close(side *s) {
    if (!s->c) return;
    tp_comm_close(s->comm, tp_error_status(s->c) ? tp_error(s->c) : NULL);
    tp_trainer_clear(&s->t);
    tp_free(s->f.ids);
    tp_ctx_free(s->c);
}

/* One step; the first `warmup` are not timed. */
static tp_status side_step(side *s) {
    tp_step_in in = {.step = s->step,
                     .targets = s->cfg.train.batch * s->cfg.model.context,
                     .next = tp_fake_next,
                     .arg = &s->f,
                     .interrupted = tp_interrupted};
    tp_step_out out;
    if (s->step == warmup) s->allocs = tp_system_allocs(s->c);
    double start = tp_now();
    tp_status st = tp_trainer_step(&s->t, &in, &out);
    if (!st) st = tp_sync(s->c);
    if (s->step >= warmup) s->took[s->step - warmup] = tp_now() - start;
    s->step++;
    return !st && out.interrupted ? TP_EINTERRUPT : st;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* ---- one setting ---------------------------------------------------------------------------- */
static void report(side *s) {
    tp_ctx *c = s->c;
    double waited, sent, pool = (double)tp_memory_peak(c); /* of the steps, not of what follows */
    double peak = tp_measure_peak(c, &s->cfg) * tp_comm_size(s->comm);
    int ranks = tp_comm_size(s->comm);
    tp_comm_traffic(s->comm, &waited, &sent);
    if (tp_comm_rank(s->comm) > 0) return;
    qsort(s->took, (size_t)steps, sizeof *s->took, by_value);
    double median = s->took[steps / 2], flops = s->plan.step_flops / median;
    double tokens = (double)s->plan.tokens_per_step / median;
    unsigned long long allocs = tp_system_allocs(c) - s->allocs;
    if (json)
        printf("{\"tokens_per_s\":%.6g,\"gflops\":%.6g,\"peak_fraction\":%.4f,\"peak_rss_mb\":%.1f,"
               "\"ms_per_step\":%.6g,\"ms_min\":%.6g,\"ms_max\":%.6g,\"peak_gflops\":%.6g,"
               "\"planned_mb\":%.1f,\"pool_peak_mb\":%.1f,\"system_allocs\":%llu,\"threads\":%d,"
               "\"ranks\":%d,\"comm_mb_per_step\":%.6g,\"comm_wait\":%.4f}\n",
               tokens, flops / 1e9, flops / peak, tp_peak_rss_mb(), 1e3 * median, 1e3 * s->took[0],
               1e3 * s->took[steps - 1], peak / 1e9, (double)s->plan.peak_bytes / 1e6, pool / 1e6,
               allocs, tp_threads(c), ranks, sent / 1e6 / (warmup + steps),
               waited / (warmup + steps) / median);
    else
        printf("time per step    %.1f ms   (median of %d; %.1f to %.1f)\n"
               "tokens/s         %.1f\n"
               "GFLOP/s          %.1f   (%.1f %% of %.1f measured on %d thread%s)\n"
               "peak memory      %.1f MB pool (%.1f planned), %.1f MB resident\n"
               "system allocs    %llu in the timed steps\n",
               1e3 * median, steps, 1e3 * s->took[0], 1e3 * s->took[steps - 1], tokens, flops / 1e9,
               100 * flops / peak, peak / 1e9, tp_threads(c), tp_threads(c) == 1 ? "" : "s",
               pool / 1e6, (double)s->plan.peak_bytes / 1e6, tp_peak_rss_mb(), allocs);
    if (ranks > 1 && !json)
        printf("ranks            %d (%s): %.1f MB sent a step by each, %.1f %% of the time spent "
               "waiting\n",
               ranks, tp_comm_name(s->comm), sent / 1e6 / (warmup + steps),
               100 * waited / (warmup + steps) / median);
}

static int measure(const char *command, side *s) {
    tp_status st = TP_OK;
    for (int i = 0; i < warmup + steps && !st; i++) {
        st = side_step(s);
        tp_progress(false, "%s  step %d of %d", command, i + 1, warmup + steps);
    }
    tp_progress_clear();
    if (st) return side_failed(command, s, st);
    report(s);
    return EXIT_DONE;
}

/* ---- two settings --------------------------------------------------------------------------- */
static double tokens_per_s(const side *s, int i) {
    return (double)s->plan.tokens_per_step / s->took[i];
}

static double median_rate(const side *s) {
    double rate[MAX_STEPS];
    for (int i = 0; i < steps; i++) rate[i] = tokens_per_s(s, i);
    qsort(rate, (size_t)steps, sizeof *rate, by_value);
    return rate[steps / 2];
}

static void words_of(char *out, size_t cap) {
    size_t n = 0;
    out[0] = 0;
    for (int i = 0; i < n_against && n < cap; i++)
        n += (size_t)snprintf(out + n, cap - n, "%s%s", i ? " " : "", against[i]);
}

/* A pair of neighbouring steps gives one ratio, so that a slow minute of the machine hits both. */
static void report_pairs(const side s[2]) {
    double ratio[MAX_STEPS], a = median_rate(&s[0]), b = median_rate(&s[1]);
    char name[256];
    words_of(name, sizeof name);
    for (int i = 0; i < steps; i++) ratio[i] = tokens_per_s(&s[1], i) / tokens_per_s(&s[0], i);
    qsort(ratio, (size_t)steps, sizeof *ratio, by_value);
    double mid = steps % 2 ? ratio[steps / 2] : 0.5 * (ratio[steps / 2 - 1] + ratio[steps / 2]);
    double q1 = ratio[steps / 4], q3 = ratio[steps - 1 - steps / 4];
    if (json)
        printf("{\"ratio\":%.5g,\"ratio_q1\":%.5g,\"ratio_q3\":%.5g,\"ratio_min\":%.5g,"
               "\"ratio_max\":%.5g,\"pairs\":%d,\"tokens_per_s\":%.6g,"
               "\"against_tokens_per_s\":%.6g,\"planned_mb\":%.1f,\"against_planned_mb\":%.1f,"
               "\"threads\":%d,\"against_threads\":%d}\n",
               mid, q1, q3, ratio[0], ratio[steps - 1], steps, a, b,
               (double)s[0].plan.peak_bytes / 1e6, (double)s[1].plan.peak_bytes / 1e6,
               tp_threads(s[0].c), tp_threads(s[1].c));
    else
        printf(
            "as configured    %.1f tokens/s   (median of %d steps, %d thread%s, %.1f MB planned)\n"
            "%-16s %.1f tokens/s   (%d thread%s, %.1f MB planned)\n"
            "ratio            %.3f   (median of %d pairs; half lie in %.3f to %.3f, all in %.3f "
            "to %.3f)\n",
            a, steps, tp_threads(s[0].c), tp_threads(s[0].c) == 1 ? "" : "s",
            (double)s[0].plan.peak_bytes / 1e6, name, b, tp_threads(s[1].c),
            tp_threads(s[1].c) == 1 ? "" : "s", (double)s[1].plan.peak_bytes / 1e6, mid, steps, q1,
            q3, ratio[0], ratio[steps - 1]);
}

/* Steps in the order A B, B A, A B, …: neither side is always the one that follows the other. */
static int compare(const char *command, side s[2]) {
    tp_status st = TP_OK;
    side *failed = &s[0];
    for (int i = 0; i < 2 * (warmup + steps) && !st; i++) {
        failed = &s[(i + i / 2) % 2];
        st = side_step(failed);
        tp_progress(false, "%s  step %d of %d", command, i + 1, 2 * (warmup + steps));
    }
    tp_progress_clear();
    if (st) return tp_say_failure(command, failed->c, st);
    report_pairs(s);
    return EXIT_DONE;
}

int cmd_bench(int argc, char **argv) {
    const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "step CONFIG [KEY=VALUE…]\ndecode CONFIG [KEY=VALUE…]",
        .doc = "Times whole training steps (forward, backward, update) on random tokens and prints "
               "tokens/s, GFLOP/s, the fraction of this machine's measured peak, and memory; under "
               "mpirun, of all ranks together and what they send each other. The "
               "config needs model.vocab; no corpus is read. With --against, two trainings take "
               "steps in turn in this process, and the ratio of their speeds is printed: "
               "`tapir bench step configs/bench/small.yaml --against numerics=fast`. bench decode "
               "times generation with the key-value cache, beside the limit that reading the "
               "weights from memory sets, and a model with routed blocks beside the same "
               "one without; model.init_from gives it trained weights."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    tp_catch_signals();
    if (n_words > 0 && !strcmp(words[0], "decode"))
        return tp_bench_decode(argv[0], words + 1, n_words - 1, json);
    if (n_words < 1 || strcmp(words[0], "step"))
        return tp_say(argv[0], "what to measure? `tapir bench step CONFIG` and `tapir bench decode "
                               "CONFIG` are there");
    side *s = calloc(2, sizeof *s);
    if (!s) return tp_say_failure(argv[0], NULL, TP_ENOMEM);
    int code = side_open(argv[0], &s[0], false);
    if (!code && n_against) code = side_open(argv[0], &s[1], true);
    if (!code) code = n_against ? compare(argv[0], s) : measure(argv[0], s);
    side_close(&s[0]);
    side_close(&s[1]);
    free(s);
    return code;
}
