// A program outside of Tapir, in C++17: a small Llama learns one sequence by heart. It also calls
// what needs each library that Tapir stands on: YAML, PCRE2, utf8proc and JSON, HDF5, protobuf,
// threads.
#include <tapir/ops.h>
#include <tapir/tapir.h>
#include <cstdio>
#include <cstring>
#include <memory>

namespace {
constexpr int T = 8, steps = 60;

template <auto free> struct freed_by {
    template <class P> void operator()(P *p) const { free(p); }
};
using context = std::unique_ptr<tp_ctx, freed_by<tp_ctx_free>>;
using model = std::unique_ptr<tp_model, freed_by<tp_model_free>>;
using optimizer = std::unique_ptr<tp_optim, freed_by<tp_optim_free>>;

int fail(const char *what, tp_ctx *c) {
    std::fprintf(stderr, "model: %s: %s\n", what, tp_error(c));
    return 1;
}

bool refuses(tp_ctx *c, tp_status st, const char *word) {
    bool ok = st && std::strstr(tp_error(c), word);
    tp_clear(c);
    return ok;
}
} // namespace

int main() {
    tp_ctx *raw = nullptr;
    tp_ctx_opts with = {};
    with.seed = 1;
    if (tp_ctx_new(&raw, &with)) return 1;
    context c(raw);

    tp_config cfg;
    tp_config_defaults(&cfg);
    const char yaml[] = "model:\n  layers: 1\n  family: llama\n";
    if (tp_config_read(raw, &cfg, "text", yaml, sizeof yaml - 1) ||
        tp_config_set(raw, &cfg, "model.channels=16"))
        return fail("config", raw);
    tp_corpus *corpus = nullptr;
    tp_tokenizer *tokenizer = nullptr;
    tp_tfevents *events = nullptr;
    if (!refuses(raw, tp_corpus_open(&corpus, raw, "nowhere.h5"), "nowhere.h5")) return 1;
    if (!refuses(raw, tp_tokenizer_load(&tokenizer, raw, "nowhere.json"), "nowhere.json")) return 1;
    if (!refuses(raw, tp_tfevents_open(&events, raw, "nowhere/events", 0, 0), "nowhere")) return 1;

    tp_model_cfg shape = {};
    shape.family = TP_FAMILY_LLAMA;
    shape.layers = cfg.model.layers;
    shape.channels = cfg.model.channels;
    shape.heads = shape.kv_heads = 2;
    shape.head_dim = 8;
    shape.ffn = 32;
    shape.context = T;
    shape.vocab = 11;
    shape.rope_theta = 10000;
    shape.norm_eps = 1e-5;
    shape.init_std = 0.1;
    tp_model *m = nullptr;
    if (tp_model_new(&m, raw, &shape)) return fail("model", raw);
    model owned(m);

    tp_optim_opts how = {};
    how.learning_rate = 0.02;
    how.adam_beta1 = 0.9;
    how.adam_beta2 = 0.99;
    how.adam_epsilon = 1e-8;
    how.schedule = TP_CONSTANT;
    how.steps = steps;
    tp_optim *o = nullptr;
    if (tp_optim_new(&o, raw, tp_model_params(m), &how)) return fail("optimizer", raw);
    optimizer owned_too(o);

    const int32_t text[T + 1] = {3, 1, 4, 1, 5, 9, 2, 6, 5};
    double first = 0, last = 0;
    tp_tape_on(raw);
    for (int step = 0; step < steps; step++) {
        tp_model_in in = {};
        in.training = true;
        in.ids = tp_tensor_from(raw, TP_I32, TP_SHAPE(1, T), text);
        tp_tensor *targets = tp_tensor_from(raw, TP_I32, TP_SHAPE(1, T), text + 1);
        tp_model_loss_opts opts = {};
        opts.scale = 1.0 / T;
        opts.gradient = true;
        tp_model_out out = tp_model_loss(raw, m, &in, targets, &opts);
        tp_optim_report report;
        if (tp_backward(raw, out.loss) || tp_optim_step(o, step, &report)) return fail("step", raw);
        last = *tp_f32(out.loss);
        if (step == 0) first = last;
        for (int i = 0; i < tp_model_params(m)->n; i++)
            tp_zero_grad(raw, &tp_model_params(m)->p[i].t, 1);
        tp_step_end(raw);
    }
    std::printf("loss %.1f, learnt: %s\n", first, last < 0.1 ? "yes" : "no");
    return last < 0.1 ? 0 : 1;
}
