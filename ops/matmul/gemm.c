/* gemm: the cut of a matrix product into tasks and blocks, and the workspace that follows from it.
 * The arithmetic is in gemm_cpu.c. */
#include "ops/matmul/gemm_plan.h"

bool tp_gemm_has_dot(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

static size_t round_up(size_t bytes) { return (bytes + 63) / 64 * 64; }

/* Finds the grid of tasks whose largest task is cheapest. Costs are in multiply-adds per k step;
 * packing a row or column of a task costs about as much as 12 or 6 of them per element. */
static void choose_grid(gemm_plan *p, const tp_gemm *g, int threads) {
    int64_t panels = gemm_ceil_div(g->n, p->nr);
    double best = 0;
    p->tasks_m = p->tasks_n = 1;
    /* below some 10 us of work a second thread costs more than it brings */
    if ((double)g->m * (double)g->n * (double)g->k < 3e5) threads = 1;
    for (int64_t tn = 1; tn <= threads && tn <= panels; tn++) {
        int64_t tm = gemm_min(threads / tn, g->m);
        double rows = (double)gemm_ceil_div(g->m, tm);
        double cols = (double)(gemm_ceil_div(panels, tn) * p->nr);
        double cost = rows * cols + 12 * rows + 6 * cols;
        if (tn == 1 || cost < best) {
            best = cost;
            p->tasks_m = tm;
            p->tasks_n = tn;
        }
    }
}

static int bits_of(int64_t x) {
    int n = 0;
    for (; x > 0; x >>= 1) n++;
    return n;
}

static void choose_stages(gemm_plan *p, const tp_gemm *g) {
    const int64_t unit = g->bf16 ? 2 : 1; /* steps */
    p->leaf_steps = g->leaf > 0 && g->leaf < g->k ? g->leaf : g->k;
    p->leaves = p->leaf_steps > 0 ? gemm_ceil_div(g->k, p->leaf_steps) : 1;
    p->leaf = gemm_ceil_div(p->leaf_steps, unit);
    int64_t before = p->leaves - 1; /* whole leaves */
    p->k = before * p->leaf + gemm_ceil_div(g->k - before * p->leaf_steps, unit);
    int64_t most = p->nr == 32 ? GEMM_KC_V4 : GEMM_KC;
    p->levels = bits_of(p->leaves - 1);
    if (p->leaf > most) { /* equal parts, whole blocks of 16 for the transposing packer */
        p->kc = gemm_ceil_div(gemm_ceil_div(p->leaf, gemm_ceil_div(p->leaf, most)), 16) * 16;
        p->stages_per_leaf = gemm_ceil_div(p->leaf, p->kc);
        p->leaves_per_stage = 1;
    } else { /* all leaves, or a power of two of them: a subtree */
        p->stages_per_leaf = 1;
        p->leaves_per_stage = p->leaf > 0 ? gemm_min(most / p->leaf, p->leaves) : 1;
        p->small_levels = bits_of(p->leaves_per_stage) - 1;
        if (p->leaves_per_stage == p->leaves)
            p->small_levels = p->levels;
        else
            p->leaves_per_stage = INT64_C(1) << p->small_levels;
        p->kc = p->leaf * p->leaves_per_stage;
    }
    p->carry = g->accumulate && p->stages_per_leaf > 1;
}

/* Rows of A packed at a time: equal parts of a task's rows. */
static int64_t choose_rows(const gemm_plan *p, int64_t rows) {
    int64_t most = p->nr == 32 ? gemm_max(1, GEMM_A_V4 / p->kc) : GEMM_MC;
    return gemm_ceil_div(rows, gemm_ceil_div(rows, most));
}

gemm_plan tp_gemm_plan(const tp_gemm *g, int threads, int mr, int nr) {
    gemm_plan p = {.mr = mr, .nr = nr, .tasks_m = 1, .tasks_n = 1};
    choose_stages(&p, g);
    if (g->m == 0 || g->n == 0 || g->k == 0) return p;
    p.few = g->m <= GEMM_FEW && p.leaves == 1 && !g->resume && (g->b_rs == 1 || g->b_cs == 1);
    if (p.few) { /* A's rows, interleaved */
        p.a_bytes = round_up((size_t)(g->m * g->k) * sizeof(float));
        return p;
    }
    choose_grid(&p, g, threads);
    int64_t rows = gemm_ceil_div(g->m, p.tasks_m);
    int64_t panels = gemm_ceil_div(gemm_ceil_div(g->n, nr), p.tasks_n);
    int64_t waiting = p.levels - p.small_levels + (p.carry ? 1 : 0); /* buffers per tile */
    p.mc = choose_rows(&p, rows);
    p.nc = gemm_min((waiting ? GEMM_NC_TREE : GEMM_NC) / nr, panels) * nr;
    int64_t tiles = gemm_ceil_div(p.mc, mr) * (p.nc / nr);
    p.a_bytes = round_up((size_t)(gemm_ceil_div(p.mc, mr) * mr * p.kc) * sizeof(float));
    p.b_bytes = round_up((size_t)(nr * p.kc) * sizeof(float));
    p.buf_bytes = round_up((size_t)((p.small_levels + waiting * tiles) * mr * nr) * sizeof(float));
    return p;
}

size_t tp_gemm_workspace(const tp_gemm *g, int threads) {
    static const int tile[3][2] = {{14, 32}, {6, 16}, {4, 16}}; /* as in gemm_cpu.c */
    size_t most = 0;
    for (int i = 0; i < 3; i++) {
        gemm_plan p = tp_gemm_plan(g, threads, tile[i][0], tile[i][1]);
        size_t bytes = (size_t)(p.tasks_m * p.tasks_n) * gemm_task_bytes(&p);
        if (bytes > most) most = bytes;
    }
    return most;
}
