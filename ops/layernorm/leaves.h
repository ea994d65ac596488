/* The fixed order in which gradients of shared parameters are summed.
 *
 * A leaf is the sum over one sample (index of dimension 0; a tensor of fewer than three dimensions
 * is one sample), a chain in the order of its rows that starts from 0. Leaves are added in a
 * binary tree over the sample number: neighbours first, then neighbouring pairs, and so on; a node
 * without a right neighbour passes up unchanged. That is a binary counter that merges equal sizes
 * and, at the end, the rest from the right. An aligned power-of-two part of the samples is exactly
 * one subtree, so micro-batches and ranks add the same numbers in the same order. */
#ifndef TP_LEAVES_H
#define TP_LEAVES_H
#include "ops/op.h"

/* How many leaves x (…,C) has, and how many rows of C values lie in each. */
static inline int64_t tp_leaves(const tp_tensor *x, int64_t *rows_each) {
    int64_t leaves = x->ndim >= 3 ? x->shape[0] : 1, channels = x->shape[x->ndim - 1];
    int64_t rows = channels ? tp_numel(x) / channels : 0;
    *rows_each = leaves ? rows / leaves : 0;
    return leaves;
}

/* leaf[0][begin..end-1] becomes the tree's sum; the leaves lie `stride` floats apart. */
static inline void tp_leaves_sum(float *leaf, int64_t n, int64_t stride, int64_t begin,
                                 int64_t end) {
    for (int64_t width = 1; width < n; width *= 2)
        for (int64_t i = 0; i + width < n; i += 2 * width) {
            float *__restrict left = leaf + i * stride;
            const float *__restrict right = leaf + (i + width) * stride;
            for (int64_t j = begin; j < end; j++) left[j] += right[j];
        }
}
#endif
