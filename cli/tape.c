/* tapir tape: the computation of one training step, forward and backward, as it was recorded. */
#include "autograd/autograd.h"
#include "cli/cli.h"
#include "core/ctx.h"
#include <stdio.h>

static char *words[256];
static int n_words;

static error_t parse(int key, char *arg, struct argp_state *s) {
    if (key == ARGP_KEY_ARG && n_words < 256)
        words[n_words++] = arg;
    else if (key == ARGP_KEY_ARG)
        argp_error(s, "too many arguments");
    else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

static void print(void *arg, const char *line) {
    (void)arg;
    puts(line);
}

static tp_status show(const tp_config *cfg, tp_ctx *c) {
    tp_trainer t;
    tp_status st = tp_trainer_model(&t, c, cfg);
    int64_t B = cfg->train.batch / cfg->train.micro_batches, T = cfg->model.context;
    if (!st) st = tp_tape_on(c);
    if (!st) st = tp_tape_trace(c, true);
    tp_model_in in = {.ids = tp_tensor_new(c, TP_I32, TP_SHAPE(B, T)), .training = true};
    tp_tensor *targets = tp_tensor_new(c, TP_I32, TP_SHAPE(B, T));
    tp_model_loss_opts o = {.scale = 1.0 / (double)(B * T),
                            .gradient = true,
                            .aux_scale = cfg->mod.aux_coef / (double)(B * T)};
    tp_model_out y = {0};
    if (!st && targets) y = tp_model_loss(c, t.model, &in, targets, &o);
    tp_tensor *roots[] = {y.loss, y.aux};
    if (y.loss) tp_backward_from(c, y.aux ? 2 : 1, roots, NULL);
    st = tp_error_status(c);
    if (!st) tp_tape_print(c, print, NULL);
    tp_step_end(c);
    tp_trainer_clear(&t);
    return st;
}

int cmd_tape(int argc, char **argv) {
    const struct argp argp = {
        .parser = parse,
        .args_doc = "CONFIG [KEY=VALUE…]",
        .doc = "Prints every operation of one micro-batch, forward and then backward, in the order "
               "they "
               "run: result, shape, operation, operands, what it computes, and the part of the "
               "model it "
               "belongs to. Only shapes are computed, so any size of model will do."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    tp_config cfg;
    tp_ctx *c, *meta = NULL;
    int code = tp_open_config(argv[0], &cfg, &c, words, n_words);
    if (code) return code;
    tp_status st = tp_config_vocab(c, &cfg);
    if (st) code = tp_say_failure(argv[0], c, st);
    tp_ctx_free(c);
    if (code) return code;
    st = tp_ctx_new(
        &meta,
        &(tp_ctx_opts){.meta = true, .memory_limit = (size_t)1 << 50, .threads = (int)cfg.threads});
    if (!st) st = show(&cfg, meta);
    code = st ? tp_say_failure(argv[0], meta, st) : EXIT_DONE;
    tp_ctx_free(meta);
    return code;
}
