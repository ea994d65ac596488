/* How a row of values is cut into one range per rank. */
#include "dist/comm.h"

int tp_bit_reverse(int i, int size) {
    int r = 0;
    for (int b = 1; b < size; b <<= 1, i >>= 1) r = r << 1 | (i & 1);
    return r;
}

int64_t tp_cut_at(const tp_cut *s, int size, int i) {
    if (s->owner >= 0) return i <= tp_bit_reverse(s->owner, size) ? 0 : s->n;
    /* floor(i * units / size) without the product, which may not fit; so cuts for half as many
     * ranks are every second one of these */
    int64_t units = s->n / s->unit + (s->n % s->unit != 0);
    int64_t at = i * (units / size) + i * (units % size) / size;
    return at >= units ? s->n : at * s->unit;
}

const char *tp_cut_fault(const tp_cut *s, int size) {
    if (s->n < 0) return "a number of values below 0";
    if (s->unit < 1) return "a unit below 1";
    if (s->owner < -1 || s->owner >= size) return "an owner that is no rank";
    return NULL;
}

tp_range tp_comm_shard(const tp_comm *m, const tp_cut *s, int rank) {
    if (tp_cut_fault(s, m->size) || rank < 0 || rank >= m->size) return (tp_range){0, 0};
    int i = tp_bit_reverse(rank, m->size);
    int64_t first = tp_cut_at(s, m->size, i);
    return (tp_range){first, tp_cut_at(s, m->size, i + 1) - first};
}
