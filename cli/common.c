/* Owns how commands speak and end: messages, signals, the progress line, numbers for people. */
#include "cli/cli.h"
#include "core/ctx.h"
#include "core/device.h"
#include "ops/matmul/gemm.h"
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

/* ---- ending --------------------------------------------------------------------------------- */
int tp_say(const char *command, const char *fmt, ...) {
    char line[2048]; /* written at once: other ranks may speak at the same time */
    va_list ap;
    va_start(ap, fmt);
    int n = snprintf(line, sizeof line, "%s: ", command);
    if (n > 0 && n < (int)sizeof line) vsnprintf(line + n, sizeof line - (size_t)n, fmt, ap);
    va_end(ap);
    size_t end = strlen(line);
    line[end < sizeof line - 1 ? end : sizeof line - 2] = '\n';
    line[end < sizeof line - 1 ? end + 1 : sizeof line - 1] = 0;
    tp_progress_clear();
    fputs(line, stderr);
    return EXIT_USAGE_;
}

int tp_say_failure(const char *command, tp_ctx *c, tp_status st) {
    if (st == TP_EINTERRUPT) {
        tp_progress_clear();
        fprintf(stderr, "%s: interrupted\n", command);
        return EXIT_INTERRUPTED;
    }
    const char *text = c ? tp_error(c) : "";
    tp_say(command, "%s", *text ? text : tp_status_name(st));
    return EXIT_FAILED;
}

int tp_say_rank_failure(const char *command, tp_ctx *c, const tp_comm *m, tp_status st) {
    char who[128];
    if (m && tp_comm_failed_elsewhere(m)) return EXIT_FAILED;
    if (!m || tp_comm_size(m) == 1) return tp_say_failure(command, c, st);
    snprintf(who, sizeof who, "%s: rank %d", command, tp_comm_rank(m));
    return tp_say_failure(who, c, st);
}

/* ---- signals -------------------------------------------------------------------------------- */
static bool silent; /* another rank speaks */
static volatile sig_atomic_t signalled, in_steps;

static void on_signal(int sig) {
    if (signalled) {
        signal(sig, SIG_DFL);
        raise(sig);
    }
    signalled = 1;
    static const char said[] = "\r\033[Kfinishing this step; once more to stop now\n";
    int before = errno;
    if (in_steps && write(STDERR_FILENO, said, sizeof said - 1) < 0) errno = before;
}

void tp_catch_signals(void) {
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, hangup;
    sigemptyset(&a.sa_mask);
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
    if (!sigaction(SIGHUP, NULL, &hangup) && hangup.sa_handler != SIG_IGN) /* as nohup leaves it */
        sigaction(SIGHUP, &a, NULL);
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is a failed write, reported like any other */
    signal(SIGXFSZ, SIG_IGN); /* and so is a file-size limit */
}

bool tp_interrupted(void) { return signalled != 0; }

void tp_catch_signals_in_steps(void) {
    in_steps = tp_is_terminal(STDERR_FILENO) && !silent;
    tp_catch_signals();
}

/* ---- the terminal --------------------------------------------------------------------------- */
bool tp_is_terminal(int fd) {
    const char *term = getenv("TERM");
    return isatty(fd) && !(term && !strcmp(term, "dumb"));
}

static bool line_open;
static double line_at;

void tp_progress_off(void) { silent = true; }

void tp_progress_clear(void) {
    if (!line_open) return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    line_open = false;
}

/* A line that is to be written over must not wrap: only its last row could be taken back. */
static int terminal_width(void) {
    struct winsize w;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &w) || w.ws_col < 20 ? 80 : w.ws_col;
}

void tp_progress(bool lasting, const char *fmt, ...) {
    bool terminal = tp_is_terminal(STDERR_FILENO);
    double now = tp_now();
    if (silent || (!lasting && (!terminal || now - line_at < 0.1))) return;
    line_at = now;
    if (terminal) fputs("\r\033[K", stderr);
    va_list ap;
    va_start(ap, fmt);
    if (lasting) {
        vfprintf(stderr, fmt, ap);
        fputc('\n', stderr);
    } else {
        char line[512];
        vsnprintf(line, sizeof line, fmt, ap);
        fprintf(stderr, "%.*s", terminal_width() - 1, line);
    }
    va_end(ap);
    fflush(stderr);
    line_open = !lasting;
}

const char *tp_duration(char out[32], double seconds) {
    if (!(seconds >= 0 && isfinite(seconds))) seconds = 0; /* a clock may leap */
    if (seconds >= 1e8) { /* hours tell nothing any more, and long may not hold them */
        snprintf(out, 32, "%.3g years", seconds / (365.25 * 86400));
        return out;
    }
    long s = (long)(seconds + 0.5);
    if (s < 60)
        snprintf(out, 32, "%ld s", s);
    else if (s < 3600)
        snprintf(out, 32, "%ld:%02ld", s / 60, s % 60);
    else
        snprintf(out, 32, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    return out;
}

const char *tp_count(char out[32], double n) {
    static const char unit[] = " kMGTPE";
    int u = 0;
    while (n >= 999.5 && u < 6) {
        n /= 1000;
        u++;
    }
    if (u)
        snprintf(out, 32, n < 10 ? "%.2f%c" : n < 100 ? "%.1f%c" : "%.0f%c", n, unit[u]);
    else
        snprintf(out, 32, "%.0f", n);
    return out;
}

double tp_peak_rss_mb(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)u.ru_maxrss * 1024 / 1e6; /* ru_maxrss counts KiB */
}

/* ---- configs
 * ------------------------------------------------------------------------------------------------
 */
static tp_status open_ctx(tp_ctx **c, const tp_config *cfg, int threads, char why[TP_WHY_BYTES]) {
    tp_ctx_opts o = tp_ctx_opts_of(cfg);
    o.threads = threads;
    o.why = why;
    return tp_ctx_new(c, &o);
}

static int say_why(const char *command, const char *why) {
    tp_say(command, "%s", why);
    return EXIT_FAILED;
}

int tp_read_config(const char *command, tp_config *cfg, char *const words[], int n) {
    tp_config_defaults(cfg);
    if (n < 1) return tp_say(command, "which config? give a YAML file, then key=value words");
    tp_ctx *reader;
    tp_status st = tp_ctx_new(&reader, NULL);
    if (st) return tp_say_failure(command, NULL, st);
    st = tp_config_load(reader, cfg, words[0]);
    for (int i = 1; i < n && !st; i++) st = tp_config_set(reader, cfg, words[i]);
    if (!st) st = tp_config_resolve(reader, cfg);
    int code = st ? tp_say_failure(command, reader, st) : EXIT_DONE;
    tp_ctx_free(reader);
    return code;
}

int tp_open_config(const char *command, tp_config *cfg, tp_ctx **c, char *const words[], int n) {
    *c = NULL;
    int code = tp_read_config(command, cfg, words, n);
    if (code) return code;
    char why[TP_WHY_BYTES];
    tp_status st = open_ctx(c, cfg, (int)cfg->threads, why);
    if (!st && (*c)->bf16_products && !tp_gemm_has_dot())
        tp_progress(true, "warning: float32_matmul_precision: medium is no faster here, as this "
                          "processor has no instruction for products in bf16 (avx512_bf16)");
    return st ? say_why(command, why) : EXIT_DONE;
}

void tp_warn_unused(const char *command, const tp_config *cfg, const char *const keys[]) {
    char names[4096];
    int n = tp_config_given(names, sizeof names, cfg, keys);
    if (n) tp_progress(true, "warning: %s %s not used by %s", names, n > 1 ? "are" : "is", command);
}

double tp_number_arg(const struct argp_state *s, const char *name, const char *text, double lo,
                     double hi) {
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    if (end == text || *end || errno || !(v >= lo && v <= hi))
        argp_error(s, "%s must be a number from %g to %g, got \"%s\"", name, lo, hi, text);
    return v;
}

int64_t tp_integer_arg(const struct argp_state *s, const char *name, const char *text, int64_t lo,
                       int64_t hi) {
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (end == text || *end || errno || v < lo || v > hi)
        argp_error(s, "%s must be a whole number from %lld to %lld, got \"%s\"", name,
                   (long long)lo, (long long)hi, text);
    return v;
}

tp_device tp_device_arg(const struct argp_state *s, const char *arg) {
    if (strcmp(arg, "cpu") && strcmp(arg, "cuda"))
        argp_error(s, "--device must be cpu or cuda, got \"%s\"", arg);
    return !strcmp(arg, "cuda") ? TP_CUDA : TP_CPU;
}

int tp_open_device(const char *command, tp_ctx **c, tp_device device, int64_t threads) {
    char why[TP_WHY_BYTES];
    tp_ctx_opts o = {.device = device, .threads = (int)threads, .why = why};
    return tp_ctx_new(c, &o) ? say_why(command, why) : EXIT_DONE;
}

/* A GPU of its own for each rank: two would fight for one's memory. Every rank finds the same. */
static tp_status own_gpus(tp_ctx *c, tp_comm *m) {
    int n = tp_comm_size(m), size = TP_DEVICE_ID_BYTES;
    if (!c->backend || n == 1) return TP_OK;
    unsigned char *id = tp_calloc(c, (size_t)n, TP_DEVICE_ID_BYTES);
    if (!id) return tp_error_status(c);
    c->backend->which(c, id + tp_comm_rank(m) * size);
    tp_status st = tp_error_status(c);
    for (int r = 0; r < n && !st; r++)
        st = tp_comm_broadcast(m, c, id + r * size, TP_DEVICE_ID_BYTES, r);
    for (int b = 1; b < n && !st; b++)
        for (int a = 0; a < b && !st; a++)
            if (!memcmp(id + a * size, id + b * size, TP_DEVICE_ID_BYTES))
                st = tp_fail(c, TP_EARG,
                             "ranks %d and %d have the same GPU: each needs one of its own; start "
                             "fewer on a machine, or show each another (CUDA_VISIBLE_DEVICES)",
                             a, b);
    tp_free(id);
    return st;
}

int tp_open_ranks(const char *command, const tp_config *cfg, tp_ctx **c, tp_comm **comm) {
    static const tp_comm_kind kind[] = {[TP_CFG_BACKEND_AUTO] = TP_COMM_AUTO,
                                        [TP_CFG_BACKEND_SELF] = TP_COMM_SELF,
                                        [TP_CFG_BACKEND_MPI] = TP_COMM_MPI,
                                        [TP_CFG_BACKEND_NCCL] = TP_COMM_NCCL};
    tp_status st = tp_comm_open(
        comm, *c, &(tp_comm_opts){.kind = kind[cfg->dist.backend], .timeout = cfg->dist.timeout});
    if (st) {
        int code = tp_say_failure(command, *c, st);
        tp_ctx_free(*c);
        *c = NULL;
        return code;
    }
    if ((st = own_gpus(*c, *comm))) {
        bool all_know = st == TP_EARG, other = tp_comm_failed_elsewhere(*comm);
        if (all_know ? tp_comm_rank(*comm) == 0 : !other) tp_say_failure(command, *c, st);
        tp_comm_close(*comm, tp_error(*c));
        tp_ctx_free(*c);
        *c = NULL;
        return EXIT_FAILED;
    }
    int local = tp_comm_local_size(*comm), threads = tp_threads(*c) / local;
    if (tp_comm_rank(*comm) > 0) tp_progress_off();
    if (cfg->threads || local == 1) return EXIT_DONE;
    tp_ctx_free(*c);
    char why[TP_WHY_BYTES];
    st = open_ctx(c, cfg, threads > 0 ? threads : 1, why);
    if (!st) return EXIT_DONE;
    tp_comm_close(*comm, why);
    return say_why(command, why);
}
