/* The weight's gradient over samples: leaf i is sample i's, then a fixed binary tree, run as a
 * binary counter. Position p of the stack holds a finished subtree; leaf i goes to position
 * popcount(i), then one merge (left += right) for each trailing one bit of i; at the end the rest
 * merges from the right. The left operand's place takes the sum, so position 0 can be the result
 * itself. */
#ifndef TP_LCE_TREE_H
#define TP_LCE_TREE_H
#include <stdint.h>

static inline int lce_leaf_place(int64_t i) {
    int bits = 0;
    for (; i; i &= i - 1) bits++;
    return bits;
}
static inline int lce_leaf_merges(int64_t i) {
    int ones = 0;
    for (; i & 1; i >>= 1) ones++;
    return ones;
}
/* Places that n leaves need at once. */
static inline int lce_tree_places(int64_t n) {
    int p = 0;
    for (; n; n >>= 1) p++;
    return p;
}
#endif
