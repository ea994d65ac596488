/* Owns the hash map from byte strings to numbers and the growing text buffer that the tokenizer's
 * files share. */
#include "data/tokenizer_impl.h"
#include <string.h>

uint64_t tp_hash_bytes(const uint8_t *p, size_t n) {
    const uint64_t k = 0x9E3779B97F4A7C15u;
    uint64_t h = (n + 1) * k, w;
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&w, p, 8);
        h = (h ^ w) * k;
        h ^= h >> 32;
    }
    w = 0;
    for (size_t i = 0; i < n; i++) w |= (uint64_t)p[i] << 8 * i;
    h = (h ^ w) * k;
    h ^= h >> 29;
    h *= 0xBF58476D1CE4E5B9u;
    return h ^ h >> 32;
}

/* The slot that holds the key, or the free slot where it would go. */
static uint64_t slot_of(const tp_bytemap *m, const void *key, size_t n, uint32_t hash) {
    uint64_t i = hash & m->mask;
    for (; m->index[i]; i = (i + 1) & m->mask) {
        const tp_bytemap_entry *e = &m->entries[m->index[i] - 1];
        if (e->hash == hash && e->n == n && (!n || !memcmp(m->keys + e->at, key, n))) break;
    }
    return i;
}

const int64_t *tp_bytemap_find(const tp_bytemap *m, const void *key, size_t n) {
    if (!m->n_entries || n > UINT32_MAX) return NULL;
    uint32_t at = m->index[slot_of(m, key, n, (uint32_t)tp_hash_bytes(key, n))];
    return at ? &m->entries[at - 1].value : NULL;
}

static tp_status grow_index(tp_bytemap *m, tp_ctx *c) {
    uint64_t slots = m->index ? 2 * (m->mask + 1) : 64;
    uint32_t *index = tp_calloc(c, slots, sizeof *index);
    if (!index) return TP_ENOMEM;
    for (uint32_t e = 0; e < m->n_entries; e++) {
        uint64_t i = m->entries[e].hash & (slots - 1);
        while (index[i]) i = (i + 1) & (slots - 1);
        index[i] = e + 1;
    }
    tp_free(m->index);
    m->index = index;
    m->mask = slots - 1;
    return TP_OK;
}

static tp_status make_room(tp_bytemap *m, tp_ctx *c, size_t n) {
    if (n > UINT32_MAX || m->n_entries >= UINT32_MAX / 2)
        return tp_fail(c, TP_ENOMEM, "hash map: more than 2^31 keys or a key over 4 GiB");
    if (!m->index || 2 * ((uint64_t)m->n_entries + 1) > m->mask + 1) {
        tp_status st = grow_index(m, c);
        if (st) return st;
    }
    if (m->n_entries == m->cap_entries) {
        uint32_t cap = m->cap_entries ? 2 * m->cap_entries : 64;
        void *p = tp_realloc(c, m->entries, cap * sizeof *m->entries);
        if (!p) return TP_ENOMEM;
        m->entries = p;
        m->cap_entries = cap;
    }
    if (m->cap_keys - m->n_keys < n) {
        uint64_t cap = 2 * m->cap_keys + n + 256;
        void *p = tp_realloc(c, m->keys, cap);
        if (!p) return TP_ENOMEM;
        m->keys = p;
        m->cap_keys = cap;
    }
    return TP_OK;
}

tp_status tp_bytemap_put(tp_bytemap *m, tp_ctx *c, const void *key, size_t n, int64_t **value,
                         bool *fresh) {
    uint32_t hash = (uint32_t)tp_hash_bytes(key, n);
    if (m->index && n <= UINT32_MAX) {
        uint32_t at = m->index[slot_of(m, key, n, hash)];
        if (at) {
            *fresh = false;
            *value = &m->entries[at - 1].value;
            return TP_OK;
        }
    }
    tp_status st = make_room(m, c, n);
    if (st) return st;
    m->index[slot_of(m, key, n, hash)] = m->n_entries + 1;
    tp_bytemap_entry *e = &m->entries[m->n_entries++];
    *e = (tp_bytemap_entry){.at = m->n_keys, .n = (uint32_t)n, .hash = hash};
    if (n) memcpy(m->keys + m->n_keys, key, n);
    m->n_keys += n;
    *fresh = true;
    *value = &e->value;
    return TP_OK;
}

void tp_bytemap_clear(tp_bytemap *m) {
    tp_free(m->entries);
    tp_free(m->index);
    tp_free(m->keys);
    *m = (tp_bytemap){0};
}

void tp_text_buf_put(tp_text_buf *b, tp_ctx *c, const char *s, size_t n) {
    if (b->st) return;
    if (b->cap - b->n < n + 1) {
        size_t cap = 2 * b->cap + n + 256;
        char *p = tp_realloc(c, b->data, cap);
        if (!p) {
            b->st = TP_ENOMEM;
            return;
        }
        b->data = p;
        b->cap = cap;
    }
    if (n) memcpy(b->data + b->n, s, n);
    b->n += n;
    b->data[b->n] = 0;
}

void tp_text_buf_puts(tp_text_buf *b, tp_ctx *c, const char *s) {
    tp_text_buf_put(b, c, s, strlen(s));
}
