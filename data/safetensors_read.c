/* Owns reading safetensors files: one, or a model's in several. Nothing in a header is believed
 * before it is checked against the file's size. */
#include "data/safetensors.h"
#include "data/files.h"
#include "data/jsonl.h"
#include "data/text.h"
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_CAP = 4096, SHARDS_MOST = 4096, HEADER_MOST = 100000000, PIECE = 1 << 16 };

typedef struct shard {
    char *path;
    int fd;
    cJSON *header; /* the entries' names and types are in it */
} shard;

struct tp_safetensors {
    tp_ctx *c;
    shard *shards;
    int n_shards;
    tp_safetensors_entry *entries;
    int64_t n, cap;
};

/* The types of the format, and what of them takes a whole number of bytes. */
static int size_of(const char *type) {
    static const struct {
        const char *name;
        int bytes;
    } types[] = {{"F32", 4}, {"BF16", 2},    {"F16", 2},     {"F64", 8}, {"I64", 8},
                 {"I32", 4}, {"I16", 2},     {"I8", 1},      {"U64", 8}, {"U32", 4},
                 {"U16", 2}, {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U8", 1},  {"BOOL", 1}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(types[i].name, type)) return types[i].bytes;
    return 0;
}

/* ---- headers -------------------------------------------------------------------------------- */
/* Whole, from 0 to a limit that doubles count exactly. */
static bool whole(const cJSON *v, int64_t *out) {
    double d = cJSON_IsNumber(v) ? v->valuedouble : -1;
    if (!(d >= 0 && d <= 0x1p53) || d != (double)(int64_t)d) return false;
    *out = (int64_t)d;
    return true;
}

static const cJSON *member(const cJSON *row, const char *key) {
    return cJSON_GetObjectItemCaseSensitive(row, key);
}

/* Why a row of the header describes no tensor within `room` bytes of values; NULL: e has it. */
static const char *read_row(const cJSON *row, uint64_t base, uint64_t room,
                            tp_safetensors_entry *e) {
    const cJSON *type = member(row, "dtype"), *shape = member(row, "shape");
    const cJSON *place = member(row, "data_offsets"), *i;
    int64_t from, to, d;
    if (!cJSON_IsString(type) || !cJSON_IsArray(shape) || !cJSON_IsArray(place) ||
        cJSON_GetArraySize(place) != 2)
        return "it needs dtype, shape and data_offsets";
    e->name = row->string;
    e->type = type->valuestring;
    int64_t size = size_of(e->type);
    if (!size) return "its dtype is unknown";
    if (!whole(place->child, &from) || !whole(place->child->next, &to) || to < from ||
        (uint64_t)to > room)
        return "its data_offsets are not in the file";
    if (cJSON_GetArraySize(shape) > TP_MAXDIM) return "its shape has too many dimensions";
    const int64_t most = INT64_C(1) << 53;
    e->n = 1;
    cJSON_ArrayForEach(i, shape) {
        if (!whole(i, &d)) return "its shape is no list of whole numbers";
        if (d && e->n > most / d) return "its shape is too large";
        e->shape[e->ndim++] = d;
        e->n *= d;
    }
    if (e->n != (to - from) / size || (to - from) % size)
        return "its shape does not fit its data_offsets";
    e->at = base + (uint64_t)from;
    return NULL;
}

static tp_safetensors_entry *one_more(tp_safetensors *s) {
    if (s->n == s->cap) {
        int64_t cap = s->cap ? 2 * s->cap : 256;
        tp_safetensors_entry *grown = tp_realloc(s->c, s->entries, (size_t)cap * sizeof *grown);
        if (!grown) return NULL;
        s->entries = grown;
        s->cap = cap;
    }
    return &s->entries[s->n++];
}

static int by_place(const void *a, const void *b) {
    const tp_safetensors_entry *x = a, *y = b;
    if (x->at != y->at) return x->at < y->at ? -1 : 1;
    return x->n < y->n ? -1 : x->n > y->n; /* an empty one before what begins there */
}

/* One tensor behind the other, as the format wants: no byte is in two, none in no tensor. */
static tp_status check_places(tp_safetensors *s, const shard *f, int64_t first, uint64_t base,
                              uint64_t end) {
    if (s->n > first)
        qsort(s->entries + first, (size_t)(s->n - first), sizeof *s->entries, by_place);
    bool good = true;
    for (int64_t i = first; i < s->n; i++) {
        const tp_safetensors_entry *e = &s->entries[i];
        good &= e->at == base;
        base = e->at + (uint64_t)(e->n * size_of(e->type));
    }
    if (good && base == end) return TP_OK;
    return tp_fail(s->c, TP_EFORMAT, "%s: its tensors overlap, or leave bytes between them",
                   f->path);
}

static tp_status read_rows(tp_safetensors *s, const shard *f, uint64_t base, uint64_t room) {
    char shown[64];
    const int64_t first = s->n;
    const cJSON *row;
    cJSON_ArrayForEach(row, f->header) {
        if (!strcmp(row->string, "__metadata__")) continue;
        tp_safetensors_entry *e = one_more(s);
        if (!e) return tp_error_status(s->c);
        *e = (tp_safetensors_entry){.path = f->path, .fd = f->fd};
        const char *why = read_row(row, base, room, e);
        if (why)
            return tp_fail(s->c, TP_EFORMAT, "%s: tensor \"%s\": %s", f->path,
                           tp_quote(shown, sizeof shown, row->string, strlen(row->string)), why);
    }
    return check_places(s, f, first, base, base + room);
}

static tp_status parse(tp_ctx *c, const char *path, const char *text, size_t n, cJSON **out) {
    const char *why;
    *out = tp_jsonl_object(text, n, false, &why);
    return *out ? TP_OK : tp_fail(c, TP_EFORMAT, "%s: its JSON is damaged: %s", path, why);
}

static tp_status open_shard(tp_safetensors *s, const char *path) {
    shard *f = &s->shards[s->n_shards];
    uint8_t head[8];
    uint64_t size, length = 0;
    *f = (shard){.path = tp_strdup(s->c, path), .fd = -1};
    s->n_shards++;
    if (!f->path) return tp_error_status(s->c);
    tp_status st = tp_open_file(s->c, path, &f->fd, &size);
    if (st) return st;
    if (size < sizeof head)
        return tp_fail(s->c, TP_EFORMAT, "%s: no safetensors file: it has %llu bytes", path,
                       (unsigned long long)size);
    if ((st = tp_read_at(s->c, f->fd, path, 0, head, sizeof head))) return st;
    for (int b = 0; b < 8; b++) length |= (uint64_t)head[b] << (8 * b);
    if (length > HEADER_MOST || length > size - sizeof head)
        return tp_fail(s->c, TP_EFORMAT,
                       "%s: no safetensors file, or cut short: a header of %llu bytes in %llu",
                       path, (unsigned long long)length, (unsigned long long)size);
    char *text = tp_malloc(s->c, (size_t)length + 1);
    if (!text) return tp_error_status(s->c);
    st = tp_read_at(s->c, f->fd, path, sizeof head, text, (size_t)length);
    if (!st) st = parse(s->c, path, text, (size_t)length, &f->header);
    tp_free(text);
    const uint64_t base = sizeof head + length;
    return st ? st : read_rows(s, f, base, size - base);
}

/* ---- several files -------------------------------------------------------------------------- */
static bool is_open(const tp_safetensors *s, const char *path) {
    for (int i = 0; i < s->n_shards; i++)
        if (!strcmp(s->shards[i].path, path)) return true;
    return false;
}

static tp_status open_indexed(tp_safetensors *s, const char *folder, const char *index,
                              const cJSON *map) {
    char path[PATH_CAP], shown[64];
    const cJSON *i;
    if (!cJSON_IsObject(map) || !map->child)
        return tp_fail(s->c, TP_EFORMAT, "%s: it has no \"weight_map\"", index);
    cJSON_ArrayForEach(i, map) {
        const char *name = cJSON_IsString(i) ? i->valuestring : "";
        if (!*name || *name == '.' || strchr(name, '/')) /* files of this folder, no others */
            return tp_fail(s->c, TP_EFORMAT, "%s: \"%s\" is in no file with a plain name", index,
                           tp_quote(shown, sizeof shown, i->string, strlen(i->string)));
        if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
            return tp_fail(s->c, TP_EARG, "%s: the path is too long", folder);
        if (is_open(s, path)) continue;
        if (s->n_shards == SHARDS_MOST)
            return tp_fail(s->c, TP_EFORMAT, "%s: more than %d files", index, SHARDS_MOST);
        tp_status st = open_shard(s, path);
        if (st) return st;
    }
    return TP_OK;
}

static tp_status open_index(tp_safetensors *s, const char *folder, const char *path) {
    cJSON *tree = NULL;
    char *text;
    size_t n;
    tp_status st = tp_read_file(&text, &n, s->c, path, HEADER_MOST);
    if (!st) st = parse(s->c, path, text, n, &tree);
    tp_free(text);
    if (!st && !(s->shards = tp_calloc(s->c, SHARDS_MOST, sizeof *s->shards)))
        st = tp_error_status(s->c);
    if (!st) st = open_indexed(s, folder, path, member(tree, "weight_map"));
    cJSON_Delete(tree);
    return st;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const tp_safetensors_entry *)a)->name, ((const tp_safetensors_entry *)b)->name);
}

static tp_status sort(tp_safetensors *s) {
    char shown[64];
    if (s->n) qsort(s->entries, (size_t)s->n, sizeof *s->entries, by_name);
    for (int64_t i = 1; i < s->n; i++)
        if (!by_name(&s->entries[i - 1], &s->entries[i]))
            return tp_fail(
                s->c, TP_EFORMAT, "%s: tensor \"%s\" is there twice", s->entries[i].path,
                tp_quote(shown, sizeof shown, s->entries[i].name, strlen(s->entries[i].name)));
    return TP_OK;
}

tp_status tp_safetensors_open(tp_safetensors **out, tp_ctx *c, const char *folder) {
    char path[PATH_CAP];
    struct stat there;
    *out = NULL;
    if (snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder) >= (int)sizeof path)
        return tp_fail(c, TP_EARG, "%s: the path is too long", folder);
    const bool indexed = !stat(path, &there);
    tp_safetensors *s = tp_calloc(c, 1, sizeof *s);
    if (!s) return tp_error_status(c);
    s->c = c;
    tp_status st = TP_OK;
    if (indexed) {
        st = open_index(s, folder, path);
    } else {
        snprintf(path, sizeof path, "%s/model.safetensors", folder);
        if (!(s->shards = tp_calloc(c, 1, sizeof *s->shards))) st = tp_error_status(c);
        if (!st) st = open_shard(s, path);
    }
    if (!st) st = sort(s);
    if (st)
        tp_safetensors_close(s);
    else
        *out = s;
    return st;
}

void tp_safetensors_close(tp_safetensors *s) {
    if (!s) return;
    for (int i = 0; i < s->n_shards; i++) {
        if (s->shards[i].fd >= 0) close(s->shards[i].fd);
        cJSON_Delete(s->shards[i].header);
        tp_free(s->shards[i].path);
    }
    tp_free(s->shards);
    tp_free(s->entries);
    tp_free(s);
}

int64_t tp_safetensors_count(const tp_safetensors *s) { return s->n; }

const tp_safetensors_entry *tp_safetensors_at(const tp_safetensors *s, int64_t i) {
    return &s->entries[i];
}

const tp_safetensors_entry *tp_safetensors_find(const tp_safetensors *s, const char *name) {
    const tp_safetensors_entry key = {.name = name};
    return s->n ? bsearch(&key, s->entries, (size_t)s->n, sizeof key, by_name) : NULL;
}

/* ---- values --------------------------------------------------------------------------------- */
static float of_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static float of_bf16(uint16_t h) { return of_bits((uint32_t)h << 16); }

/* IEEE 754's binary16: 1 bit of sign, 5 of the exponent, 10 of the fraction. */
static float of_f16(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7fffu;
    if (rest >= 0x7c00) return of_bits(sign | 0x7f800000u | rest << 13); /* infinity or NaN */
    if (rest < 0x400) return (sign ? -1.0f : 1.0f) * (float)rest * 0x1p-24f;
    return of_bits(sign | ((rest << 13) + ((127u - 15u) << 23)));
}

static tp_status get_halves(tp_ctx *c, const tp_safetensors_entry *e, float *x,
                            float (*of)(uint16_t)) {
    uint16_t piece[PIECE / 2];
    for (int64_t i = 0; i < e->n;) {
        int64_t n = e->n - i < PIECE / 2 ? e->n - i : PIECE / 2;
        tp_status st = tp_read_at(c, e->fd, e->path, e->at + 2 * (uint64_t)i, piece, 2 * (size_t)n);
        if (st) return st;
        for (int64_t k = 0; k < n; k++) x[i + k] = of(piece[k]);
        i += n;
    }
    return TP_OK;
}

tp_status tp_safetensors_get(tp_ctx *c, const tp_safetensors_entry *e, float *x) {
    char shown[64];
    if (!strcmp(e->type, "F32")) return tp_read_at(c, e->fd, e->path, e->at, x, 4 * (size_t)e->n);
    if (!strcmp(e->type, "BF16")) return get_halves(c, e, x, of_bf16);
    if (!strcmp(e->type, "F16")) return get_halves(c, e, x, of_f16);
    return tp_fail(c, TP_EDTYPE, "%s: %s is %s; F32, F16 and BF16 can be read", e->path,
                   tp_quote(shown, sizeof shown, e->name, strlen(e->name)), e->type);
}
