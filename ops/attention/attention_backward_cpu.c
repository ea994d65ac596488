/* Flash attention, backward, on the CPU (the mathematics: attention_backward.c).
 *
 * Work is cut into pairs: a tile of 64 keys and a chunk of 64 rows (a row is one query and head;
 * rows that share a key head lie together). A pair computes its scores again and from them its
 * terms of dq, dk and dv: dk, dv of a tile    sum over chunks in order, rows in order: one chain
 * per element dq of a row         sums over tiles in order, keys in order: one chain per element
 * One pass does all three, a (sequence, key head) per thread. If those are too few for the threads,
 * two passes share out tiles (dk, dv) and chunks (dq) instead; the chains, hence the bits, are the
 * same. */
#include "ops/attention/attention_tile.h"

enum { ROWS = 64 };

typedef struct flash_backward {
    const tp_call *call;
    attention_problem p;
    int64_t rows, chunks, tiles; /* per (sequence, key head) */
    int64_t Dp, Dvp;
    float *delta; /* (B,H,T): sum over d of do*o, minus dlse */
    size_t delta_floats, slot_floats;
    bool want_dq, want_dkv;
} flash_backward;

/* One thread's memory, and the pair it works on. */
typedef struct pair {
    const flash_backward *f;
    int64_t b, head, tile, row, n; /* n rows from `row` of key head `head` */
    float *q, *d_o, *dq;           /* (ROWS, Dp) scaled; (ROWS, Dvp); (ROWS, Dp) */
    float *kt, *vt, *k;            /* (D, TILE), (Dv, TILE), (TILE, Dp) scaled */
    float *dk, *dv;                /* (TILE, Dp), (TILE, Dvp) */
    float *w, *ds;                 /* (ROWS, TILE): weights, gradients of scores */
    uint64_t mask[ROWS], seen;     /* keys that a row sees; that some row sees */
    int32_t seg[TILE];
} pair;

static flash_backward backward_of(const tp_call *k) {
    flash_backward f = {.call = k, .p = attention_problem_of(k, k->in[BACKWARD_SEGMENTS], NULL)};
    f.rows = f.p.T * f.p.G;
    f.chunks = (f.rows + ROWS - 1) / ROWS;
    f.tiles = (f.p.S + TILE - 1) / TILE;
    f.Dp = padded(f.p.D);
    f.Dvp = padded(f.p.Dv);
    f.delta_floats = (size_t)padded(f.p.B * f.p.H * f.p.T);
    f.slot_floats = (size_t)(2 * ROWS * f.Dp + ROWS * f.Dvp + 3 * TILE * f.Dp + 2 * TILE * f.Dvp +
                             2 * ROWS * TILE);
    return f;
}

static size_t backward_workspace(const tp_call *k) {
    flash_backward f = backward_of(k);
    return (f.delta_floats + f.slot_floats * (size_t)tp_threads(k->ctx)) * sizeof(float);
}

static pair pair_for_thread(const flash_backward *f) {
    float *at = (float *)f->call->workspace + f->delta_floats + f->slot_floats * (size_t)tp_slot();
    pair u = {.f = f};
    u.q = at, at += ROWS * f->Dp;
    u.dq = at, at += ROWS * f->Dp;
    u.d_o = at, at += ROWS * f->Dvp;
    u.kt = at, at += TILE * f->Dp;
    u.k = at, at += TILE * f->Dp;
    u.dk = at, at += TILE * f->Dp;
    u.vt = at, at += TILE * f->Dvp;
    u.dv = at, at += TILE * f->Dvp;
    u.w = at, at += ROWS * TILE;
    u.ds = at;
    return u;
}

static inline int64_t row_time(const pair *u, int64_t i) { return (u->row + i) / u->f->p.G; }
static inline int64_t row_head(const pair *u, int64_t i) {
    return u->head * u->f->p.G + (u->row + i) % u->f->p.G;
}
static inline float *out_row(const tp_tensor *t, int64_t b, int64_t time, int64_t head) {
    return tp_f32(t) + b * t->stride[0] + time * t->stride[1] + head * t->stride[2];
}
static inline float *dq_row(const pair *u, int64_t i) {
    return out_row(u->f->call->out[0], u->b, row_time(u, i), row_head(u, i));
}

/* ---- delta ---------------------------------------------------------------------------------- */
static float dot(const float *x, int64_t x_step, const float *y, int64_t y_step, int64_t n) {
    v16 sum = v16_zero();
    int64_t d = 0;
    if (x_step == 1 && y_step == 1)
        for (; d + TP_LANES <= n; d += TP_LANES)
            sum = v16_fma(v16_load(x + d), v16_load(y + d), sum);
    float a[TP_LANES], b[TP_LANES]; /* the same lanes for the tail and for strided rows */
    for (; d < n; d += TP_LANES) {
        for (int i = 0; i < TP_LANES; i++) {
            a[i] = d + i < n ? x[(d + i) * x_step] : 0;
            b[i] = d + i < n ? y[(d + i) * y_step] : 0;
        }
        sum = v16_fma(v16_load(a), v16_load(b), sum);
    }
    return lanes_sum(sum);
}

static void delta_range(void *arg, int64_t begin, int64_t end) {
    const flash_backward *f = arg;
    const tp_tensor *o = f->call->in[BACKWARD_O], *d_o = f->call->in[BACKWARD_DO];
    const tp_tensor *dlse = f->call->in[BACKWARD_DLSE];
    int64_t H = f->p.H, T = f->p.T;
    for (int64_t i = begin; i < end; i++) {
        int64_t t = i % T, h = i / T % H, b = i / T / H;
        float delta = 0;
        if (d_o && f->p.Dv > 0) {
            head_rows x = rows_of(o, b, h), y = rows_of(d_o, b, h);
            delta = dot(x.x + t * x.time, x.step, y.x + t * y.time, y.step, f->p.Dv);
        }
        if (dlse)
            delta -= tp_f32(dlse)[b * dlse->stride[0] + h * dlse->stride[1] + t * dlse->stride[2]];
        f->delta[i] = delta;
    }
}

/* ---- a pair --------------------------------------------------------------------------------- */
static void load_tile(pair *u) {
    const flash_backward *f = u->f;
    int64_t at = u->tile * TILE, n = f->p.S - at < TILE ? f->p.S - at : TILE;
    head_rows keys = rows_of(f->call->in[BACKWARD_K], u->b, u->head);
    head_rows values = rows_of(f->call->in[BACKWARD_V], u->b, u->head);
    pack_tile_transposed(u->kt, &keys, at, n);
    pack_tile_transposed(u->vt, &values, at, n);
    if (f->want_dq) pack_tile(u->k, &keys, at, n, (float)f->p.scale);
    tile_segments(u->seg, &f->p, u->b, u->tile);
}

static void load_masks(pair *u) {
    u->seen = 0;
    for (int64_t i = 0; i < u->n; i++) {
        u->mask[i] = visible_bits(&u->f->p, u->b, row_time(u, i), u->tile, u->seg);
        u->seen |= u->mask[i];
    }
}

static void load_chunk(pair *u) {
    const flash_backward *f = u->f;
    const tp_tensor *d_o = f->call->in[BACKWARD_DO];
    for (int64_t i = 0; i < u->n; i++) {
        int64_t t = row_time(u, i), h = row_head(u, i);
        head_rows q = rows_of(f->call->in[BACKWARD_Q], u->b, h);
        pack_row(u->q + i * f->Dp, q.x + t * q.time, q.step, f->p.D, (float)f->p.scale);
        if (d_o) {
            head_rows g = rows_of(d_o, u->b, h);
            pack_row(u->d_o + i * f->Dvp, g.x + t * g.time, g.step, f->p.Dv, 1.0f);
        } else
            memset(u->d_o + i * f->Dvp, 0, (size_t)f->Dvp * sizeof(float));
        if (f->want_dq) pack_row(u->dq + i * f->Dp, dq_row(u, i), 1, f->p.D, 1.0f);
    }
}

/* From n vectors of scores in w and dp = do.v in ds: the weights and the gradients of the scores.
 * Bit j of mask: key j is seen. */
/* lesson: weights again */
static void weigh_row_backward(int n, float *restrict w, float *restrict ds, uint64_t mask,
                               float lse, float delta, float softcap) {
    float slope[TILE];
    for (int j = 0; j < n * TP_LANES && softcap > 0; j++) {
        w[j] = attention_softcap(w[j], softcap);
        slope[j] = attention_softcap_dx(w[j], softcap);
    }
    for (int x = 0; x < n; x++)
        for (int j = x * TP_LANES; j < (x + 1) * TP_LANES; j++) {
            w[j] = attention_weight(w[j], lse);
            ds[j] = w[j] * (ds[j] - delta);
        }
    for (int j = 0; j < n * TP_LANES && softcap > 0; j++) ds[j] *= slope[j];
    for (int x = 0; x < n; x++, w += TP_LANES, ds += TP_LANES, mask >>= TP_LANES) {
        m16 sees = m16_of_bits(mask & 0xffff);
        v16_store(w, v16_select(sees, v16_load(w), v16_zero()));
        v16_store(ds, v16_select(sees, v16_load(ds), v16_zero()));
    }
}
/* end */

/* Zeros for the keys [from, to) of some rows: none of these sees them, but another row does. */
static void no_weights(float *w, float *ds, int rows, int from, int to) {
    for (int r = 0; r < rows; r++)
        for (int j = from; j < to; j += TP_LANES) {
            v16_store(w + r * TILE + j, v16_zero());
            v16_store(ds + r * TILE + j, v16_zero());
        }
}

/* Scores, weights and gradients of scores of a block of rows. Vectors of keys that no row of the
 * block sees are not computed: they become zero. */
static void block_weights(pair *u, int64_t first, int rows) {
    const flash_backward *f = u->f;
    const attention_problem *p = &f->p;
    const tp_tensor *lse = f->call->in[BACKWARD_LSE];
    float *w = u->w + first * TILE, *ds = u->ds + first * TILE;
    uint64_t any = 0;
    for (int r = 0; r < rows; r++) any |= u->mask[first + r];
    int c0 = any ? lowest_bit(any) / TP_LANES * TP_LANES : 0;
    int c1 = any ? (int)padded(after_highest_bit(any)) : 0;
    no_weights(w, ds, rows, 0, c0);
    no_weights(w, ds, rows, c1, (int)padded(after_highest_bit(u->seen)));
    if (!any) return;
    mm_rows(rows, (c1 - c0) / TP_LANES,
            &(mm){u->q + first * f->Dp, f->Dp, 1, u->kt + c0, TILE, w + c0, TILE, p->D, true});
    mm_rows(
        rows, (c1 - c0) / TP_LANES,
        &(mm){u->d_o + first * f->Dvp, f->Dvp, 1, u->vt + c0, TILE, ds + c0, TILE, p->Dv, true});
    for (int r = 0; r < rows; r++) {
        int64_t t = row_time(u, first + r), h = row_head(u, first + r);
        float l = tp_f32(lse)[u->b * lse->stride[0] + h * lse->stride[1] + t * lse->stride[2]];
        weigh_row_backward((c1 - c0) / TP_LANES, w + r * TILE + c0, ds + r * TILE + c0,
                           u->mask[first + r] >> c0, l, f->delta[(u->b * p->H + h) * p->T + t],
                           (float)p->softcap);
    }
}

/* dq += ds (scale k), over the keys that some row of the block sees. */
static void block_dq(pair *u, int64_t first, int rows) {
    const flash_backward *f = u->f;
    uint64_t any = 0;
    for (int r = 0; r < rows; r++) any |= u->mask[first + r];
    if (!any) return;
    int j0 = lowest_bit(any), j1 = after_highest_bit(any);
    mm_rows(rows, f->Dp / TP_LANES,
            &(mm){u->ds + first * TILE + j0, TILE, 1, u->k + j0 * f->Dp, f->Dp,
                  u->dq + first * f->Dp, f->Dp, j1 - j0, false});
}

/* dk += ds' (scale q) and dv += w' do, for a block of keys, over the rows that see one of them. */
static void block_dkv(pair *u, int key, int keys) {
    const flash_backward *f = u->f;
    uint64_t mine = range_bits(key, key + keys);
    int64_t i0 = 0, i1 = u->n;
    while (i0 < i1 && !(u->mask[i0] & mine)) i0++;
    while (i1 > i0 && !(u->mask[i1 - 1] & mine)) i1--;
    if (i0 == i1) return;
    mm_rows(keys, f->Dp / TP_LANES,
            &(mm){u->ds + i0 * TILE + key, 1, TILE, u->q + i0 * f->Dp, f->Dp, u->dk + key * f->Dp,
                  f->Dp, i1 - i0, false});
    mm_rows(keys, f->Dvp / TP_LANES,
            &(mm){u->w + i0 * TILE + key, 1, TILE, u->d_o + i0 * f->Dvp, f->Dvp,
                  u->dv + key * f->Dvp, f->Dvp, i1 - i0, false});
}

/* In line: for a narrow head, calling memcpy costs more than the copy. */
static inline void copy_row(float *to, const float *from, int64_t n) {
    int64_t d = 0;
    for (; d + TP_LANES <= n; d += TP_LANES) v16_store(to + d, v16_load(from + d));
    for (; d < n; d++) to[d] = from[d];
}

static void run_pair(pair *u) {
    const flash_backward *f = u->f;
    load_masks(u);
    if (!u->seen) return;
    load_chunk(u);
    for (int64_t i = 0; i < u->n; i += MM_ROWS)
        block_weights(u, i, u->n - i < MM_ROWS ? (int)(u->n - i) : MM_ROWS);
    if (f->want_dkv)
        for (int j = 0, end = after_highest_bit(u->seen); j < end; j += MM_ROWS)
            block_dkv(u, j, end - j < MM_ROWS ? end - j : MM_ROWS);
    if (!f->want_dq) return;
    for (int64_t i = 0; i < u->n; i += MM_ROWS)
        block_dq(u, i, u->n - i < MM_ROWS ? (int)(u->n - i) : MM_ROWS);
    for (int64_t i = 0; i < u->n; i++) copy_row(dq_row(u, i), u->dq + i * f->Dp, f->p.D);
}

/* ---- passes --------------------------------------------------------------------------------- */
static void set_chunk(pair *u, int64_t chunk) {
    u->row = chunk * ROWS;
    u->n = u->f->rows - u->row < ROWS ? u->f->rows - u->row : ROWS;
}

static void start_dkv(pair *u) {
    memset(u->dk, 0, (size_t)(TILE * u->f->Dp) * sizeof(float));
    memset(u->dv, 0, (size_t)(TILE * u->f->Dvp) * sizeof(float));
}

static void finish_dkv(const pair *u) {
    const flash_backward *f = u->f;
    const attention_problem *p = &f->p;
    for (int64_t i = 0, j = u->tile * TILE; i < TILE && j < p->S; i++, j++) {
        copy_row(out_row(f->call->out[1], u->b, j, u->head), u->dk + i * f->Dp, p->D);
        copy_row(out_row(f->call->out[2], u->b, j, u->head), u->dv + i * f->Dvp, p->Dv);
    }
}

/* A tile with every chunk: dk and dv of its keys (and dq's terms, if wanted). */
static void run_tile(pair *u) {
    load_tile(u);
    start_dkv(u);
    for (int64_t chunk = 0; chunk < u->f->chunks; chunk++) {
        set_chunk(u, chunk);
        run_pair(u);
    }
    finish_dkv(u);
}

static void zero_dq(pair *u, int64_t chunk) {
    set_chunk(u, chunk);
    for (int64_t i = 0; i < u->n; i++)
        if (u->f->p.D > 0) memset(dq_row(u, i), 0, (size_t)u->f->p.D * sizeof(float));
}

static void head_range(void *arg, int64_t begin, int64_t end) {
    const flash_backward *f = arg;
    pair u = pair_for_thread(f);
    for (int64_t i = begin; i < end; i++) {
        u.b = i / f->p.Hkv, u.head = i % f->p.Hkv;
        for (int64_t chunk = 0; chunk < f->chunks; chunk++) zero_dq(&u, chunk);
        for (u.tile = 0; u.tile < f->tiles; u.tile++) run_tile(&u);
    }
}

static void tile_range(void *arg, int64_t begin, int64_t end) {
    const flash_backward *f = arg;
    pair u = pair_for_thread(f);
    int64_t groups = f->p.B * f->p.Hkv;
    for (int64_t i = begin; i < end; i++) { /* causal: the first tiles cost most and go first */
        u.tile = i / groups, u.b = i % groups / f->p.Hkv, u.head = i % groups % f->p.Hkv;
        run_tile(&u);
    }
}

static void chunk_range(void *arg, int64_t begin, int64_t end) {
    const flash_backward *f = arg;
    pair u = pair_for_thread(f);
    int64_t groups = f->p.B * f->p.Hkv, first, past;
    for (int64_t i = begin; i < end; i++) {
        u.b = i % groups / f->p.Hkv, u.head = i % groups % f->p.Hkv;
        zero_dq(&u, f->chunks - 1 - i / groups);
        visible_tiles(&f->p, u.b, row_time(&u, 0), row_time(&u, u.n - 1), &first, &past);
        for (u.tile = first; u.tile * TILE < past; u.tile++) {
            load_tile(&u);
            run_pair(&u);
        }
    }
}

static tp_status backward_run(const tp_call *k) {
    flash_backward f = backward_of(k);
    int64_t groups = f.p.B * f.p.Hkv, threads = tp_threads(k->ctx);
    f.delta = k->workspace;
    tp_parallel_for(k->ctx, f.p.B * f.p.H * f.p.T, 256, delta_range, &f);
    if (threads == 1 || groups >= 2 * threads) {
        f.want_dq = f.want_dkv = true;
        tp_parallel_for(k->ctx, groups, 1, head_range, &f);
        return TP_OK;
    }
    f.want_dkv = true;
    tp_parallel_for(k->ctx, groups * f.tiles, 1, tile_range, &f);
    f.want_dkv = false, f.want_dq = true;
    tp_parallel_for(k->ctx, groups * f.chunks, 1, chunk_range, &f);
    return TP_OK;
}

TP_CPU_KERNEL(attention_backward_cpu, .decline = tp_decline_unless_f32, .run = backward_run,
              .workspace = backward_workspace);
