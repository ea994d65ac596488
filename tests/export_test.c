/* What `tapir export` writes, read by other code than wrote it: the layout of safetensors byte by
 * byte, every tensor's bits beside the checkpoint's. A bit that is turned over must be noticed:
 * each of the header, and of every 61st byte of the values. LoRA's adapters, merged by other code
 * as well. And the writer alone: alignment, values that are missing, a name that is taken. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/ctx.h"
#include "data/checkpoint.h"
#include "data/safetensors.h"
#include "programs.h"

static char dir[] = "/tmp/tapir-export-XXXXXX";
static tp_ctx *c;

typedef struct bytes {
    uint8_t *at;
    size_t n;
} bytes;

static bytes slurp(const char *path) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    bytes b = {.n = (size_t)ftell(f)};
    rewind(f);
    b.at = malloc(b.n + 1);
    assert_non_null(b.at);
    assert_int_equal(fread(b.at, 1, b.n, f), b.n);
    fclose(f);
    return b;
}

/* ---- reading -------------------------------------------------------------------------------- */
/* What a file must hold: the weights of a checkpoint in memory, read once. */
enum { MOST = 64 };
typedef struct weight {
    const tp_checkpoint_entry *e;
    uint8_t *data;
} weight;
typedef struct weights {
    double lora_scale; /* of a run with adapters: what B A is multiplied by */
    tp_checkpoint_reader *from;
    weight w[MOST];
    int n, zeros; /* zeros: biases that the file has beside these */
} weights;

static void open_weights(weights *all, const char *path, int zeros) {
    *all = (weights){.zeros = zeros};
    assert_int_equal(tp_checkpoint_open(&all->from, c, path), TP_OK);
    for (int64_t i = 0; i < tp_checkpoint_count(all->from); i++) {
        const tp_checkpoint_entry *e = tp_checkpoint_at(all->from, i);
        if (strncmp(e->name, "weights/", 8)) continue;
        assert_in_range(all->n, 0, MOST - 1);
        weight *w = &all->w[all->n++];
        *w = (weight){e, malloc(e->bytes)};
        assert_int_equal(
            tp_checkpoint_get(all->from, e->name, e->dtype, e->ndim, e->shape, w->data, e->bytes),
            TP_OK);
    }
    assert_in_range(all->n, 1, MOST);
}

/* Adapters leave the list: their products, in double, are added to the matrices beside them. */
static void merge_adapters(weights *all, bool out_first) {
    int n = 0;
    for (int i = 0; i < all->n; i++) {
        weight *w = &all->w[i], *a = NULL, *b = NULL;
        char *end = strstr(w->e->name, ".weight");
        for (int j = 0; j < all->n && end && !strstr(w->e->name, ".lora_"); j++) {
            const char *name = all->w[j].e->name;
            if (strncmp(name, w->e->name, (size_t)(end - w->e->name))) continue;
            const char *rest = name + (end - w->e->name);
            if (!strcmp(rest, ".lora_A.weight")) a = &all->w[j];
            if (!strcmp(rest, ".lora_B.weight")) b = &all->w[j];
        }
        if (!a || !b) continue;
        int64_t r = a->e->shape[0], in = a->e->shape[1], out = b->e->shape[0];
        for (int64_t y = 0; y < out; y++)
            for (int64_t x = 0; x < in; x++) {
                float *to = (float *)w->data + (out_first ? y * in + x : x * out + y);
                double sum = 0;
                for (int64_t k = 0; k < r; k++)
                    sum += (double)((float *)b->data)[y * r + k] *
                           (double)((float *)a->data)[k * in + x];
                *to = (float)((double)*to + all->lora_scale * sum);
            }
    }
    for (int i = 0; i < all->n; i++) {
        if (strstr(all->w[i].e->name, ".lora_"))
            free(all->w[i].data);
        else
            all->w[n++] = all->w[i];
    }
    all->n = n;
}

static void close_weights(weights *all) {
    for (int i = 0; i < all->n; i++) free(all->w[i].data);
    tp_checkpoint_close(all->from);
}

static const weight *find(const weights *all, const char *name) {
    for (int i = 0; i < all->n; i++)
        if (!strcmp(all->w[i].e->name + 8, name)) return &all->w[i];
    return NULL;
}

static bool whole(const cJSON *v, uint64_t *out) {
    if (!cJSON_IsNumber(v) || !(v->valuedouble >= 0 && v->valuedouble < 9e15)) return false;
    *out = (uint64_t)v->valuedouble;
    return (double)*out == v->valuedouble;
}

/* A tensor's row of the header and its values: NULL, or what is wrong. *at: where it must begin. */
static const char *check_tensor(const weights *all, const cJSON *row, const uint8_t *values,
                                size_t n, uint64_t *at, int *zeros) {
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(row, "dtype");
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(row, "shape");
    const cJSON *place = cJSON_GetObjectItemCaseSensitive(row, "data_offsets");
    uint64_t from, to, size = 4, d;
    if (cJSON_GetArraySize(row) != 3) return "members";
    if (!cJSON_IsString(type) || strcmp(type->valuestring, "F32")) return "dtype";
    if (!cJSON_IsArray(shape) || cJSON_GetArraySize(place) != 2) return "no array";
    if (!whole(cJSON_GetArrayItem(place, 0), &from) || !whole(cJSON_GetArrayItem(place, 1), &to))
        return "offsets";
    for (int i = 0; i < cJSON_GetArraySize(shape); i++) {
        if (!whole(cJSON_GetArrayItem(shape, i), &d)) return "shape";
        size *= d;
    }
    if (from != *at || to - from != size || to > n) return "not contiguous";
    *at = to;
    const weight *w = find(all, row->string);
    if (!w) { /* of those that are not in the checkpoint, only these may be there */
        const char *end = strstr(row->string, ".self_attn.o_proj.bias");
        int layer = -1, read = 0;
        if (!end || sscanf(row->string, "model.layers.%d%n", &layer, &read) != 1 ||
            row->string + read != end || strlen(end) != 22 || layer != *zeros)
            return "a tensor that nobody has";
        for (uint64_t i = from; i < to; i++)
            if (values[i]) return "not zero";
        ++*zeros;
        return NULL;
    }
    if (cJSON_GetArraySize(shape) != w->e->ndim) return "dimensions";
    for (int i = 0; i < w->e->ndim; i++)
        if (cJSON_GetArrayItem(shape, i)->valuedouble != (double)w->e->shape[i]) return "a shape";
    if (size != w->e->bytes || memcmp(values + from, w->data, w->e->bytes)) return "values";
    return NULL;
}

/* NULL, or what is wrong with the file. */
static const char *check(const weights *all, const uint8_t *file, size_t n) {
    uint64_t length = 0, at = 0;
    int tensors = 0, zeros = 0;
    const char *wrong = NULL, *end;
    if (n < 8) return "short";
    for (int b = 0; b < 8; b++) length |= (uint64_t)file[b] << (8 * b);
    if (length % 8 || length > n - 8 || file[8] != '{') return "length of the header";
    cJSON *header = cJSON_ParseWithLengthOpts((const char *)file + 8, length, &end, 0);
    if (!header) return "no JSON";
    for (const uint8_t *p = (const uint8_t *)end; p < file + 8 + length && !wrong; p++)
        if (*p != ' ') wrong = "padding";
    for (const cJSON *row = header->child; row && !wrong; row = row->next) {
        if (!strcmp(row->string, "__metadata__")) {
            const cJSON *format = cJSON_GetObjectItemCaseSensitive(row, "format");
            if (!cJSON_IsString(format) || strcmp(format->valuestring, "pt")) wrong = "format";
            continue;
        }
        for (const cJSON *other = row->next; other && !wrong; other = other->next)
            if (!strcmp(row->string, other->string)) wrong = "a name twice";
        if (!wrong) wrong = check_tensor(all, row, file + 8 + length, n - 8 - length, &at, &zeros);
        tensors++;
    }
    cJSON_Delete(header);
    if (wrong) return wrong;
    if (at != n - 8 - length) return "values that belong to no tensor";
    return tensors == all->n + all->zeros && zeros == all->zeros ? NULL : "number of tensors";
}

/* ---- exported runs -------------------------------------------------------------------------- */
static int make_corpus(void **state) {
    char text[64];
    (void)state;
    if (!mkdtemp(dir) || tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1})) return 1;
    snprintf(text, sizeof text, "%s/text.txt", dir);
    return write_words(text) || shell("%s prepare %s --out %s/train.h5 --vocab 300 >%s/out 2>&1",
                                      TAPIR_BIN, text, dir, dir);
}

static int remove_all(void **state) {
    (void)state;
    tp_ctx_free(c);
    return shell("rm -rf %s", dir);
}

static void flip_every_bit(const weights *all, bytes file) {
    uint64_t length = file.at[0] | (uint64_t)file.at[1] << 8;
    for (size_t i = 0; i < file.n; i += i < 8 + length ? 1 : 61) /* values: a part of them */
        for (int bit = 0; bit < 8; bit++) {
            file.at[i] ^= (uint8_t)(1u << bit);
            if (!check(all, file.at, file.n)) fail_msg("byte %zu, bit %d: not noticed", i, bit);
            file.at[i] ^= (uint8_t)(1u << bit);
        }
    assert_non_null(check(all, file.at, file.n - 1));
    assert_non_null(check(all, file.at, file.n - 4));
    uint8_t *more = calloc(1, file.n + 4);
    memcpy(more, file.at, file.n);
    assert_non_null(check(all, more, file.n + 4));
    free(more);
}

/* Merged weights beside others that a wrong scale, or none, would make; and the base's own. */
static void merge_and_check(const char *name, const char *words, bool out_first) {
    char path[128];
    weights all;
    int failed = shell(
        "cd %s && t=\"%s/configs/tests/tiny.yaml data.train=train.h5 model.layers=1 "
        "train.learning_rate=0.05 %s\" && %s train $t run.dir=base-%s >out 2>&1 && "
        "%s train $t run.dir=%s model.init_from=base-%s lora.r=4 lora.lora_alpha=10 >out "
        "2>&1 && %s export %s to-%s >out 2>&1",
        dir, TAPIR_SOURCE, words, TAPIR_BIN, name, TAPIR_BIN, name, name, TAPIR_BIN, name, name);
    if (failed) shell("cat %s/out", dir);
    assert_int_equal(failed, 0);
    snprintf(path, sizeof path, "%s/to-%s/model.safetensors", dir, name);
    bytes file = slurp(path);
    const double scale[] = {10.0 / 4, 10.0 / 4.001, 0};
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s/checkpoints/step-00000006.h5", dir, name);
        open_weights(&all, path, 0);
        all.lora_scale = scale[i];
        merge_adapters(&all, out_first);
        const char *wrong = check(&all, file.at, file.n);
        if (i == 0 && wrong) fail_msg("%s: %s", name, wrong);
        if (i > 0) assert_string_equal(wrong, "values");
        close_weights(&all);
    }
    free(file.at);
    /* what is not an adapter has the base's bits */
    weights base;
    open_weights(&all, path, 0);
    snprintf(path, sizeof path, "%s/base-%s/checkpoints/step-00000006.h5", dir, name);
    open_weights(&base, path, 0);
    assert_in_range(all.n, base.n + 8, MOST);
    for (int i = 0; i < base.n; i++) {
        const weight *w = find(&all, base.w[i].e->name + 8);
        assert_non_null(w);
        assert_memory_equal(w->data, base.w[i].data, w->e->bytes);
    }
    close_weights(&all);
    close_weights(&base);
}

static void adapters_are_merged(void **state) {
    (void)state;
    merge_and_check("lora-gpt2", "model.family=gpt2", false);
    merge_and_check("lora-llama", "model.tie_embeddings=false", true);
}

static void export_and_check(const char *name, const char *words, int zeros) {
    char path[128];
    weights all;
    int failed = shell("cd %s && %s train %s/configs/tests/tiny.yaml run.dir=%s "
                       "data.train=train.h5 model.layers=2 train.learning_rate=0.05 %s >out 2>&1 "
                       "&& %s export %s to-%s >out 2>&1",
                       dir, TAPIR_BIN, TAPIR_SOURCE, name, words, TAPIR_BIN, name, name);
    if (failed) shell("cat %s/out", dir);
    assert_int_equal(failed, 0);
    snprintf(path, sizeof path, "%s/%s/checkpoints/step-00000006.h5", dir, name);
    open_weights(&all, path, zeros);
    snprintf(path, sizeof path, "%s/to-%s/model.safetensors", dir, name);
    bytes file = slurp(path);
    const char *wrong = check(&all, file.at, file.n);
    if (wrong) fail_msg("%s: %s", name, wrong);
    flip_every_bit(&all, file);
    /* another checkpoint's weights are others, though they have the same names and shapes */
    close_weights(&all);
    snprintf(path, sizeof path, "%s/%s/checkpoints/step-00000004.h5", dir, name);
    open_weights(&all, path, zeros);
    assert_string_equal(check(&all, file.at, file.n), "values");
    close_weights(&all);
    free(file.at);
}

static void a_gpt2(void **state) {
    (void)state;
    export_and_check("gpt2", "model.family=gpt2", 0);
}

static void a_llama(void **state) {
    (void)state;
    export_and_check("llama", "model.kv_heads=1 model.tie_embeddings=false", 0);
}

static void a_qwen3_with_biases(void **state) {
    (void)state;
    export_and_check("qwen3", "model.qk_norm=true model.attention_bias=true", 2);
}

/* ---- the writer ----------------------------------------------------------------------------- */
static const char *path_of(const char *name) {
    static char path[2][128];
    static int next;
    next = !next;
    snprintf(path[next], sizeof path[next], "%s/%s", dir, name);
    return path[next];
}

static void any_length_of_header_is_padded(void **state) {
    (void)state;
    const float x[6] = {1, -2, 3, -4, 5, -6};
    for (int n = 1; n <= 17; n++) {
        char name[32] = "";
        memset(name, 'n', (size_t)n);
        tp_safetensors_writer *w;
        assert_int_equal(tp_safetensors_create(&w, c, path_of("a")), TP_OK);
        assert_int_equal(tp_safetensors_declare(w, name, 2, (int64_t[]){2, 3}), TP_OK);
        assert_int_equal(tp_safetensors_put(w, x, 2), TP_OK); /* in parts */
        assert_int_equal(tp_safetensors_put(w, x + 2, 4), TP_OK);
        assert_int_equal(tp_safetensors_finish(w), TP_OK);
        tp_checkpoint_entry e = {.dtype = TP_F32, .ndim = 2, .shape = {2, 3}, .bytes = sizeof x};
        char as_weight[48];
        snprintf(as_weight, sizeof as_weight, "weights/%s", name);
        e.name = as_weight;
        uint8_t data[sizeof x];
        memcpy(data, x, sizeof x);
        weights all = {.w = {{&e, data}}, .n = 1};
        bytes file = slurp(path_of("a"));
        assert_null(check(&all, file.at, file.n));
        free(file.at);
    }
}

static void what_is_missing_or_late_is_refused(void **state) {
    (void)state;
    const float x[4] = {0};
    tp_safetensors_writer *w;
    unlink(path_of("b"));
    for (int64_t n = 3; n <= 5; n += 2) { /* one too few, one too many */
        assert_int_equal(tp_safetensors_create(&w, c, path_of("b")), TP_OK);
        assert_int_equal(tp_safetensors_declare(w, "x", 1, (int64_t[]){4}), TP_OK);
        assert_int_equal(tp_safetensors_put(w, x, 3), TP_OK);
        if (n == 5) assert_int_equal(tp_safetensors_put(w, x, 2), TP_OK);
        assert_int_equal(tp_safetensors_finish(w), TP_EARG);
    }
    assert_int_equal(tp_safetensors_create(&w, c, path_of("b")), TP_OK);
    assert_int_equal(tp_safetensors_declare(w, "x", 1, (int64_t[]){4}), TP_OK);
    assert_int_equal(tp_safetensors_put(w, x, 4), TP_OK);
    assert_int_equal(tp_safetensors_declare(w, "y", 1, (int64_t[]){4}), TP_EARG);
    assert_int_equal(tp_safetensors_put(w, x, 4), TP_EARG);
    tp_safetensors_abandon(w);
    assert_int_not_equal(access(path_of("b"), F_OK), 0);
    assert_int_not_equal(access(path_of("b.tmp"), F_OK), 0);
}

static void another_writers_file_stays(void **state) {
    (void)state;
    tp_safetensors_writer *w, *second;
    assert_int_equal(tp_safetensors_create(&w, c, path_of("d")), TP_OK);
    assert_int_equal(tp_safetensors_create(&second, c, path_of("d")), TP_EIO);
    assert_null(second);
    assert_int_equal(access(path_of("d.tmp"), F_OK), 0);
    assert_int_equal(tp_safetensors_finish(w), TP_OK);
    bytes file = slurp(path_of("d")); /* no tensor is a file, too */
    assert_null(check(&(weights){0}, file.at, file.n));
    free(file.at);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_length_of_header_is_padded),
        cmocka_unit_test(what_is_missing_or_late_is_refused),
        cmocka_unit_test(another_writers_file_stays),
        cmocka_unit_test(a_gpt2),
        cmocka_unit_test(a_llama),
        cmocka_unit_test(a_qwen3_with_biases),
        cmocka_unit_test(adapters_are_merged),
    };
    return cmocka_run_group_tests(tests, make_corpus, remove_all);
}
