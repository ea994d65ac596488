/* tapir export: a run as a folder that Hugging Face's transformers loads. A checkpoint has weights
 * by their names and in their layouts, and a tokenizer.json; what is left to say is which of their
 * models computes the same (data/hf_config.h). */
#include "cli/cli.h"
#include "data/hf_config.h"
#include "data/safetensors.h"
#include "data/text.h"
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char *run_path, *folder;
static bool best;
static const struct argp_option options[] = {
    {"best", 'b', NULL, 0, "Use the checkpoint with the best validation loss", 0}, {0}};

static error_t parse(int key, char *arg, struct argp_state *s) {
    switch (key) {
    case 'b':
        best = true;
        break;
    case ARGP_KEY_ARG:
        if (!run_path)
            run_path = arg;
        else if (!folder)
            folder = arg;
        else
            argp_error(s, "one run, one folder");
        break;
    case ARGP_KEY_END:
        if (!run_path) argp_error(s, "which run?");
        if (!folder || !*folder) argp_error(s, "into which folder?");
        if (strlen(folder) >= TP_CONFIG_TEXT) argp_error(s, "the name of FOLDER is too long");
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

/* ---- what is said of the model --------------------------------------------------------------- */
static void put_config(tp_str *t, const tp_run *r) {
    tp_hf_config_write(t, &r->cfg, tp_tokenizer_eos(r->tokenizer));
}

static void put_tokenizer_config(tp_str *t, const tp_run *r) {
    size_t n;
    const uint8_t *eos = tp_tokenizer_token(r->tokenizer, tp_tokenizer_eos(r->tokenizer), &n);
    tp_str_puts(t, "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\"");
    tp_str_printf(t, ",\n  \"model_max_length\": %lld", (long long)r->cfg.model.context);
    if (eos) {
        tp_str_puts(t, ",\n  \"eos_token\": ");
        tp_str_json_n(t, (const char *)eos, n);
    }
    tp_str_puts(t, "\n}\n");
}

/* ---- the weights ---------------------------------------------------------------------------- */
/* The i-th weight of the file, or NULL if that entry is none. Adapters are none: they become part
 * of their matrices. */
static const tp_checkpoint_entry *weight_at(const tp_run *r, int64_t i) {
    const tp_checkpoint_entry *e = tp_checkpoint_at(r->from, i);
    return strncmp(e->name, "weights/", 8) || strstr(e->name, ".lora_") ? NULL : e;
}

static tp_status declare(tp_run *r, tp_safetensors_writer *w, int64_t *tensors, int64_t *most) {
    const int64_t channels = r->cfg.model.channels;
    tp_status st = TP_OK;
    *tensors = 0;
    *most = channels; /* values of the largest */
    for (int64_t i = 0; i < tp_checkpoint_count(r->from) && !st; i++) {
        const tp_checkpoint_entry *e = weight_at(r, i);
        if (!e) continue;
        if (e->dtype != TP_F32)
            st = tp_fail(r->c, TP_EDTYPE, "%s: %s must be f32, got %s", tp_checkpoint_path(r->from),
                         e->name, tp_dtype_name(e->dtype));
        if (!st) st = tp_safetensors_declare(w, e->name + 8, e->ndim, e->shape);
        int64_t n = (int64_t)(e->bytes / sizeof(float));
        if (n > *most) *most = n;
        ++*tensors;
    }
    for (int64_t l = 0; l < r->cfg.model.layers && tp_hf_output_bias(&r->cfg) && !st; l++) {
        char name[TP_CHECKPOINT_NAME];
        snprintf(name, sizeof name, "model.layers.%lld.self_attn.o_proj.bias", (long long)l);
        st = tp_safetensors_declare(w, name, 1, &channels);
        ++*tensors;
    }
    return st;
}

/* LoRA's A or B of a matrix, or NULL if it has no adapter. */
static const tp_checkpoint_entry *adapter_of(const tp_run *r, const tp_checkpoint_entry *e,
                                             char which) {
    char name[TP_CHECKPOINT_NAME];
    int module = (int)(strlen(e->name) - strlen("weight"));
    snprintf(name, sizeof name, "%.*slora_%c.weight", module > 0 ? module : 0, e->name, which);
    return tp_checkpoint_find(r->from, name);
}

/* W + s B A in place of W. */
static tp_status merge(tp_run *r, const tp_checkpoint_entry *e, float *w) {
    const tp_checkpoint_entry *part[2] = {adapter_of(r, e, 'A'), adapter_of(r, e, 'B')};
    tp_lora_cfg f = {
        .r = r->cfg.lora.r, .alpha = r->cfg.lora.lora_alpha, .rslora = r->cfg.lora.use_rslora};
    float *x[2] = {NULL, NULL};
    tp_status st = TP_OK;
    if (!part[0] || !part[1]) return TP_OK;
    for (int i = 0; i < 2 && !st; i++) {
        const tp_checkpoint_entry *p = part[i];
        if (!(x[i] = tp_malloc(r->c, p->bytes))) st = tp_error_status(r->c);
        if (!st)
            st = tp_checkpoint_get(r->from, p->name, TP_F32, p->ndim, p->shape, x[i], p->bytes);
    }
    if (!st)
        tp_lora_merge(r->c, w, x[0], x[1],
                      &(tp_lora_merge_opts){.in = part[0]->shape[1],
                                            .out = part[1]->shape[0],
                                            .r = part[0]->shape[0],
                                            .out_first = r->cfg.model.family == TP_CFG_LLAMA,
                                            .scale = tp_lora_scale(&f)});
    tp_free(x[0]);
    tp_free(x[1]);
    return st;
}

/* One at a time through x, so that a model larger than memory can be exported. */
static tp_status put_weights(tp_run *r, tp_safetensors_writer *w, float *x) {
    const int64_t n = tp_checkpoint_count(r->from);
    tp_status st = TP_OK;
    for (int64_t i = 0; i < n && !st; i++) {
        const tp_checkpoint_entry *e = weight_at(r, i);
        if (!e) continue;
        if (tp_interrupted()) return TP_EINTERRUPT;
        tp_progress(false, "writing weights  %3.0f %%", 100.0 * (double)i / (double)n);
        st = tp_checkpoint_get(r->from, e->name, e->dtype, e->ndim, e->shape, x, e->bytes);
        if (!st) st = merge(r, e, x);
        if (!st) st = tp_safetensors_put(w, x, (int64_t)(e->bytes / sizeof *x));
    }
    const int64_t channels = r->cfg.model.channels;
    memset(x, 0, (size_t)channels * sizeof *x);
    for (int64_t l = 0; l < r->cfg.model.layers && tp_hf_output_bias(&r->cfg) && !st; l++)
        st = tp_safetensors_put(w, x, channels);
    return st;
}

static tp_status write_weights(tp_run *r, const char *path, bool *begun, int64_t *tensors) {
    tp_safetensors_writer *w;
    float *x = NULL;
    int64_t most;
    tp_status st = tp_safetensors_create(&w, r->c, path);
    if (st) return st;
    *begun = true;
    st = declare(r, w, tensors, &most);
    if (!st && !(x = tp_malloc(r->c, (size_t)most * sizeof *x))) st = tp_error_status(r->c);
    if (!st) st = put_weights(r, w, x);
    tp_progress_clear();
    tp_free(x);
    if (!st) return tp_safetensors_finish(w);
    tp_safetensors_abandon(w);
    return st;
}

/* ---- the folder ----------------------------------------------------------------------------- */
/* config.json is the last: without it nobody takes the folder for a model. */
static const char *const files[] = {"model.safetensors", "tokenizer.json", "tokenizer_config.json",
                                    "config.json"};
enum { WEIGHTS, TOKENIZER, TOKENIZER_CONFIG, CONFIG, FILES };

static void name_file(char out[TP_CONFIG_TEXT + 32], int i) {
    snprintf(out, TP_CONFIG_TEXT + 32, "%s/%s", folder, files[i]);
}

/* Only an empty folder or a new one: nothing in it is replaced, and what is removed after a failure
 * is known to be ours. *there: it exists. */
static tp_status may_fill(tp_ctx *c, bool *there) {
    DIR *d = opendir(folder);
    *there = d != NULL;
    if (!d && errno == ENOENT) return TP_OK;
    if (!d && errno == ENOTDIR)
        return tp_fail(c, TP_EARG, "%s is no folder: name a new one, or one that is empty", folder);
    if (!d) return tp_fail(c, TP_EIO, "%s: cannot open the folder: %s", folder, strerror(errno));
    bool empty = true;
    for (struct dirent *e; empty && (e = readdir(d));)
        empty = !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..");
    closedir(d);
    if (empty) return TP_OK;
    return tp_fail(c, TP_EARG, "%s is not empty: name a new folder, or one that is empty", folder);
}

static tp_status write_texts(tp_run *r) {
    tp_status st = TP_OK;
    for (int i = TOKENIZER; i < FILES && !st; i++) {
        char path[TP_CONFIG_TEXT + 32];
        tp_str t;
        size_t n;
        const char *tokenizer = tp_tokenizer_json(r->tokenizer, &n);
        tp_str_init(&t, r->c);
        if (i == TOKENIZER)
            tp_str_add(&t, tokenizer, n);
        else
            (i == CONFIG ? put_config : put_tokenizer_config)(&t, r);
        name_file(path, i);
        st = t.failed ? tp_error_status(r->c) : tp_write_file(r->c, path, t.at, t.len);
        tp_str_clear(&t);
    }
    return st;
}

/* there: the folder is, and is empty. */
static tp_status export_run(tp_run *r, bool there) {
    char path[TP_CONFIG_TEXT + 32];
    const char *why = tp_hf_none_computes(&r->cfg), *from = tp_checkpoint_path(r->from);
    int64_t tensors = 0;
    bool begun = false;
    if (why)
        return tp_fail(r->c, TP_EARG, "no model of transformers computes what %s does: %s", from,
                       why);
    tp_status st = there ? TP_OK : tp_make_folder(r->c, folder);
    if (st) return st;
    name_file(path, WEIGHTS);
    st = write_weights(r, path, &begun, &tensors);
    if (!st) st = write_texts(r);
    for (int i = 0; i < FILES && st && begun; i++) { /* half a model helps nobody */
        name_file(path, i);
        unlink(path);
    }
    if (st && !there) rmdir(folder);
    if (!st)
        printf("%s: %lld tensors of %s, as %s\n", folder, (long long)tensors, from,
               tp_hf_class(&r->cfg));
    return st;
}

int cmd_export(int argc, char **argv) {
    const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "RUN FOLDER",
        .doc =
            "Writes a run's newest checkpoint (or the checkpoint file given) as a folder that "
            "Hugging Face's transformers loads: AutoModelForCausalLM.from_pretrained(FOLDER) "
            "and AutoTokenizer.from_pretrained(FOLDER). It is a GPT-2, Llama, Mistral, Qwen2 or "
            "Qwen3, whichever computes the same, in f32, with the loss of tapir eval but for "
            "the rounding of sums. LoRA's adapters are merged into the matrices that they adapt. "
            "What no model of theirs computes is refused, and so is a FOLDER with something in "
            "it."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    tp_catch_signals();
    tp_ctx *c;
    bool there;
    tp_status st = tp_ctx_new(&c, NULL);
    if (st) return tp_say_failure(argv[0], NULL, st);
    tp_run r = {.c = c};
    st = may_fill(c, &there); /* before a checkpoint of gigabytes is read and checked */
    if (!st) st = tp_run_peek(&r, c, run_path, best);
    if (!st) st = export_run(&r, there);
    int code = st ? tp_say_failure(argv[0], c, st) : EXIT_DONE;
    tp_run_close(&r);
    tp_ctx_free(c);
    return code;
}
