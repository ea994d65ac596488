/* The same numbers, added in other orders; and sums over a batch that is cut into parts. */
#include "core/core.h"
#include <stdio.h>

enum { MANY = 1000000, SAMPLES = 16, FIRST = 80 };
static float number(int i) { return (float)tp_uniform(1, TP_RNG_TEST, 0, (uint64_t)i); }

/* lesson: orders */
static float upwards(const float *x, int n) {
    float s = 0;
    for (int i = 0; i < n; i++) s += x[i];
    return s;
}
static float downwards(const float *x, int n) {
    float s = 0;
    for (int i = n - 1; i >= 0; i--) s += x[i];
    return s;
}
/* As a vector register does it: sixteen sums, each of every sixteenth number. */
static float sixteen_lanes(const float *x, int n) {
    float s[16] = {0};
    for (int i = 0; i < n; i++) s[i % 16] += x[i];
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) s[i] += s[i + half];
    return s[0];
}
static float tree(const float *x, int n) { /* halves, the first one a power of two */
    int half = 1;
    if (n == 1) return x[0];
    while (2 * half < n) half *= 2;
    return tree(x, half) + tree(x + half, n - half);
}
/* end */

/* lesson: parts */
typedef float (*order)(const float *x, int n);
/* A batch in `parts`, each summed by itself; then their sums are summed the same way. */
static float in_parts(order sum, const float *x, int n, int parts) {
    float s[SAMPLES];
    for (int p = 0; p < parts; p++) s[p] = sum(x + p * (n / parts), n / parts);
    return sum(s, parts);
}
/* end */

int main(void) {
    static float x[MANY];
    double exact = 0;
    for (int i = 0; i < MANY; i++) exact += (double)(x[i] = number(i));
    printf("a million numbers in float64  %.3f\n", exact);
    printf("first to last                 %.3f\n", (double)upwards(x, MANY));
    printf("last to first                 %.3f\n", (double)downwards(x, MANY));
    printf("sixteen lanes                 %.3f\n", (double)sixteen_lanes(x, MANY));
    printf("a tree                        %.3f\n", (double)tree(x, MANY));
    puts("sixteen samples in       1 part       2 parts      4 parts      8 parts");
    const order way[] = {upwards, tree};
    for (int w = 0; w < 2; w++) {
        printf("%-19s", w ? "tree" : "one after another");
        for (int parts = 1; parts <= 8; parts *= 2)
            printf(" %12.9f", (double)in_parts(way[w], x + FIRST, SAMPLES, parts));
        puts("");
    }
    return 0;
}
