/* Steps of training and of GRPO, evaluations and checkpoints with a failure at every allocation
 * (tests/lib/failing.h). Losses that swallow the failure, keep memory after it or remember it must
 * be told apart. And a pool that leaves no address space to others. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "cli/grpo.h"
#include "core/ctx.h"
#include "failing.h"
#include "ops/scale/scale.h"
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[] = "/tmp/tapir-alloc-XXXXXX";

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
    tp_grpo *g = r->more = malloc(sizeof *g);
    assert_non_null(g);
    *g = (tp_grpo){.c = r->c, .cfg = r->cfg, .ranks = 1, .root = true};
    r->t = &g->trainer;
    return tp_grpo_open(g, NULL);
}

static void close_grpo(rig *r) {
    tp_grpo_close(r->more);
    free(r->more);
}

static tp_status reinforce(rig *r, bool again) {
    tp_grpo *g = r->more;
    tp_update u = {0};
    g->next_item = again ? 100 : 0;
    tp_status st = tp_grpo_roll_out(g);
    if (!st) st = tp_grpo_reference(g);
    if (!st) st = tp_grpo_update(g, &u);
    double number[] = {u.loss, u.grad_norm, u.entropy, u.kl};
    memcpy(r->number, number, sizeof number);
    return st;
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
        {{"a step of GPT-2", GPT2, open_trainer, train_step, close_trainer}, 150, 500, true},
        {{"a step of adapters", LLAMA " lora.r=2", open_trainer, train_step, close_trainer},
         200,
         500,
         true},
        {{"a step of Llama, Muon", LLAMA, open_trainer, train_step, close_trainer}, 150, 500, true},
        {{"a step with routed blocks", ROUTED, open_trainer, train_step, close_trainer},
         150,
         500,
         true},
        {{"a step that moves early", IN_BWD, open_trainer, train_step, close_trainer},
         100,
         200,
         true},
        {{"an evaluation", ROUTED, open_trainer, evaluate, close_trainer}, 150, 200, false},
        {{"a checkpoint", GPT2, open_trainer, checkpoint, close_trainer}, 150, 10, false},
        {{"a step of GRPO", GRPO, open_grpo, reinforce, close_grpo}, 250, 500, true},
        {{"GRPO with shared prompts", PACKED, open_grpo, reinforce, close_grpo}, 250, 500, true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const expected *e = &all[i];
        tried n = fail_each(&e->s, 1);
        report_tried(&e->s, &n);
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

static void *kept;
static tp_tensor *keeps_a_block(void *arg, tp_ctx *c, tp_model *m, const tp_batch *b) {
    tp_tensor *y = honest(arg, c, m, b);
    if (!y) kept = malloc(64);
    return y;
}

static void test_mutants(void **state) {
    (void)state;
    static const struct {
        tp_tensor *(*loss)(void *, tp_ctx *, tp_model *, const tp_batch *);
        const char *told; /* NULL: it is none */
    } all[] = {
        {honest, NULL},
        {swallows, "answered ok"},
        {keeps_a_tensor, "of the pool are in use"},
        {remembers, "has other bits"},
        {keeps_a_block, "1 blocks are left on the heap"},
    };
    size_t mutants = sizeof all / sizeof *all - !heap_is_counted;
    for (size_t i = 0; i < mutants; i++) {
        scene s = {"a mutant", GPT2, open_trainer, train_step, close_trainer, all[i].loss};
        tried n = fail_each(&s, 1);
        if (!all[i].told && *n.wrong) fail_msg("%s", n.wrong);
        if (all[i].told && !strstr(n.wrong, all[i].told))
            fail_msg("wanted \"%s\", got \"%s\"", all[i].told, n.wrong);
    }
    free(kept);
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
        struct rlimit r;
        if (getrlimit(RLIMIT_AS, &r)) _exit(2);
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
