/* Owns failing allocations one by one, and looking at what is left. */
#include "failing.h"
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "core/ctx.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
    defined(TAPIR_CUDA) /* whose driver keeps blocks, and has threads */
const bool heap_is_counted = false;
static const long on_heap = 0;
#else
const bool heap_is_counted = true;
static long on_heap; /* blocks of this process that were taken and not given back */
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);
void *malloc(size_t n) {
    void *p = __libc_malloc(n);
    on_heap += p != NULL;
    return p;
}
void *calloc(size_t n, size_t each) {
    void *p = __libc_calloc(n, each);
    on_heap += p != NULL;
    return p;
}
void *realloc(void *old, size_t n) {
    void *p = __libc_realloc(old, n);
    on_heap += !old && p;
    on_heap -= old && !n;
    return p;
}
void *aligned_alloc(size_t align, size_t n) {
    void *p = __libc_memalign(align, n);
    on_heap += p != NULL;
    return p;
}
int posix_memalign(void **out, size_t align, size_t n) {
    void *p = aligned_alloc(align, n);
    if (p) *out = p;
    return p ? 0 : ENOMEM;
}
void free(void *p) {
    on_heap -= p != NULL;
    __libc_free(p);
}
#endif

static tp_config config(const char *words) {
    char path[512], line[512], *rest = line;
    tp_config cfg;
    tp_ctx *c;
    snprintf(line, sizeof line, "%s", words);
    const char *file = strtok_r(rest, " ", &rest);
    snprintf(path, sizeof path, "%s/configs/tests/%s", TAPIR_SOURCE, file);
    if (access(path, R_OK))
        snprintf(path, sizeof path, "configs/tests/%s", file); /* a packed build */
    tp_config_defaults(&cfg);
    assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.meta = true, .threads = 1}), 0);
    tp_status st = tp_config_load(c, &cfg, path);
    for (char *word; !st && (word = strtok_r(rest, " ", &rest));) st = tp_config_set(c, &cfg, word);
    if (!st) st = tp_config_resolve(c, &cfg);
    if (st) fail_msg("%s: %s", words, tp_error(c));
    tp_ctx_free(c);
    return cfg;
}

/* ---- pretraining ----------------------------------------------------------------------------- */
tp_status open_trainer(rig *r) {
    r->t = &r->own;
    tp_status st = tp_trainer_new(r->t, r->c, &r->cfg, NULL);
    r->rows = (tp_fake_batch){
        .of = tp_share_of(&r->cfg, 0, 1), .T = r->cfg.model.context, .vocab = r->cfg.model.vocab};
    return st ? st : tp_fake_fill(&r->rows, r->c);
}

void close_trainer(rig *r) {
    tp_free(r->rows.ids);
    tp_trainer_clear(&r->own);
}

static tp_status next_rows(void *arg, tp_ctx *c, tp_batch *out) {
    return tp_fake_next(&((rig *)arg)->rows, c, out);
}

static void turn(rig *r) { /* other data; turned twice, those of before */
    int32_t *ids = r->rows.ids, vocab = (int32_t)r->rows.vocab;
    for (int64_t i = 0; i < 2 * r->rows.of.rows * r->rows.T; i++) ids[i] = vocab - 1 - ids[i];
    r->rows.taken = 0;
}

tp_status train_step(rig *r, bool again) {
    tp_step_in in = {.targets = r->cfg.train.batch * r->cfg.model.context,
                     .next = next_rows,
                     .arg = r,
                     .loss = r->scene->loss,
                     .loss_arg = r};
    tp_step_out out;
    turn(r);
    if (again) turn(r);
    tp_status st = tp_trainer_step(r->t, &in, &out);
    if (!again) turn(r);
    double number[] = {out.nll, out.grad_norm, out.mod.aux_loss, out.mod.router_entropy};
    memcpy(r->number, number, sizeof number);
    return st;
}

/* ---- one scene, every allocation ------------------------------------------------------------- */
static uint64_t mixed(uint64_t h, const void *bytes, size_t n) { /* FNV-1a */
    for (size_t i = 0; i < n; i++) h = (h ^ ((const uint8_t *)bytes)[i]) * UINT64_C(0x100000001b3);
    return h;
}

/* Of the weights and the optimizer's state. */
static uint64_t state_of(rig *r) {
    const tp_params *p = tp_model_params(r->t->model);
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    char whole[1 << 14];
    for (int i = 0; i < p->n; i++) {
        size_t n = (size_t)tp_numel(p->p[i].t) * sizeof(float);
        assert_in_range(n, 1, sizeof whole);
        assert_int_equal(tp_download(r->c, p->p[i].t, whole), 0);
        h = mixed(h, whole, n);
    }
    for (int i = 0; i < tp_optim_state_count(r->t->optim); i++) {
        const tp_tensor *of = p->p[tp_optim_state_param(r->t->optim, i)].t;
        size_t n = (size_t)tp_numel(of) * tp_dtype_size(tp_optim_state_dtype(r->t->optim, i));
        assert_int_equal(tp_optim_state_get(r->t->optim, i, whole), 0);
        h = mixed(h, whole, n);
    }
    return mixed(h, tp_optim_get_counters(r->t->optim), sizeof(tp_optim_counters));
}

static void wrong(tried *n, const rig *r, long at, const char *fmt, ...) {
    char what[160];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    if (!*n->wrong)
        snprintf(n->wrong, sizeof n->wrong, "%s, allocation %ld: %s", r->scene->name, at, what);
}

static void begin(rig *r, const scene *s, const tp_config *cfg) {
    *r = (rig){.scene = s, .cfg = *cfg};
    tp_ctx_opts o = {.device = cfg->device,
                     .gemm = cfg->gemm,
                     .threads = 1,
                     .memory_limit = 1 << 24,
                     .seed = (uint64_t)cfg->seed};
    assert_int_equal(tp_ctx_new(&r->c, &o), 0);
}

static void end(rig *r, tried *n, long at, long heap) {
    r->scene->close(r);
    tp_ctx_free(r->c);
    if (on_heap != heap) wrong(n, r, at, "%ld blocks are left on the heap", on_heap - heap);
}

static void said(rig *r, tried *n, long at, tp_status st) {
    if (st != TP_ENOMEM || tp_error_status(r->c) != st || !strstr(tp_error(r->c), "out of memory"))
        wrong(n, r, at, "answered %s: \"%s\"", tp_status_name(st), tp_error(r->c));
}

static bool open_without(const scene *s, const tp_config *cfg, long at, tried *n) {
    rig r;
    long heap = on_heap;
    begin(&r, s, cfg);
    r.c->fail_alloc_at = at;
    tp_status st = s->open(&r);
    bool struck = r.c->fail_alloc_at == 0;
    if (struck) said(&r, n, at, st);
    if (!struck && st) wrong(n, &r, at, "failed untouched: %s", tp_error(r.c));
    end(&r, n, at, heap);
    return struck;
}

typedef struct outcome {
    double number[4];
    uint64_t state;
} outcome;

static outcome outcome_of(rig *r) {
    outcome o = {.state = state_of(r)};
    memcpy(o.number, r->number, sizeof o.number);
    return o;
}

static outcome undisturbed(const scene *s, const tp_config *cfg, tried *n) {
    rig r;
    long heap = on_heap;
    begin(&r, s, cfg);
    tp_status st = s->open(&r);
    if (!st) st = s->work(&r, true);
    if (st) fail_msg("%s: %s", s->name, tp_error(r.c));
    outcome o = outcome_of(&r);
    end(&r, n, 0, heap);
    return o;
}

static bool work_without(const scene *s, const tp_config *cfg, const outcome *want, long at,
                         tried *n) {
    rig r;
    long heap = on_heap;
    begin(&r, s, cfg);
    assert_int_equal(s->open(&r), 0);
    size_t used = tp_memory_used(r.c);
    uint64_t before = state_of(&r);
    r.c->fail_alloc_at = at;
    tp_status st = s->work(&r, false);
    bool struck = r.c->fail_alloc_at == 0;
    r.c->fail_alloc_at = 0;
    if (struck) said(&r, n, at, st);
    if (!struck && st) wrong(n, &r, at, "failed untouched: %s", tp_error(r.c));
    bool recorded = !st && cfg->train.cuda_graph; /* its gradients keep their bytes */
    if (tp_memory_used(r.c) != used && !recorded)
        wrong(n, &r, at, "%zu bytes of the pool are in use, %zu before", tp_memory_used(r.c), used);
    tp_clear(r.c);
    bool moved = state_of(&r) != before;
    n->moved += struck && moved;
    if (struck && s->work(&r, true)) wrong(n, &r, at, "and then: %s", tp_error(r.c));
    outcome o = outcome_of(&r);
    if (struck && !moved && memcmp(&o, want, sizeof o))
        wrong(n, &r, at, "the work done again has other bits: %.9g, %.9g instead of %.9g, %.9g",
              o.number[0], o.number[1], want->number[0], want->number[1]);
    if (struck && moved && !isfinite(o.number[0])) wrong(n, &r, at, "and then: no number");
    end(&r, n, at, heap);
    return struck;
}

tried fail_each(const scene *s, int stride) {
    tried n = {0};
    tp_config cfg = config(s->keys);
    undisturbed(s, &cfg, &n); /* libraries take what they keep */
    memset(n.wrong, 0, sizeof n.wrong);
    outcome want = undisturbed(s, &cfg, &n);
    for (long at = 1; !*n.wrong && open_without(s, &cfg, at, &n); at += stride) n.open++;
    for (long at = 1; !*n.wrong && work_without(s, &cfg, &want, at, &n); at += stride) n.work++;
    return n;
}

void report_tried(const scene *s, const tried *n) {
    print_message("%-26s %4ld allocations failed while opening, %4ld at work, of these %3ld after "
                  "weights were moved\n",
                  s->name, n->open, n->work, n->moved);
    if (*n->wrong) fail_msg("%s", n->wrong);
}
