/* Owns the training step: micro-batches forward and backward, then one update. */
#include "cli/trainer.h"
#include "autograd/autograd.h"
#include "core/ctx.h"
#include <string.h>

static tp_model_cfg model_config(const tp_config *f) {
    return (tp_model_cfg){
        .family = f->model.family == TP_CFG_LLAMA ? TP_FAMILY_LLAMA : TP_FAMILY_GPT2,
        .layers = f->model.layers,
        .heads = f->model.heads,
        .kv_heads = f->model.kv_heads,
        .channels = f->model.channels,
        .head_dim = f->model.head_dim,
        .ffn = f->model.ffn,
        .context = f->model.context,
        .vocab = f->model.vocab,
        .sliding_window = f->model.sliding_window,
        .rope_theta = f->model.rope_theta,
        .norm_eps = f->model.norm_eps,
        .logit_softcap = f->model.logit_softcap,
        .attn_softcap = f->model.attn_softcap,
        .dropout = f->model.dropout,
        .init_std = f->model.init_std,
        .tie_embeddings = f->model.tie_embeddings,
        .qk_norm = f->model.qk_norm,
        .attention_bias = f->model.attention_bias == TP_CFG_TRUE,
        .mlp_bias = f->model.mlp_bias == TP_CFG_TRUE,
        .activation_checkpointing = f->model.activation_checkpointing,
    };
}

tp_status tp_trainer_model(tp_trainer *t, tp_ctx *c, const tp_config *cfg) {
    *t = (tp_trainer){.c = c, .cfg = *cfg};
    tp_model_cfg m = model_config(cfg);
    return tp_model_new(&t->model, c, &m);
}

static tp_optim_opts optim_options(const tp_config *f) {
    static const tp_optim_kind kind[] = {[TP_CFG_ADAMW] = TP_OPTIM_ADAMW,
                                         [TP_CFG_MUON] = TP_OPTIM_MUON,
                                         [TP_CFG_SGD] = TP_OPTIM_SGD};
    static const tp_schedule schedule[] = {[TP_CFG_COSINE] = TP_COSINE,
                                           [TP_CFG_LINEAR] = TP_LINEAR,
                                           [TP_CFG_WSD] = TP_WSD,
                                           [TP_CFG_CONSTANT] = TP_CONSTANT};
    return (tp_optim_opts){
        .kind = kind[f->train.optimizer],
        .learning_rate = f->train.learning_rate,
        .muon_learning_rate = f->train.muon_learning_rate,
        .adam_beta1 = f->train.adam_beta1,
        .adam_beta2 = f->train.adam_beta2,
        .adam_epsilon = f->train.adam_epsilon,
        .adam_state = f->train.optimizer_state_dtype == TP_CFG_STATE_BF16 ? TP_BF16 : TP_F32,
        .weight_decay = f->train.weight_decay,
        .muon_momentum = f->train.muon_momentum,
        .momentum = f->train.momentum,
        .max_grad_norm = f->train.max_grad_norm,
        .schedule = schedule[f->train.lr_scheduler_type],
        .min_lr_ratio = f->train.min_lr_ratio,
        .steps = f->run.steps,
        .warmup_steps = f->train.warmup_steps,
        .decay_steps = f->train.decay_steps,
        .max_bad_steps = f->train.max_bad_steps,
    };
}

tp_status tp_trainer_new(tp_trainer *t, tp_ctx *c, const tp_config *cfg) {
    tp_status st = tp_trainer_model(t, c, cfg);
    tp_optim_opts o = optim_options(cfg);
    return st ? st : tp_optim_new(&t->optim, c, tp_model_params(t->model), &o);
}

void tp_trainer_clear(tp_trainer *t) {
    tp_optim_free(t->optim);
    tp_model_free(t->model);
    *t = (tp_trainer){0};
}

/* ---- one micro-batch ------------------------------------------------------------------------ */
static tp_tensor *ints(tp_ctx *c, const tp_batch *b, int64_t T, const int32_t *src) {
    tp_tensor *t = tp_tensor_new(c, TP_I32, TP_SHAPE(b->rows, T));
    if (t && t->data) memcpy(t->data, src, (size_t)(b->rows * T) * sizeof *src);
    return t;
}

typedef struct loaded {
    tp_model_in in;
    tp_tensor *targets;
} loaded;

static loaded load(tp_trainer *t, const tp_batch *b, bool training) {
    int64_t T = t->cfg.model.context;
    loaded l = {.in = {.ids = ints(t->c, b, T, b->inputs), .training = training},
                .targets = ints(t->c, b, T, b->targets)};
    if (b->segments) l.in.segments = ints(t->c, b, T, b->segments);
    if (b->positions) l.in.positions = ints(t->c, b, T, b->positions);
    return l;
}

/* In double and in order, so that the sum does not depend on how the batch was split. */
static double sum_nll(const tp_tensor *logprob) {
    double sum = 0;
    for (int64_t i = 0, n = tp_numel(logprob); i < n && logprob->data; i++)
        sum -= tp_f32(logprob)[i];
    return sum;
}

static tp_status micro_batch(tp_trainer *t, const tp_step_in *in, const tp_batch *b, double *nll) {
    tp_ctx *c = t->c;
    tp_rng_at(c, (uint64_t)in->step, (uint64_t)b->sample);
    tp_status st = tp_tape_on(c);
    loaded l = load(t, b, true);
    tp_model_loss_opts o = {
        .z_loss = t->cfg.train.z_loss, .scale = 1.0 / (double)in->targets, .gradient = true};
    tp_model_out y = tp_model_loss(c, t->model, &l.in, l.targets, &o);
    if (y.loss && !st) st = tp_backward(c, y.loss);
    if (!st && y.loss) *nll += sum_nll(y.logprob);
    tp_tape_off(c);
    tp_step_end(c);
    return tp_error_status(c);
}

/* ---- the step ------------------------------------------------------------------------------- */
tp_status tp_trainer_step(tp_trainer *t, const tp_step_in *in, tp_step_out *out) {
    tp_ctx *c = t->c;
    *out = (tp_step_out){.targets = in->targets};
    if (in->targets < 1)
        return tp_fail(c, TP_EARG, "step %lld: none of its tokens has a target",
                       (long long)in->step);
    for (int64_t i = 0; i < t->cfg.train.micro_batches; i++) {
        tp_batch b;
        tp_status st = in->next(in->arg, c, &b);
        if (!st) st = micro_batch(t, in, &b, &out->nll);
        if (st) return st;
        out->bytes += b.target_bytes;
        out->epoch = b.epoch;
    }
    tp_optim_report r;
    tp_status st = tp_optim_step(t->optim, in->step, &r);
    out->learning_rate = r.learning_rate;
    out->grad_norm = r.grad_norm;
    out->skipped = r.skipped;
    out->bad_in_a_row = r.bad_in_a_row;
    out->bad_total = r.bad_total;
    tp_params *p = tp_model_params(t->model);
    for (int i = 0; i < p->n; i++) tp_zero_grad(c, &p->p[i].t, 1);
    tp_step_end(c);
    return st;
}

tp_status tp_trainer_eval(tp_trainer *t, const tp_batch *b, double *nll) {
    tp_ctx *c = t->c;
    loaded l = load(t, b, false);
    tp_model_out y =
        tp_model_loss(c, t->model, &l.in, l.targets, &(tp_model_loss_opts){.scale = 1});
    if (y.loss) *nll += sum_nll(y.logprob);
    tp_step_end(c);
    return tp_error_status(c);
}

/* ---- planning
 * ------------------------------------------------------------------------------------------------
 */
tp_status tp_fake_next(void *arg, tp_ctx *c, tp_batch *out) {
    (void)c;
    tp_fake_batch *f = arg;
    int64_t n = f->rows * f->T;
    *out = (tp_batch){.sample = f->sample,
                      .rows = f->rows,
                      .inputs = f->ids,
                      .targets = f->ids ? f->ids + n : NULL,
                      .n_targets = n,
                      .target_bytes = n};
    f->sample += f->rows;
    return TP_OK;
}

static size_t param_bytes(const tp_params *p) {
    size_t n = 0;
    for (int i = 0; i < p->n; i++) n += (size_t)tp_numel(p->p[i].t) * sizeof(float);
    return n;
}

tp_status tp_plan_make(tp_plan *p, const tp_config *cfg, char *error, size_t cap) {
    *p = (tp_plan){0};
    tp_ctx *c = NULL;
    tp_trainer t = {0};
    tp_config f = *cfg;
    tp_status st = tp_ctx_new(&c, &(tp_ctx_opts){.meta = true,
                                                 .threads = (int)cfg->threads,
                                                 .fast = cfg->numerics == TP_CFG_FAST,
                                                 .memory_limit = (size_t)1 << 50});
    if (st) return st;
    int64_t rows = f.train.batch / f.train.micro_batches, T = f.model.context;
    tp_fake_batch fake = {.rows = rows, .T = T, .vocab = f.model.vocab};
    tp_step_in in = {.targets = f.train.batch * T, .next = tp_fake_next, .arg = &fake};
    tp_step_out out;
    st = tp_trainer_new(&t, c, &f);
    if (!st) {
        p->parameters = tp_model_numel(t.model);
        p->parameter_bytes = p->gradient_bytes = param_bytes(tp_model_params(t.model));
        p->optimizer_bytes = tp_memory_used(c) - p->parameter_bytes;
        st = tp_trainer_step(&t, &in, &out);
        p->tokens_per_step = in.targets;
    }
    double nll = 0;
    tp_batch b = {.rows = rows};
    if (!st) {
        c->flops = 0;
        st = tp_trainer_eval(&t, &b, &nll);
        p->forward_flops = c->flops * (double)f.train.micro_batches;
    }
    p->peak_bytes = tp_memory_peak(c);
    if (!st && f.model.activation_checkpointing) { /* count the work, not the recomputation */
        tp_trainer_clear(&t);
        tp_step_end(c);
        f.model.activation_checkpointing = false;
        st = tp_trainer_new(&t, c, &f);
    }
    c->flops = 0;
    if (!st) st = tp_trainer_step(&t, &in, &out);
    p->step_flops = c->flops;
    if (error && cap) {
        size_t n = strlen(tp_error(c));
        if (n >= cap) n = cap - 1;
        memcpy(error, tp_error(c), n);
        error[n] = 0;
    }
    tp_trainer_clear(&t);
    tp_ctx_free(c);
    return st;
}
