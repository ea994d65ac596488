/* bench_scaling: how time and memory of a training step grow with the context, the layers and the
 * vocabulary. Prints tables, writes JSON lines and one picture a study.
 *
 * Every measurement is a process of its own, so that its peak resident memory is its own; every
 * round visits all points of a study once, so that a slow minute of the machine spreads over all of
 * them. A step is the real one (cli/trainer.h): forward, backward, clipping, AdamW. */
#include "cli/svg.h"
#include "cli/trainer.h"
#include <argp.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_POINTS = 16, MAX_STEPS = 64, MAX_REPEATS = 100 };

/* ---- studies -------------------------------------------------------------------------------- */
typedef struct shape {
    int64_t layers, heads, channels, vocab, batch, context;
} shape;

typedef struct study {
    const char *name;
    const char *what;          /* the x axis */
    int64_t x[MAX_POINTS + 1]; /* ends with 0 */
    int64_t quick[MAX_POINTS + 1];
    shape base, quick_base; /* 0 where x, or tokens / context, is put in */
    int64_t tokens, quick_tokens;
} study;

static const study studies[] = {
    {.name = "context",
     .what = "context T, tokens",
     .x = {256, 512, 1024, 2048, 4096, 8192},
     .quick = {128, 256, 512, 1024, 2048},
     .base = {.layers = 4, .heads = 4, .channels = 256, .vocab = 256},
     .quick_base = {.layers = 2, .heads = 2, .channels = 64, .vocab = 64},
     .tokens = 8192,
     .quick_tokens = 2048},
    {.name = "layers",
     .what = "layers",
     .x = {1, 2, 4, 6, 8, 12, 16, 20, 24},
     .quick = {1, 2, 4},
     .base = {.heads = 4, .channels = 256, .vocab = 256, .context = 256},
     .quick_base = {.heads = 2, .channels = 64, .vocab = 64, .context = 64},
     .tokens = 2048,
     .quick_tokens = 256},
    {.name = "vocab",
     .what = "vocabulary V, tokens",
     .x = {256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536},
     .quick = {256, 512, 1024, 2048},
     .base = {.layers = 4, .heads = 4, .channels = 256, .context = 256},
     .quick_base = {.layers = 2, .heads = 2, .channels = 64, .context = 64},
     .tokens = 2048,
     .quick_tokens = 256},
};
enum { N_STUDIES = sizeof studies / sizeof studies[0], CONTEXT = 0, LAYERS, VOCAB };

static struct {
    int threads, repeats, steps;
    bool quick;
    const char *only, *out;
} opt = {.repeats = 5, .steps = 3, .out = "."};

static shape shape_at(const study *s, int64_t x) {
    shape a = opt.quick ? s->quick_base : s->base;
    if (!a.context) a.context = x;
    if (!a.layers) a.layers = x;
    if (!a.vocab) a.vocab = x;
    a.batch = (opt.quick ? s->quick_tokens : s->tokens) / a.context;
    return a;
}

/* ---- one measurement, in a process of its own ----------------------------------------------- */
typedef struct measured {
    int n; /* timed steps */
    double seconds[MAX_STEPS];
    size_t planned, pool, resident, parameters; /* bytes, bytes, bytes, count */
    double flops;                               /* of a step */
    int threads;
    char error[256]; /* "" if it went well */
} measured;

static tp_status configure(tp_config *cfg, const shape *a) {
    tp_ctx *c = NULL;
    tp_status st = tp_ctx_new(&c, &(tp_ctx_opts){.meta = true, .threads = 1});
    if (st) return st;
    tp_config_defaults(cfg);
    cfg->threads = opt.threads;
    cfg->model.layers = a->layers;
    cfg->model.heads = a->heads;
    cfg->model.channels = a->channels;
    cfg->model.vocab = a->vocab;
    cfg->model.context = a->context;
    cfg->train.batch = a->batch;
    st = tp_config_resolve(c, cfg);
    tp_ctx_free(c);
    return st;
}

static tp_status train(measured *m, tp_ctx *c, const tp_config *cfg, int warmup, int steps) {
    tp_trainer t = {0};
    tp_fake_batch f = {
        .of = tp_share_of(cfg, 0, 1), .T = cfg->model.context, .vocab = cfg->model.vocab};
    tp_status st = tp_trainer_new(&t, c, cfg, NULL);
    if (!st) st = tp_fake_fill(&f, c);
    tp_step_in in = {.targets = f.of.rows * f.T, .next = tp_fake_next, .arg = &f};
    for (int i = 0; i < warmup + steps && !st; i++) {
        tp_step_out out;
        in.step = i;
        double start = tp_now();
        st = tp_trainer_step(&t, &in, &out);
        if (!st && !(out.nll > 0)) /* random weights know nothing: a loss is there, and no NaN */
            st = tp_fail(c, TP_ENUMERIC, "the loss is %g", out.nll);
        if (i >= warmup) m->seconds[m->n++] = tp_now() - start;
    }
    m->pool = tp_memory_peak(c);
    m->threads = tp_threads(c);
    tp_trainer_clear(&t);
    tp_free(f.ids);
    return st;
}

static void in_child(measured *m, const shape *a, int warmup, int steps) {
    tp_config cfg;
    tp_plan plan;
    tp_ctx *c = NULL;
    tp_status st = configure(&cfg, a);
    if (!st) st = tp_plan_make(&plan, &cfg, 1, m->error, sizeof m->error);
    if (!st) {
        m->planned = plan.peak_bytes;
        m->flops = plan.step_flops;
        m->parameters = (size_t)plan.parameters;
        st = tp_ctx_new(&c, &(tp_ctx_opts){.threads = opt.threads});
    }
    if (!st) st = train(m, c, &cfg, warmup, steps);
    if (st && !m->error[0])
        snprintf(m->error, sizeof m->error, "%s",
                 c && *tp_error(c) ? tp_error(c) : tp_status_name(st));
    tp_ctx_free(c);
}

static bool read_all(int fd, void *p, size_t n) {
    for (char *at = p; n;) {
        ssize_t got = read(fd, at, n);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        at += got;
        n -= (size_t)got;
    }
    return true;
}

/* The parent itself starts no thread and plans nothing, so a fork is safe and its pages are few. */
static bool measure(measured *m, const shape *a, int warmup, int steps) {
    int p[2], status = 0;
    struct rusage u = {0};
    *m = (measured){0};
    fflush(NULL);
    if (pipe(p)) {
        snprintf(m->error, sizeof m->error, "no pipe: %s", strerror(errno));
        return false;
    }
    pid_t pid = fork();
    if (pid == 0) {
        close(p[0]);
        in_child(m, a, warmup, steps);
        _exit(write(p[1], m, sizeof *m) == (ssize_t)sizeof *m ? 0 : 1);
    }
    close(p[1]);
    bool ok = pid > 0 && read_all(p[0], m, sizeof *m);
    close(p[0]);
    if (pid > 0) wait4(pid, &status, 0, &u);
    m->resident = (size_t)u.ru_maxrss * 1024; /* ru_maxrss counts KiB */
    m->error[sizeof m->error - 1] = 0;
    if (!ok && WIFSIGNALED(status))
        snprintf(m->error, sizeof m->error, "ended by signal %d (out of memory?)",
                 WTERMSIG(status));
    else if (!ok)
        snprintf(m->error, sizeof m->error, "the measuring process gave no result");
    return ok && !m->error[0];
}

/* ---- a study -------------------------------------------------------------------------------- */
typedef struct point {
    shape a;
    int64_t x;
    int n; /* timed steps */
    double seconds[MAX_REPEATS * MAX_STEPS];
    double median, min, max; /* seconds a step */
    measured m;              /* of the last round */
    measured one;            /* context study: one step of one sequence, for its memory */
    double scores; /* bytes that the scores of one sequence would take, kept for backward */
} point;

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void summarise(point *p) {
    qsort(p->seconds, (size_t)p->n, sizeof *p->seconds, by_size);
    int h = p->n / 2;
    p->median = p->n % 2 ? p->seconds[h] : (p->seconds[h - 1] + p->seconds[h]) / 2;
    p->min = p->seconds[0];
    p->max = p->seconds[p->n - 1];
}

static void progress(const char *study_name, int64_t x, int round) {
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r\033[K%s %lld, round %d of %d", study_name, (long long)x, round + 1,
                opt.repeats);
}

static int fail_at(const study *s, const point *p, const measured *m) {
    fprintf(stderr, "%sbench_scaling: %s %lld: %s\n", isatty(STDERR_FILENO) ? "\r\033[K" : "",
            s->name, (long long)p->x, m->error);
    return 1;
}

/* Fills in p[0..n); 0, or 1 after a message. */
static int run(const study *s, point *p, int n) {
    const int64_t *x = opt.quick ? s->quick : s->x;
    for (int i = 0; i < n; i++) {
        shape a = shape_at(s, x[i]);
        double T = (double)a.context;
        p[i] = (point){
            .a = a, .x = x[i], .scores = (double)(a.layers * a.heads) * T * T * sizeof(float)};
    }
    for (int round = 0; round < opt.repeats; round++)
        for (int i = 0; i < n; i++) {
            progress(s->name, p[i].x, round);
            if (!measure(&p[i].m, &p[i].a, 1, opt.steps)) return fail_at(s, &p[i], &p[i].m);
            memcpy(p[i].seconds + p[i].n, p[i].m.seconds,
                   (size_t)p[i].m.n * sizeof *p[i].m.seconds);
            p[i].n += p[i].m.n;
        }
    for (int i = 0; i < n; i++) {
        summarise(&p[i]);
        if (s != &studies[CONTEXT]) continue;
        shape one = p[i].a;
        one.batch = 1;
        if (!measure(&p[i].one, &one, 0, 1)) return fail_at(s, &p[i], &p[i].one);
    }
    if (isatty(STDERR_FILENO)) fputs("\r\033[K", stderr);
    return 0;
}

static double tokens_of(const point *p) { return (double)(p->a.batch * p->a.context); }

/* ---- tables --------------------------------------------------------------------------------- */
static void print_table(const study *s, const point *p, int n) {
    bool context = s == &studies[CONTEXT];
    printf("%s  (%lld tokens a step, %d thread%s, %d steps a point)\n", s->name,
           (long long)tokens_of(p), p->m.threads, p->m.threads == 1 ? "" : "s", p->n);
    printf("%8s %12s %22s %9s | %10s %10s %10s", s->name, "parameters", "us/token (min-max)",
           "GFLOP/s", "plan MB", "pool MB", "RSS MB");
    if (context)
        printf(" | B=1: %8s %8s %8s %8s %9s", "plan MB", "pool MB", "RSS MB", "growth",
               "scores MB");
    putchar('\n');
    for (int i = 0; i < n; i++) {
        const point *q = &p[i];
        double us = 1e6 / tokens_of(q);
        char range[64];
        snprintf(range, sizeof range, "%.4g (%.4g-%.4g)", q->median * us, q->min * us, q->max * us);
        printf("%8lld %12zu %22s %9.1f | %10.1f %10.1f %10.1f", (long long)q->x, q->m.parameters,
               range, q->m.flops / q->median / 1e9, (double)q->m.planned / 1e6,
               (double)q->m.pool / 1e6, (double)q->m.resident / 1e6);
        if (context) {
            char growth[16] = "";
            if (i >= 2)
                snprintf(growth, sizeof growth, "%.3f",
                         (double)(q->one.pool - p[i - 1].one.pool) /
                             (double)(p[i - 1].one.pool - p[i - 2].one.pool));
            printf(" |      %8.1f %8.1f %8.1f %8s %9.1f", (double)q->one.planned / 1e6,
                   (double)q->one.pool / 1e6, (double)q->one.resident / 1e6, growth,
                   q->scores / 1e6);
        }
        putchar('\n');
    }
    putchar('\n');
    fflush(stdout);
}

static void write_json(FILE *f, const study *s, const point *p, int n) {
    for (int i = 0; i < n; i++) {
        const point *q = &p[i];
        double us = 1e6 / tokens_of(q);
        fprintf(f,
                "{\"study\":\"%s\",\"x\":%lld,\"layers\":%lld,\"heads\":%lld,\"channels\":%lld,"
                "\"vocab\":%lld,\"batch\":%lld,\"context\":%lld,\"threads\":%d,\"steps\":%d,"
                "\"parameters\":%zu,\"us_per_token\":%.6g,\"us_min\":%.6g,\"us_max\":%.6g,"
                "\"gflops\":%.6g,\"planned_bytes\":%zu,\"pool_bytes\":%zu,\"resident_bytes\":%zu",
                s->name, (long long)q->x, (long long)q->a.layers, (long long)q->a.heads,
                (long long)q->a.channels, (long long)q->a.vocab, (long long)q->a.batch,
                (long long)q->a.context, q->m.threads, q->n, q->m.parameters, q->median * us,
                q->min * us, q->max * us, q->m.flops / q->median / 1e9, q->m.planned, q->m.pool,
                q->m.resident);
        if (s == &studies[CONTEXT])
            fprintf(f,
                    ",\"one_planned_bytes\":%zu,\"one_pool_bytes\":%zu,\"one_resident_bytes\":%zu,"
                    "\"one_scores_bytes\":%.0f",
                    q->one.planned, q->one.pool, q->one.resident, q->scores);
        fputs("}\n", f);
    }
}

/* ---- pictures ------------------------------------------------------------------------------- */
static void time_panel(plot_panel *q, const point *p, int n, const char *label) {
    q->title = "Time per token, \xc2\xb5s";
    q->n_series = 1;
    q->series[0] = (plot_series){.label = label, .style = PLOT_LINE, .whiskers = true};
    for (int i = 0; i < n; i++) {
        double us = 1e6 / tokens_of(&p[i]);
        q->series[0].y[i] = p[i].median * us;
        q->series[0].lo[i] = p[i].min * us;
        q->series[0].hi[i] = p[i].max * us;
    }
}

static void memory_panel(plot_panel *q, const study *s, const point *p, int n) {
    bool context = s == &studies[CONTEXT];
    q->title = context ? "Peak memory of one sequence, MB" : "Peak memory, MB";
    q->log_y = context;
    q->n_series = 2;
    q->series[0] = (plot_series){.label = "planned before the run", .style = PLOT_LINE};
    q->series[1] = (plot_series){.label = "measured: resident, whole process", .style = PLOT_RINGS};
    if (context || s == &studies[VOCAB])
        q->series[q->n_series++] = (plot_series){
            .label =
                context
                    ? "scores alone, if kept: layers \xc3\x97 heads \xc3\x97 T\xc2\xb2 \xc3\x97 4 B"
                    : "logits and their gradient alone, if whole",
            .style = PLOT_DASHED};
    for (int i = 0; i < n; i++) {
        const measured *m = context ? &p[i].one : &p[i].m;
        q->series[0].y[i] = (double)m->planned / 1e6;
        q->series[1].y[i] = (double)m->resident / 1e6;
        q->series[2].y[i] = context
                                ? p[i].scores / 1e6
                                : 2 * tokens_of(&p[i]) * (double)p[i].a.vocab * sizeof(float) / 1e6;
    }
}

/* The file DIR/NAME, opened for writing; NULL after a message. */
static FILE *create(char *path, size_t cap, const char *name) {
    FILE *f = NULL;
    if ((size_t)snprintf(path, cap, "%s/%s", opt.out, name) < cap) f = fopen(path, "w");
    if (!f) fprintf(stderr, "bench_scaling: cannot write %s: %s\n", path, strerror(errno));
    return f;
}

static int finish(FILE *f, const char *path, const char *wrong) {
    bool bad = ferror(f) != 0;
    bad = fclose(f) != 0 || bad;
    if (!wrong && bad) wrong = strerror(errno);
    if (wrong) fprintf(stderr, "bench_scaling: %s: %s\n", path, wrong);
    return wrong != NULL;
}

static int draw(const study *s, const point *p, int n) {
    static plot g; /* large */
    char path[4096], name[64], subtitle[256], fixed[128];
    const shape *a = &p[0].a;
    g = (plot){.x_label = s->what,
               .log2_x = s != &studies[LAYERS],
               .n_points = n,
               .n_panels = 2,
               .subtitle = subtitle};
    if (s == &studies[CONTEXT]) {
        g.title = "A training step against the length of the context";
        snprintf(fixed, sizeof fixed, "%lld layers, vocabulary %lld, batch \xc3\x97 T",
                 (long long)a->layers, (long long)a->vocab);
    } else if (s == &studies[LAYERS]) {
        g.title = "A training step against the number of layers";
        snprintf(fixed, sizeof fixed, "vocabulary %lld, T = %lld, batch \xc3\x97 T",
                 (long long)a->vocab, (long long)a->context);
    } else {
        g.title = "A training step against the size of the vocabulary";
        snprintf(fixed, sizeof fixed, "%lld layers, T = %lld, batch \xc3\x97 T",
                 (long long)a->layers, (long long)a->context);
    }
    snprintf(subtitle, sizeof subtitle,
             "GPT-2 family, %lld channels, %lld heads, %s = %lld tokens, f32, AdamW, %d thread%s",
             (long long)a->channels, (long long)a->heads, fixed, (long long)tokens_of(p),
             p->m.threads, p->m.threads == 1 ? "" : "s");
    char label[64];
    snprintf(label, sizeof label, "median of %d steps, whiskers: all of them", p->n);
    for (int i = 0; i < n; i++) g.x[i] = (double)p[i].x;
    time_panel(&g.panel[0], p, n, label);
    memory_panel(&g.panel[1], s, p, n);
    snprintf(name, sizeof name, "scaling-%s.svg", s->name);
    FILE *f = create(path, sizeof path, name);
    return f ? finish(f, path, plot_write(&g, f)) : 1;
}

/* ---- the program ---------------------------------------------------------------------------- */
static const struct argp_option options[] = {
    {"threads", 't', "N", 0, "Threads (0: every core, the default)", 0},
    {"repeats", 'r', "N", 0, "Rounds over all points (5)", 0},
    {"steps", 'n', "N", 0, "Timed steps of a point in a round, after one that is not (3)", 0},
    {"study", 's', "NAME", 0, "Only this one: context, layers or vocab", 0},
    {"quick", 'q', NULL, 0, "A tiny model and few points: seconds, to see that it works", 0},
    {"out", 'o', "DIR", 0, "Where scaling.jsonl and scaling-NAME.svg go (.)", 0},
    {0}};

static int number_of(struct argp_state *s, const char *what, const char *arg, long min, long max) {
    char *end;
    errno = 0;
    long v = strtol(arg, &end, 10);
    if (*end || end == arg || errno || v < min || v > max)
        argp_error(s, "--%s is a number from %ld to %ld, got \"%s\"", what, min, max, arg);
    return (int)v;
}

static error_t parse(int key, char *arg, struct argp_state *s) {
    switch (key) {
    case 't':
        opt.threads = number_of(s, "threads", arg, 0, 1024);
        break;
    case 'r':
        opt.repeats = number_of(s, "repeats", arg, 1, MAX_REPEATS);
        break;
    case 'n':
        opt.steps = number_of(s, "steps", arg, 1, MAX_STEPS);
        break;
    case 'q':
        opt.quick = true;
        break;
    case 'o':
        opt.out = arg;
        break;
    case 's':
        for (int i = 0; i < N_STUDIES; i++)
            if (!strcmp(arg, studies[i].name)) opt.only = arg;
        if (!opt.only) argp_error(s, "--study is context, layers or vocab, got \"%s\"", arg);
        break;
    case ARGP_KEY_ARG:
        argp_error(s, "\"%s\" is not an option", arg);
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

int main(int argc, char **argv) {
    const struct argp argp = {
        .options = options,
        .parser = parse,
        .doc = "Measures how time and memory of a training step grow with the context, the layers "
               "and the vocabulary; prints tables, writes JSON lines and a picture a study."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    static point p[MAX_POINTS]; /* large */
    char path[4096];
    if (mkdir(opt.out, 0777) && errno != EEXIST) {
        fprintf(stderr, "bench_scaling: cannot make %s: %s\n", opt.out, strerror(errno));
        return 1;
    }
    FILE *json = create(path, sizeof path, "scaling.jsonl");
    if (!json) return 1;
    int bad = 0;
    for (int i = 0; i < N_STUDIES && !bad; i++) {
        const study *s = &studies[i];
        if (opt.only && strcmp(opt.only, s->name)) continue;
        int n = 0;
        while ((opt.quick ? s->quick : s->x)[n]) n++;
        bad = run(s, p, n);
        if (bad) break;
        print_table(s, p, n);
        write_json(json, s, p, n);
        bad = draw(s, p, n);
    }
    return finish(json, path, NULL) || bad;
}
