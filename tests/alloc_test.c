/* Steps of training and of GRPO, evaluations and checkpoints, with the 1st, 2nd, 3rd … allocation
 * failing, until one passes untouched. Each time: out of memory in a sentence, nothing kept in the
 * pool or on the heap, and the same work done again in the same ctx, with the bits of a run that
 * never failed. Losses that swallow the failure, or keep memory after it, must be told apart.
 *
 * The work that fails has other data than the work that follows it, so that whatever the first left
 * behind (half a sum, a measured length) would show in the second. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "cli/grpo.h"
#include "core/ctx.h"
#include "ops/scale/scale.h"
#include <hdf5.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define UNCOUNTED
static const long on_heap = 0; /* LeakSanitizer counts, at the end */
#else
/* Every block of this process that was taken and not given back. */
static long on_heap;
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
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
void free(void *p) {
    on_heap -= p != NULL;
    __libc_free(p);
}
#endif

/* ---- what is tried --------------------------------------------------------------------------- */
typedef struct rig {
    tp_ctx *c;
    tp_config cfg;
    tp_trainer own, *t; /* t: own, or that of g */
    tp_grpo g;
    tp_fake_batch rows;
    const struct scene *scene;
    void *kept;       /* by a mutant */
    bool failed;      /* as a mutant remembers */
    double number[4]; /* what the work came to */
} rig;

typedef tp_tensor *(*loss_fn)(void *rig, tp_ctx *c, tp_model *m, const tp_batch *b);
typedef struct scene {
    const char *name, *keys; /* of a config of configs/tests/ */
    tp_status (*open)(rig *r);
    tp_status (*work)(rig *r, bool again); /* again: with the data that count */
    void (*close)(rig *r);
    loss_fn loss; /* a mutant's */
} scene;

typedef struct tried {
    long open, work, moved; /* moved: failures that came while weights were being moved */
    char wrong[256];        /* the first thing that was; "" if none */
} tried;

static char dir[] = "/tmp/tapir-alloc-XXXXXX";

static tp_config config(const char *words) {
    char path[512], line[512], *rest = line;
    tp_config cfg;
    tp_ctx *c;
    snprintf(line, sizeof line, "%s", words);
    snprintf(path, sizeof path, "%s/configs/tests/%s", TAPIR_SOURCE, strtok_r(rest, " ", &rest));
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
static tp_status open_trainer(rig *r) {
    r->t = &r->own;
    tp_status st = tp_trainer_new(r->t, r->c, &r->cfg, NULL);
    r->rows = (tp_fake_batch){
        .of = tp_share_of(&r->cfg, 0, 1), .T = r->cfg.model.context, .vocab = r->cfg.model.vocab};
    return st ? st : tp_fake_fill(&r->rows, r->c);
}

static void close_trainer(rig *r) {
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

static tp_status train(rig *r, bool again) {
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

static tp_status evaluate(rig *r, bool again) {
    tp_batch b;
    (void)again;
    double nll[16] = {0};
    assert_in_range(r->rows.of.rows, 1, 8);
    r->rows.taken = 0;
    tp_status st = tp_fake_next(&r->rows, r->c, &b);
    if (!st) st = tp_trainer_eval(r->t, &b, TP_MOD_TOP_K, nll);
    if (!st) st = tp_trainer_eval(r->t, &b, TP_MOD_CAUSAL, nll + 8);
    memset(r->number, 0, sizeof r->number);
    for (int i = 0; i < 16; i++) r->number[i / 8] += nll[i];
    return st;
}

/* ---- checkpoints ----------------------------------------------------------------------------- */
static tp_status save(rig *r, const char *path) {
    tp_checkpoint_writer *w = NULL;
    void *whole = NULL;
    tp_status st = tp_checkpoint_create(&w, r->c, path, 1);
    if (!st) st = tp_save_weights(r->c, w, tp_model_params(r->t->model), "weights");
    if (!st) st = tp_save_optimizer(r->t, w, &whole);
    tp_free(whole);
    if (st && w)
        tp_checkpoint_abandon(w);
    else if (!st)
        st = tp_checkpoint_finish(w);
    return st;
}

static tp_status load(rig *r, const char *path) {
    tp_checkpoint_reader *from = NULL;
    void *whole = NULL;
    tp_status st = tp_checkpoint_open(&from, r->c, path);
    if (!st) st = tp_load_weights(r->c, from, tp_model_params(r->t->model), "weights");
    if (!st) st = tp_load_optimizer(r->t, from, &whole);
    tp_free(whole);
    tp_checkpoint_close(from);
    return st;
}

/* A file that failed is not there, nor is what it was going to be. */
static tp_status checkpoint(rig *r, bool again) {
    char path[64], tmp[80];
    (void)again;
    snprintf(path, sizeof path, "%s/a.h5", dir);
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    tp_status st = save(r, path);
    assert_int_equal(!access(path, F_OK), !st);
    assert_int_not_equal(access(tmp, F_OK), 0);
    if (!st) st = load(r, path);
    remove(path);
    assert_true(H5Fget_obj_count((hid_t)H5F_OBJ_ALL, H5F_OBJ_ALL) == 0);
    return st;
}

/* ---- GRPO ------------------------------------------------------------------------------------ */
static tp_status open_grpo(rig *r) {
    r->g = (tp_grpo){.c = r->c, .cfg = r->cfg, .ranks = 1, .root = true};
    r->t = &r->g.trainer;
    return tp_grpo_open(&r->g, NULL);
}

static void close_grpo(rig *r) { tp_grpo_close(&r->g); }

static tp_status reinforce(rig *r, bool again) {
    tp_grpo *g = &r->g;
    tp_update u = {0};
    g->next_item = again ? 100 : 0;
    tp_status st = tp_grpo_roll_out(g);
    if (!st) st = tp_grpo_reference(g);
    if (!st) st = tp_grpo_update(g, &u);
    double number[] = {u.loss, u.grad_norm, u.entropy, u.kl};
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
    tp_ctx_opts o = {.threads = 1, .memory_limit = 1 << 24, .seed = (uint64_t)cfg->seed};
    assert_int_equal(tp_ctx_new(&r->c, &o), 0);
}

static void end(rig *r, tried *n, long at, long heap) {
    r->scene->close(r);
    tp_ctx_free(r->c);
    if (on_heap != heap) wrong(n, r, at, "%ld blocks are left on the heap", on_heap - heap);
    free(r->kept);
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
    if (tp_memory_used(r.c) != used)
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

static tried try(const scene *s) {
    tried n = {0};
    tp_config cfg = config(s->keys);
    undisturbed(s, &cfg, &n); /* libraries take what they keep */
    memset(n.wrong, 0, sizeof n.wrong);
    outcome want = undisturbed(s, &cfg, &n);
    for (long at = 1; !*n.wrong && open_without(s, &cfg, at, &n); at++) n.open++;
    for (long at = 1; !*n.wrong && work_without(s, &cfg, &want, at, &n); at++) n.work++;
    return n;
}

/* ---- the scenes ------------------------------------------------------------------------------ */
#define SMALL                                                                                      \
    "tiny.yaml model.vocab=24 model.context=8 model.channels=8 model.heads=2 train.batch=3 "       \
    "train.max_grad_norm=0.1 "
#define GPT2 SMALL "model.family=gpt2 model.heads=1 model.dropout=0.1 train.micro_batches=3"
#define LLAMA                                                                                      \
    SMALL "model.layers=2 model.kv_heads=1 model.qk_norm=true train.optimizer=muon "               \
          "train.z_loss=0.001 model.activation_checkpointing=true"
#define ROUTED SMALL "model.layers=2 mod.capacity=0.5 mod.every=2 train.optimizer_state_dtype=bf16"
#define IN_BWD                                                                                     \
    SMALL "model.family=gpt2 train.max_grad_norm=0 train.optimizer_in_bwd=true "                   \
          "train.optimizer=sgd train.momentum=0.9"
#define REWARDED                                                                                   \
    "grpo.yaml model.layers=1 model.channels=8 model.context=32 rl.task_max=5 "                    \
    "rl.num_generations=4 rl.max_completion_length=4 "
#define GRPO                                                                                       \
    REWARDED                                                                                       \
    "model.family=gpt2 model.heads=1 rl.prompts_per_step=1 rl.beta=0.1 rl.entropy_coef=0.01"
#define PACKED                                                                                     \
    REWARDED "model.heads=2 rl.prompts_per_step=2 rl.share_prompts=true rl.top_p=0.9 "             \
             "rl.dynamic_sampling=true rl.max_draws=2 rl.entropy_coef=0.01"

typedef struct expected {
    scene s;
    long open, work; /* allocations, at least */
    bool moves;      /* the weights */
} expected;

static void test_scenes(void **state) {
    static const expected all[] = {
        {{"a step of GPT-2", GPT2, open_trainer, train, close_trainer}, 150, 500, true},
        {{"a step of Llama, Muon", LLAMA, open_trainer, train, close_trainer}, 150, 500, true},
        {{"a step with routed blocks", ROUTED, open_trainer, train, close_trainer}, 150, 500, true},
        {{"a step that moves early", IN_BWD, open_trainer, train, close_trainer}, 100, 200, true},
        {{"an evaluation", ROUTED, open_trainer, evaluate, close_trainer}, 150, 200, false},
        {{"a checkpoint", GPT2, open_trainer, checkpoint, close_trainer}, 150, 10, false},
        {{"a step of GRPO", GRPO, open_grpo, reinforce, close_grpo}, 250, 500, true},
        {{"GRPO with shared prompts", PACKED, open_grpo, reinforce, close_grpo}, 250, 500, true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const expected *e = &all[i];
        tried n = try(&e->s);
        print_message("%-26s %4ld allocations failed while opening, %4ld at work, of these %3ld "
                      "after weights were moved\n",
                      e->s.name, n.open, n.work, n.moved);
        if (*n.wrong) fail_msg("%s", n.wrong);
        assert_true(!n.moved == !e->moves);
        assert_true(n.open >= e->open && n.work >= e->work);
    }
}

/* ---- mutants --------------------------------------------------------------------------------- */
static tp_tensor *honest(void *arg, tp_ctx *c, tp_model *m, const tp_batch *b) {
    rig *r = arg;
    (void)c, (void)m;
    return tp_trainer_loss(r->t, b, r->cfg.train.batch * r->cfg.model.context).loss;
}

static tp_tensor *swallows(void *arg, tp_ctx *c, tp_model *m, const tp_batch *b) {
    void *room = tp_malloc(c, 64);
    tp_clear(c);
    tp_free(room);
    return honest(arg, c, m, b);
}

static tp_tensor *keeps_a_tensor(void *arg, tp_ctx *c, tp_model *m, const tp_batch *b) {
    tp_tensor *x = tp_tensor_new(c, TP_F32, TP_SHAPE(16)), *y = honest(arg, c, m, b);
    if (x && !y) tp_storage_retain(x->storage);
    return y;
}

static tp_tensor *remembers(void *arg, tp_ctx *c, tp_model *m, const tp_batch *b) {
    tp_tensor *y = honest(arg, c, m, b);
    rig *r = arg;
    if (!y) r->failed = true;
    return r->failed ? tp_scale(c, y, 2, 0) : y;
}

#if !defined(UNCOUNTED)
static tp_tensor *keeps_a_block(void *arg, tp_ctx *c, tp_model *m, const tp_batch *b) {
    rig *r = arg;
    tp_tensor *y = honest(arg, c, m, b);
    if (!y) r->kept = malloc(64);
    return y;
}
#endif

static void test_mutants(void **state) {
    (void)state;
    static const struct {
        loss_fn loss;
        const char *told; /* NULL: it is none */
    } all[] = {
        {honest, NULL},
        {swallows, "answered ok"},
        {keeps_a_tensor, "of the pool are in use"},
        {remembers, "has other bits"},
#if !defined(UNCOUNTED)
        {keeps_a_block, "1 blocks are left on the heap"},
#endif
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        scene s = {"a mutant", GPT2, open_trainer, train, close_trainer, all[i].loss};
        tried n = try(&s);
        if (!all[i].told && *n.wrong) fail_msg("%s", n.wrong);
        if (all[i].told && !strstr(n.wrong, all[i].told))
            fail_msg("wanted \"%s\", got \"%s\"", all[i].told, n.wrong);
    }
}

/* ---- address space --------------------------------------------------------------------------- */
/* Where a process may have 1 GB more and a little, is there room for 64 MB beside the pool? The
 * mutant takes all that it can get. */
static bool room_beside_the_pool(bool mutant) {
    const size_t pool = (size_t)1 << 30, other = (size_t)64 << 20, little = (size_t)8 << 20;
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (!pid) {
        long pages = 0;
        FILE *f = fopen("/proc/self/statm", "r");
        if (!f || fscanf(f, "%ld", &pages) != 1) _exit(2);
        fclose(f);
        struct rlimit r = {.rlim_max = RLIM_INFINITY};
        r.rlim_cur = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + pool + little;
        tp_ctx *c;
        int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        if (setrlimit(RLIMIT_AS, &r)) _exit(2);
        if (mutant ? mmap(NULL, pool, PROT_NONE, how, -1, 0) == MAP_FAILED
                   : tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1, .memory_limit = pool}) != TP_OK)
            _exit(2);
        _exit(mmap(NULL, other, PROT_NONE, how, -1, 0) == MAP_FAILED);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) < 2);
    return WEXITSTATUS(status) == 0;
}

static void test_address_space(void **state) {
    (void)state;
    assert_true(room_beside_the_pool(false));
    assert_false(room_beside_the_pool(true));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scenes),
        cmocka_unit_test(test_mutants),
        cmocka_unit_test(test_address_space),
    };
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    if (!mkdtemp(dir)) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(dir);
    return failed;
}
