/* Owns LoRA's adapters: which matrices have one, how it begins, and how it becomes part of its
 * matrix. The forward pass is block.c's. */
#include "nn/lora.h"
#include "nn/model.h"
#include <math.h>
#include <string.h>

/* ---- which matrices ------------------------------------------------------------------------- */
static const char *const of_gpt2[] = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", NULL};
static const char *const of_llama[] = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj",    NULL};

static const char *const *matrices(const tp_model_cfg *f) {
    return f->family == TP_FAMILY_LLAMA ? of_llama : of_gpt2;
}

/* Whether the n bytes at `end` are the path, or its end from a dot on. */
static bool ends_with(const char *path, const char *end, size_t n) {
    size_t all = strlen(path);
    return n && n <= all && !memcmp(path + all - n, end, n) &&
           (n == all || path[all - n - 1] == '.');
}

static unsigned named(const tp_model_cfg *f, const char *name, size_t n) {
    unsigned found = 0;
    for (int i = 0; matrices(f)[i]; i++)
        if (ends_with(matrices(f)[i], name, n)) found |= 1u << i;
    return found;
}

static tp_status no_matrix(tp_ctx *c, const tp_model_cfg *f, const char *name, size_t n) {
    bool llama = f->family == TP_FAMILY_LLAMA;
    return tp_fail(c, TP_EARG,
                   "lora.target_modules: \"%.*s\" is no matrix of a block of family %s; say "
                   "all-linear, or some of %s",
                   (int)(n < 64 ? n : 64), name, llama ? "llama" : "gpt2",
                   llama ? "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
                         : "c_attn, attn.c_proj, c_fc, mlp.c_proj (c_proj: both of that name)");
}

tp_status tp_lora_targets(tp_ctx *c, tp_model_cfg *cfg, const char *names) {
    cfg->lora.targets = 0;
    if (!strcmp(names, "all-linear")) return TP_OK;
    for (const char *at = names;; at++) {
        at += strspn(at, " ");
        size_t all = strcspn(at, ","), n = all;
        while (n && at[n - 1] == ' ') n--;
        unsigned found = named(cfg, at, n);
        if (!found) return no_matrix(c, cfg, at, n);
        cfg->lora.targets |= found;
        if (!*(at += all)) return TP_OK;
    }
}

static bool has_one(const tp_model_cfg *f, const char *weight) {
    unsigned targets = f->lora.targets ? f->lora.targets : ~0u;
    for (int i = 0; matrices(f)[i]; i++)
        if ((targets >> i & 1) && strstr(weight, matrices(f)[i])) return true;
    return false;
}

/* ---- parameters ----------------------------------------------------------------------------- */
/* In one layout for both families. Not TP_P_MATRIX: Muon evens out the singular values of a
 * matrix's update, and the matrix here is B A, which neither factor is. */
static void adapt(tp_ctx *c, tp_model *m, tp_linear *l) {
    bool out_first = m->cfg.family == TP_FAMILY_LLAMA;
    int64_t r = m->cfg.lora.r, in = l->w->shape[out_first], out = l->w->shape[!out_first];
    int module = (int)(strlen(l->w->name) - strlen("weight"));
    tp_param_spec a = {.ndim = 2, .shape = {r, in}, .init = TP_INIT_LORA, .out_first = true};
    tp_param_spec b = {.ndim = 2, .shape = {out, r}, .init = TP_INIT_ZERO, .out_first = true};
    a.flags = b.flags = TP_P_LORA;
    l->a = tp_model_add(c, m, &a, "%.*slora_A.weight", module, l->w->name);
    l->b = tp_model_add(c, m, &b, "%.*slora_B.weight", module, l->w->name);
}

tp_status tp_lora_params(tp_ctx *c, tp_model *m, int layer) {
    tp_block *b = &m->block[layer];
    tp_linear *all[] = {&b->qkv, &b->q, &b->k, &b->v, &b->proj, &b->fc, &b->gate, &b->up, &b->down};
    for (size_t i = 0; i < sizeof all / sizeof *all && m->cfg.lora.r && !c->status; i++)
        if (all[i]->w && has_one(&m->cfg, all[i]->w->name)) adapt(c, m, all[i]);
    return c->status;
}

double tp_lora_scale(const tp_lora_cfg *f) {
    double r = (double)f->r;
    return f->alpha / (f->rslora ? sqrt(r) : r);
}

/* ---- merging -------------------------------------------------------------------------------- */
typedef struct merge_job {
    float *w;
    const float *a, *b;
    const tp_lora_merge_opts *o;
} merge_job;

enum { RUN = 64 }; /* sums at a time, in registers */

static void merge_rows(void *arg, int64_t begin, int64_t end) { /* rows of B */
    const merge_job *j = arg;
    const tp_lora_merge_opts *o = j->o;
    for (int64_t y = begin; y < end; y++)
        for (int64_t x = 0; x < o->in; x += RUN) {
            int64_t n = o->in - x < RUN ? o->in - x : RUN;
            double sum[RUN] = {0};
            for (int64_t k = 0; k < o->r; k++)
                for (int64_t i = 0; i < n; i++)
                    sum[i] += (double)j->b[y * o->r + k] * (double)j->a[k * o->in + x + i];
            for (int64_t i = 0; i < n; i++) {
                float *w = j->w + (o->out_first ? y * o->in + x + i : (x + i) * o->out + y);
                *w = (float)((double)*w + o->scale * sum[i]);
            }
        }
}

void tp_lora_merge(tp_ctx *c, float *w, const float *a, const float *b,
                   const tp_lora_merge_opts *o) {
    merge_job j = {w, a, b, o};
    tp_parallel_for(c, o->out, 1, merge_rows, &j);
}
