/* config_schema: the one table of configuration keys, and what can be said about a row of it. */
#include "data/config_schema.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const devices[] = {"cpu", "cuda", NULL};
static const char *const dtypes[] = {"f32", "bf16", NULL};
static const char *const numerics[] = {"exact", "fast", NULL};
static const char *const precisions[] = {"highest", "medium", NULL};
static const char *const gemms[] = {"auto", "own", "cublaslt", NULL};
static const char *const packings[] = {"stream", "documents", NULL};
static const char *const chats[] = {"plain", "chatml", "alpaca", "llama3", NULL};
static const char *const families[] = {"gpt2", "llama", NULL};
static const char *const rope_types[] = {"default", "linear", "llama3", NULL};
static const char *const backends[] = {"auto", "self", "mpi", "nccl", NULL};
static const char *const autos[] = {"auto", "false", "true", NULL};
static const char *const optimizers[] = {"adamw", "muon", "sgd", NULL};
static const char *const states[] = {"f32", "bf16", NULL};
static const char *const scales[] = {"group", "batch", "none", NULL};
static const char *const estimators[] = {"grpo", "rloo", NULL};
static const char *const loss_types[] = {"grpo", "bnpo", "dapo", "dr_grpo", NULL};
static const char *const objectives[] = {"clip", "cispo", NULL};
static const char *const levels[] = {"token", "sequence", NULL};
static const char *const kls[] = {"k1", "k2", "k3", NULL};
static const char *const routers[] = {"linear", "random", "all", NULL};
static const char *const causals[] = {"predictor", "aux_loss", "threshold", NULL};
static const char *const gates[] = {"sigmoid", "linear", NULL};
static const char *const shares[] = {"row", "document", NULL};
static const char *const schedules[] = {"cosine", "linear", "wsd", "constant", NULL};

typedef char text_member[TP_CONFIG_TEXT];

/* A row's member and name are the same words, so they cannot drift apart; the sizeof of a
 * comparison makes the compiler look at the member's type without running anything. */
#define AT(member, type)                                                                           \
    (offsetof(tp_config, member) + 0 * sizeof((type *)0 == &((tp_config *)0)->member))
#define BOOL(member, initial_, doc_)                                                               \
    {                                                                                              \
        .name = #member, .type = TP_KEY_BOOL, .offset = AT(member, bool), .initial = initial_,     \
        .unit = "", .doc = doc_                                                                    \
    }
#define I64(member, initial_, lo_, hi_, unit_, doc_)                                               \
    {                                                                                              \
        .name = #member, .type = TP_KEY_I64, .offset = AT(member, int64_t), .initial = initial_,   \
        .lo = lo_, .hi = hi_, .unit = unit_, .doc = doc_                                           \
    }
#define F64(member, initial_, lo_, lo_open_, hi_, hi_open_, unit_, doc_)                           \
    {                                                                                              \
        .name = #member, .type = TP_KEY_F64, .offset = AT(member, double), .initial = initial_,    \
        .lo = lo_, .lo_open = lo_open_, .hi = hi_, .hi_open = hi_open_, .unit = unit_, .doc = doc_ \
    }
#define TEXT(member, initial_, unit_, doc_)                                                        \
    {                                                                                              \
        .name = #member, .type = TP_KEY_TEXT, .offset = AT(member, text_member),                   \
        .initial = initial_, .unit = unit_, .doc = doc_                                            \
    }
#define CHOICE(member, ctype, choices_, initial_, doc_)                                            \
    {                                                                                              \
        .name = #member, .type = TP_KEY_CHOICE, .offset = AT(member, ctype), .initial = initial_,  \
        .choices = choices_, .unit = "", .doc = doc_                                               \
    }
#define OPEN true
#define SHUT false
#define ANY INFINITY
#define HUGE_F32 1e30 /* numbers of kernels are f32: their products must stay below its 3.4e38 */

/* The upper limits of shapes, with the limit on tokens per step in tp_config_check, keep tokens
 * times any width below 2^57, so that sizes in bytes fit in 64 bits. */
const tp_key tp_config_keys[] = {
    I64(seed, "1", 0, ANY, "", "keys every random number of the run"),
    CHOICE(device, tp_device, devices, "cpu",
           "where tensors live and kernels run; of several ranks each needs a GPU of its own"),
    CHOICE(dtype, tp_cfg_dtype, dtypes, "f32",
           "of products and activations: bf16 needs device: cuda; weights, their gradients and the "
           "optimizer stay f32"),
    I64(threads, "0", 0, 4096, "", "CPU threads; 0: every core this process may use"),
    CHOICE(
        numerics, tp_cfg_numerics, numerics, "exact",
        "exact: same bits for any number of threads and any batch split; fast: gives that up and "
        "sums in the quickest order, by oneDNN where it is built in (its scratch memory comes on "
        "top of the plan)"),
    CHOICE(float32_matmul_precision, tp_cfg_precision, precisions, "highest",
           "of products on the CPU: highest: f32; medium: operands are rounded to bf16, sums stay "
           "f32, faster where the processor multiplies bf16 faster (AMD Zen 5); the bits are the "
           "same everywhere and for any number of threads"),
    CHOICE(gemm, tp_gemm_choice, gemms, "auto",
           "who multiplies matrices on a GPU: cublaslt, by algorithms that are chosen once; own "
           "kernels, whose order of sums is known; auto: cuBLASLt where it can"),

    TEXT(run.dir, "runs/default", "path", "folder of config.yaml, metrics, checkpoints, samples"),
    I64(run.steps, "1000", 1, 1e12, "steps", "optimizer steps to train"),

    TEXT(data.train, "", "path",
         "corpus to train on, made by `tapir prepare`; or conversations (fine-tuning): a .jsonl "
         "file of {\"prompt\", \"response\"} or {\"messages\"}, of which replies are learnt"),
    TEXT(data.val, "", "path",
         "the same, held out for evaluation (eval.every needs it); empty: none"),
    CHOICE(
        data.packing, tp_cfg_packing, packings, "stream",
        "stream: rows cut from one stream of tokens, or one conversation a row; documents: several "
        "in a row, attention stays inside each"),
    TEXT(data.tokenizer, "bytes", "path",
         "of conversations, without model.init_from: bytes, or a tokenizer.json"),
    CHOICE(data.chat_template, tp_cfg_chat, chats, "plain",
           "what is written around the turns of a conversation; grpo: around a prompt; with "
           "model.init_from, where it is not set: that run's"),
    BOOL(data.prefetch, "true", "read the next batch in a thread of its own; same data either way"),

    TEXT(model.init_from, "", "path",
         "run or checkpoint to begin with: its weights, its tokenizer and its model.* keys"),
    CHOICE(model.family, tp_cfg_family, families, "gpt2",
           "gpt2: LayerNorm, GELU, learned positions; llama: RMSNorm, SwiGLU, rotary positions"),
    I64(model.layers, "4", 1, 10000, "", "transformer blocks"),
    I64(model.heads, "4", 1, 4096, "", "query heads per block"),
    I64(model.kv_heads, "0", 0, 4096, "", "key and value heads; must divide heads; 0: as heads"),
    I64(model.channels, "128", 1, 1 << 20, "", "width of the residual stream"),
    I64(model.head_dim, "0", 0, 4096, "", "width of a head; 0: channels / heads"),
    I64(model.ffn, "0", 0, 1 << 22, "",
        "hidden width of the feed-forward; 0: 4*channels for gpt2, for llama 8/3*channels rounded "
        "up to a multiple of 32"),
    I64(model.context, "128", 1, 1 << 24, "tokens",
        "length of a training row; rotary positions (llama) go up to 1048576"),
    I64(model.vocab, "0", 0, INT32_MAX, "tokens", "vocabulary size; 0: as the corpus says"),
    F64(model.rope_theta, "10000", 1, SHUT, 1e12, SHUT, "",
        "base of the rotary frequencies (llama)"),
    F64(model.norm_eps, "1e-5", 0, OPEN, 1, OPEN, "", "added to the variance in every norm"),
    BOOL(model.tie_embeddings, "true", "the output head shares the token embedding's weights"),
    BOOL(model.qk_norm, "false", "RMSNorm on queries and keys before attention"),
    CHOICE(model.attention_bias, tp_cfg_auto, autos, "auto",
           "biases in the attention projections; auto: true for gpt2, false for llama"),
    CHOICE(model.mlp_bias, tp_cfg_auto, autos, "auto",
           "biases in the feed-forward; auto: true for gpt2, false for llama"),
    F64(model.logit_softcap, "0", 0, SHUT, HUGE_F32, SHUT, "",
        "cap: logits become cap*tanh(logits/cap); at least 1e-30, or 0: off"),
    F64(model.attn_softcap, "0", 0, SHUT, HUGE_F32, SHUT, "",
        "the same cap on attention scores; at least 1e-30, or 0: off"),
    I64(model.sliding_window, "0", 0, 1 << 24, "tokens",
        "a query sees this many latest keys, itself included; 0: all"),
    F64(model.dropout, "0", 0, SHUT, 1, OPEN, "", "probability of dropping an activation"),
    BOOL(model.activation_checkpointing, "false",
         "recompute each block in the backward pass: less memory, about a third more work"),
    F64(model.init_std, "0.02", 0, OPEN, HUGE_F32, SHUT, "",
        "standard deviation of the initial weights"),

    CHOICE(rope_scaling.rope_type, tp_cfg_rope, rope_types, "default",
           "slower rotary frequencies, for a context longer than the one first trained with "
           "(llama), as Hugging Face computes them; linear: every one through factor; llama3: the "
           "low ones"),
    F64(rope_scaling.factor, "1", 1, SHUT, 1e12, SHUT, "", "frequencies are divided by it"),
    F64(rope_scaling.low_freq_factor, "1", 0, OPEN, 1e12, SHUT, "turns",
        "llama3: frequencies that turn at most so often in the original context are low"),
    F64(rope_scaling.high_freq_factor, "4", 0, OPEN, 1e12, SHUT, "turns",
        "llama3: those that turn at least so often stay as they are; between the two, part of "
        "each"),
    I64(rope_scaling.original_max_position_embeddings, "8192", 1, 1 << 24, "tokens",
        "llama3: the context first trained with"),

    F64(mod.capacity, "0", 0, SHUT, 1, SHUT, "",
        "Mixture-of-Depths: part of a row's tokens that a routed block works on, the others pass "
        "it by; the paper's best is 0.125; 0: off, every block is dense"),
    I64(mod.every, "2", 1, 10000, "", "every so many blocks one is routed; 2: the 2nd, 4th, …"),
    CHOICE(mod.router, tp_cfg_router, routers, "linear",
           "linear: the tokens that a learned vector likes best; random: any, and all: every "
           "token, to compare with"),
    CHOICE(mod.causal, tp_cfg_causal, causals, "predictor",
           "how a token is chosen where later ones are not known: by a small network that predicts "
           "the choice, by the router's sign, trained to it by a loss, or by a learned threshold"),
    CHOICE(mod.gate, tp_cfg_gate, gates, "linear",
           "what the router's logit becomes before it weighs a block's result; linear is the "
           "paper's, and trained to a lower loss on short runs"),
    F64(mod.aux_coef, "0.01", 0, OPEN, HUGE_F32, SHUT, "",
        "weight of the loss that causal choices learn from; it is not part of train_loss"),
    I64(mod.predictor_channels, "0", 0, 1 << 20, "",
        "hidden width of the predictor; 0: model.channels / 8"),
    CHOICE(mod.segments, tp_cfg_segments, shares, "row",
           "row: packed documents compete for a row's capacity; document: each has its share, by "
           "its length"),

    I64(lora.r, "0", 0, 65536, "",
        "LoRA: learn adapters of this rank beside the matrices of model.init_from, whose weights "
        "stay as they are; 8 is usual; 0: off, every weight is trained"),
    F64(lora.lora_alpha, "8", 0, OPEN, HUGE_F32, SHUT, "",
        "what an adapter adds is multiplied by lora_alpha/r"),
    TEXT(lora.target_modules, "all-linear", "",
         "matrices that get an adapter, as q_proj,v_proj; all-linear: all of every block"),
    BOOL(lora.use_rslora, "false", "multiply by lora_alpha/sqrt(r) instead: for high ranks"),

    I64(train.batch, "16", 1, 1 << 24, "rows", "rows of context tokens per optimizer step"),
    I64(train.micro_batches, "1", 1, 1 << 24, "",
        "parts a batch is computed in, on each rank; must divide batch; the result is the same "
        "bits"),
    CHOICE(train.optimizer, tp_cfg_optimizer, optimizers, "adamw",
           "muon: Muon on hidden matrices, AdamW on the rest"),
    CHOICE(train.optimizer_state_dtype, tp_cfg_state, states, "f32",
           "AdamW's two moments; bf16: 4 bytes per parameter less, rounded stochastically, still "
           "the same bits in every run"),
    F64(train.learning_rate, "0.001", 0, OPEN, HUGE_F32, SHUT, "",
        "peak learning rate (of the AdamW part under muon)"),
    F64(train.min_lr_ratio, "0.1", 0, SHUT, 1, SHUT, "",
        "where a decaying learning rate ends, as a part of its peak"),
    F64(train.muon_learning_rate, "0.02", 0, OPEN, HUGE_F32, SHUT, "",
        "peak learning rate of Muon's matrices"),
    F64(train.muon_momentum, "0.95", 0, SHUT, 1, OPEN, "", "Nesterov momentum of Muon"),
    F64(train.momentum, "0.9", 0, SHUT, 1, OPEN, "", "momentum of sgd"),
    F64(train.adam_beta1, "0.9", 0, SHUT, 1, OPEN, "", "decay of AdamW's first moment"),
    F64(train.adam_beta2, "0.95", 0, SHUT, 1, OPEN, "", "decay of AdamW's second moment"),
    F64(train.adam_epsilon, "1e-8", 0, OPEN, 1, OPEN, "", "added to AdamW's denominator"),
    F64(train.weight_decay, "0.1", 0, SHUT, HUGE_F32, SHUT, "", "decoupled, on matrices only"),
    F64(train.max_grad_norm, "1", 0, SHUT, INFINITY, OPEN, "",
        "gradients are scaled down to this global 2-norm; 0: off"),
    CHOICE(train.lr_scheduler_type, tp_cfg_schedule, schedules, "cosine",
           "after the warm-up; wsd: constant, then a linear decay over decay_steps"),
    I64(train.warmup_steps, "0", 0, 1e12, "steps", "linear warm-up from 0"),
    I64(train.decay_steps, "0", 0, 1e12, "steps",
        "length of the final decay of wsd; 0: a fifth of run.steps"),
    F64(train.z_loss, "0", 0, SHUT, HUGE_F32, SHUT, "",
        "weight of the squared log-partition in the loss; 0: off"),
    I64(train.loss_chunk_size, "0", 0, 65536, "tokens",
        "tokens whose logits exist at once; 0: few, so that the loss takes little memory; on a GPU "
        "2048 and more save a product of the head and take, beside these logits, its gradient "
        "several times; same bits"),
    I64(train.max_bad_steps, "10", 0, 1e12, "steps",
        "the run stops at so many steps with NaN or infinity in a row; those before are skipped; "
        "0: all are skipped, it never stops"),

    BOOL(train.optimizer_in_bwd, "false",
         "move each parameter as soon as its gradient is known, and let go of that: less memory; "
         "needs max_grad_norm: 0, one micro-batch and one rank, and cannot skip a bad step"),

    BOOL(train.cuda_graph, "false",
         "record the passes of a step once and replay them: fewer launches from the host; needs "
         "device: cuda, one rank and model.dropout: 0; same bits"),

    CHOICE(dist.backend, tp_cfg_backend, backends, "auto",
           "how ranks talk; auto: MPI where `mpirun` or `srun` started the program, else self"),
    I64(dist.zero_stage, "0", 0, 2, "",
        "ZeRO: 1 shards the optimizer's state over the ranks, 2 the gradients too; same bits"),
    F64(dist.bucket_mb, "4", 0, SHUT, 1 << 20, SHUT, "MB",
        "gradients travel together up to this size"),
    F64(dist.timeout, "30", 0, OPEN, 1e6, SHUT, "s",
        "a rank that gives no sign of life for so long ends the job"),

    TEXT(rl.task, "chain", "", "what is practised: `tapir task --list`, or a file of JSON lines"),
    I64(rl.task_min, "0", 0, 1 << 20, "", "smallest size of the task's items; 0: the task's own"),
    I64(rl.task_max, "0", 0, 1 << 20, "", "largest size of the task's items; 0: the task's own"),
    TEXT(rl.reward_weights, "exact_match=1", "",
         "rewards and their weights, as exact_match=1,format=0.1,program=0.5"),
    TEXT(rl.reward_program, "", "",
         "shell command that reads JSON lines (prompt, completion, answer) and writes a number for "
         "each"),
    F64(rl.reward_timeout, "10", 0, OPEN, 1e6, SHUT, "s", "how long it may take for a batch"),
    I64(rl.prompts_per_step, "16", 1, 1 << 20, "prompts", "different prompts of a step"),
    I64(rl.num_generations, "16", 2, 1 << 16, "samples", "completions of each prompt: the group"),
    I64(rl.max_completion_length, "64", 1, 1 << 24, "tokens",
        "a completion ends here at the latest; less than model.context"),
    I64(rl.lanes, "0", 0, 1 << 16, "",
        "sequences that are decoded side by side; 0: as many as do well, 64 or 16 a thread; same "
        "bits"),
    F64(rl.temperature, "1", 0.001, SHUT, 1000, SHUT, "",
        "of sampling, and of the loss's log-probs"),
    I64(rl.top_k, "0", 0, INT32_MAX, "tokens", "draw from the k likeliest only; 0: off"),
    F64(rl.top_p, "1", 0, OPEN, 1, SHUT, "", "draw from the likeliest that hold this; 1: off"),
    F64(rl.min_p, "0", 0, SHUT, 1, SHUT, "", "drop what is less likely than this part of the best"),
    F64(rl.repetition_penalty, "1", 0, OPEN, INFINITY, OPEN, "",
        "makes tokens seen before less likely; 1: off, the only value that learning allows"),
    CHOICE(rl.advantage_estimator, tp_cfg_estimator, estimators, "grpo",
           "grpo: reward less the group's mean; rloo: less the mean of the others"),
    CHOICE(rl.scale_rewards, tp_cfg_scale, scales, "group",
           "advantages are divided by the standard deviation of the group, of the batch, or not"),
    CHOICE(rl.loss_type, tp_cfg_loss_type, loss_types, "dapo",
           "mean over tokens: of each sequence (grpo), of the minibatch (bnpo), of the whole batch "
           "(dapo), or sum over max_completion_length (dr_grpo)"),
    CHOICE(rl.objective, tp_cfg_objective, objectives, "clip",
           "clip: PPO's; cispo: the ratio, capped at epsilon_high, only weighs"),
    CHOICE(rl.importance_sampling_level, tp_cfg_level, levels, "token",
           "ratios of tokens, or of whole sequences (GSPO)"),
    /* ratios end at e^20 = 4.9e8 (ops/policy_loss), so a limit beyond 1e9 would be none; and
     * weights up to that leave f32 room for sums */
    F64(rl.epsilon, "0.2", 0, OPEN, 1e9, SHUT, "", "ratios are clipped below at 1 less this"),
    F64(rl.epsilon_high, "0", 0, SHUT, 1e9, SHUT, "",
        "and above at 1 plus this (DAPO: 0.28); 0: as epsilon"),
    F64(rl.delta, "0", 0, SHUT, 1e9, SHUT, "",
        "two-sided clipping: ratios are capped at this first; 0: off"),
    F64(rl.clip_ratio_c, "0", 0, SHUT, 1e9, SHUT, "",
        "dual clip: the loss of a negative advantage is at most this times it; 0: off"),
    F64(rl.beta, "0", 0, SHUT, 1e9, SHUT, "", "weight of the KL to the reference model"),
    CHOICE(rl.kl_estimator, tp_cfg_kl, kls, "k3", "k1: log-ratio; k2: half its square; k3: GRPO's"),
    BOOL(rl.use_bias_correction_kl, "false", "the KL term is weighed by the ratio (DeepSeek-V3.2)"),
    BOOL(rl.sync_ref_model, "false", "the reference model follows the policy"),
    F64(rl.ref_model_mixup_alpha, "0.6", 0, SHUT, 1, SHUT, "", "how far it moves at a sync"),
    I64(rl.ref_model_sync_steps, "512", 1, 1e12, "steps", "how often"),
    F64(rl.entropy_coef, "0", 0, SHUT, 1e9, SHUT, "", "weight of the entropy bonus"),
    F64(rl.top_entropy_quantile, "1", 0, OPEN, 1, SHUT, "",
        "learn from this part of the tokens only, those with the highest entropy"),
    BOOL(rl.mask_truncated_completions, "false", "completions without an end do not count"),
    I64(rl.overlong_buffer, "0", 0, 1 << 24, "tokens",
        "the last so many tokens of max_completion_length cost up to 1 of the reward; 0: off"),
    I64(rl.num_iterations, "1", 1, 1 << 16, "", "updates from the same completions, each in full"),
    I64(rl.steps_per_generation, "1", 1, 1 << 16, "",
        "minibatches that the completions of a step are cut into, an update each"),
    BOOL(
        rl.share_prompts, "false",
        "the update reads a prompt once for its group: fewer tokens, the same log-probs, gradients "
        "summed in another order"),
    BOOL(rl.dynamic_sampling, "false",
         "groups with equal rewards are replaced by those of further prompts"),
    I64(rl.max_draws, "4", 1, 1 << 16, "",
        "a step draws at most so many times prompts_per_step; then it goes on with fewer groups"),
    BOOL(rl.shuffle_rewards, "false", "a control: rewards are dealt out at random"),
    I64(rl.eval_prompts, "200", 0, 1 << 24, "prompts",
        "held out, for evaluations, which count right answers; 0: none"),
    I64(rl.eval_samples, "16", 1, 1 << 16, "samples", "of each, for pass@k"),
    I64(rl.log_completions, "2", 0, 1 << 20, "", "completions shown at each line of metrics"),
    BOOL(rl.dump, "true", "write every step's completions to rollouts/, for `tapir replay`"),

    I64(eval.every, "0", 0, 1e12, "steps",
        "evaluate this often, on data.val or on held-out prompts (grpo); 0: at the end only"),
    I64(eval.batches, "0", 0, 1e12, "batches", "batches per evaluation; 0: all of data.val"),

    I64(sample.every, "0", 0, 1e12, "steps", "print a sample of the model this often; 0: never"),
    TEXT(sample.prompt, "", "",
         "text that samples continue; a user's turn where conversations are learnt; empty: "
         "the start of a document"),
    I64(sample.tokens, "128", 1, 1 << 24, "tokens", "length of a sample"),
    F64(sample.temperature, "0.8", 0, SHUT, INFINITY, OPEN, "", "0: the likeliest token always"),
    I64(sample.top_k, "0", 0, INT32_MAX, "tokens", "draw from the k likeliest only; 0: off"),
    F64(sample.top_p, "1", 0, OPEN, 1, SHUT, "",
        "draw from the likeliest tokens that hold this probability together; 1: off"),
    F64(sample.min_p, "0", 0, SHUT, 1, SHUT, "",
        "drop tokens less likely than this part of the likeliest; 0: off"),
    F64(sample.repetition_penalty, "1", 0, OPEN, INFINITY, OPEN, "",
        "divides the positive logits of tokens seen before, multiplies the negative; 1: off"),
    I64(sample.seed, "1", 0, ANY, "", "keys the random numbers of samples"),

    I64(checkpoint.every, "1000", 0, 1e12, "steps",
        "save this often; 0: at the end and on interrupt only"),
    I64(checkpoint.keep, "3", 0, 1 << 20, "files", "newest checkpoints that stay; 0: all"),
    BOOL(checkpoint.best, "true", "also keep the one with the lowest validation loss as best.h5"),

    I64(log.every, "10", 1, 1e12, "steps", "a line of metrics this often"),
    BOOL(log.tensorboard, "true", "write TensorBoard event files next to metrics.jsonl"),
};
const int tp_config_nkeys = sizeof tp_config_keys / sizeof tp_config_keys[0];
_Static_assert(sizeof tp_config_keys / sizeof tp_config_keys[0] <= TP_CONFIG_KEYS,
               "raise TP_CONFIG_KEYS");
_Static_assert(sizeof(tp_cfg_auto) == sizeof(int), "choices are stored as int");

int tp_config_find(const char *name, size_t n) {
    for (int i = 0; i < tp_config_nkeys; i++)
        if (strlen(tp_config_keys[i].name) == n && !memcmp(tp_config_keys[i].name, name, n))
            return i;
    return -1;
}

int tp_config_group_row(const char *name, size_t n) {
    for (int i = 0; i < tp_config_nkeys; i++) {
        const char *key = tp_config_keys[i].name;
        if (strlen(key) > n && key[n] == '.' && !memcmp(key, name, n)) return i;
    }
    return -1;
}

/* Levenshtein distance with swaps of neighbours (optimal string alignment); both short. */
static int edit_distance(const char *a, const char *b) {
    enum { LONGEST = 48 };
    int d[3][LONGEST + 1];
    int na = (int)strnlen(a, LONGEST), nb = (int)strnlen(b, LONGEST);
    for (int j = 0; j <= nb; j++) d[0][j] = j;
    for (int i = 1; i <= na; i++) {
        int *row = d[i % 3], *up = d[(i + 2) % 3], *up2 = d[(i + 1) % 3];
        row[0] = i;
        for (int j = 1; j <= nb; j++) {
            int best = up[j - 1] + (a[i - 1] != b[j - 1]);
            if (up[j] + 1 < best) best = up[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                up2[j - 2] + 1 < best)
                best = up2[j - 2] + 1;
            row[j] = best;
        }
    }
    return d[na % 3][nb];
}

static const char *leaf_of(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot ? dot + 1 : name;
}

const char *tp_config_nearest(const char *name) {
    const char *best = NULL, *leaf = leaf_of(name);
    int least = 1000;
    for (int i = 0; i < tp_config_nkeys; i++) {
        const char *key = tp_config_keys[i].name;
        int whole = edit_distance(name, key);
        /* the right leaf in the wrong group is nearer than its spelling says */
        int last = edit_distance(leaf, leaf_of(key)) + 1;
        int d = whole < last ? whole : last;
        /* cut short: dist.zero for dist.zero_stage */
        if (strlen(name) >= 4 && d > 1 && !strncmp(name, key, strlen(name))) d = 1;
        if (d < least) {
            least = d;
            best = key;
        }
    }
    int allowed = 1 + (int)strnlen(leaf, 48) / 3;
    return least <= allowed ? best : NULL;
}

/* " >= 1 and <= 10": the limits of a number, "" where it has none. */
static void range_words(char out[96], const tp_key *k) {
    char lo[TP_F64_TEXT], hi[TP_F64_TEXT];
    size_t o = 0;
    out[0] = 0;
    if (isfinite(k->lo)) {
        tp_f64_print(lo, k->lo);
        o = (size_t)snprintf(out, 96, " %s %s", k->lo_open ? ">" : ">=", lo);
    }
    if (isfinite(k->hi)) {
        tp_f64_print(hi, k->hi);
        snprintf(out + o, 96 - o, "%s %s %s", o ? " and" : "", k->hi_open ? "<" : "<=", hi);
    }
}

void tp_config_allowed(char *out, size_t cap, const tp_key *k) {
    char range[96];
    switch (k->type) {
    case TP_KEY_BOOL:
        snprintf(out, cap, "be true or false");
        break;
    case TP_KEY_TEXT:
        snprintf(out, cap, "be a %s", *k->unit ? k->unit : "text");
        break;
    case TP_KEY_CHOICE: {
        size_t o = (size_t)snprintf(out, cap, "be one of");
        for (int i = 0; k->choices[i] && o < cap; i++)
            o += (size_t)snprintf(out + o, cap - o, "%s %s", i ? "," : "", k->choices[i]);
        break;
    }
    case TP_KEY_I64:
    case TP_KEY_F64:
        range_words(range, k);
        snprintf(out, cap, "be a %snumber%s", k->type == TP_KEY_I64 ? "whole " : "", range);
        break;
    }
}

static bool in_range(const tp_key *k, double v) {
    bool low = k->lo_open ? v > k->lo : v >= k->lo;
    bool high = k->hi_open ? v < k->hi : v <= k->hi;
    return low && high;
}

static const char *put_text(void *at, const char *s, size_t n) {
    for (size_t i = 0; i < n;) {
        uint32_t code;
        int len = tp_utf8_decode(&code, s + i, n - i);
        if (!len) return "be UTF-8 text";
        if (!code) return "hold no zero byte";
        i += (size_t)len;
    }
    if (n >= TP_CONFIG_TEXT) return "be shorter than 1024 bytes";
    memset(at, 0, TP_CONFIG_TEXT);
    memcpy(at, s, n);
    return NULL;
}

const char *tp_config_put(tp_config *cfg, int row, const char *s, size_t n, char *out, size_t cap) {
    const tp_key *k = &tp_config_keys[row];
    void *at = (char *)cfg + k->offset;
    const char *why = NULL;
    tp_config_allowed(out, cap, k);
    switch (k->type) {
    case TP_KEY_BOOL: {
        bool yes = n == 4 && !memcmp(s, "true", 4), no = n == 5 && !memcmp(s, "false", 5);
        if (!yes && !no) return out;
        *(bool *)at = yes;
        return NULL;
    }
    case TP_KEY_CHOICE:
        for (int i = 0; k->choices[i]; i++)
            if (strlen(k->choices[i]) == n && !memcmp(k->choices[i], s, n)) {
                memcpy(at, &i, sizeof i);
                return NULL;
            }
        return out;
    case TP_KEY_I64: {
        int64_t v;
        if ((why = tp_i64_parse(&v, s, n))) break;
        if (!in_range(k, (double)v)) return out;
        *(int64_t *)at = v;
        return NULL;
    }
    case TP_KEY_F64: {
        double v;
        if ((why = tp_f64_parse(&v, s, n))) break;
        if (!in_range(k, v)) return out;
        *(double *)at = v;
        return NULL;
    }
    case TP_KEY_TEXT:
        if (!(why = put_text(at, s, n))) return NULL;
        break;
    }
    char range[96] = "";
    if (k->type != TP_KEY_TEXT) range_words(range, k);
    snprintf(out, cap, "%s%s%s", why, *range ? "," : "", range);
    return out;
}

void tp_config_value(tp_str *t, const tp_config *cfg, int row) {
    const tp_key *k = &tp_config_keys[row];
    const void *at = (const char *)cfg + k->offset;
    char number[TP_F64_TEXT];
    int choice;
    switch (k->type) {
    case TP_KEY_BOOL:
        tp_str_puts(t, *(const bool *)at ? "true" : "false");
        break;
    case TP_KEY_I64:
        tp_str_printf(t, "%lld", (long long)*(const int64_t *)at);
        break;
    case TP_KEY_F64:
        tp_f64_print(number, *(const double *)at);
        tp_str_puts(t, number);
        break;
    case TP_KEY_TEXT:
        tp_str_yaml(t, at);
        break;
    case TP_KEY_CHOICE:
        memcpy(&choice, at, sizeof choice);
        tp_str_puts(t, k->choices[choice]);
        break;
    }
}

const char *tp_config_origin(char *out, size_t cap, const tp_config *cfg, int row) {
    int32_t line = cfg->line[row];
    if (line > 0)
        snprintf(out, cap, "%s:%d: ", cfg->file, (int)line);
    else
        snprintf(out, cap, "%s", line < 0 ? "command line: " : "");
    return out;
}
