/* tapir import: a model of Hugging Face's transformers as a run, for everything that begins with
 * one. Names and layouts of weights are theirs already; what is to be done is to read the config,
 * to see that every tensor of the folder has its place and every parameter its tensor, and to put
 * them into a checkpoint, as f32. */
#include "cli/cli.h"
#include "data/chat.h"
#include "data/files.h"
#include "data/hf_config.h"
#include "data/safetensors.h"
#include "data/text.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char *folder, *run_path;
static int64_t context;
static const struct argp_option options[] = {
    {"context", 'c', "N", 0, "model.context of the run, at most the model's own (the model's own)",
     0},
    {0}};

static error_t parse(int key, char *arg, struct argp_state *s) {
    switch (key) {
    case 'c':
        context = tp_integer_arg(s, "--context", arg, 1, 1 << 24);
        break;
    case ARGP_KEY_ARG:
        if (!folder)
            folder = arg;
        else if (!run_path)
            run_path = arg;
        else
            argp_error(s, "one folder, one run");
        break;
    case ARGP_KEY_END:
        if (!folder || !*folder) argp_error(s, "which folder?");
        if (!run_path || !*run_path) argp_error(s, "as which run?");
        if (strlen(folder) >= TP_CONFIG_TEXT || strlen(run_path) >= TP_CONFIG_TEXT)
            argp_error(s, "a name is too long");
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

typedef struct import {
    tp_ctx *c, *meta; /* meta: of the model, which holds no bytes */
    tp_config cfg;
    tp_tokenizer *tokenizer;
    tp_safetensors *from;
    tp_trainer trainer; /* the model's parameters: names and shapes */
    bool *used;         /* of from's tensors */
    float *x;           /* the largest tensor's values */
    int64_t tensors, most;
    FILE *lock;
    bool made; /* the run's folder is ours */
} import;

/* ---- what the folder has -------------------------------------------------------------------- */
static void name_file(char out[TP_CONFIG_TEXT + 64], const char *in, const char *file) {
    snprintf(out, TP_CONFIG_TEXT + 64, "%s/%s", in, file);
}

static bool has(const char *file) {
    char path[TP_CONFIG_TEXT + 64];
    struct stat s;
    name_file(path, folder, file);
    return !stat(path, &s);
}

/* What is missing, and how it comes about, before anything is read. */
static tp_status look(tp_ctx *c) {
    struct stat s;
    if (stat(folder, &s))
        return tp_fail(c, TP_EIO, "%s: cannot open the folder: %s", folder, strerror(errno));
    if (!S_ISDIR(s.st_mode))
        return tp_fail(c, TP_EARG, "%s is a file: name the folder of a model", folder);
    if (!has("config.json"))
        return tp_fail(c, TP_EARG, "%s is no model of transformers: it has no config.json%s",
                       folder, has("checkpoints") ? " (a run of Tapir needs no import)" : "");
    if (!has("model.safetensors") && !has("model.safetensors.index.json"))
        return tp_fail(c, TP_EARG, "%s has no model.safetensors%s", folder,
                       has("pytorch_model.bin") || has("pytorch_model.bin.index.json")
                           ? ": pytorch_model.bin is not read, save_pretrained() of transformers "
                             "makes one of the other"
                           : "");
    if (!has("tokenizer.json"))
        return tp_fail(c, TP_EARG,
                       "%s has no tokenizer.json: AutoTokenizer.from_pretrained(FOLDER)"
                       ".save_pretrained(FOLDER) of transformers writes one",
                       folder);
    return TP_OK;
}

static tp_status read_config(import *m) {
    char path[TP_CONFIG_TEXT + 64], *text;
    size_t n;
    tp_config_defaults(&m->cfg);
    snprintf(m->cfg.run.dir, sizeof m->cfg.run.dir, "%s", run_path);
    name_file(path, folder, "config.json");
    tp_status st = tp_read_file(&text, &n, m->c, path, 1 << 24);
    if (!st) st = tp_hf_config_read(m->c, &m->cfg, context, text, n, path);
    tp_free(text);
    return st;
}

static tp_status read_tokenizer(import *m) {
    char path[TP_CONFIG_TEXT + 64];
    name_file(path, folder, "tokenizer.json");
    tp_status st = tp_tokenizer_load(&m->tokenizer, m->c, path);
    if (st) return st;
    const int64_t tokens = tp_tokenizer_vocab_size(m->tokenizer);
    if (tokens > m->cfg.model.vocab)
        return tp_fail(m->c, TP_EARG, "%s has %lld tokens, but the model knows %lld", path,
                       (long long)tokens, (long long)m->cfg.model.vocab);
    static const tp_cfg_chat chat[] = {[TP_CHAT_PLAIN] = TP_CFG_PLAIN,
                                       [TP_CHAT_CHATML] = TP_CFG_CHATML,
                                       [TP_CHAT_LLAMA3] = TP_CFG_LLAMA3};
    m->cfg.data.chat_template = chat[tp_chat_suits(m->tokenizer)];
    return TP_OK;
}

/* ---- tensors and parameters ----------------------------------------------------------------- */
/* A model without its head is saved without the first part of the names. */
static const tp_safetensors_entry *find(const import *m, const char *name) {
    const tp_safetensors_entry *e = tp_safetensors_find(m->from, name);
    if (e || !strncmp(name, "lm_head.", 8)) return e;
    return tp_safetensors_find(m->from, strchr(name, '.') + 1);
}

/* Transformers ties a head to the embedding where config.json says so, but not one that the file
 * has with other values. */
static tp_status look_at_head(import *m) {
    const bool gpt2 = m->cfg.model.family == TP_CFG_GPT2;
    const tp_safetensors_entry *e[2] = {
        find(m, "lm_head.weight"),
        find(m, gpt2 ? "transformer.wte.weight" : "model.embed_tokens.weight")};
    float *x[2] = {NULL, NULL};
    tp_status st = TP_OK;
    if (!m->cfg.model.tie_embeddings || !e[0] || !e[1]) return TP_OK;
    bool same = e[0]->n == e[1]->n;
    for (int i = 0; i < 2 && same && !st; i++) {
        if (!(x[i] = tp_malloc(m->c, (size_t)e[i]->n * sizeof *x[i] + 1)))
            st = tp_error_status(m->c);
        if (!st) st = tp_safetensors_get(m->c, e[i], x[i]);
    }
    if (!st && same) same = !memcmp(x[0], x[1], (size_t)e[0]->n * sizeof *x[0]);
    m->cfg.model.tie_embeddings = same;
    tp_free(x[0]);
    tp_free(x[1]);
    return st;
}

static tp_status match(import *m, const tp_param *p) {
    const tp_safetensors_entry *e = find(m, p->name);
    if (!e) return tp_fail(m->c, TP_EFORMAT, "%s has no tensor %s", folder, p->name);
    m->used[e - tp_safetensors_at(m->from, 0)] = true;
    const int64_t n = tp_numel(p->t);
    bool same = e->ndim == p->t->ndim;
    for (int d = 0; same && d < e->ndim; d++) same = e->shape[d] == p->t->shape[d];
    if (!same)
        return tp_fail(m->c, TP_ESHAPE, "%s: %s must be %s by config.json, but has %lld values%s",
                       e->path, e->name, tp_shape_str(m->meta, p->t), (long long)e->n,
                       e->n == n ? " in another shape" : "");
    if (n > m->most) m->most = n;
    m->tensors++;
    return TP_OK;
}

static bool ends_with(const char *name, const char *end) {
    const size_t n = strlen(name), k = strlen(end);
    return n >= k && !strcmp(name + n - k, end);
}

/* Tensors that say nothing new: buffers of older versions, a head that is the embedding
 * (look_at_head). */
static bool is_spare(const import *m, const char *name) {
    return ends_with(name, ".attn.bias") || ends_with(name, ".attn.masked_bias") ||
           ends_with(name, ".rotary_emb.inv_freq") ||
           (m->cfg.model.tie_embeddings && !strcmp(name, "lm_head.weight"));
}

static tp_status must_be_zero(import *m, const tp_safetensors_entry *e) {
    char shown[64];
    tp_status st = tp_safetensors_get(m->c, e, m->x);
    for (int64_t i = 0; i < e->n && !st; i++)
        if (m->x[i] != 0)
            st = tp_fail(m->c, TP_EARG,
                         "%s: %s is not zero, and Tapir has no bias behind attention's output",
                         e->path, tp_quote(shown, sizeof shown, e->name, strlen(e->name)));
    return st;
}

static tp_status match_all(import *m) {
    const tp_params *p = tp_model_params(m->trainer.model);
    const int64_t n = tp_safetensors_count(m->from);
    char shown[64];
    tp_status st = TP_OK;
    if (!(m->used = tp_calloc(m->c, (size_t)n + 1, sizeof *m->used))) return tp_error_status(m->c);
    for (int i = 0; i < p->n && !st; i++) st = match(m, &p->p[i]);
    if (!st && !(m->x = tp_malloc(m->c, (size_t)m->most * sizeof *m->x)))
        st = tp_error_status(m->c);
    for (int64_t i = 0; i < n && !st; i++) {
        const tp_safetensors_entry *e = tp_safetensors_at(m->from, i);
        if (m->used[i] || is_spare(m, e->name)) continue;
        if (tp_hf_output_bias(&m->cfg) && ends_with(e->name, ".self_attn.o_proj.bias") &&
            e->n <= m->most)
            st = must_be_zero(m, e);
        else
            st = tp_fail(m->c, TP_EARG, "%s: tensor %s has no place in a %s of this config",
                         e->path, tp_quote(shown, sizeof shown, e->name, strlen(e->name)),
                         tp_hf_class(&m->cfg));
    }
    return st;
}

static tp_status open_model(import *m) {
    const tp_ctx_opts o = {.meta = true, .memory_limit = (size_t)1 << 50, .threads = 1};
    tp_status st = tp_ctx_new(&m->meta, &o);
    if (st) return tp_fail(m->c, st, "out of memory");
    st = tp_trainer_model(&m->trainer, m->meta, &m->cfg);
    return st ? tp_fail(m->c, st, "%s/config.json: %s", folder, tp_error(m->meta)) : TP_OK;
}

/* ---- the run -------------------------------------------------------------------------------- */
static tp_status open_run(import *m) {
    char path[TP_CONFIG_TEXT + 64];
    int64_t left;
    struct stat s;
    m->made = stat(run_path, &s) != 0;
    name_file(path, run_path, "checkpoints");
    tp_status st = tp_make_folder(m->c, path);
    if (!st) st = tp_lock_folder(&m->lock, m->c, run_path);
    if (!st) st = tp_checkpoint_clean(m->c, path, &left);
    return st ? st : tp_holds_no_run(m->c, run_path);
}

static tp_status put_weights(import *m, tp_checkpoint_writer *w) {
    const tp_params *p = tp_model_params(m->trainer.model);
    tp_status st = TP_OK;
    for (int i = 0; i < p->n && !st; i++) {
        char name[TP_CHECKPOINT_NAME];
        const tp_safetensors_entry *e = find(m, p->p[i].name);
        if (tp_interrupted()) return TP_EINTERRUPT;
        tp_progress(false, "reading weights  %3.0f %%", 100.0 * i / p->n);
        snprintf(name, sizeof name, "weights/%s", p->p[i].name);
        st = tp_safetensors_get(m->c, e, m->x);
        if (!st)
            st = tp_checkpoint_put(w, name, TP_F32, e->ndim, e->shape, m->x,
                                   (size_t)e->n * sizeof *m->x);
    }
    tp_progress_clear();
    return st;
}

static tp_status put_everything(import *m, tp_checkpoint_writer *w) {
    size_t n;
    char *config = tp_config_text(m->c, &m->cfg);
    if (!config) return tp_error_status(m->c);
    tp_status st = tp_checkpoint_put_text(w, "config", config);
    tp_free(config);
    if (!st) st = tp_checkpoint_put_text(w, "tokenizer", tp_tokenizer_json(m->tokenizer, &n));
    return st ? st : put_weights(m, w);
}

static tp_status write_run(import *m) {
    char path[TP_CONFIG_TEXT + 64], file[TP_CONFIG_TEXT + 96];
    tp_checkpoint_writer *w;
    size_t n;
    name_file(path, run_path, "config.yaml");
    tp_status st = tp_config_write(m->c, &m->cfg, path);
    name_file(path, run_path, "tokenizer.json");
    if (!st) st = tp_write_text(m->c, path, tp_tokenizer_json(m->tokenizer, &n));
    name_file(path, run_path, "checkpoints");
    if (!st) st = tp_checkpoint_file(file, sizeof file, m->c, path, 0);
    if (!st) st = tp_checkpoint_create(&w, m->c, file, 0);
    if (st) return st;
    if (!(st = put_everything(m, w))) return tp_checkpoint_finish(w);
    tp_checkpoint_abandon(w);
    return st;
}

/* Of a folder that was not there, nothing stays. */
static void unmake_run(const import *m) {
    static const char *const ours[] = {"config.yaml", "tokenizer.json", ".lock", "checkpoints"};
    char path[TP_CONFIG_TEXT + 64];
    for (int i = 0; i < 4 && m->made; i++) {
        name_file(path, run_path, ours[i]);
        remove(path);
    }
    if (m->made) rmdir(run_path);
}

static void tell(const import *m) {
    char count[32];
    printf("%s: %s, %s parameters in %lld tensors, vocabulary %lld, context %lld%s\n", run_path,
           tp_hf_class(&m->cfg), tp_count(count, (double)tp_model_numel(m->trainer.model)),
           (long long)m->tensors, (long long)m->cfg.model.vocab, (long long)m->cfg.model.context,
           m->cfg.data.chat_template == TP_CFG_CHATML   ? ", data.chat_template chatml"
           : m->cfg.data.chat_template == TP_CFG_LLAMA3 ? ", data.chat_template llama3"
                                                        : "");
    fprintf(stderr,
            "tapir generate %s \"…\" continues a text; model.init_from=%s in a config of tapir "
            "train or grpo begins with it\n",
            run_path, run_path);
}

static tp_status import_model(import *m) {
    tp_status st = look(m->c);
    if (!st) st = read_config(m);
    if (!st) st = read_tokenizer(m);
    if (!st) st = tp_safetensors_open(&m->from, m->c, folder);
    if (!st) st = look_at_head(m);
    if (!st) st = open_model(m);
    if (!st) st = match_all(m);
    if (st) return st;
    if (!(st = open_run(m))) st = write_run(m);
    if (st)
        unmake_run(m);
    else
        tell(m);
    return st;
}

int cmd_import(int argc, char **argv) {
    const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "FOLDER RUN",
        .doc = "Makes a run of a model in the format of Hugging Face's transformers: config.json, "
               "tokenizer.json and model.safetensors (or the files of its index), in F32, F16 or "
               "BF16. The models are GPT-2, Llama, Mistral, Qwen2 and Qwen3. What Tapir would "
               "compute otherwise is refused by name. RUN is for generate, chat and eval, and as "
               "model.init_from for train and grpo. tapir export is the way back."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    tp_catch_signals();
import m = {.most = 1 };
    tp_status st = tp_ctx_new(&m.c, NULL);
    if (st) return tp_say_failure(argv[0], NULL, st);
    st = import_model(&m);
    const int code = st ? tp_say_failure(argv[0], m.c, st) : EXIT_DONE;
    tp_safetensors_close(m.from);
    tp_tokenizer_free(m.tokenizer);
    tp_trainer_clear(&m.trainer);
    if (m.meta) tp_ctx_free(m.meta);
    tp_free(m.used);
    tp_free(m.x);
    if (m.lock) fclose(m.lock);
    tp_ctx_free(m.c);
    return code;
}
