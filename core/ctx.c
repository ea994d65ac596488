/* Owns the life of a context and its one sentence of failure. */
#include "core/ctx.h"
#include "core/arena.h"
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The highest instruction set this CPU has, in the numbering of x86-64-v1 … v4. */
static int cpu_isa(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("bmi2");
    bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vl");
    return v4 ? 4 : v3 ? 3 : 1;
#else
    return 1;
#endif
}

static size_t machine_memory(void) {
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages <= 0 || page <= 0) return (size_t)4 << 30;
    return (size_t)pages * (size_t)page;
}

tp_status tp_ctx_new(tp_ctx **out, const tp_ctx_opts *opts) {
    static const tp_ctx_opts defaults = {0};
    const tp_ctx_opts *o = opts ? opts : &defaults;
    *out = NULL;
    if (o->device != TP_CPU || o->threads < 0) return TP_EARG;
    tp_ctx *c = calloc(1, sizeof *c);
    if (!c) return TP_ENOMEM;
    c->device = o->device;
    c->meta = o->meta;
    c->fast = o->fast;
    c->seed = o->seed;
    c->threads = o->threads ? o->threads : omp_get_num_procs();
    c->isa = cpu_isa();
    c->pool = tp_pool_new(c, o->memory_limit ? o->memory_limit : machine_memory());
    c->step_arena = tp_arena_new(c);
    c->keep_arena = tp_arena_new(c);
    if (!c->pool || !c->step_arena || !c->keep_arena) {
        tp_ctx_free(c);
        return TP_ENOMEM;
    }
    c->fail_alloc_at = o->fail_alloc_at;
    *out = c;
    return TP_OK;
}

void tp_ctx_free(tp_ctx *c) {
    if (!c) return;
    if (c->step_arena && c->keep_arena && c->pool) tp_step_end(c);
    if (c->tape_free) c->tape_free(c);
    tp_pool_free(c->pool);
    tp_arena_free(c->step_arena);
    tp_arena_free(c->keep_arena);
    free(c->live);
    free(c);
}

tp_status tp_fail(tp_ctx *c, tp_status code, const char *fmt, ...) {
    if (!c || c->status) return code;
    c->status = code;
    int n = 0;
    if (c->scope_len) n = snprintf(c->message, sizeof c->message, "%s: ", c->scope);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(c->message + n, sizeof c->message - (size_t)n, fmt, ap);
    va_end(ap);
    return code;
}

tp_status tp_error_status(const tp_ctx *c) { return c->status; }
const char *tp_error(const tp_ctx *c) { return c->status ? c->message : ""; }

void tp_clear(tp_ctx *c) {
    c->status = TP_OK;
    c->message[0] = 0;
}

const char *tp_status_name(tp_status s) {
    static const char *const names[] = {
        [TP_OK] = "ok",
        [TP_EARG] = "bad argument",
        [TP_ESHAPE] = "shape mismatch",
        [TP_EDTYPE] = "wrong dtype",
        [TP_ENOMEM] = "out of memory",
        [TP_EIO] = "input/output error",
        [TP_EFORMAT] = "bad file content",
        [TP_ENOKERNEL] = "no kernel",
        [TP_ESTATE] = "wrong state",
        [TP_ENUMERIC] = "not a finite number",
        [TP_EINTERRUPT] = "interrupted",
        [TP_EINTERNAL] = "internal error",
    };
    return (unsigned)s < sizeof names / sizeof *names ? names[s] : "unknown status";
}

void tp_rng_at(tp_ctx *c, uint64_t step, uint64_t sample) {
    c->step = step;
    c->sample = sample;
    c->stream = 0;
}

int tp_threads(const tp_ctx *c) { return c->threads; }
