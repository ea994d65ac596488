/* Owns the life of a context and its one sentence of failure. */
#include "core/ctx.h"
#include "core/arena.h"
#include "core/device.h"
#include "core/team.h"
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static tp_status open_device(tp_ctx *c) {
    if (c->device == TP_CPU) return TP_OK;
    if (!&tp_cuda_backend)
        return tp_fail(c, TP_ENOKERNEL,
                       "device: cuda: this program was built without CUDA; cmake --preset cuda "
                       "builds one with it");
    if (c->meta) return TP_OK;
    c->backend = &tp_cuda_backend;
    return c->backend->open(c);
}

/* There is no ctx to ask afterwards, so the sentence goes out another way. */
static tp_status refused(tp_ctx *c, char *why) {
    tp_status st = c->status ? c->status : TP_ENOMEM;
    if (why)
        snprintf(why, TP_WHY_BYTES, "%.*s", TP_WHY_BYTES - 1,
                 c->status ? c->message : "out of memory");
    tp_ctx_free(c);
    return st;
}

static tp_status bad_option(char *why, const char *sentence, int got) {
    if (why) snprintf(why, TP_WHY_BYTES, "%s %d", sentence, got);
    return TP_EARG;
}

tp_status tp_ctx_new(tp_ctx **out, const tp_ctx_opts *opts) {
    static const tp_ctx_opts defaults = {0};
    const tp_ctx_opts *o = opts ? opts : &defaults;
    *out = NULL;
    if (o->why) *o->why = 0;
    if (o->threads < 0)
        return bad_option(o->why, "threads must be 0, for every core, or more, got", o->threads);
    if (o->device < 0 || o->device >= TP_NDEV)
        return bad_option(o->why, "there is no device", (int)o->device);
    tp_ctx *c = calloc(1, sizeof *c);
    if (!c) return TP_ENOMEM;
    c->device = o->device;
    c->meta = o->meta;
    c->fast = o->fast;
    c->bf16_products = o->bf16_products;
    c->gemm = o->gemm;
    c->seed = o->seed;
    c->threads = o->threads ? o->threads : omp_get_num_procs();
    c->isa = cpu_isa();
    c->step_arena = tp_arena_new(c);
    c->keep_arena = tp_arena_new(c);
    if (open_device(c)) return refused(c, o->why);
    c->pool = tp_pool_new(c, o->memory_limit);
    if (!c->pool || !c->step_arena || !c->keep_arena) return refused(c, o->why);
    c->fail_alloc_at = o->fail_alloc_at;
    *out = c;
    return TP_OK;
}

tp_status tp_ctx_beside(tp_ctx **out, tp_ctx *c) {
    char why[TP_WHY_BYTES] = "";
    tp_status st = tp_ctx_new(out, &(tp_ctx_opts){.device = c->device,
                                                  .meta = c->meta,
                                                  .fast = c->fast,
                                                  .bf16_products = c->bf16_products,
                                                  .gemm = c->gemm,
                                                  .threads = 1,
                                                  .memory_limit = tp_pool_limit(c),
                                                  .seed = c->seed,
                                                  .why = why});
    if (st) return tp_fail(c, st, "%s", why);
    (*out)->as_decoded = c->as_decoded;
    return TP_OK;
}

void tp_ctx_free(tp_ctx *c) {
    if (!c) return;
    tp_team_free(c->team);
    if (c->step_arena && c->keep_arena && c->pool) tp_step_end(c);
    if (c->tape_free) c->tape_free(c);
    tp_pool_free(c, c->pool);
    tp_arena_free(c->step_arena);
    tp_arena_free(c->keep_arena);
    if (c->backend) c->backend->close(c);
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

/* ---- bytes from and to the device ------------------------------------------------------------ */
static size_t bytes_of(const tp_tensor *t) {
    return t && t->data ? (size_t)tp_numel(t) * tp_dtype_size(t->dtype) : 0;
}

tp_status tp_upload(tp_ctx *c, tp_tensor *t, const void *host) {
    return tp_upload_bytes(c, t ? t->data : NULL, host, bytes_of(t));
}

tp_tensor *tp_tensor_from(tp_ctx *c, tp_dtype type, int ndim, const int64_t *shape,
                          const void *host) {
    tp_tensor *t = tp_tensor_new(c, type, ndim, shape);
    return t && !tp_upload(c, t, host) ? t : NULL;
}

tp_status tp_download(tp_ctx *c, const tp_tensor *t, void *host) {
    return tp_download_bytes(c, host, t ? t->data : NULL, bytes_of(t));
}

tp_status tp_zero(tp_ctx *c, tp_tensor *t) {
    size_t n = bytes_of(t);
    if (c->status || !n || c->meta) return c->status;
    if (c->backend) return c->backend->fill(c, t->data, 0, n);
    memset(t->data, 0, n);
    return TP_OK;
}

tp_status tp_upload_bytes(tp_ctx *c, void *to, const void *host, size_t n) {
    if (c->status || !n || c->meta) return c->status;
    if (c->backend) return c->backend->upload(c, to, host, n);
    memcpy(to, host, n);
    return TP_OK;
}

tp_status tp_download_bytes(tp_ctx *c, void *host, const void *from, size_t n) {
    if (c->status || !n || c->meta) return c->status;
    if (c->backend) return c->backend->download(c, host, from, n);
    memcpy(host, from, n);
    return TP_OK;
}

tp_status tp_copy_bytes(tp_ctx *c, void *to, const void *from, size_t n) {
    if (c->status || !n || c->meta) return c->status;
    if (c->backend) return c->backend->copy(c, to, from, n);
    memcpy(to, from, n);
    return TP_OK;
}

tp_status tp_sync(tp_ctx *c) { return c->status || !c->backend ? c->status : c->backend->sync(c); }
