/* Flash attention, forward, on the CPU.
 *
 * A row is one (query, head). Rows of the heads that share a key head lie together, so a unit of
 * work is (sequence, key head, chunk of rows); it walks the tiles of 64 keys from the first visible
 * one. Per tile: K is transposed and V copied once for the chunk, then blocks of six rows make
 * scores (rows x 64), weights p = exp(s - m) and o += p V. A unit of few rows, as in decoding,
 * reads each key a few times only, and copying would cost more than it saves: it takes them from
 * where they lie.
 *
 * Each row is on its own:
 *   s_j = chain over d of (scale q_d) k_jd;  m' = max(m, s);  f = exp(m - m');
 *   l = f l + sum_j exp(s_j - m');  o_d = chain over visible j of exp(s_j - m') v_jd, from f o_d
 * A key that the row does not see takes no part in a chain and adds exact zeros to l, and a tile
 * without visible keys changes nothing. So the bits of a row do not depend on the rows, the block,
 * the chunk or the call it is computed with. */
#include "ops/attention/attention_tile.h"
#include "ops/paged_attention/paged_attention_problem.h"

enum { CHUNK_MAX = 256, CHUNK_MIN = 48 };
enum { FEW_BLOCKS = 4 }; /* as many blocks of rows read values where they lie */

typedef struct flash {
    const tp_call *call;
    attention_problem p;
    int64_t rows, chunk, chunks; /* rows of one key head; rows and chunks per unit */
    int64_t Dp, Dvp;             /* D and Dv padded to whole vectors */
    size_t slot_floats;
} flash;

/* One thread's memory, and the unit it works on. */
typedef struct flash_unit {
    const flash *f;
    int64_t b, head, row, n; /* key head; first row and number of rows */
    float *q, *o;            /* (chunk, Dp) scaled queries; (chunk, Dvp) outputs so far */
    float *kt, *v;           /* (D, TILE) keys, transposed; (TILE, Dvp) values */
    float *m, *l;            /* (chunk) running maximum and sum */
    head_rows keys, values;
    int32_t seg[TILE];
    struct { /* the tile at work: where each sixteen of its keys begin */
        const float *k[TILE_VECTORS], *v[TILE_VECTORS];
        int64_t ldk, ldv;
        bool k_whole, v_whole; /* the sixteens follow each other: one product takes them all */
    } at;
} flash_unit;

static flash flash_of(const tp_call *k) {
    bool paged = k->op == &op_paged_attention;
    flash f = {
        .call = k,
        .p = paged ? paged_attention_problem(k)
                   : attention_problem_of(k, k->in[ATTENTION_SEGMENTS], k->in[ATTENTION_STARTS])};
    int64_t groups = f.p.B * f.p.Hkv, threads = tp_threads(k->ctx);
    f.rows = f.p.T * f.p.G;
    f.Dp = padded(f.p.D);
    f.Dvp = padded(f.p.Dv);
    f.chunk = f.rows < CHUNK_MAX ? f.rows : CHUNK_MAX;
    /* Long chunks share the packing; enough chunks keep every thread busy to the end. */
    while (f.chunk > 2 * CHUNK_MIN && groups * ((f.rows + f.chunk - 1) / f.chunk) < 4 * threads)
        f.chunk = (f.chunk / 2 + MM_ROWS - 1) / MM_ROWS * MM_ROWS;
    f.chunks = f.chunk ? (f.rows + f.chunk - 1) / f.chunk : 0;
    f.slot_floats =
        (size_t)(f.chunk * (f.Dp + f.Dvp) + TILE * (f.Dp + f.Dvp) + 2 * padded(f.chunk));
    return f;
}

static size_t flash_workspace(const tp_call *k) {
    flash f = flash_of(k);
    return f.slot_floats * sizeof(float) * (size_t)tp_threads(k->ctx);
}

static inline int64_t row_time(const flash_unit *u, int64_t i) { return (u->row + i) / u->f->p.G; }
static inline int64_t row_head(const flash_unit *u, int64_t i) {
    return u->head * u->f->p.G + (u->row + i) % u->f->p.G;
}

/* Turns a row's n vectors of scores into weights in place and moves its running maximum and sum;
 * returns the factor by which what was summed before must shrink. Bit j of mask: score j counts. */
/* lesson: weigh a tile */
static inline __attribute__((always_inline)) float
weigh_vectors(const int n, float *s, uint64_t mask, float softcap, float *m, float *l) {
    const v16 none = v16_set1(-INFINITY);
    v16 top = none, sum = v16_zero();
    if (softcap > 0)
        for (int i = 0; i < n * TP_LANES; i++) s[i] = attention_softcap(s[i], softcap);
    if (mask == ~UINT64_C(0) >> (64 - n * TP_LANES)) {
        for (int x = 0; x < n; x++) top = v16_max(top, v16_load(s + TP_LANES * x));
    } else {
        for (int x = 0; x < n; x++) {
            v16 sx = v16_load(s + TP_LANES * x);
            sx = v16_select(m16_of_bits(mask >> (TP_LANES * x)), sx, none);
            v16_store(s + TP_LANES * x, sx);
            top = v16_max(top, sx);
        }
    }
    float m_old = *m, m_tile = lanes_max(top), m_new = m_tile > m_old ? m_tile : m_old;
    for (int i = 0; i < n * TP_LANES; i++) s[i] = attention_weight(s[i], m_new);
    for (int x = 0; x < n; x++) sum = v16_add(sum, v16_load(s + TP_LANES * x));
    bool first = m_old == -INFINITY; /* nothing was summed before: there is nothing to shrink */
    float factor = first || m_old == m_new ? 1.0f : attention_weight(m_old, m_new);
    *l = fmaf(*l, factor, lanes_sum(sum));
    *m = m_new;
    return factor;
}
/* end */

static __attribute__((noinline)) float weigh_row(int n, float *s, uint64_t mask, float softcap,
                                                 float *m, float *l) {
    switch (n) {
    case 1:
        return weigh_vectors(1, s, mask, softcap, m, l);
    case 2:
        return weigh_vectors(2, s, mask, softcap, m, l);
    case 3:
        return weigh_vectors(3, s, mask, softcap, m, l);
    default:
        return weigh_vectors(4, s, mask, softcap, m, l);
    }
}

/* o += p V over the keys in `bits`, for one row. */
static void add_keys(float *o, const float *p, uint64_t bits, const float *v, int64_t ldv,
                     int64_t vectors) {
    for (int64_t x = 0; x < vectors; x += MM_VECTORS) {
        int n = vectors - x < MM_VECTORS ? (int)(vectors - x) : MM_VECTORS;
        v16 acc[MM_VECTORS];
        for (int i = 0; i < n; i++) acc[i] = v16_load(o + TP_LANES * (x + i));
        for (uint64_t left = bits; left; left &= left - 1) {
            int j = lowest_bit(left);
            v16 pj = v16_set1(p[j]);
            for (int i = 0; i < n; i++)
                acc[i] = v16_fma(pj, v16_load(v + j * ldv + TP_LANES * (x + i)), acc[i]);
        }
        for (int i = 0; i < n; i++) v16_store(o + TP_LANES * (x + i), acc[i]);
    }
}

/* o += p V for a block of rows, keys in order. Keys that all rows see go through the register-tiled
 * product; those at the ragged ends (the causal edge, a window, another document) row by row. */
static void add_values(const flash_unit *u, int64_t first, int rows, const float *p,
                       const uint64_t *mask, const float *v) {
    int64_t vectors = u->f->Dvp / TP_LANES, ldo = u->f->Dvp, ldv = u->at.ldv;
    float *o = u->o + first * ldo;
    uint64_t common = ~UINT64_C(0);
    for (int r = 0; r < rows; r++) common &= mask[r];
    int from = common ? lowest_bit(common) : 0, to = common ? after_highest_bit(common) : 0;
    if (common != range_bits(from, to)) from = to = 0; /* has gaps: row by row throughout */
    for (int r = 0; r < rows; r++)
        add_keys(o + r * ldo, p + r * TILE, mask[r] & range_bits(0, from), v, ldv, vectors);
    if (to > from)
        mm_rows(rows, vectors,
                &(mm){p + from, TILE, 1, v + from * ldv, ldv, o, ldo, to - from, false});
    for (int r = 0; r < rows; r++)
        add_keys(o + r * ldo, p + r * TILE, mask[r] & range_bits(to, TILE), v, ldv, vectors);
}

/* s = q k' for the vectors [x0, x1) of keys. */
static void scores(const flash_unit *u, int64_t first, int rows, int x0, int x1, float *s) {
    const flash *f = u->f;
    mm g = {u->q + first * f->Dp, f->Dp, 1, NULL, u->at.ldk, NULL, TILE, f->p.D, true};
    for (int x = x0; x < x1; x += u->at.k_whole ? x1 - x0 : 1) {
        g.b = u->at.k[x];
        g.c = s + TP_LANES * x;
        mm_rows(rows, u->at.k_whole ? x1 - x0 : 1, &g);
    }
}

/* Rows [first, first+rows) of the unit meet one tile. */
static void block_tile(flash_unit *u, int64_t first, int rows, int64_t tile) {
    _Alignas(64) float s[MM_ROWS * TILE];
    uint64_t mask[MM_ROWS], any = 0;
    const flash *f = u->f;
    for (int r = 0; r < rows; r++) {
        mask[r] = visible_bits(&f->p, u->b, row_time(u, first + r), tile, u->seg);
        any |= mask[r];
    }
    if (!any) return;
    int x0 = lowest_bit(any) / TP_LANES, x1 = (after_highest_bit(any) + TP_LANES - 1) / TP_LANES;
    scores(u, first, rows, x0, x1, s);
    for (int r = 0; r < rows; r++) {
        if (!mask[r]) continue;
        float factor = weigh_row(x1 - x0, s + r * TILE + TP_LANES * x0, mask[r] >> (TP_LANES * x0),
                                 (float)f->p.softcap, &u->m[first + r], &u->l[first + r]);
        float *o = u->o + (first + r) * f->Dvp;
        if (factor != 1.0f)
            for (int64_t d = 0; d < f->Dvp; d++) o[d] *= factor;
    }
    if (u->at.v_whole) {
        add_values(u, first, rows, s, mask, u->at.v[0]);
        return;
    }
    for (int x = x0; x < x1; x++) {
        uint64_t sixteen[MM_ROWS];
        for (int r = 0; r < rows; r++) sixteen[r] = mask[r] >> (TP_LANES * x) & 0xffff;
        add_values(u, first, rows, s + TP_LANES * x, sixteen, u->at.v[x]);
    }
}

static void start_rows(flash_unit *u) {
    const flash *f = u->f;
    const tp_tensor *q = f->call->in[ATTENTION_Q];
    for (int64_t i = 0; i < u->n; i++) {
        head_rows rows = rows_of(q, u->b, row_head(u, i));
        if (i + ROWS_AHEAD < u->n)
            fetch_row(rows.x + row_time(u, i + ROWS_AHEAD) * rows.time, f->p.D);
        pack_row(u->q + i * f->Dp, rows.x + row_time(u, i) * rows.time, rows.step, f->p.D,
                 (float)f->p.scale);
        u->m[i] = -INFINITY;
        u->l[i] = 0;
    }
    memset(u->o, 0, (size_t)(u->n * f->Dvp) * sizeof *u->o);
}

/* o = o / l, lse = m + log l; l is 0 only where no key was seen (the largest weight is 1). */
static void finish_rows(const flash_unit *u) {
    const flash *f = u->f;
    const attention_problem *p = &f->p;
    float *o_out = tp_f32(f->call->out[0]), *lse = tp_f32(f->call->out[1]);
    for (int64_t i = 0; i < u->n; i++) {
        int64_t t = row_time(u, i), h = row_head(u, i);
        float inverse = u->l[i] == 0 ? 0 : 1 / u->l[i];
        float *to = o_out + ((u->b * p->T + t) * p->H + h) * p->Dv;
        for (int64_t d = 0; d < p->Dv; d++) to[d] = u->o[i * f->Dvp + d] * inverse;
        lse[(u->b * p->H + h) * p->T + t] = u->l[i] == 0 ? -INFINITY : u->m[i] + tp_logf(u->l[i]);
    }
}

static head_rows key_rows(const flash *f, int i, int64_t b, int64_t head) {
    const attention_problem *p = &f->p;
    const tp_tensor *t = f->call->in[i];
    if (!p->pages) return rows_of(t, b, head);
    head_rows r = rows_of(t, 0, head);
    r.pages = tp_i32(p->pages) + b * p->pages->stride[0];
    r.page = p->page;
    r.far = t->stride[0];
    return r;
}

/* The keys and values of a tile, n of them: packed, or where they lie. */
static void load_tile(flash_unit *u, int64_t tile, int64_t n) {
    int64_t first = tile * TILE;
    const head_rows *k = &u->keys, *v = &u->values;
    /* behind the last key the rest of its sixteen may hold anything: masks keep it out */
    bool k_there = u->n <= MM_ROWS && k->pages && k->time == 1;
    bool v_there = u->n <= FEW_BLOCKS * MM_ROWS && v->step == 1 && v->width % TP_LANES == 0;
    u->at.k_whole = !k_there;
    u->at.v_whole = !v_there || !v->pages || v->page % TILE == 0;
    u->at.ldk = k_there ? k->step : TILE;
    u->at.ldv = v_there ? v->time : u->f->Dvp;
    if (!k_there) pack_tile_transposed(u->kt, k, first, n);
    if (!v_there) pack_tile(u->v, v, first, n, 1.0f);
    for (int64_t j = 0; j < n; j += TP_LANES) {
        u->at.k[j / TP_LANES] = k_there ? row_at(k, first + j) : u->kt + j;
        u->at.v[j / TP_LANES] = v_there ? row_at(v, first + j) : u->v + j * u->f->Dvp;
    }
    tile_segments(u->seg, &u->f->p, u->b, tile);
}

static void run_unit(flash_unit *u) {
    const flash *f = u->f;
    const attention_problem *p = &f->p;
    int64_t first, last, end;
    u->keys = key_rows(f, ATTENTION_K, u->b, u->head);
    u->values = key_rows(f, ATTENTION_V, u->b, u->head);
    start_rows(u);
    visible_tiles(p, u->b, row_time(u, 0), row_time(u, u->n - 1), &first, &end);
    last = (end + TILE - 1) / TILE;
    int64_t sink_tiles = (p->sinks + TILE - 1) / TILE;
    for (int64_t tile = sink_tiles ? 0 : first; tile < last; tile++) {
        if (tile < first && tile >= sink_tiles) tile = first;
        load_tile(u, tile, end - tile * TILE < TILE ? end - tile * TILE : TILE);
        for (int64_t i = 0; i < u->n; i += MM_ROWS)
            block_tile(u, i, u->n - i < MM_ROWS ? (int)(u->n - i) : MM_ROWS, tile);
    }
    finish_rows(u);
}

static void flash_range(void *arg, int64_t begin, int64_t end) {
    const flash *f = arg;
    float *at = (float *)f->call->workspace + f->slot_floats * (size_t)tp_slot();
    flash_unit u = {.f = f};
    u.q = at, at += f->chunk * f->Dp;
    u.o = at, at += f->chunk * f->Dvp;
    u.kt = at, at += TILE * f->Dp;
    u.v = at, at += TILE * f->Dvp;
    u.m = at, at += padded(f->chunk);
    u.l = at;
    int64_t groups = f->p.B * f->p.Hkv;
    for (int64_t i = begin; i < end; i++) {
        /* the last chunks of a causal sequence cost most: they go first, so that no thread waits */
        u.row = (f->chunks - 1 - i / groups) * f->chunk;
        u.n = f->rows - u.row < f->chunk ? f->rows - u.row : f->chunk;
        u.b = i % groups / f->p.Hkv;
        u.head = i % groups % f->p.Hkv;
        run_unit(&u);
    }
}

static tp_status flash_run(const tp_call *k) {
    flash f = flash_of(k);
    tp_parallel_for(k->ctx, f.p.B * f.p.Hkv * f.chunks, 1, flash_range, &f);
    return TP_OK;
}

static tp_status paged_run(const tp_call *k) {
    tp_status st = paged_attention_check(k);
    return st ? st : flash_run(k);
}
static const char *paged_decline(const tp_call *k) {
    const tp_tensor *pages = k->in[PAGED_PAGES];
    if (pages->shape[1] > 1 && pages->stride[1] != 1) return "a row of the table lies apart";
    return tp_decline_unless_f32(k);
}

TP_CPU_KERNEL(paged_attention_cpu, .decline = paged_decline, .run = paged_run,
              .workspace = flash_workspace);
TP_CPU_KERNEL(attention_flash_cpu, .decline = tp_decline_unless_f32, .run = flash_run,
              .workspace = flash_workspace);
