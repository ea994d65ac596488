/* Owns the parameter table: which parameters a family has, their names, and how they begin. */
#include "nn/model.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct init_job {
    void *to; /* the host's; a GPU's tensor gets it in one piece */
    tp_dtype dtype;
    double std;
    uint64_t seed, name;
    int64_t n;
} init_job;

/* A model in f64 begins with the f32 model's values. */
static void put(const init_job *j, int64_t i, double v) {
    if (j->dtype == TP_F64)
        ((double *)j->to)[i] = (float)v;
    else
        ((float *)j->to)[i] = (float)v;
}

/* Two normals a call of Philox, by Box and Muller. */
static void init_range(void *arg, int64_t begin, int64_t end) {
    const init_job *j = arg;
    for (int64_t i = begin; i < end; i++) {
        uint32_t w[4];
        tp_philox(w, j->seed, TP_RNG_INIT, j->name, (uint64_t)i);
        double u = ((double)(((uint64_t)w[0] << 21) ^ (w[1] >> 11)) + 0.5) * 0x1p-53;
        double v = ((double)(((uint64_t)w[2] << 21) ^ (w[3] >> 11)) + 0.5) * 0x1p-53;
        double r = j->std * sqrt(-2 * log(u)), a = 6.283185307179586476925286766559 * v;
        put(j, 2 * i, r * cos(a));
        if (2 * i + 1 < j->n) put(j, 2 * i + 1, r * sin(a));
    }
}

static uint64_t hash_name(const char *s) /* FNV-1a */
{
    uint64_t h = 14695981039346656037u;
    for (; *s; s++) h = (h ^ (unsigned char)*s) * 1099511628211u;
    return h;
}

/* LoRA's A is Gaussian as in the paper, with the variance of peft's uniform numbers, 1/(3 in), so
 * that learning rates which are known for those serve here. */
static double std_of(const tp_model *m, tp_init kind, const tp_tensor *t) {
    if (kind == TP_INIT_LORA) return 1 / sqrt(3.0 * (double)t->shape[1]);
    return m->cfg.init_std / (kind == TP_INIT_RESIDUAL ? sqrt(2.0 * (double)m->cfg.layers) : 1);
}

static void init_values(tp_ctx *c, tp_init kind, init_job *j) {
    if (kind == TP_INIT_ZERO || kind == TP_INIT_ONE)
        for (int64_t i = 0; i < j->n; i++) put(j, i, kind == TP_INIT_ONE);
    else
        tp_parallel_for(c, (j->n + 1) / 2, 1 << 14, init_range, j);
}

static tp_status init(tp_ctx *c, const tp_model *m, tp_init kind, tp_tensor *t) {
    init_job j = {.to = t->data,
                  .dtype = t->dtype,
                  .std = std_of(m, kind, t),
                  .seed = c->seed,
                  .name = hash_name(t->name),
                  .n = tp_numel(t)};
    if (!t->data) return TP_OK;
    void *host = NULL;
    if (c->backend && !(j.to = host = tp_malloc(c, (size_t)j.n * tp_dtype_size(t->dtype))))
        return c->status;
    init_values(c, kind, &j);
    tp_status st = host ? tp_upload(c, t, host) : TP_OK;
    tp_free(host);
    return st;
}

int tp_params_find(const tp_params *p, const tp_tensor *t, int begin) {
    for (int i = 0; i < p->n; i++) {
        int at = (begin - i + p->n) % p->n;
        if (p->p[at].t == t) return at;
    }
    return -1;
}

tp_tensor *tp_model_add(tp_ctx *c, tp_model *m, const tp_param_spec *s, const char *fmt, ...) {
    if (c->status) return NULL;
    char name[128];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    if (m->params.n == m->params.cap) {
        int cap = m->params.cap ? 2 * m->params.cap : 64;
        tp_param *grown = tp_realloc(c, m->params.p, (size_t)cap * sizeof *grown);
        if (!grown) return NULL;
        m->params.p = grown;
        m->params.cap = cap;
    }
    tp_tensor *t = tp_tensor_keep(c, m->cfg.dtype, s->ndim, s->shape);
    char *kept = t ? tp_strdup(c, name) : NULL;
    if (!kept) return NULL;
    t->name = kept;
    /* beside LoRA's adapters, routers learn on: what they choose by is what adapters change */
    t->requires_grad = !m->cfg.lora.r || (s->flags & (TP_P_LORA | TP_P_ROUTE));
    unsigned flags = s->flags | (s->ndim > 1 ? TP_P_DECAY : 0);
    m->params.p[m->params.n++] =
        (tp_param){kept, t, flags, s->blocks ? s->blocks : 1, s->out_first};
    const bool open = m->cfg.to_be_loaded && !(s->flags & TP_P_LORA);
    return !open && init(c, m, s->init, t) ? NULL : t;
}

/* ---- shapes, short -------------------------------------------------------------------------- */
static tp_param_spec matrix(int64_t rows, int64_t cols, tp_init init, bool out_first) {
    return (tp_param_spec){.ndim = 2,
                           .shape = {rows, cols},
                           .init = init,
                           .flags = TP_P_MATRIX,
                           .out_first = out_first};
}
static tp_param_spec table(int64_t rows, int64_t cols, unsigned flag) {
    return (tp_param_spec){
        .ndim = 2, .shape = {rows, cols}, .init = TP_INIT_NORMAL, .flags = flag, .out_first = true};
}
static tp_param_spec vector(int64_t n, tp_init init) {
    return (tp_param_spec){.ndim = 1, .shape = {n}, .init = init};
}

/* In one layout for both families: (out,in). Vectors do not decay. */
tp_status tp_mod_params(tp_ctx *c, tp_model *m, int layer, const char *prefix) {
    const tp_mod_cfg *f = &m->cfg.mod;
    int64_t C = m->cfg.channels, h = f->predictor_channels ? f->predictor_channels : (C + 7) / 8;
    tp_block *b = &m->block[layer];
    tp_param_spec router = vector(C, TP_INIT_NORMAL), zero = vector(1, TP_INIT_ZERO);
    tp_param_spec one = vector(1, TP_INIT_ONE);
    tp_param_spec look = {.ndim = 2, .shape = {h, C}, .init = TP_INIT_NORMAL, .out_first = true};
    tp_param_spec look_b = vector(h, TP_INIT_ZERO), decide = vector(h, TP_INIT_NORMAL);
    router.flags = zero.flags = one.flags = look.flags = look_b.flags = decide.flags = TP_P_ROUTE;
    if (!tp_mod_routed(&m->cfg, layer)) return c->status;
#define P(member, spec, suffix)                                                                    \
    b->member = tp_model_add(c, m, &spec, "%s.%d.mod." suffix, prefix, layer)
    P(router, router, "router.weight");
    if (f->router == TP_MOD_LINEAR && f->causal == TP_MOD_PREDICTOR) {
        P(look, look, "predictor.fc.weight");
        P(look_bias, look_b, "predictor.fc.bias");
        P(decide, decide, "predictor.out.weight");
        P(decide_logit, one, "predictor.out.logit");
        P(decide_bias, zero, "predictor.out.bias");
    }
    if (f->router == TP_MOD_LINEAR && f->causal == TP_MOD_THRESHOLD)
        P(threshold, zero, "threshold");
#undef P
    return c->status;
}

tp_status tp_gpt2_params(tp_ctx *c, tp_model *m) {
    const tp_model_cfg *f = &m->cfg;
    int64_t C = f->channels, A = f->heads * f->head_dim, F = f->ffn;
    tp_param_spec wte = table(f->vocab, C, TP_P_EMBED), wpe = table(f->context, C, TP_P_EMBED);
    tp_param_spec one = vector(C, TP_INIT_ONE), zero = vector(C, TP_INIT_ZERO);
    tp_param_spec qkv = matrix(C, 3 * A, TP_INIT_NORMAL, false),
                  qkv_b = vector(3 * A, TP_INIT_ZERO);
    tp_param_spec proj = matrix(A, C, TP_INIT_RESIDUAL, false);
    tp_param_spec fc = matrix(C, F, TP_INIT_NORMAL, false), fc_b = vector(F, TP_INIT_ZERO);
    tp_param_spec down = matrix(F, C, TP_INIT_RESIDUAL, false);
    qkv.blocks = 3;
    m->wte = tp_model_add(c, m, &wte, "transformer.wte.weight");
    m->wpe = tp_model_add(c, m, &wpe, "transformer.wpe.weight");
    for (int i = 0; i < f->layers; i++) {
        tp_block *b = &m->block[i];
#define P(member, spec, suffix) b->member = tp_model_add(c, m, &spec, "transformer.h.%d." suffix, i)
        P(norm1, one, "ln_1.weight");
        P(norm1_bias, zero, "ln_1.bias");
        P(qkv.w, qkv, "attn.c_attn.weight");
        if (f->attention_bias) P(qkv.bias, qkv_b, "attn.c_attn.bias");
        P(proj.w, proj, "attn.c_proj.weight");
        if (f->attention_bias) P(proj.bias, zero, "attn.c_proj.bias");
        P(norm2, one, "ln_2.weight");
        P(norm2_bias, zero, "ln_2.bias");
        P(fc.w, fc, "mlp.c_fc.weight");
        if (f->mlp_bias) P(fc.bias, fc_b, "mlp.c_fc.bias");
        P(down.w, down, "mlp.c_proj.weight");
        if (f->mlp_bias) P(down.bias, zero, "mlp.c_proj.bias");
#undef P
        tp_lora_params(c, m, i);
        tp_mod_params(c, m, i, "transformer.h");
    }
    m->final_norm = tp_model_add(c, m, &one, "transformer.ln_f.weight");
    m->final_norm_bias = tp_model_add(c, m, &zero, "transformer.ln_f.bias");
    return c->status;
}

tp_status tp_llama_params(tp_ctx *c, tp_model *m) {
    const tp_model_cfg *f = &m->cfg;
    int64_t C = f->channels, D = f->head_dim, A = f->heads * D, K = f->kv_heads * D, F = f->ffn;
    tp_param_spec wte = table(f->vocab, C, TP_P_EMBED), one = vector(C, TP_INIT_ONE);
    tp_param_spec per_head = vector(D, TP_INIT_ONE), zero = vector(C, TP_INIT_ZERO);
    tp_param_spec q = matrix(A, C, TP_INIT_NORMAL, true), q_b = vector(A, TP_INIT_ZERO);
    tp_param_spec kv = matrix(K, C, TP_INIT_NORMAL, true), kv_b = vector(K, TP_INIT_ZERO);
    tp_param_spec o = matrix(C, A, TP_INIT_RESIDUAL, true);
    tp_param_spec in = matrix(F, C, TP_INIT_NORMAL, true), in_b = vector(F, TP_INIT_ZERO);
    tp_param_spec down = matrix(C, F, TP_INIT_RESIDUAL, true);
    m->wte = tp_model_add(c, m, &wte, "model.embed_tokens.weight");
    for (int i = 0; i < f->layers; i++) {
        tp_block *b = &m->block[i];
#define P(member, spec, suffix) b->member = tp_model_add(c, m, &spec, "model.layers.%d." suffix, i)
        P(norm1, one, "input_layernorm.weight");
        P(q.w, q, "self_attn.q_proj.weight");
        P(k.w, kv, "self_attn.k_proj.weight");
        P(v.w, kv, "self_attn.v_proj.weight");
        if (f->attention_bias) {
            P(q.bias, q_b, "self_attn.q_proj.bias");
            P(k.bias, kv_b, "self_attn.k_proj.bias");
            P(v.bias, kv_b, "self_attn.v_proj.bias");
        }
        if (f->qk_norm) {
            P(q_norm, per_head, "self_attn.q_norm.weight");
            P(k_norm, per_head, "self_attn.k_norm.weight");
        }
        P(proj.w, o, "self_attn.o_proj.weight");
        P(norm2, one, "post_attention_layernorm.weight");
        P(gate.w, in, "mlp.gate_proj.weight");
        P(up.w, in, "mlp.up_proj.weight");
        P(down.w, down, "mlp.down_proj.weight");
        if (f->mlp_bias) {
            P(gate.bias, in_b, "mlp.gate_proj.bias");
            P(up.bias, in_b, "mlp.up_proj.bias");
            P(down.bias, zero, "mlp.down_proj.bias");
        }
#undef P
        tp_lora_params(c, m, i);
        tp_mod_params(c, m, i, "model.layers");
    }
    m->final_norm = tp_model_add(c, m, &one, "model.norm.weight");
    return c->status;
}
