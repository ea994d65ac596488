/* tapir bench step CONFIG: tokens per second of training, on random tokens; with --against, the
 * ratio of two settings of it that take their steps in turn. */
#include "cli/bench.h"
#include "core/ctx.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
        if (*end || end == arg || v < (key == 'n') || v > TP_SIDE_STEPS)
            argp_error(s, "a number of steps is from %d to %d, got \"%s\"", key == 'n',
                       TP_SIDE_STEPS, arg);
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

/* Fills c and cfg from CONFIG, its words and, for the second side, those of --against. An exit
 * code; the failure has been told. */
static int open_side(const char *command, tp_side *s, bool second) {
    char *all[512];
    int n = 0;
    for (int i = 1; i < n_words; i++) all[n++] = words[i];
    for (int i = 0; second && i < n_against; i++) all[n++] = against[i];
    s->warmup = warmup;
    int code = tp_side_open(command, s, all, n, second);
    if (code) return code;
    int ranks = tp_comm_size(s->comm);
    if (n_against && ranks > 1)
        return tp_side_failed(command, s,
                              tp_fail(s->c, TP_EARG,
                                      "--against compares two trainings of one process, not of %d "
                                      "ranks",
                                      ranks));
    if (!json && !n_against && tp_comm_rank(s->comm) == 0) tp_plan_print(stdout, &s->cfg, &s->plan);
    return EXIT_DONE;
}

/* ---- one setting ---------------------------------------------------------------------------- */
static void report(tp_side *s) {
    tp_ctx *c = s->c;
    double waited, sent, pool = (double)tp_memory_peak(c); /* of the steps, not of what follows */
    unsigned long long allocs = tp_system_allocs(c) - s->allocs;
    double peak = tp_measure_peak(c, &s->cfg) * tp_comm_size(s->comm);
    int ranks = tp_comm_size(s->comm);
    tp_comm_traffic(s->comm, &waited, &sent);
    if (tp_comm_rank(s->comm) > 0) return;
    qsort(s->took, (size_t)steps, sizeof *s->took, tp_by_value);
    double median = s->took[steps / 2], flops = s->plan.step_flops / median;
    double tokens = (double)s->plan.tokens_per_step / median;
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

static int measure(const char *command, tp_side *s) {
    tp_status st = TP_OK;
    for (int i = 0; i < warmup + steps && !st; i++) {
        st = tp_side_step(s);
        tp_progress(false, "%s  step %d of %d", command, i + 1, warmup + steps);
    }
    tp_progress_clear();
    if (st) return tp_side_failed(command, s, st);
    report(s);
    return EXIT_DONE;
}

/* ---- two settings --------------------------------------------------------------------------- */
static double tokens_per_s(const tp_side *s, int i) {
    return (double)s->plan.tokens_per_step / s->took[i];
}

static double median_rate(const tp_side *s) {
    double rate[TP_SIDE_STEPS];
    for (int i = 0; i < steps; i++) rate[i] = tokens_per_s(s, i);
    qsort(rate, (size_t)steps, sizeof *rate, tp_by_value);
    return rate[steps / 2];
}

static void words_of(char *out, size_t cap) {
    size_t n = 0;
    out[0] = 0;
    for (int i = 0; i < n_against && n < cap; i++)
        n += (size_t)snprintf(out + n, cap - n, "%s%s", i ? " " : "", against[i]);
}

/* A pair of neighbouring steps gives one ratio, so that a slow minute of the machine hits both. */
static void report_pairs(const tp_side s[2]) {
    double ratio[TP_SIDE_STEPS], a = median_rate(&s[0]), b = median_rate(&s[1]);
    char name[256];
    words_of(name, sizeof name);
    for (int i = 0; i < steps; i++) ratio[i] = tokens_per_s(&s[1], i) / tokens_per_s(&s[0], i);
    qsort(ratio, (size_t)steps, sizeof *ratio, tp_by_value);
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
static int compare(const char *command, tp_side s[2]) {
    tp_status st = TP_OK;
    tp_side *failed = &s[0];
    for (int i = 0; i < 2 * (warmup + steps) && !st; i++) {
        failed = &s[(i + i / 2) % 2];
        st = tp_side_step(failed);
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
        .args_doc = "step CONFIG [KEY=VALUE…]\ndecode CONFIG [KEY=VALUE…]\nmod CONFIG [KEY=VALUE…]",
        .doc = "Times whole training steps (forward, backward, update) on random tokens and prints "
               "tokens/s, GFLOP/s, the fraction of this machine's measured peak, and memory; under "
               "mpirun, of all ranks together and what they send each other. The "
               "config needs model.vocab, or a data.train whose tokenizer says it. With --against, "
               "two trainings take "
               "steps in turn in this process, and the ratio of their speeds is printed: "
               "`tapir bench step configs/bench/small.yaml --against numerics=fast`. bench decode "
               "times generation with the key-value cache, beside the limit that reading the "
               "weights from memory sets, and a model with routed blocks beside the same one "
               "without; model.init_from gives it trained weights. bench mod compares "
               "Mixture-of-Depths with a dense model of the same weights, in turns, at rows of 256 "
               "to 2048 tokens."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    tp_catch_signals();
    if (n_words > 0 && n_against && strcmp(words[0], "step"))
        return tp_say(argv[0], "--against is for bench step, not for bench %s", words[0]);
    if (n_words > 0 && !strcmp(words[0], "decode"))
        return tp_bench_decode(argv[0], words + 1, n_words - 1, json);
    if (n_words > 0 && !strcmp(words[0], "mod"))
        return tp_bench_mod(argv[0], words + 1, n_words - 1, steps, warmup, json);
    if (n_words < 1 || strcmp(words[0], "step"))
        return tp_say(argv[0], "what to measure? `tapir bench step CONFIG`, `tapir bench decode "
                               "CONFIG` and `tapir bench mod CONFIG` are there");
    tp_side *s = calloc(2, sizeof *s);
    if (!s) return tp_say_failure(argv[0], NULL, TP_ENOMEM);
    int code = open_side(argv[0], &s[0], false);
    if (!code && n_against) code = open_side(argv[0], &s[1], true);
    if (!code) code = n_against ? compare(argv[0], s) : measure(argv[0], s);
    tp_side_close(&s[0]);
    tp_side_close(&s[1]);
    free(s);
    return code;
}
