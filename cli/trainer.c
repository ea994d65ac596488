/* Owns the training step: micro-batches forward and backward, then one update. */
#include "cli/trainer.h"
#include "autograd/autograd.h"
#include "cli/passes.h"
#include "core/ctx.h"
#include "core/device.h"
#include "infer/engine.h"
#include "ops/route/route.h"
#include "ops/slice/slice.h"
#include <stdio.h>
#include <string.h>

static tp_mod_cfg mod_config(const tp_config *f) {
    static const tp_mod_router router[] = {[TP_CFG_ROUTER_LINEAR] = TP_MOD_LINEAR,
                                           [TP_CFG_ROUTER_RANDOM] = TP_MOD_RANDOM,
                                           [TP_CFG_ROUTER_ALL] = TP_MOD_ALL};
    static const tp_mod_causal causal[] = {[TP_CFG_PREDICTOR] = TP_MOD_PREDICTOR,
                                           [TP_CFG_AUX_LOSS] = TP_MOD_AUX_LOSS,
                                           [TP_CFG_THRESHOLD] = TP_MOD_THRESHOLD};
    static const tp_mod_gate gate[] = {
        [TP_CFG_GATE_SIGMOID] = TP_MOD_GATE_SIGMOID, [TP_CFG_GATE_LINEAR] = TP_MOD_GATE_LINEAR};
    return (tp_mod_cfg){
        .capacity = f->mod.capacity,
        .every = f->mod.every,
        .router = router[f->mod.router],
        .causal = causal[f->mod.causal],
        .gate = gate[f->mod.gate],
        .predictor_channels = f->mod.predictor_channels,
        .by_document = f->mod.segments == TP_CFG_SEGMENTS_DOCUMENT,
    };
}

static tp_rope_scaling rope_config(const tp_config *f) {
    static const tp_rope_type type[] = {[TP_CFG_ROPE_DEFAULT] = TP_ROPE_DEFAULT,
                                        [TP_CFG_ROPE_LINEAR] = TP_ROPE_LINEAR,
                                        [TP_CFG_ROPE_LLAMA3] = TP_ROPE_LLAMA3};
    return (tp_rope_scaling){
        .type = type[f->rope_scaling.rope_type],
        .factor = f->rope_scaling.factor,
        .low_freq_factor = f->rope_scaling.low_freq_factor,
        .high_freq_factor = f->rope_scaling.high_freq_factor,
        .original_max_position_embeddings = f->rope_scaling.original_max_position_embeddings,
    };
}

static tp_model_cfg model_config(const tp_config *f, bool bf16) {
    return (tp_model_cfg){
        .compute = bf16 ? TP_BF16 : TP_F32,
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
        .rope_scaling = rope_config(f),
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
        .mod = mod_config(f),
        .lora = {.r = f->lora.r, .alpha = f->lora.lora_alpha, .rslora = f->lora.use_rslora},
    };
}

tp_ctx_opts tp_ctx_opts_of(const tp_config *cfg) {
    return (tp_ctx_opts){.device = cfg->device,
                         .threads = (int)cfg->threads,
                         .fast = cfg->numerics == TP_CFG_FAST,
                         .bf16_products = cfg->device == TP_CPU &&
                                          cfg->float32_matmul_precision == TP_CFG_MEDIUM,
                         .gemm = cfg->gemm,
                         .seed = (uint64_t)cfg->seed};
}

tp_status tp_trainer_model(tp_trainer *t, tp_ctx *c, const tp_config *cfg) {
    *t = (tp_trainer){.c = c, .cfg = *cfg, .ranks = 1};
    tp_model_cfg m = model_config(cfg, c->device == TP_CUDA && cfg->dtype == TP_CFG_BF16);
    m.to_be_loaded = *cfg->model.init_from != 0;
    tp_status st = tp_lora_targets(c, &m, cfg->lora.target_modules);
    return st ? st : tp_model_new(&t->model, c, &m);
}

bool tp_trainer_routes(const tp_trainer *t) {
    return t->model && tp_mod_blocks(tp_model_config(t->model)) > 0;
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

tp_share tp_share_of(const tp_config *cfg, int rank, int ranks) {
    int64_t B = cfg->train.batch, M = cfg->train.micro_batches, rows = B / (M * ranks);
    bool by_micro_batch = cfg->dist.zero_stage == 2;
#ifdef TAPIR_MUTANT_ORDER /* ranks sum their micro-batches first, but get them as if they did not  \
                           */
    by_micro_batch = true;
#endif
    if (ranks > 1 && by_micro_batch) return (tp_share){rows, B / M, rank * rows, rows};
    return (tp_share){rows, B, rank * (B / ranks), B / ranks};
}

static tp_status open_optimizer(tp_trainer *t) {
    const tp_config *f = &t->cfg;
    tp_optim_opts o = optim_options(f);
    o.comm = t->comm;
    o.zero_stage = (int)f->dist.zero_stage;
    tp_status st = tp_optim_new(&t->optim, t->c, tp_model_trainable(t->model), &o);
    tp_gradients_opts g = {.bucket_bytes = (size_t)(f->dist.bucket_mb * 1e6),
                           .optimizer_in_bwd = f->train.optimizer_in_bwd};
    if (!st) st = tp_gradients_new(&t->gradients, t->c, t->optim, &g);
    return st;
}

static tp_status open_stage(tp_trainer *t) {
    tp_ctx *c = t->c;
    tp_staged *s = &t->staged;
    tp_share share = tp_share_of(&t->cfg, t->rank, t->ranks);
    int64_t M = t->cfg.train.micro_batches, shape[2] = {share.rows * M, t->cfg.model.context};
    if (c->device == TP_CPU) return TP_OK;
    s->ids = tp_tensor_keep(c, TP_I32, 2, shape);
    s->targets = tp_tensor_keep(c, TP_I32, 2, shape);
    if (t->cfg.data.packing == TP_CFG_DOCUMENTS) {
        s->segments = tp_tensor_keep(c, TP_I32, 2, shape);
        s->positions = tp_tensor_keep(c, TP_I32, 2, shape);
    }
    s->logprob = tp_tensor_keep(c, TP_F32, 2, shape);
    if (tp_trainer_routes(t))
        s->route = tp_tensor_keep(c, TP_F32, 2, (int64_t[]){shape[0], TP_ROUTE_STATS});
    s->batch = tp_calloc(c, (size_t)M, sizeof *s->batch);
    if (c->backend)
        s->host = tp_malloc(c, (size_t)(shape[0] * (shape[1] + TP_ROUTE_STATS)) * sizeof *s->host);
    return tp_error_status(c);
}

/* Of t->nll: what ranks tell each other in a step. */
static int64_t numbers(const tp_trainer *t) {
    int64_t B = t->cfg.train.batch;
    return B + 2 + (tp_trainer_routes(t) ? B * TP_ROUTE_STATS : 0);
}
static double *routes_of(const tp_trainer *t, int64_t sample) {
    int64_t B = t->cfg.train.batch;
    return t->nll + B + 2 + sample % B * TP_ROUTE_STATS;
}

tp_status tp_trainer_check_split(tp_ctx *c, const tp_config *cfg, int ranks) {
    long long batch = cfg->train.batch, micro = cfg->train.micro_batches;
    char at[TP_CONFIG_TEXT + 64];
    if (batch % (micro * ranks) == 0) return TP_OK;
    if (ranks == 1)
        return tp_fail(c, TP_EARG, "%s: %lld does not divide the %lld rows of an update",
                       tp_config_where(at, sizeof at, cfg, "train.micro_batches"), micro, batch);
    return tp_fail(c, TP_EARG,
                   "the %lld rows of an update must be a multiple of ranks times "
                   "train.micro_batches (%d times %lld)",
                   batch, ranks, micro);
}

tp_status tp_trainer_join(tp_trainer *t, tp_comm *comm) {
    t->comm = comm;
    if (comm) {
        t->rank = tp_comm_rank(comm);
        t->ranks = tp_comm_size(comm);
    }
    return tp_trainer_check_split(t->c, &t->cfg, t->ranks);
}

tp_status tp_trainer_new(tp_trainer *t, tp_ctx *c, const tp_config *cfg, tp_comm *comm) {
    tp_status st = tp_trainer_model(t, c, cfg);
    if (!st) st = tp_trainer_join(t, comm);
    if (!st && cfg->train.optimizer_in_bwd && t->ranks > 1)
        return tp_fail(c, TP_EARG, "train.optimizer_in_bwd is for one rank, there are %d",
                       t->ranks);
    if (!st && cfg->train.cuda_graph && t->ranks > 1)
        return tp_fail(c, TP_EARG,
                       "train.cuda_graph is for one rank, there are %d: a step cannot be recorded "
                       "while its gradients travel between ranks",
                       t->ranks);
    t->nll = st ? NULL : tp_calloc(c, (size_t)numbers(t), sizeof *t->nll);
    if (!t->nll) return tp_error_status(c);
    if ((st = open_optimizer(t))) return st;
    return open_stage(t);
}

tp_status tp_trainer_side_by_side(tp_trainer *t, int threads) {
    tp_passes_free(t->side_by_side);
    t->side_by_side = NULL;
    return threads > 1 ? tp_passes_new(&t->side_by_side, t->c, t->model, threads) : TP_OK;
}

void tp_trainer_clear(tp_trainer *t) {
    tp_passes_free(t->side_by_side);
    tp_gradients_free(t->gradients);
    tp_optim_free(t->optim);
    tp_model_free(t->model);
    tp_free(t->nll);
    tp_free(t->staged.host);
    tp_free(t->staged.batch);
    *t = (tp_trainer){0};
}

/* ---- one pass ---------------------------------------------------------------------------------
 */
static tp_tensor *ints(tp_ctx *c, const tp_batch *b, int64_t T, const int32_t *src) {
    return tp_tensor_from(c, TP_I32, TP_SHAPE(b->rows, T), src);
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

/* Rows [from, from+n) of what is staged. */
static loaded staged_rows(tp_trainer *t, int64_t from, int64_t n) {
    tp_staged *s = &t->staged;
    loaded l = {.in = {.ids = tp_slice(t->c, s->ids, 0, from, n), .training = true},
                .targets = tp_slice(t->c, s->targets, 0, from, n)};
    if (s->segments) l.in.segments = tp_slice(t->c, s->segments, 0, from, n);
    if (s->positions) l.in.positions = tp_slice(t->c, s->positions, 0, from, n);
    return l;
}

static double nll_of(const float *logprob, int64_t T) {
    double sum = 0;
    for (int64_t i = 0; i < T; i++) sum -= logprob[i];
    return sum;
}

/* Row by row, so that no split of the batch changes the sum over rows. */
static tp_status row_nll(tp_ctx *c, const tp_tensor *logprob, double nll[]) {
    int64_t rows = logprob->shape[0], T = logprob->shape[1];
    const float *p = logprob->data;
    float *host = NULL;
    tp_status st = TP_OK;
    if (c->backend) {
        p = host = tp_arena_alloc(c, (size_t)(rows * T) * sizeof *host);
        st = host ? tp_download(c, logprob, host) : c->status;
    }
    for (int64_t r = 0; r < rows && p && !st; r++) nll[r] = nll_of(p + r * T, T);
    return st;
}

static tp_batch rows_of(const tp_batch *b, int64_t T, int64_t from, int64_t n) {
    tp_batch part = *b;
    part.sample += from;
    part.rows = n;
    if (b->inputs) part.inputs += from * T;
    if (b->targets) part.targets += from * T;
    if (b->segments) part.segments += from * T;
    if (b->positions) part.positions += from * T;
    return part;
}

static tp_model_out loss_of(tp_trainer *t, const loaded *l, int64_t targets) {
    double tokens = (double)t->cfg.train.batch * (double)t->cfg.model.context;
    tp_model_loss_opts o = {.z_loss = t->cfg.train.z_loss,
                            .scale = 1.0 / (double)targets,
                            .gradient = true,
                            .chunk = t->cfg.train.loss_chunk_size,
                            .aux_scale = t->cfg.mod.aux_coef / tokens};
    return tp_model_loss(t->c, t->model, &l->in, l->targets, &o);
}

tp_model_out tp_trainer_loss(tp_trainer *t, const tp_batch *b, int64_t targets) {
    loaded l = load(t, b, true);
    return loss_of(t, &l, targets);
}

/* The language model's loss of rows of b, which lie at row `at` of what is staged, if they are. */
static tp_model_out text_loss(tp_trainer *t, const tp_step_in *in, const tp_batch *b, int64_t at) {
    if (!t->staged.ids) return tp_trainer_loss(t, b, in->targets);
    loaded l = staged_rows(t, at, b->rows);
    return loss_of(t, &l, in->targets);
}

/* Each row's sums, so that they too are added in the order of rows. */
static tp_status row_routes(tp_ctx *c, const tp_tensor *route, double out[]) {
    int64_t n = tp_numel(route);
    float *host = tp_arena_alloc(c, (size_t)n * sizeof *host);
    tp_status st = host && route->data ? tp_download(c, route, host) : tp_error_status(c);
    for (int64_t i = 0; i < n && !st && route->data; i++) out[i] = (double)host[i];
    return st;
}

static tp_status stage_rows(tp_ctx *c, tp_tensor *to, int64_t row, const tp_tensor *from) {
    if (!from || !from->data) return TP_OK;
    return tp_copy_bytes(c, tp_f32(to) + row * to->shape[1], from->data,
                         (size_t)tp_numel(from) * sizeof(float));
}

static tp_status report(tp_trainer *t, const tp_batch *b, int64_t at, const tp_model_out *y) {
    tp_staged *s = &t->staged;
    tp_status st;
    if (s->ids) {
        st = stage_rows(t->c, s->logprob, at, y->logprob);
        return st ? st : stage_rows(t->c, s->route, at, y->route);
    }
    st = row_nll(t->c, y->logprob, t->nll + b->sample % t->cfg.train.batch);
    return st || !y->route ? st : row_routes(t->c, y->route, routes_of(t, b->sample));
}

static tp_status pass(tp_trainer *t, const tp_step_in *in, const tp_batch *b, int64_t at) {
    tp_ctx *c = t->c;
    tp_rng_at(c, (uint64_t)in->step, (uint64_t)b->sample);
    tp_gradients_pass(t->gradients, b->rows);
    tp_status st = tp_tape_on(c);
    tp_model_out y = {0};
    if (in->loss)
        y.loss = in->loss(in->loss_arg, c, t->model, b);
    else
        y = text_loss(t, in, b, at);
    tp_tensor *roots[] = {y.loss, y.aux};
    if (y.loss && !st) st = tp_backward_from(c, y.aux ? 2 : 1, roots, NULL);
    if (!st && y.logprob) report(t, b, at, &y);
    tp_tape_off(c);
    tp_step_end(c);
    return tp_error_status(c);
}

/* ---- the step ------------------------------------------------------------------------------- */
/* Rows of the next pass of a micro-batch that goes on at row `at` of this rank's part of the batch:
 * all of them if they are the whole batch, else the largest subtree that begins here. Counted from
 * the beginning of the part, ranks whose part is no subtree still make the same passes. */
static int64_t pass_rows(const tp_trainer *t, int64_t at, int64_t left) {
    int64_t n = 1;
    if (left == t->cfg.train.batch) return left;
    while (2 * n <= left && at % (2 * n) == 0) n *= 2;
    return n;
}

static int64_t count_passes(const tp_trainer *t) {
    tp_share s = tp_share_of(&t->cfg, t->rank, t->ranks);
    int64_t passes = 0;
    for (int64_t i = 0; i < t->cfg.train.micro_batches; i++) {
        int64_t at = i * s.rows % s.share;
        for (int64_t done = 0; done < s.rows; passes++)
            done += pass_rows(t, at + done, s.rows - done);
    }
    return passes;
}

/* The passes of one micro-batch, whose rows are staged from row `row` on. */
static tp_status micro_batch(tp_trainer *t, const tp_step_in *in, const tp_batch *b, int64_t row) {
    tp_share s = tp_share_of(&t->cfg, t->rank, t->ranks);
    int64_t at = b->sample % t->cfg.train.batch % s.period - s.first;
    tp_status st = TP_OK;
    for (int64_t done = 0; !st && done < b->rows;) {
        int64_t n = pass_rows(t, at + done, b->rows - done);
        tp_batch part = rows_of(b, t->cfg.model.context, done, n);
        st = pass(t, in, &part, row + done);
        done += n;
    }
    return st;
}

static tp_status take_batch(tp_trainer *t, const tp_step_in *in, tp_batch *b) {
    tp_status st = in->next(in->arg, t->c, b);
    if (!st) t->nll[t->cfg.train.batch] += (double)b->target_bytes;
    return st;
}

/* Another loss brings its own tensors, and may ask for numbers in between. */
static bool stages(const tp_trainer *t, const tp_step_in *in) { return t->staged.ids && !in->loss; }

/* Whether this step's passes run as many at a time as there are threads for. */
static bool side_by_side(const tp_trainer *t, const tp_step_in *in) {
    return t->side_by_side && in->loss && count_passes(t) > 1;
}

/* The passes of all micro-batches, in rounds. */
static tp_status rounds(tp_trainer *t, const tp_step_in *in) {
    tp_share s = tp_share_of(&t->cfg, t->rank, t->ranks);
    int64_t most = tp_passes_in_a_run(t->side_by_side), have = 0;
    tp_batch b, *round = tp_calloc(t->c, (size_t)most, sizeof *round);
    tp_status st = round ? TP_OK : tp_error_status(t->c);
    for (int64_t i = 0; i < t->cfg.train.micro_batches && !st; i++) {
        if ((st = take_batch(t, in, &b))) break;
        int64_t at = b.sample % t->cfg.train.batch % s.period - s.first, n;
        for (int64_t done = 0; done < b.rows && !st; done += n) {
            n = pass_rows(t, at + done, b.rows - done);
            round[have++] = rows_of(&b, t->cfg.model.context, done, n);
            if (have < most) continue;
            st = tp_passes_run(t->side_by_side, t->gradients, in, round, have);
            have = 0;
        }
    }
    if (!st && have) st = tp_passes_run(t->side_by_side, t->gradients, in, round, have);
    tp_free(round);
    return st;
}

/* All passes of a step, each micro-batch as it comes. */
static tp_status passes(tp_trainer *t, const tp_step_in *in) {
    tp_status st = tp_gradients_begin(t->gradients, in->step, count_passes(t));
    if (!st && side_by_side(t, in)) {
        st = rounds(t, in);
        return st ? st : tp_gradients_end(t->gradients);
    }
    for (int64_t i = 0; i < t->cfg.train.micro_batches && !st; i++) {
        tp_batch b;
        if (stages(t, in))
            st = micro_batch(t, in, &t->staged.batch[i], i * t->staged.batch[i].rows);
        else if (!(st = take_batch(t, in, &b)))
            st = micro_batch(t, in, &b, 0);
    }
    return st ? st : tp_gradients_end(t->gradients);
}

/* ---- on a GPU: staged and recorded steps ------------------------------------------------------
 */
static tp_status put_rows(tp_ctx *c, tp_tensor *to, int64_t row, int64_t rows,
                          const int32_t *from) {
    int64_t T = to ? to->shape[1] : 0;
    if (!to || !to->data || !from) return TP_OK;
    return tp_upload_bytes(c, tp_i32(to) + row * T, from, (size_t)(rows * T) * sizeof *from);
}

static tp_status stage(tp_trainer *t, const tp_step_in *in) {
    tp_staged *s = &t->staged;
    tp_ctx *c = t->c;
    tp_status st = TP_OK;
    for (int64_t i = 0; i < t->cfg.train.micro_batches && !st; i++) {
        tp_batch b;
        if ((st = take_batch(t, in, &b))) break;
        int64_t row = i * b.rows;
        if (!st) st = put_rows(c, s->ids, row, b.rows, b.inputs);
        if (!st) st = put_rows(c, s->targets, row, b.rows, b.targets);
        if (!st) st = put_rows(c, s->segments, row, b.rows, b.segments);
        if (!st) st = put_rows(c, s->positions, row, b.rows, b.positions);
        s->batch[i] = (tp_batch){.sample = b.sample, .rows = b.rows};
    }
    return st;
}

static tp_status staged_nll(tp_trainer *t) {
    tp_staged *s = &t->staged;
    tp_status st = s->logprob->data ? tp_download(t->c, s->logprob, s->host) : TP_OK;
    int64_t T = t->cfg.model.context, row = 0;
    float *route = s->host + (s->logprob->data ? tp_numel(s->logprob) : 0);
    if (!st && s->route && s->route->data) st = tp_download(t->c, s->route, route);
    for (int64_t i = 0; i < t->cfg.train.micro_batches && !st && s->route && s->route->data; i++)
        for (int64_t r = 0; r < s->batch[i].rows * TP_ROUTE_STATS; r++)
            routes_of(t, s->batch[i].sample)[r] = (double)*route++;
    for (int64_t i = 0; i < t->cfg.train.micro_batches && !st && s->logprob->data; i++)
        for (int64_t r = 0; r < s->batch[i].rows; r++, row++)
            t->nll[(s->batch[i].sample + r) % t->cfg.train.batch] = nll_of(s->host + row * T, T);
    return st;
}

static void forget_recorded(tp_trainer *t) {
    if (t->graph.targets) tp_gradients_clear(t->gradients);
    t->graph.targets = 0;
}

/* The gradients of a recorded step keep their bytes, as every replay writes them there again. */
static tp_status recorded_passes(tp_trainer *t, const tp_step_in *in) {
    tp_ctx *c = t->c;
    if (t->graph.targets == in->targets && t->graph.used == tp_memory_used(c)) {
        if (count_passes(t) == 1 && t->ranks == 1) tp_optim_measured(t->optim);
        return c->backend->replay(c);
    }
    forget_recorded(t);
    if (!t->graph.warm) {
        tp_status st = passes(t, in);
        t->graph.warm = !st;
        return st;
    }
    tp_status st = c->backend->record_begin(c);
    if (!st && (st = passes(t, in)))
        c->backend->record_discard(c);
    else if (!st && !(st = c->backend->record_end(c)))
        t->graph.targets = in->targets;
    return st;
}

static tp_status step_passes(tp_trainer *t, const tp_step_in *in) {
    if (!stages(t, in)) return passes(t, in);
    bool record = t->cfg.train.cuda_graph && t->c->backend;
    tp_status st = stage(t, in);
    if (!st) st = record ? recorded_passes(t, in) : passes(t, in);
    return st ? st : staged_nll(t);
}

static tp_mod_report mod_report(const tp_trainer *t) {
    double sum[TP_ROUTE_STATS] = {0}, n = (double)t->cfg.train.batch * (double)t->cfg.model.context;
    n *= (double)tp_mod_blocks(tp_model_config(t->model));
    for (int64_t r = 0; r < t->cfg.train.batch; r++)
        for (int i = 0; i < TP_ROUTE_STATS; i++) sum[i] += routes_of(t, r)[i];
    return (tp_mod_report){.routed_fraction = sum[TP_ROUTE_TAKEN] / n,
                           .predictor_accuracy = sum[TP_ROUTE_AGREE] / n,
                           .router_entropy = sum[TP_ROUTE_ENTROPY] / n,
                           .aux_loss = sum[TP_ROUTE_LOSS] / n};
}

/* With several ranks everything stays: the communicator may still be writing to it. */
static tp_status give_up(tp_trainer *t, tp_status st) {
    t->graph.targets = 0;
    if (t->ranks == 1) tp_gradients_clear(t->gradients);
    tp_step_end(t->c);
    return st;
}

tp_status tp_trainer_step(tp_trainer *t, const tp_step_in *in, tp_step_out *out) {
    tp_ctx *c = t->c;
    int64_t B = t->cfg.train.batch;
    *out = (tp_step_out){.targets = in->targets};
    if (in->targets < 1)
        return tp_fail(c, TP_EARG, "step %lld: none of its tokens has a target",
                       (long long)in->step + 1);
    memset(t->nll, 0, (size_t)numbers(t) * sizeof *t->nll);
    tp_status st = step_passes(t, in);
    t->nll[B + 1] = in->interrupted && in->interrupted();
    if (!st && t->ranks > 1) st = tp_comm_sum_f64(t->comm, c, t->nll, numbers(t));
    if (st) return give_up(t, st);
    if (tp_trainer_routes(t)) out->mod = mod_report(t);
    for (int64_t i = 0; i < B; i++) out->nll += t->nll[i];
    out->bytes = (int64_t)t->nll[B];
    out->interrupted = t->nll[B + 1] > 0;
    tp_optim_report r;
    st = tp_optim_step(t->optim, in->step, &r);
    out->learning_rate = r.learning_rate;
    out->grad_norm = r.grad_norm;
    out->skipped = r.skipped;
    out->bad_in_a_row = r.bad_in_a_row;
    out->bad_total = r.bad_total;
    if (st) return give_up(t, st);
    if (!t->graph.targets) tp_gradients_clear(t->gradients);
    tp_step_end(c);
    if (t->graph.targets) t->graph.used = tp_memory_used(c);
    return TP_OK;
}

tp_status tp_trainer_eval(tp_trainer *t, const tp_batch *b, tp_mod_mode mode, double nll[]) {
    tp_ctx *c = t->c;
    loaded l = load(t, b, false);
    l.in.mode = mode;
    tp_model_out y =
        tp_model_loss(c, t->model, &l.in, l.targets, &(tp_model_loss_opts){.scale = 1});
    if (y.loss) row_nll(c, y.logprob, nll);
    tp_step_end(c);
    return tp_error_status(c);
}

/* ---- planning ------------------------------------------------------------------------------- */
tp_status tp_fake_fill(tp_fake_batch *f, tp_ctx *c) {
    int64_t n = 2 * f->of.rows * f->T;
    if (!(f->ids = tp_malloc(c, (size_t)n * sizeof *f->ids))) return tp_error_status(c);
    for (int64_t i = 0; i < n; i++)
        f->ids[i] = (int32_t)(tp_uniform(1, TP_RNG_TEST, 0, (uint64_t)i) * (double)f->vocab);
    return TP_OK;
}

tp_status tp_fake_next(void *arg, tp_ctx *c, tp_batch *out) {
    (void)c;
    tp_fake_batch *f = arg;
    int64_t n = f->of.rows * f->T;
    *out = (tp_batch){.sample = f->taken / f->of.share * f->of.period + f->of.first +
                                f->taken % f->of.share,
                      .rows = f->of.rows,
                      .inputs = f->ids,
                      .targets = f->ids ? f->ids + n : NULL,
                      .n_targets = n,
                      .target_bytes = n};
    f->taken += f->of.rows;
    return TP_OK;
}

int64_t tp_trained(const tp_trainer *t) {
    const tp_params *p = tp_model_trainable(t->model);
    int64_t n = 0;
    for (int i = 0; i < p->n; i++) n += tp_numel(p->p[i].t);
    return n;
}

/* One step and one evaluation under META, as rank 0 would take them. */
static tp_status rehearse(tp_plan *p, tp_ctx *c, tp_trainer *t, const tp_config *cfg,
                          tp_comm *comm) {
    tp_config f = *cfg;
    tp_fake_batch fake = {
        .of = tp_share_of(&f, 0, p->ranks), .T = f.model.context, .vocab = f.model.vocab};
    tp_step_in in = {.targets = f.train.batch * fake.T, .next = tp_fake_next, .arg = &fake};
    tp_step_out out;
    tp_status st = tp_trainer_new(t, c, &f, comm);
    if (st) return st;
    p->parameters = tp_model_numel(t->model);
    p->kv_bytes_per_token = tp_kv_bytes_per_token(t->model);
    p->trained = tp_trained(t);
    p->parameter_bytes = (size_t)p->parameters * sizeof(float);
    p->gradient_bytes = (size_t)p->trained * sizeof(float);
    p->optimizer_bytes = tp_memory_used(c) - p->parameter_bytes;
    p->tokens_per_step = in.targets;
    st = tp_trainer_step(t, &in, &out);
    double *nll = NULL;
    tp_batch b = {.rows = fake.of.rows};
    c->flops = 0;
    if (!st) st = tp_trainer_eval(t, &b, TP_MOD_TOP_K, nll);
    int64_t passes = f.train.batch / fake.of.rows;
    p->forward_flops = c->flops * (double)passes;
    if (!st && tp_trainer_routes(t)) st = tp_trainer_eval(t, &b, TP_MOD_CAUSAL, nll);
    p->peak_bytes = tp_memory_peak(c);
    if (!st && f.model.activation_checkpointing) { /* count the work, not the recomputation */
        tp_trainer_clear(t);
        tp_step_end(c);
        f.model.activation_checkpointing = false;
        st = tp_trainer_new(t, c, &f, comm);
    }
    c->flops = 0;
    if (!st) st = tp_trainer_step(t, &in, &out);
    p->step_flops = c->flops * p->ranks;
    return st;
}

tp_status tp_plan_fits(tp_ctx *c, const tp_plan *p) {
    double have = (double)tp_pool_limit(c), need = (double)p->peak_bytes, mb = 1e6;
    double state = (double)(p->parameter_bytes + p->gradient_bytes + p->optimizer_bytes);
    if (need <= have) return TP_OK;
    return tp_fail(c, TP_ENOMEM,
                   "the run needs %.0f MB and %s has %.0f MB: weights %.0f, gradients %.0f, "
                   "optimizer %.0f, activations of a micro-batch about %.0f (more "
                   "train.micro_batches, a smaller train.batch or model.context, "
                   "model.activation_checkpointing: true, train.optimizer_state_dtype: bf16 or "
                   "lora.r lower it)",
                   need / mb, c->device == TP_CPU ? "the machine" : "the GPU", have / mb,
                   (double)p->parameter_bytes / mb, (double)p->gradient_bytes / mb,
                   (double)p->optimizer_bytes / mb, need > state ? (need - state) / mb : 0.0);
}

tp_status tp_plan_make(tp_plan *p, const tp_config *cfg, int ranks, char *error, size_t cap) {
    *p = (tp_plan){.ranks = ranks};
    tp_ctx *c = NULL;
    tp_comm *comm = NULL;
    tp_trainer t = {0};
    char why[TP_WHY_BYTES];
    tp_ctx_opts o = tp_ctx_opts_of(cfg);
    o.meta = true;
    o.memory_limit = (size_t)1 << 50;
    o.why = why;
    tp_status st = tp_ctx_new(&c, &o);
    if (st) {
        if (error && cap) snprintf(error, cap, "%s", why);
        return st;
    }
    if (ranks > 1)
        st = tp_comm_open(&comm, c, &(tp_comm_opts){.kind = TP_COMM_PLAN, .plan_ranks = ranks});
    if (!st) st = rehearse(p, c, &t, cfg, comm);
    if (error && cap) {
        size_t n = strlen(tp_error(c));
        if (n >= cap) n = cap - 1;
        memcpy(error, tp_error(c), n);
        error[n] = 0;
    }
    tp_trainer_clear(&t);
    tp_comm_close(comm, NULL);
    tp_ctx_free(c);
    return st;
}
