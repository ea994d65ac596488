/* tapir eval: how well a run predicts a corpus. */
#include "cli/source.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

static char *run_path, *corpus_path;
static bool json, best;
static tp_device device;
static const struct argp_option options[] = {
    {"json", 'J', NULL, 0, "One line for machines", 0},
    {"best", 'b', NULL, 0, "Use the checkpoint with the best validation loss", 0},
    {"device", 'd', "NAME", 0, "cpu, or cuda for a GPU (cpu)", 0},
    {0}};

static error_t parse(int key, char *arg, struct argp_state *s) {
    switch (key) {
    case 'J':
        json = true;
        break;
    case 'b':
        best = true;
        break;
    case 'd':
        device = tp_device_arg(s, arg);
        break;
    case ARGP_KEY_ARG:
        if (!run_path)
            run_path = arg;
        else if (!strncmp(arg, "data.val=", 9))
            argp_error(s, "CORPUS is given as a path, without data.val=");
        else if (!corpus_path)
            corpus_path = arg;
        else
            argp_error(s, "one corpus only");
        break;
    case ARGP_KEY_NO_ARGS:
        argp_error(s, "which run?");
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

/* Ids mean nothing without their tokenizer, so it must be the very same. */
tp_status tp_same_tokenizer(tp_ctx *c, const tp_tokenizer *t, const tp_corpus *co) {
    const tp_corpus_info *i = tp_corpus_get_info(co);
    size_t n;
    const char *mine = tp_tokenizer_json(t, &n);
    if (n == i->tokenizer_bytes && !memcmp(mine, i->tokenizer, n)) return TP_OK;
    return tp_fail(c, TP_EARG,
                   "%s was made with another tokenizer than this model's; prepare the text again "
                   "with --tokenizer RUN/tokenizer.json",
                   i->path);
}

/* Ranks take turns by parts of a batch; every row's loss has its place, so that the sum is the same
 * however many they are. */
static tp_status evaluate(tp_trainer *t, tp_rows *l, int64_t rows, tp_mod_mode mode, double nll[],
                          bool progress) {
    int64_t part = tp_share_of(&t->cfg, 0, t->ranks).rows;
    tp_status st = TP_OK;
    for (int64_t at = t->rank * part; !st && at < rows; at += t->ranks * part) {
        tp_batch b;
        if (t->ranks > 1) st = tp_rows_seek(l, t->c, at);
        if (st || (st = tp_rows_next(l, t->c, &b)) || !b.rows) break;
        if (t->ranks == 1 && tp_interrupted()) return TP_EINTERRUPT;
        nll[rows] += (double)b.n_targets;
        nll[rows + 1] += (double)b.target_bytes;
        b.rows = part; /* the rest is padding, ignored; one shape means one set of addresses */
        st = tp_trainer_eval(t, &b, mode, nll + at);
        if (progress)
            tp_progress(false, "evaluating  %3.0f %%", 100.0 * (double)(at + part) / (double)rows);
    }
    return st;
}

static tp_status evaluate_all(tp_trainer *t, const tp_source *s, int64_t max_batches,
                              tp_mod_mode mode, bool progress, tp_eval_result *out) {
    tp_ctx *c = t->c;
    tp_rows l = {0};
    double *nll = NULL;
    int64_t part = tp_share_of(&t->cfg, 0, t->ranks).rows, B = t->cfg.train.batch;
    tp_status st = tp_rows_open(&l, c, s, &t->cfg, NULL, part);
    int64_t rows = st ? 0 : tp_rows_count(&l), n;
    if (max_batches && max_batches < (rows + B - 1) / B) rows = max_batches * B;
    n = (rows + part - 1) / part * part; /* the last part is padded */
    if (!st && !(nll = tp_calloc(c, (size_t)n + 2, sizeof *nll))) st = tp_error_status(c);
    if (!st) st = evaluate(t, &l, n, mode, nll, progress);
    if (!st && t->ranks > 1) st = tp_comm_sum_f64(t->comm, c, nll, n + 2);
    for (int64_t i = 0; i < n && !st; i++) out->nll += nll[i];
    if (!st) {
        out->targets = (int64_t)nll[n];
        out->bytes = (int64_t)nll[n + 1];
    }
    if (progress) tp_progress_clear();
    tp_rows_close(&l);
    tp_free(nll);
    out->loss = out->targets ? out->nll / (double)out->targets : NAN;
    out->bpb = out->bytes ? out->nll / log(2) / (double)out->bytes : NAN;
    return st;
}

tp_status tp_evaluate(tp_trainer *t, const tp_source *s, int64_t max_batches, bool progress,
                      tp_eval_result *out) {
    double start = tp_now();
    tp_eval_result causal = {.loss = NAN};
    *out = (tp_eval_result){0};
    tp_status st = evaluate_all(t, s, max_batches, TP_MOD_TOP_K, progress, out);
    if (!st && tp_trainer_routes(t))
        st = evaluate_all(t, s, max_batches, TP_MOD_CAUSAL, progress, &causal);
    out->loss_causal = causal.loss;
    out->seconds = tp_now() - start;
    return st;
}

const char *tp_bits(char out[TP_BITS_TEXT], const tp_eval_result *e) {
    snprintf(out, TP_BITS_TEXT, e->bytes ? "%.4f bits per byte" : "no text, so no bits per byte",
             e->bpb);
    return out;
}

/* Targets without text have no bits per byte, and JSON has no NaN. */
static const char *json_number(char out[24], double x) {
    snprintf(out, 24, isfinite(x) ? "%.9g" : "null", x);
    return out;
}

static void print_result(const tp_run *r, const tp_eval_result *e, bool routes) {
    char bits[TP_BITS_TEXT], loss[24], ppl[24], bpb[24], causal[24];
    if (json) {
        printf("{\"step\":%lld,\"loss\":%s,\"perplexity\":%s,\"bpb\":%s,\"tokens\":%lld,"
               "\"bytes\":%lld",
               (long long)r->step, json_number(loss, e->loss), json_number(ppl, exp(e->loss)),
               json_number(bpb, e->bpb), (long long)e->targets, (long long)e->bytes);
        printf(routes ? ",\"loss_causal\":%s}\n" : "}\n", json_number(causal, e->loss_causal));
        return;
    }
    printf("loss %.4f nats per token   perplexity %.2f   %s   (%lld tokens, %lld bytes, step "
           "%lld)\n",
           e->loss, exp(e->loss), tp_bits(bits, e), (long long)e->targets, (long long)e->bytes,
           (long long)r->step);
    if (routes)
        printf("loss %.4f with causal decisions, as text is generated; the other sees the "
               "whole row when it chooses tokens\n",
               e->loss_causal);
}

static tp_status evaluate_run(tp_run *r, tp_comm *comm) {
    tp_source source = {0};
    tp_eval_result e = {0};
    const char *path = corpus_path ? corpus_path : r->cfg.data.val;
    tp_status st = tp_trainer_join(&r->trainer, comm);
    if (!st && !*path)
        st = tp_fail(r->c, TP_EARG,
                     "which corpus? the config of %s names no data.val: tapir eval RUN "
                     "CORPUS",
                     run_path);
    if (!st) st = tp_source_open(&source, r->c, &r->cfg, path, r->tokenizer);
    if (!st) st = tp_evaluate(&r->trainer, &source, 0, true, &e);
    bool routes = !st && tp_trainer_routes(&r->trainer);
    if (!st && !(isfinite(e.loss) && (!routes || isfinite(e.loss_causal))))
        st = tp_fail(r->c, TP_ENUMERIC,
                     "the loss of %s on %s is not finite, got %g: the run has gone wrong by step "
                     "%lld",
                     run_path, path, fabs(isfinite(e.loss) ? e.loss_causal : e.loss),
                     (long long)r->step);
    if (!st && tp_comm_rank(comm) == 0) print_result(r, &e, routes);
    tp_source_close(&source);
    return st;
}

int cmd_eval(int argc, char **argv) {
    const struct argp argp = {.options = options,
                              .parser = parse,
                              .args_doc = "RUN [CORPUS]",
                              .doc = "Prints loss (nats per token), perplexity and bits per byte "
                                     "of a run's newest checkpoint "
                                     "on a corpus, or on the replies of a .jsonl file of "
                                     "conversations: every token once, each row of context on its "
                                     "own. Without CORPUS: the run's data.val. Under mpirun the "
                                     "ranks share the rows, for the same digits."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    tp_catch_signals();
    tp_ctx *c;
    tp_comm *comm;
    tp_config defaults; /* for the ranks: the run's own config is read by each of them */
    tp_config_defaults(&defaults);
    defaults.device = device;
    int code = tp_open_device(argv[0], &c, device, 0);
    if (!code) code = tp_open_ranks(argv[0], &defaults, &c, &comm);
    if (code) return code;
    tp_run r;
    tp_status st = tp_run_open(&r, c, run_path, best);
    if (!st) st = evaluate_run(&r, comm);
    code = st ? tp_say_rank_failure(argv[0], c, comm, st) : EXIT_DONE;
    tp_comm_close(comm, st && st != TP_EINTERRUPT ? tp_error(c) : NULL);
    tp_run_close(&r);
    tp_ctx_free(c);
    return code;
}
