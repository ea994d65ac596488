/* tapir plan: what a config will cost, from shapes alone. */
#include "cli/source.h"
#include "core/device.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *words[256];
static int n_words;
static bool json;
static int ranks = 1;
static const struct argp_option options[] = {
    {"json", 'j', NULL, 0, "One line for machines", 0},
    {"ranks", 'r', "N", 0, "Plan for N ranks (1, 2, 4, …); memory is each one's", 0},
    {0}};

static error_t parse(int key, char *arg, struct argp_state *state) {
    if (key == 'j')
        json = true;
    else if (key == 'r') {
        char *end;
        long v = strtol(arg, &end, 10);
        if (*end || end == arg || v < 1 || v > 65536 || (v & (v - 1)))
            argp_error(state, "ranks are a power of two up to 65536, got \"%s\"", arg);
        ranks = (int)v;
    } else if (key == ARGP_KEY_ARG && n_words < 256)
        words[n_words++] = arg;
    else if (key == ARGP_KEY_ARG)
        argp_error(state, "too many arguments");
    else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

tp_status tp_config_vocab(tp_ctx *c, tp_config *cfg) {
    tp_tokenizer *t = NULL;
    if (cfg->model.vocab && !*cfg->model.init_from) return TP_OK;
    if (!*cfg->model.init_from && !*cfg->data.train)
        return tp_fail(c, TP_EARG,
                       "model.vocab is needed: the size of the vocabulary, as model.vocab=4096 (or "
                       "data.train, whose tokenizer says it)");
    tp_status st = tp_begin_tokenizer(&t, c, cfg, NULL);
    tp_tokenizer_free(t);
    return st;
}

/* Memory depends on the GPU's kernels a little, so a plan without one says whose it is. */
static void say_gpu(FILE *f) {
    char gpu[160] = "no GPU";
    const bool one = &tp_cuda_backend && tp_cuda_backend.describe(gpu, sizeof gpu);
    fprintf(f, "device           cuda: %s%s\n", gpu,
            one ? "" : "; planned for compute capability 8.0");
}

void tp_plan_print(FILE *f, const tp_config *cfg, const tp_plan *p) {
    char a[32], b[32], d[32];
    double mb = 1e6;
    if (cfg->device == TP_CUDA) say_gpu(f);
    if (p->ranks > 1) fprintf(f, "ranks            %d   (memory is that of each)\n", p->ranks);
    fprintf(f, "parameters       %s   (%.1f MB)\n", tp_count(a, (double)p->parameters),
            (double)p->parameter_bytes / mb);
    if (p->trained < p->parameters)
        fprintf(f, "trained          %s of %s parameters   (LoRA, r %lld)\n",
                tp_count(a, (double)p->trained), tp_count(b, (double)p->parameters),
                (long long)cfg->lora.r);
    fprintf(f, "optimizer state  %.1f MB\n", (double)p->optimizer_bytes / mb);
    fprintf(f, "gradients        %.1f MB\n", (double)p->gradient_bytes / mb);
    double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    fprintf(f, "peak memory      %.1f MB   with a step's activations", (double)p->peak_bytes / mb);
    if (cfg->device == TP_CPU && (double)p->peak_bytes > memory)
        fprintf(f, "; this machine has %.1f MB", memory / mb);
    fputc('\n', f);
    fprintf(f, "tokens per step  %s   (%lld sequences of %lld)\n",
            tp_count(a, (double)p->tokens_per_step), (long long)cfg->train.batch,
            (long long)cfg->model.context);
    int64_t kv = p->kv_bytes_per_token, whole = kv * cfg->model.context;
    double left = fmax(memory - (double)p->parameter_bytes, 0);
    fprintf(
        f,
        "key-value cache  %s bytes per token%s, %.1f MB for a whole context; beside the weights "
        "this machine holds %s of them\n",
        tp_count(a, (double)kv), cfg->mod.capacity > 0 ? " at mod.capacity" : "",
        (double)whole / mb, tp_count(b, floor(left / (double)whole)));
    fprintf(f, "FLOPs per step   %s   (forward %s; %s per token, summed over the ops that run)\n",
            tp_count(a, p->step_flops), tp_count(b, p->forward_flops),
            tp_count(d, p->step_flops / (double)p->tokens_per_step));
}

int cmd_plan(int argc, char **argv) {
    const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "CONFIG [KEY=VALUE…]",
        .doc =
            "Prints parameters, FLOPs and memory of a training run without running it. The peak is "
            "the one the run will have: it is computed by the same code on shapes without bytes. "
            "(With "
            "numerics: fast, oneDNN takes scratch memory of its own on top.)"};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    tp_config cfg;
    tp_ctx *c;
    int code = tp_read_config(argv[0], &cfg, words, n_words);
    if (code) return code;
    tp_warn_unused("plan, which looks at a step of `tapir train`", &cfg,
                   (const char *const[]){"rl.", NULL});
    if (tp_ctx_new(&c, NULL)) return tp_say_failure(argv[0], NULL, TP_ENOMEM); /* no GPU needed */
    tp_plan p;
    char error[512] = "";
    tp_status st = tp_config_vocab(c, &cfg);
    if (!st && (st = tp_plan_make(&p, &cfg, ranks, error, sizeof error)))
        tp_fail(c, st, "%s", error);
    if (st)
        code = tp_say_failure(argv[0], c, st);
    else if (json)
        printf("{\"ranks\":%d,\"parameters\":%lld,\"trained\":%lld,\"parameter_mb\":%.3f,"
               "\"optimizer_mb\":%.3f,"
               "\"gradient_mb\":%.3f,"
               "\"peak_mb\":%.3f,\"kv_bytes_per_token\":%lld,\"tokens_per_step\":%lld,\"forward_"
               "flops\":%.6g,\"step_flops\":%.6g}"
               "\n",
               p.ranks, (long long)p.parameters, (long long)p.trained,
               (double)p.parameter_bytes / 1e6, (double)p.optimizer_bytes / 1e6,
               (double)p.gradient_bytes / 1e6, (double)p.peak_bytes / 1e6,
               (long long)p.kv_bytes_per_token, (long long)p.tokens_per_step, p.forward_flops,
               p.step_flops);
    else
        tp_plan_print(stdout, &cfg, &p);
    tp_ctx_free(c);
    return code;
}
