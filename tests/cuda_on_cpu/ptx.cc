/* Reads PTX as nvcc writes it (NVIDIA, "Parallel Thread Execution ISA"). What ptx_run.cc would do
 * otherwise than a GPU is refused: an instruction, a modifier, a type, a number of operands. */
#include <stdio.h>
#include <stdlib.h>
#include "ptx.h"

/* ---- text ------------------------------------------------------------------------------------ */
void *ptx_must(void *p) {
    if (!p) fputs("PTX: out of memory\n", stderr), abort();
    return p;
}
char *ptx_copy(const char *s, size_t n) {
    char *c = (char *)ptx_must(malloc(n + 1));
    memcpy(c, s, n);
    c[n] = 0;
    return c;
}
static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
static bool in_name(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '$' || c == '%' || c == '.';
}
static const char *past_space(const char *s) {
    for (;;) {
        while (is_space(*s)) s++;
        if (s[0] != '/' || s[1] != '/') return s;
        while (*s && *s != '\n') s++;
    }
}
const char *ptx_past_name(const char *s) {
    while (in_name(*s)) s++;
    return s;
}

/* ---- names ----------------------------------------------------------------------------------- */
enum { BUCKETS = 4096 };
struct entry {
    entry *next;
    char *name;
    int scope, value;
};
struct names {
    entry *bucket[BUCKETS];
};
static unsigned hash_of(const char *s, size_t n) {
    unsigned h = 2166136261u;
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)s[i]) * 16777619u;
    return h % BUCKETS;
}
static int look_up(const names *t, const char *s, size_t n, int scope) {
    for (entry *e = t->bucket[hash_of(s, n)]; e; e = e->next)
        if (e->scope == scope && !strncmp(e->name, s, n) && !e->name[n]) return e->value;
    return -1;
}
static void enter(names *t, const char *s, size_t n, int scope, int value) {
    entry **at = &t->bucket[hash_of(s, n)];
    entry *e = (entry *)ptx_must(malloc(sizeof *e));
    *e = entry{*at, ptx_copy(s, n), scope, value};
    *at = e;
}
static void forget(names *t) {
    for (int i = 0; i < BUCKETS; i++)
        while (t->bucket[i]) {
            entry *e = t->bucket[i];
            t->bucket[i] = e->next;
            free(e->name);
            free(e);
        }
}

/* ---- one kernel ------------------------------------------------------------------------------ */
struct reader {
    ptx_kernel *k;
    names slots, labels, ranges; /* ranges: %f<48>: how many there are */
    const char *s;               /* what is read next */
    const char *from;            /* of the file, for line numbers */
    int line, scopes, scope;     /* scope: 0 is the kernel's, others those of braces in it */
    int room, fixed_room;
    unsigned used;       /* bytes of the next load, a bit each; 0: all */
    const char **target; /* the label's name, of an instruction that jumps */
    int *target_scope;
};
static void wrong(reader *r, const char *what, const char *s, size_t n) {
    if (r->k->wrong) return;
    char text[256];
    snprintf(text, sizeof text, "%s.ptx, line %d: %s: %.*s", r->k->file, r->line, what,
             (int)(n < 120 ? n : 120), s);
    r->k->wrong = ptx_copy(text, strlen(text));
}

static ptx_fixed *fix(reader *r, ptx_what what, uint64_t value) {
    ptx_kernel *k = r->k;
    if (k->nfixed == r->fixed_room) {
        r->fixed_room = r->fixed_room ? 2 * r->fixed_room : 64;
        k->fixed =
            (ptx_fixed *)ptx_must(realloc(k->fixed, (size_t)r->fixed_room * sizeof *k->fixed));
    }
    ptx_fixed *f = &k->fixed[k->nfixed++];
    *f = ptx_fixed{k->slots++, what, value, nullptr, 0, 0};
    return f;
}

/* `.shared .align 16 .b8 name[4096];`, also `.extern`, somewhere in the file: where it would be
 * declared for this name. */
static bool variable(reader *r, const char *s, size_t n) {
    for (const char *at = r->from; (at = strstr(at, ".shared")); at++) {
        const char *end = strchr(at, ';');
        size_t align = 1, each = 1, count = 1;
        bool found = false;
        if (!end) return false;
        if (at == r->from || !is_space(at[-1])) continue; /* st.shared */
        for (const char *p = at + 7; p < end;) {
            p = past_space(p);
            const char *q = ptx_past_name(p);
            size_t bits = 0;
            if (!strncmp(p, ".align", 6))
                align = strtoul(p + 6, (char **)&q, 10);
            else if (*p == '.' && p[1] && (bits = strtoul(p + 2, nullptr, 10)))
                each = bits / 8;
            else if ((size_t)(q - p) == n && !strncmp(p, s, n))
                found = true;
            else if (*p == '[')
                count = strtoul(p + 1, (char **)&q, 10), q += *q == ']';
            p = q > p ? q : p + 1;
        }
        if (!found) continue;
        bool dynamic = at - r->from >= 8 && !strncmp(at - 8, ".extern ", 8);
        ptx_fixed *f = fix(r, dynamic ? PTX_DYNAMIC : PTX_VARIABLE, 0);
        f->site = (emu_site *)ptx_must(calloc(1, sizeof *f->site));
        f->site->name = ptx_copy(s, n);
        f->size = each * count, f->align = align;
        return true;
    }
    return false;
}

static uint64_t number(reader *r, const char *s, size_t n) {
    char *end;
    bool bits = s[0] == '0' && (s[1] == 'f' || s[1] == 'd'); /* of a float */
    uint64_t x = bits        ? strtoull(s + 2, &end, 16)
                 : *s == '-' ? (uint64_t)strtoll(s, &end, 0)
                             : strtoull(s, &end, 0);
    if (end != s + n) wrong(r, "a number not understood", s, n);
    return x;
}

/* %f12 is, after `.reg .f32 %f<48>;` in the kernel's own scope. */
static bool declared(const reader *r, const char *s, size_t n) {
    size_t letters = n;
    while (letters && s[letters - 1] >= '0' && s[letters - 1] <= '9') letters--;
    int count = look_up(&r->ranges, s, letters, 0);
    return letters < n && strtol(s + letters, nullptr, 10) < count;
}

/* The slot of a register, number or variable. */
static int slot_of(reader *r, const char *s, size_t n) {
    static const char *const specials[PTX_NSPECIAL] = {
        "%tid.x",   "%tid.y",   "%tid.z",   "%ntid.x",   "%ntid.y",   "%ntid.z",
        "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z"};
    ptx_kernel *k = r->k;
    int slot = r->scope ? look_up(&r->slots, s, n, r->scope) : -1;
    if (slot < 0) slot = look_up(&r->slots, s, n, 0);
    if (slot >= 0) return slot;
    slot = k->slots;
    if (*s == '-' || (*s >= '0' && *s <= '9')) {
        fix(r, PTX_CONSTANT, number(r, s, n));
    } else if (*s == '%') {
        int i = 0;
        while (i < PTX_NSPECIAL && (strlen(specials[i]) != n || strncmp(specials[i], s, n))) i++;
        if (i < PTX_NSPECIAL)
            fix(r, PTX_SPECIAL, (uint64_t)i);
        else if (!declared(r, s, n))
            wrong(r, "an unknown register", s, n);
        else
            k->slots++; /* a register of the kernel's; those of a scope stand in r->slots */
    } else {
        int i = 0;
        while (i < k->nparams && (strlen(k->param[i].name) != n || strncmp(k->param[i].name, s, n)))
            i++;
        if (i < k->nparams)
            fix(r, PTX_PARAMETER, k->param[i].at);
        else if (!variable(r, s, n))
            wrong(r, "an unknown name", s, n);
    }
    enter(&r->slots, s, n, 0, slot);
    return slot;
}

static ptx_type type_of(const char *s, size_t n) {
    static const char *const text[] = {"",       "b8",   "u8",  "s8",  "b16", "u16",
                                       "s16",    "bf16", "b32", "u32", "s32", "f32",
                                       "bf16x2", "b64",  "u64", "s64", "f64", "pred"};
    for (int i = 1; i <= PTX_PRED; i++)
        if (strlen(text[i]) == n && !strncmp(text[i], s, n)) return (ptx_type)i;
    return PTX_NONE;
}

static bool is_word(const char *word, const char *s, size_t n) {
    return strlen(word) == n && !strncmp(word, s, n);
}
/* One part of an instruction's name, behind what says what it does. */
static void in_part(reader *r, ptx_ins *in, const char *s, size_t n) {
    static const char *const compare[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "equ",
                                          "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};
    static const char *const spaces[] = {"", "global", "shared", "param"};
    const bool moves = in->op >= PTX_LD && in->op <= PTX_ST_RELAXED;
    ptx_type t = type_of(s, n);
    if (t) {
        if (in->type)
            in->from = t;
        else
            in->type = t;
        return;
    }
    for (int i = 0; in->op == PTX_SETP && i <= PTX_NAN; i++)
        if (is_word(compare[i], s, n)) return (void)(in->compare = i);
    for (int i = PTX_GLOBAL; moves && i <= PTX_PARAM; i++)
        if (is_word(spaces[i], s, n)) return (void)(in->space = (ptx_space)i);
    if (moves && n == 2 && (s[1] == '2' || s[1] == '4') && *s == 'v')
        in->vector = s[1] - '0';
    else if (!(is_word("rn", s, n) && (in->op == PTX_ADD || in->op == PTX_SUB ||
                                       in->op == PTX_DIV || in->op == PTX_CVT)) &&
             !(is_word("rzi", s, n) && in->op == PTX_CVT) &&
             !(is_word("cg", s, n) && in->op == PTX_LD) &&
             !(is_word("uni", s, n) && in->op == PTX_BRA) && in->op != PTX_SETMAXNREG &&
             !(in->op == PTX_CVTA &&
               (is_word("to", s, n) || is_word("global", s, n) || is_word("param", s, n))))
        wrong(r, "an unknown modifier", s, n);
}

/* Whether ptx_run.cc does it to these types. */
static bool known_types(const ptx_ins *in) {
    const ptx_type t = in->type, from = in->from;
    const bool half = t == PTX_BF16 || t == PTX_BF16X2;
    switch (in->op) {
    case PTX_CVT:
        if (half) return from == PTX_F32;
        return t != from && from != PTX_BF16X2 && (from != PTX_BF16 || t == PTX_F32);
    case PTX_EX2:
    case PTX_RCP_APPROX:
        return t == PTX_F32;
    case PTX_MUL:
    case PTX_FMA:
    case PTX_SQRT:
    case PTX_RCP:
        return t == PTX_F32 || t == PTX_F64;
    case PTX_MUL_HI:
    case PTX_MUL_WIDE: /* whose result has 64 bits at most */
        return t < PTX_B64 && !half;
    case PTX_BFIND:
    case PTX_BREV:
    case PTX_CLZ:
    case PTX_POPC:
        return t == PTX_B32 || t == PTX_U32;
    case PTX_LD_ACQUIRE:
    case PTX_LD_RELAXED:
    case PTX_ST_RELEASE:
    case PTX_ST_RELAXED:
        return t == PTX_S32 && in->space == PTX_GLOBAL;
    case PTX_ATOM_ADD:
    case PTX_ATOM_MIN:
    case PTX_ATOM_SHARED_ADD:
    case PTX_ATOM_SHARED_MIN:
        return t == PTX_U32 || t == PTX_U64;
    default:
        return !half;
    }
}

/* The instruction's name: what it does, to which types, where. */
static void decode(reader *r, ptx_ins *in, const char *s, size_t n) {
#define X(id, text) text,
    static const char *const begin[] = {PTX_OPS(X)};
#undef X
    size_t best = 0;
    in->op = PTX_UNKNOWN;
    for (int i = 0; i < PTX_UNKNOWN; i++) {
        size_t b = strlen(begin[i]);
        if (b > best && b <= n && !strncmp(begin[i], s, b)) best = b, in->op = (ptx_op)i;
    }
    if (in->op == PTX_UNKNOWN) wrong(r, "an unknown instruction", s, n);
    in->vector = 1;
    if (in->op == PTX_WGMMA) { /* m64nNNNk16.f32.bf16.bf16 */
        char *end;
        in->vector = (int)strtol(s + best, &end, 10);
        if (strncmp(end, "k16.f32.bf16.bf16", 17)) wrong(r, "an unknown product", s, n);
        return;
    }
    /* what follows, part by part; a modifier that is not known here may change what is done */
    for (const char *p = s + best; p < s + n;) {
        const char *q = p;
        while (q < s + n && *q != '.') q++;
        if (q > p) in_part(r, in, p, (size_t)(q - p));
        p = q + 1;
    }
    if (!known_types(in)) wrong(r, "a type that is not known here", s, n);
}

static void operands(reader *r, ptx_ins *in, const char *s, const char *end) {
    int arg[192], n = 0;
    in->first = 1;
    for (const char *p = past_space(s); p < end; p = past_space(p)) {
        const char *q = *p == '-' ? ptx_past_name(p + 1) : ptx_past_name(p);
        if (*p == '}' && in->first == 1 && *past_space(s) == '{') in->first = n;
        if (q == p) {        /* punctuation */
            if (*p == '+') { /* [register+bytes], also +-bytes */
                if (in->offset) wrong(r, "two offsets", s, (size_t)(end - s));
                in->offset = strtoll(p + 1, (char **)&q, 10);
                p = q;
            } else if (strchr(",[]{}|", *p))
                p++;
            else
                return wrong(r, "not understood", s, (size_t)(end - s));
            continue;
        }
        if (n == 192) return wrong(r, "too many operands", s, (size_t)(end - s));
        if (in->op == PTX_BRA) {
            r->target[r->k->ncode] = ptx_copy(p, (size_t)(q - p));
            r->target_scope[r->k->ncode] = r->scope;
        } else
            arg[n++] = q - p == 1 && *p == '_' ? -1 : slot_of(r, p, (size_t)(q - p));
        p = q;
    }
    if (in->offset && (in->op < PTX_LD || in->op > PTX_ATOM_SHARED_MIN))
        wrong(r, "an offset", s, (size_t)(end - s));
    in->narg = n;
    in->arg = (int *)ptx_must(malloc(((size_t)n + 1) * sizeof *in->arg));
    memcpy(in->arg, arg, (size_t)n * sizeof *arg);
}

/* How many operands an instruction writes. */
static int results_of(const ptx_ins *in) {
    if (in->op <= PTX_CVTA) return in->op == PTX_MOV ? in->first : 1;
    switch (in->op) {
    case PTX_LD:
        return in->vector;
    case PTX_WGMMA:
    case PTX_MMA:
    case PTX_LDMATRIX:
    case PTX_LDMATRIX_TRANS:
        return in->first;
    case PTX_SHFL_UP:
    case PTX_SHFL_DOWN:
    case PTX_SHFL_BFLY:
    case PTX_SHFL_IDX:
        return in->narg - 4;
    case PTX_LD_ACQUIRE:
    case PTX_LD_RELAXED:
    case PTX_ATOM_ADD:
    case PTX_ATOM_MIN:
    case PTX_ATOM_SHARED_ADD:
    case PTX_ATOM_SHARED_MIN:
    case PTX_BALLOT:
    case PTX_ANY:
    case PTX_ALL:
    case PTX_MBAR_ARRIVE:
    case PTX_MBAR_EXPECT:
    case PTX_MBAR_WAIT:
        return 1;
    default:
        return 0;
    }
}

/* As many as ptx_run.cc looks at, and `_` for what it does not write. */
static void check_operands(reader *r, const ptx_ins *in, const char *s, size_t n) {
    int want = in->narg;
    if (in->op <= PTX_MUL_WIDE || (in->op >= PTX_DIV && in->op <= PTX_MAX) ||
        (in->op >= PTX_AND && in->op <= PTX_XOR) || in->op == PTX_SHL || in->op == PTX_SHR ||
        in->op == PTX_SETP || (in->op >= PTX_ATOM_ADD && in->op <= PTX_ATOM_SHARED_MIN) ||
        (in->op >= PTX_BALLOT && in->op <= PTX_ALL) || in->op == PTX_MBAR_EXPECT ||
        in->op == PTX_MBAR_WAIT)
        want = 3;
    else if (in->op == PTX_MAD_LO || in->op == PTX_FMA || in->op == PTX_SELP ||
             in->op == PTX_CP_ASYNC)
        want = 4;
    else if (in->op == PTX_BFI)
        want = 5;
    else if (in->op == PTX_MOV)
        want = in->narg == 3 ? 3 : 2;
    else if (in->op == PTX_CVT)
        want = in->type == PTX_BF16X2 ? 3 : 2;
    else if (in->op < PTX_LD || in->op == PTX_MBAR_INIT || in->op == PTX_MBAR_ARRIVE)
        want = 2;
    else if (in->op == PTX_LD || in->op == PTX_ST)
        want = in->vector + 1;
    if (in->narg != want) wrong(r, "another number of operands", s, n);
    bool may_drop = in->op == PTX_LD || (in->op >= PTX_ATOM_ADD && in->op <= PTX_SHFL_IDX);
    bool must_drop = in->op == PTX_MBAR_ARRIVE || in->op == PTX_MBAR_EXPECT;
    for (int i = 0; i < in->narg; i++)
        if ((in->arg[i] < 0 && !((may_drop || must_drop) && i < in->results)) ||
            (in->arg[i] >= 0 && must_drop && i < in->results))
            wrong(r, "a place for a result", s, n);
}

static ptx_ins *new_ins(reader *r) {
    ptx_kernel *k = r->k;
    if (k->ncode == r->room) {
        r->room = r->room ? 2 * r->room : 1024;
        k->code = (ptx_ins *)ptx_must(realloc(k->code, (size_t)r->room * sizeof *k->code));
        r->target =
            (const char **)ptx_must(realloc(r->target, (size_t)r->room * sizeof *r->target));
        r->target_scope = (int *)ptx_must(realloc(r->target_scope, (size_t)r->room * sizeof(int)));
    }
    r->target[k->ncode] = nullptr;
    k->code[k->ncode] = ptx_ins{};
    k->code[k->ncode].guard = -1;
    k->code[k->ncode].line = r->line;
    return &k->code[k->ncode];
}

/* `.reg .pred p;` within braces, `.reg .f32 %f<48>;` for a kernel. */
static void declare(reader *r, const char *s, const char *end) {
    if (!strncmp(s, ".shared", 7) || !strncmp(s, ".pragma", 7)) return;
    if (strncmp(s, ".reg", 4)) return wrong(r, "a directive not understood", s, 40);
    for (const char *p = past_space(ptx_past_name(past_space(s + 4))); p < end;) {
        const char *q = ptx_past_name(p);
        if (q == p || (*q == '<') != !r->scope)
            return wrong(r, "a declaration not understood", s, (size_t)(end - s));
        const size_t n = (size_t)(q - p);
        if (*q == '<') {
            enter(&r->ranges, p, n, 0, (int)strtol(q + 1, (char **)&q, 10));
            q++;
        } else
            enter(&r->slots, p, n, r->scope, r->k->slots++);
        p = past_space(q);
        if (*p == ',') p = past_space(p + 1);
    }
}

static void statement(reader *r) {
    const char *s = r->s, *end = strchr(s, ';');
    if (!end) return wrong(r, "no end", s, 20), (void)(r->s = s + strlen(s));
    r->s = end + 1;
    if (*s == '.') {
        const char *mask = strstr(s, "\"used_bytes_mask ");
        if (mask && mask < end) r->used = (unsigned)strtoul(mask + 17, nullptr, 0);
        return declare(r, s, end);
    }
    ptx_ins *in = new_ins(r);
    if (*s == '@') {
        in->unless = s[1] == '!';
        s += 1 + in->unless;
        const char *q = ptx_past_name(s);
        in->guard = slot_of(r, s, (size_t)(q - s));
        s = past_space(q);
    }
    const char *q = s;
    while (q < end && !is_space(*q)) q++;
    decode(r, in, s, (size_t)(q - s));
    operands(r, in, q, end);
    for (int i = 0,
             each = 1 << (in->type >= PTX_B16) << (in->type >= PTX_B32) << (in->type >= PTX_B64);
         r->used && i < in->vector; i++)
        if (!(r->used >> (i * each) & ((1u << each) - 1))) in->unused |= 1u << i;
    r->used = 0;
    in->results = results_of(in);
    check_operands(r, in, q, (size_t)(end - q));
    r->k->products |= in->op == PTX_WGMMA;
    r->k->ncode++;
}

static void body(reader *r) {
    int outer[8], depth = 0;
    const char *counted = r->from;
    r->line = 1;
    for (;;) {
        r->s = past_space(r->s);
        for (; counted < r->s; counted++) r->line += *counted == '\n';
        const char *s = r->s, *q = ptx_past_name(s);
        if (!*s || r->k->wrong) return;
        if (*s == '{') {
            if (depth == 8) return wrong(r, "braces within braces", s, 1);
            outer[depth++] = r->scope;
            if (depth > 1) r->scope = ++r->scopes;
            r->s++;
        } else if (*s == '}') {
            r->scope = outer[--depth];
            r->s++;
            if (!depth) break;
        } else if (q > s && *q == ':' && q[1] != ':') {
            enter(&r->labels, s, (size_t)(q - s), r->scope, r->k->ncode);
            r->s = q + 1;
        } else
            statement(r);
    }
    new_ins(r)->op = PTX_RET; /* where a label stands at the very end */
    r->k->ncode++;
    for (int i = 0; i < r->k->ncode; i++) {
        if (!r->target[i]) continue;
        size_t n = strlen(r->target[i]);
        int to = look_up(&r->labels, r->target[i], n, r->target_scope[i]);
        if (to < 0) to = look_up(&r->labels, r->target[i], n, 0);
        if (to < 0) wrong(r, "an unknown label", r->target[i], n);
        r->k->code[i].target = to;
    }
}

/* `(.param .align 8 .b8 name[168], .param .u64 name2)`, `.maxntid 128, 1, 1` */
static void head(reader *r) {
    ptx_kernel *k = r->k;
    const char *s = past_space(r->s);
    k->param = (ptx_param *)ptx_must(calloc(64, sizeof *k->param));
    k->max_threads = 1024;
    for (s += *s == '('; *s && *s != ')'; s = past_space(s + (*s == ','))) {
        ptx_param *p = &k->param[k->nparams];
        for (s = past_space(s); *s == '.'; s = past_space(s)) {
            const char *q = ptx_past_name(s);
            if (!strncmp(s, ".align", 6))
                p->align = strtoul(s + 6, (char **)&q, 10);
            else if (q - s > 2 && s[1] != 'p')
                p->size = strtoul(s + 2, nullptr, 10) / 8;
            s = q;
        }
        const char *q = ptx_past_name(s);
        if (q == s || k->nparams == 63) return wrong(r, "a parameter not understood", s, 40);
        p->name = ptx_copy(s, (size_t)(q - s));
        if (!p->align) p->align = p->size;
        if (*q == '[') p->size *= strtoul(q + 1, (char **)&q, 10), q++;
        p->at = (k->param_bytes + p->align - 1) / p->align * p->align;
        k->param_bytes = p->at + p->size;
        k->nparams++;
        s = past_space(q);
    }
    if (k->param_bytes > PTX_PARAM_BYTES) wrong(r, "too many parameters", k->name, 60);
    const char *open = strchr(s, '{'), *most = strstr(s, ".maxntid");
    if (open && most && most < open) {
        k->max_threads = 1;
        for (char *p = (char *)most + 8; p < open && (*p == ',' || *p == ' ');)
            k->max_threads *= (int)strtol(p + 1, &p, 10);
    }
    r->s = open ? open : s + strlen(s);
}

void ptx_read(ptx_kernel *k, const char *file_text) {
    static reader r; /* its tables are large; the emulator's callers come one at a time */
    memset(&r, 0, sizeof r);
    r.k = k, r.s = k->text, r.from = file_text;
    head(&r);
    body(&r);
    forget(&r.slots);
    forget(&r.labels);
    forget(&r.ranges);
    for (int i = 0; i < k->ncode; i++) free((void *)r.target[i]);
    free(r.target);
    free(r.target_scope);
    k->read = true;
}
