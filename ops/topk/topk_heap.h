/* The n largest of a row on the CPU: a heap of their keys with the smallest on top. */
#ifndef TP_TOPK_HEAP_H
#define TP_TOPK_HEAP_H
#include "ops/topk/topk_math.h"

/* Puts `key` at `at` of a heap with the smallest key on top, and down to its place. */
static inline void topk_sift(uint64_t *heap, int64_t n, int64_t at, uint64_t key) {
    for (int64_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= key) break;
        heap[at] = heap[child];
    }
    heap[at] = key;
}

/* heap[0..n-1] = the n largest keys of x[0..count-1], 1 <= n <= count; heap[0] is the smallest. */
static inline void topk_heap_of(uint64_t *heap, int64_t n, const float *x, int64_t count) {
    for (int64_t i = 0; i < n; i++) heap[i] = topk_key(x[i], i);
    for (int64_t i = n / 2; i-- > 0;) topk_sift(heap, n, i, heap[i]);
    for (int64_t i = n; i < count; i++) {
        uint64_t key = topk_key(x[i], i);
        if (key > heap[0]) topk_sift(heap, n, 0, key);
    }
}
#endif
