/* Owns what the families share: the model's life, the embedding, the walk over blocks, head and
 * loss. */
#include "autograd/autograd.h"
#include "nn/model.h"
#include "ops/add/add.h"
#include "ops/cast/cast.h"
#include "ops/dropout/dropout.h"
#include "ops/embedding/embedding.h"
#include "ops/fill/fill.h"
#include "ops/layernorm/layernorm.h"
#include "ops/linear_cross_entropy/linear_cross_entropy.h"
#include "ops/matmul/matmul.h"
#include "ops/rmsnorm/rmsnorm.h"
#include "ops/scale/scale.h"
#include "ops/slice/slice.h"
#include "ops/sum/sum.h"
#include "ops/tanh/tanh.h"
#include "ops/token_logprob/token_logprob.h"
#include <string.h>

/* ---- life ----------------------------------------------------------------------------------- */
static tp_status check(tp_ctx *c, const tp_model_cfg *f) {
    const struct {
        const char *name;
        int64_t v;
    } positive[] = {{"layers", f->layers},     {"heads", f->heads},       {"kv_heads", f->kv_heads},
                    {"channels", f->channels}, {"head_dim", f->head_dim}, {"ffn", f->ffn},
                    {"context", f->context},   {"vocab", f->vocab}};
    for (size_t i = 0; i < sizeof positive / sizeof *positive; i++)
        if (positive[i].v < 1 || positive[i].v > INT32_MAX)
            return tp_fail(c, TP_EARG, "model.%s must be between 1 and %d, got %lld",
                           positive[i].name, INT32_MAX, (long long)positive[i].v);
    if (f->dtype != TP_F32 && f->dtype != TP_F64)
        return tp_fail(c, TP_EDTYPE, "a model's weights are f32 or f64, got %s",
                       tp_dtype_name(f->dtype));
    if (f->heads % f->kv_heads)
        return tp_fail(c, TP_EARG, "model.heads (%lld) must be a multiple of model.kv_heads (%lld)",
                       (long long)f->heads, (long long)f->kv_heads);
    if (f->family == TP_FAMILY_GPT2 && f->heads != f->kv_heads)
        return tp_fail(c, TP_EARG,
                       "model.kv_heads: GPT-2 has as many key heads as heads; use family: llama");
    if (f->family == TP_FAMILY_LLAMA && f->head_dim % 2)
        return tp_fail(c, TP_EARG, "model.head_dim must be even for rope, got %lld",
                       (long long)f->head_dim);
    if (!(f->mod.capacity >= 0 && f->mod.capacity <= 1) ||
        (f->mod.capacity > 0 && f->mod.every < 1))
        return tp_fail(c, TP_EARG,
                       "mod.capacity must be 0 to 1 and mod.every at least 1, got %g and %lld",
                       f->mod.capacity, (long long)f->mod.every);
    if (f->lora.r < 0 || f->lora.r > INT32_MAX || (f->lora.r && !(f->lora.alpha > 0)))
        return tp_fail(c, TP_EARG,
                       "lora.r must be 0 to %d and lora.lora_alpha positive, got %lld and %g",
                       INT32_MAX, (long long)f->lora.r, f->lora.alpha);
    if (f->mod.capacity > 0 && f->sliding_window)
        return tp_fail(c, TP_EARG,
                       "model.sliding_window does not go with mod.capacity: a routed block sees "
                       "its own tokens only, and a window over those would be another distance");
    return TP_OK;
}

/* The part of the table that is trained, in its order. */
static tp_status find_trained(tp_ctx *c, tp_model *m) {
    tp_params *t = &m->trained;
    if (!m->cfg.lora.r) return TP_OK;
    if (!(t->p = tp_calloc(c, (size_t)m->params.n, sizeof *t->p))) return c->status;
    t->cap = m->params.n;
    for (int i = 0; i < m->params.n; i++)
        if (m->params.p[i].t->requires_grad) t->p[t->n++] = m->params.p[i];
    return TP_OK;
}

tp_status tp_model_new(tp_model **out, tp_ctx *c, const tp_model_cfg *cfg) {
    *out = NULL;
    if (c->status) return c->status;
    tp_status st = check(c, cfg);
    if (st) return st;
    tp_model *m = tp_calloc(c, 1, sizeof *m);
    if (!m) return c->status;
    m->cfg = *cfg;
    if (!(m->block = tp_calloc(c, (size_t)cfg->layers, sizeof *m->block))) goto failed;
    bool llama = cfg->family == TP_FAMILY_LLAMA;
    if (llama ? tp_llama_params(c, m) : tp_gpt2_params(c, m)) goto failed;
    m->head = m->wte;
    if (!cfg->tie_embeddings) {
        tp_param_spec head = {
            .ndim = 2, .shape = {cfg->vocab, cfg->channels}, .flags = TP_P_HEAD, .out_first = true};
        if (!(m->head = tp_model_add(c, m, &head, "lm_head.weight"))) goto failed;
    }
    if (find_trained(c, m)) goto failed;
    *out = m;
    return TP_OK;
failed:
    tp_model_free(m);
    return c->status;
}

/* The parameter of m that stands where `w` does in `of`. */
static tp_tensor *twin(const tp_model *m, const tp_model *of, const tp_tensor *w) {
    int at = tp_params_find(&of->params, w, of->params.n - 1);
    return at < 0 ? NULL : m->params.p[at].t;
}

static tp_tensor *copy_of(tp_ctx *c, const tp_tensor *t) {
    tp_tensor *own = tp_tensor_keep(c, t->dtype, t->ndim, t->shape);
    size_t bytes = (size_t)tp_numel(t) * tp_dtype_size(t->dtype);
    if (own && t->data && tp_copy_bytes(c, own->data, t->data, bytes)) return NULL;
    return own;
}

/* own: copies of what is trained. */
static tp_status share_params(tp_model *m, tp_ctx *c, const tp_model *of, bool own) {
    int n = of->params.n;
    m->params.p = tp_calloc(c, (size_t)n, sizeof *m->params.p);
    if (!m->params.p) return c->status;
    for (m->params.cap = n; m->params.n < n; m->params.n++) {
        tp_param *p = &m->params.p[m->params.n];
        *p = of->params.p[m->params.n];
        bool requires_grad = p->t->requires_grad;
        p->t = own && requires_grad ? copy_of(c, p->t) : tp_tensor_borrow(c, p->t);
        if (p->t) p->t->requires_grad = requires_grad;
        p->name = p->t ? tp_strdup(c, p->name) : NULL;
        if (!p->name) return c->status;
        p->t->name = p->name;
    }
    return TP_OK;
}

static tp_status share(tp_model **out, tp_ctx *c, const tp_model *of, bool own) {
    *out = NULL;
    size_t layers = (size_t)of->cfg.layers, each = sizeof(tp_block) / sizeof(tp_tensor *);
    tp_model *m = tp_calloc(c, 1, sizeof *m);
    if (!m) return c->status;
    m->cfg = of->cfg;
    m->block = tp_calloc(c, layers, sizeof *m->block);
    if (!m->block || share_params(m, c, of, own) || find_trained(c, m)) {
        tp_model_free(m);
        return c->status;
    }
    tp_tensor **to = (tp_tensor **)m->block;
    tp_tensor *const *from = (tp_tensor *const *)of->block;
    for (size_t i = 0; i < layers * each; i++) to[i] = twin(m, of, from[i]);
    m->wte = twin(m, of, of->wte);
    m->wpe = twin(m, of, of->wpe);
    m->final_norm = twin(m, of, of->final_norm);
    m->final_norm_bias = twin(m, of, of->final_norm_bias);
    m->head = twin(m, of, of->head);
    *out = m;
    return TP_OK;
}

tp_status tp_model_share(tp_model **out, tp_ctx *c, const tp_model *of) {
    return share(out, c, of, false);
}

tp_status tp_lora_beside(tp_model **out, tp_ctx *c, const tp_model *of) {
    return share(out, c, of, true);
}

void tp_model_free(tp_model *m) {
    if (!m) return;
    for (int i = 0; i < m->params.n; i++) {
        m->params.p[i].t->name = NULL; /* the tensor lives as long as the ctx, its name does not */
        tp_free((void *)(uintptr_t)m->params.p[i].name);
    }
    tp_free(m->params.p);
    tp_free(m->trained.p);
    tp_free(m->block);
    tp_free(m);
}

const tp_model_cfg *tp_model_config(const tp_model *m) { return &m->cfg; }
tp_params *tp_model_params(tp_model *m) { return &m->params; }
tp_params *tp_model_trainable(tp_model *m) { return m->cfg.lora.r ? &m->trained : &m->params; }

const tp_param *tp_model_param(const tp_model *m, const char *name) {
    for (int i = 0; i < m->params.n; i++)
        if (!strcmp(m->params.p[i].name, name)) return &m->params.p[i];
    return NULL;
}

int64_t tp_model_numel(const tp_model *m) {
    int64_t n = 0;
    for (int i = 0; i < m->params.n; i++) n += tp_numel(m->params.p[i].t);
    return n;
}

/* ---- forward -------------------------------------------------------------------------------- */
tp_tensor *tp_weight(tp_ctx *c, const tp_model *m, tp_tensor *w) {
    return w && m->cfg.compute == TP_BF16 ? tp_cast(c, w, TP_BF16) : w;
}

tp_tensor *tp_stream_norm(tp_ctx *c, const tp_model *m, tp_stream *x, tp_tensor *weight,
                          tp_tensor *bias) {
    const tp_model_cfg *f = &m->cfg;
    weight = tp_weight(c, m, weight);
    bias = tp_weight(c, m, bias);
    bool llama = f->family == TP_FAMILY_LLAMA;
    tp_tensor *a = x->branch, *s = x->sum;
    x->branch = NULL;
    if (!a)
        return llama ? tp_rmsnorm(c, s, weight, f->norm_eps)
                     : tp_layernorm(c, s, weight, bias, f->norm_eps);
    return llama ? tp_add_rmsnorm(c, a, s, weight, f->norm_eps, &x->sum)
                 : tp_add_layernorm(c, a, s, weight, bias, f->norm_eps, &x->sum);
}

static tp_tensor *embed(tp_ctx *c, tp_model *m, const tp_model_in *in) {
    tp_scope s = tp_scope_open(c, "embed");
    tp_tensor *x = tp_embedding(c, in->ids, m->wte); /* (B,T,C) */
    if (m->wpe) {
        tp_tensor *pos = in->positions ? tp_embedding(c, in->positions, m->wpe)
                                       : tp_slice(c, m->wpe, 0, 0, tp_dim(in->ids, -1));
        x = tp_add(c, x, pos);
    }
    if (m->cfg.compute == TP_BF16) x = tp_cast(c, x, TP_BF16);
    if (in->training && m->cfg.dropout > 0) x = tp_dropout(c, x, m->cfg.dropout);
    return tp_scope_close(c, s, x);
}

tp_model_in tp_stage_in(const tp_stage *s, tp_tensor *const in[]) {
    return (tp_model_in){.training = s->training,
                         .positions = s->positions ? in[1] : NULL,
                         .segments = s->segments ? in[s->positions ? 2 : 1] : NULL};
}

tp_tensor *tp_block_again(tp_ctx *c, tp_model *m, int layer, tp_fn fn, tp_tensor *x,
                          const tp_model_in *in) {
    tp_stage *s = tp_arena_alloc(c, sizeof *s);
    if (!s) return NULL;
    *s = (tp_stage){m, layer, in->training, in->positions != NULL, in->segments != NULL};
    tp_tensor *inputs[3] = {x};
    int n = 1;
    if (in->positions) inputs[n++] = in->positions;
    if (in->segments) inputs[n++] = in->segments;
    return tp_checkpoint(c, fn, s, inputs, n);
}

/* The function that a checkpointed block replays: the branch is added at its end, so that one
 * tensor leaves it. Addition and norm give the same bits fused or not. */
static tp_tensor *block_alone(tp_ctx *c, void *arg, tp_tensor *const in[], int nin) {
    (void)nin;
    const tp_stage *s = arg;
    tp_model_in with = tp_stage_in(s, in);
    tp_stream x = tp_block_forward(c, s->m, s->layer, (tp_stream){in[0], NULL}, &with);
    return tp_add(c, x.branch, x.sum);
}

/* x.branch is NULL before and after a block that is computed again. */
static tp_stream block(tp_ctx *c, tp_model *m, int layer, tp_stream x, const tp_model_in *in,
                       tp_mod_sums *sums) {
    if (tp_mod_routed(&m->cfg, layer)) return tp_mod_forward(c, m, layer, x, in, sums);
    if (m->cfg.activation_checkpointing && !in->attend)
        return (tp_stream){tp_block_again(c, m, layer, block_alone, x.sum, in), NULL};
    return tp_block_forward(c, m, layer, x, in);
}

static bool check_inputs(tp_ctx *c, const tp_model *m, const tp_model_in *in) {
    if (c->status) return false;
    const tp_tensor *ids = in->ids;
    if (!ids || ids->dtype != TP_I32 || ids->ndim != 2) {
        tp_fail(c, TP_ESHAPE, "model: ids must be i32 (B,T), got %s",
                ids ? tp_shape_str(c, ids) : "nothing");
        return false;
    }
    if (ids->shape[1] > m->cfg.context && !in->attend) { /* else positions say where they are */
        tp_fail(c, TP_ESHAPE, "model: %lld tokens do not fit into a context of %lld",
                (long long)ids->shape[1], (long long)m->cfg.context);
        return false;
    }
    if (in->attend && in->mode == TP_MOD_TOP_K && tp_mod_blocks(&m->cfg)) {
        tp_fail(c, TP_EARG,
                "model: while text is decoded, routed blocks need causal decisions: the highest of "
                "the tokens at hand are not the highest of the row");
        return false;
    }
    return true;
}

static tp_tensor *hidden(tp_ctx *c, tp_model *m, const tp_model_in *in, tp_mod_sums *sums) {
    if (!check_inputs(c, m, in)) return NULL;
    tp_scope s = tp_scope_open(c, "%s", "");
    tp_stream x = {embed(c, m, in), NULL};
    for (int i = 0; i < m->cfg.layers && x.sum; i++) {
        tp_scope b = tp_scope_open(c, "blk%d", i);
        x = block(c, m, i, x, in, sums);
        tp_scope_close_n(c, b, (tp_tensor *const[]){x.sum, x.branch, sums->aux, sums->route}, 4);
    }
    tp_scope n = tp_scope_open(c, "norm");
    tp_tensor *y = tp_stream_norm(c, m, &x, m->final_norm, m->final_norm_bias);
    y = tp_scope_close(c, n, y);
    tp_scope_close_n(c, s, (tp_tensor *const[]){y, sums->aux, sums->route}, 3);
    return y;
}

tp_tensor *tp_model_hidden(tp_ctx *c, tp_model *m, const tp_model_in *in) {
    tp_mod_sums none = {0};
    return hidden(c, m, in, &none);
}

static tp_tensor *head(tp_ctx *c, const tp_model *m, tp_tensor *hidden) {
    return tp_matmul(c, hidden, tp_weight(c, m, m->head),
                     &(tp_matmul_opts){.trans_b = true, .f32 = true});
}

tp_tensor *tp_model_head(tp_ctx *c, tp_model *m, tp_tensor *hidden) {
    tp_scope s = tp_scope_open(c, "head");
    return tp_scope_close(c, s, head(c, m, hidden));
}

tp_tensor *tp_model_logits(tp_ctx *c, tp_model *m, tp_tensor *hidden) {
    tp_scope s = tp_scope_open(c, "head");
    tp_tensor *y = head(c, m, hidden);
    double cap = m->cfg.logit_softcap;
    if (cap > 0) y = tp_scale(c, tp_tanh(c, tp_scale(c, y, 1 / cap, 0)), cap, 0);
    return tp_scope_close(c, s, y);
}

tp_model_out tp_model_loss(tp_ctx *c, tp_model *m, const tp_model_in *in, tp_tensor *targets,
                           const tp_model_loss_opts *o) {
    tp_model_out out = {0};
    tp_mod_sums sums = {.aux_scale = o->aux_scale};
    tp_tensor *x = hidden(c, m, in, &sums);
    if (!x) return out;
    tp_scope s = tp_scope_open(c, "loss");
    tp_tensor *head = tp_weight(c, m, m->head);
    tp_lce_opts lo = {.softcap = m->cfg.logit_softcap, .z_loss = o->z_loss, .chunk = o->chunk};
    if (o->gradient) {
        tp_tensor *coef = tp_full(c, x->dtype == TP_F64 ? TP_F64 : TP_F32, o->scale, targets->ndim,
                                  targets->shape);
        tp_lce_sum r = tp_linear_cross_entropy_train(c, x, head, targets, coef, &lo);
        out = (tp_model_out){r.loss, r.logprob, r.entropy, sums.aux, sums.route};
    } else {
        tp_lce r = tp_linear_cross_entropy(c, x, head, targets, &lo);
        tp_tensor *sum = tp_scale(c, tp_sum(c, r.loss, TP_ALL_DIMS, false), o->scale, 0);
        out = (tp_model_out){sum, r.logprob, r.entropy, sums.aux, sums.route};
    }
    tp_scope_close_n(c, s, (tp_tensor *const[]){out.loss, out.logprob, out.entropy}, 3);
    if (c->status) out = (tp_model_out){0};
    return out;
}

tp_model_out tp_model_logprob(tp_ctx *c, tp_model *m, const tp_model_in *in, tp_tensor *targets,
                              const tp_model_logprob_opts *o) {
    tp_model_out out = {0};
    tp_tensor *x = tp_model_hidden(c, m, in);
    if (!x) return out;
    tp_scope s = tp_scope_open(c, "loss");
    double cap = m->cfg.logit_softcap;
    if (o->set) {
        tp_token_logprob_opts with = {cap, o->temperature, o->set};
        tp_token_logprob_out r = tp_token_logprob(c, head(c, m, x), targets, &with);
        out = (tp_model_out){NULL, r.logprob, r.entropy};
    } else {
        tp_lce_opts with = {.softcap = cap, .temperature = o->temperature};
        tp_lce r = tp_linear_cross_entropy(c, x, tp_weight(c, m, m->head), targets, &with);
        out = (tp_model_out){NULL, r.logprob, r.entropy};
    }
    tp_scope_close_n(c, s, (tp_tensor *const[]){out.logprob, out.entropy}, 2);
    if (c->status) out = (tp_model_out){0};
    return out;
}
