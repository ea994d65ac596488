/* Reads PTX as nvcc writes it (NVIDIA, "Parallel Thread Execution ISA"), and finds the kernel that
 * a launch means: its address is looked up in the program's own symbols, which name its source file
 * and, but for the mark of a static function, it as nvcc does. */
#include <dirent.h>
#include <elf.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "ptx.h"

/* ---- text ------------------------------------------------------------------------------------ */
static void *must(void *p) {
    if (!p) fputs("PTX: out of memory\n", stderr), abort();
    return p;
}
static char *copy_of(const char *s, size_t n) {
    char *c = (char *)must(malloc(n + 1));
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
static const char *past_name(const char *s) {
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
    entry *e = (entry *)must(malloc(sizeof *e));
    *e = entry{*at, copy_of(s, n), scope, value};
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
    names slots, labels;
    const char *s;           /* what is read next */
    const char *from;        /* of the file, for line numbers */
    int line, scopes, scope; /* scope: 0 is the kernel's, others those of braces in it */
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
    r->k->wrong = copy_of(text, strlen(text));
}

static ptx_fixed *fix(reader *r, ptx_what what, uint64_t value) {
    ptx_kernel *k = r->k;
    if (k->nfixed == r->fixed_room) {
        r->fixed_room = r->fixed_room ? 2 * r->fixed_room : 64;
        k->fixed = (ptx_fixed *)must(realloc(k->fixed, (size_t)r->fixed_room * sizeof *k->fixed));
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
            const char *q = past_name(p);
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
        f->site = (emu_site *)must(calloc(1, sizeof *f->site));
        f->site->name = copy_of(s, n);
        f->size = each * count, f->align = align;
        return true;
    }
    return false;
}

static uint64_t number(const char *s) {
    if (s[0] == '0' && (s[1] == 'f' || s[1] == 'd' || s[1] == 'F' || s[1] == 'D'))
        return strtoull(s + 2, nullptr, 16);
    return *s == '-' ? (uint64_t)strtoll(s, nullptr, 0) : strtoull(s, nullptr, 0);
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
        fix(r, PTX_CONSTANT, number(s));
    } else if (*s == '%') {
        int i = 0;
        while (i < PTX_NSPECIAL && (strlen(specials[i]) != n || strncmp(specials[i], s, n))) i++;
        if (i < PTX_NSPECIAL)
            fix(r, PTX_SPECIAL, (uint64_t)i);
        else if (memchr(s, '.', n))
            wrong(r, "an unknown special register", s, n);
        else
            k->slots++; /* a register of the kernel's; those of a scope were declared in it */
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

/* The instruction's name: what it does, to which types, where. */
static void decode(reader *r, ptx_ins *in, const char *s, size_t n) {
#define X(id, text) text,
    static const char *const begin[] = {PTX_OPS(X)};
#undef X
    static const char *const compare[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "equ",
                                          "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};
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
    for (const char *p = s; p < s + n;) { /* part by part */
        const char *q = p;
        while (q < s + n && *q != '.') q++;
        size_t m = (size_t)(q - p);
        ptx_type t = type_of(p, m);
        if (t && in->type)
            in->from = t;
        else if (t)
            in->type = t;
        for (int i = 0; in->op == PTX_SETP && i <= PTX_NAN; i++)
            if (strlen(compare[i]) == m && !strncmp(compare[i], p, m)) in->compare = i;
        if (m == 2 && *p == 'v') in->vector = p[1] - '0';
        if (m == 6 && !strncmp(p, "global", m)) in->space = PTX_GLOBAL;
        if (m == 6 && !strncmp(p, "shared", m)) in->space = PTX_SHARED;
        if (m == 5 && !strncmp(p, "param", m)) in->space = PTX_PARAM;
        p = q + 1;
    }
    if ((in->op == PTX_MUL_HI || in->op == PTX_MUL_WIDE) && in->type >= PTX_B64)
        wrong(r, "a product of 128 bits", s, n);
}

static void operands(reader *r, ptx_ins *in, const char *s, const char *end) {
    int arg[192], n = 0;
    in->first = 1;
    for (const char *p = past_space(s); p < end; p = past_space(p)) {
        const char *q = *p == '-' ? past_name(p + 1) : past_name(p);
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
            r->target[r->k->ncode] = copy_of(p, (size_t)(q - p));
            r->target_scope[r->k->ncode] = r->scope;
        } else
            arg[n++] = q - p == 1 && *p == '_' ? -1 : slot_of(r, p, (size_t)(q - p));
        p = q;
    }
    in->narg = n;
    in->arg = (int *)must(malloc(((size_t)n + 1) * sizeof *in->arg));
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

static ptx_ins *new_ins(reader *r) {
    ptx_kernel *k = r->k;
    if (k->ncode == r->room) {
        r->room = r->room ? 2 * r->room : 1024;
        k->code = (ptx_ins *)must(realloc(k->code, (size_t)r->room * sizeof *k->code));
        r->target = (const char **)must(realloc(r->target, (size_t)r->room * sizeof *r->target));
        r->target_scope = (int *)must(realloc(r->target_scope, (size_t)r->room * sizeof(int)));
    }
    r->target[k->ncode] = nullptr;
    k->code[k->ncode] = ptx_ins{};
    k->code[k->ncode].guard = -1;
    k->code[k->ncode].line = r->line;
    return &k->code[k->ncode];
}

/* `.reg .pred p;` within braces. Elsewhere names do not clash, and stand for themselves. */
static void declare(reader *r, const char *s, const char *end) {
    if (strncmp(s, ".reg", 4) || !r->scope) return;
    for (const char *p = past_space(past_name(past_space(s + 4))); p < end;) {
        const char *q = past_name(p);
        if (q == p || *q == '<')
            return wrong(r, "a declaration not understood", s, (size_t)(end - s));
        enter(&r->slots, p, (size_t)(q - p), r->scope, r->k->slots++);
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
        const char *q = past_name(s);
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
        const char *s = r->s, *q = past_name(s);
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
    k->param = (ptx_param *)must(calloc(64, sizeof *k->param));
    k->max_threads = 1024;
    for (s += *s == '('; *s && *s != ')'; s = past_space(s + (*s == ','))) {
        ptx_param *p = &k->param[k->nparams];
        for (s = past_space(s); *s == '.'; s = past_space(s)) {
            const char *q = past_name(s);
            if (!strncmp(s, ".align", 6))
                p->align = strtoul(s + 6, (char **)&q, 10);
            else if (q - s > 2 && s[1] != 'p')
                p->size = strtoul(s + 2, nullptr, 10) / 8;
            s = q;
        }
        const char *q = past_name(s);
        if (q == s || k->nparams == 63) return wrong(r, "a parameter not understood", s, 40);
        p->name = copy_of(s, (size_t)(q - s));
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

static void read_kernel(ptx_kernel *k, const char *file_text) {
    static reader r; /* its tables are large; the emulator's callers come one at a time */
    memset(&r, 0, sizeof r);
    r.k = k, r.s = k->text, r.from = file_text;
    head(&r);
    body(&r);
    forget(&r.slots);
    forget(&r.labels);
    for (int i = 0; i < k->ncode; i++) free((void *)r.target[i]);
    free(r.target);
    free(r.target_scope);
    k->read = true;
}

/* ---- files ----------------------------------------------------------------------------------- */
struct module {
    module *next;
    char *file, *text; /* text NULL: there is none */
    ptx_kernel *kernels;
};
static module *modules;

static char *contents(const char *path, size_t *bytes) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) return fd >= 0 ? close(fd), nullptr : nullptr;
    char *text = (char *)must(malloc((size_t)st.st_size + 1));
    size_t n = 0;
    for (ssize_t got;
         n < (size_t)st.st_size && (got = read(fd, text + n, (size_t)st.st_size - n)) > 0;)
        n += (size_t)got;
    close(fd);
    text[n] = 0;
    *bytes = n;
    return text;
}

static module *module_of(const char *folder, const char *file) {
    for (module *m = modules; m; m = m->next)
        if (!strcmp(m->file, file)) return m;
    char path[1024];
    size_t bytes;
    snprintf(path, sizeof path, "%s/%s.ptx", folder, file);
    module *m = (module *)must(calloc(1, sizeof *m));
    m->file = copy_of(file, strlen(file));
    m->text = contents(path, &bytes);
    m->next = modules, modules = m;
    for (const char *s = m->text; s && (s = strstr(s, ".entry ")); s++) {
        const char *q = past_name(s + 7);
        ptx_kernel *k = (ptx_kernel *)must(calloc(1, sizeof *k));
        k->name = copy_of(s + 7, (size_t)(q - s - 7));
        k->file = m->file, k->text = q;
        k->next = m->kernels, m->kernels = k;
    }
    return m;
}

static void all_modules(const char *folder) {
    static bool done;
    DIR *d = done ? nullptr : opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        size_t n = strlen(e->d_name);
        if (n < 5 || n > 255 || strcmp(e->d_name + n - 4, ".ptx")) continue;
        e->d_name[n - 4] = 0;
        module_of(folder, e->d_name);
    }
    if (d) closedir(d), done = true;
}

/* ---- from an address to a kernel ------------------------------------------------------------- */
extern "C" const char __executable_start[];

/* The symbol at `func` and its source file, both "" if unknown. */
static void symbol_of(const void *func, char *name, char *file, size_t room) {
    static char *image;
    static size_t bytes;
    if (!image) image = contents("/proc/self/exe", &bytes);
    *name = *file = 0;
    if (!image || bytes < sizeof(Elf64_Ehdr)) return;
    const Elf64_Ehdr *e = (const Elf64_Ehdr *)image;
    const Elf64_Shdr *sh = (const Elf64_Shdr *)(image + e->e_shoff);
    const Elf64_Phdr *ph = (const Elf64_Phdr *)(image + e->e_phoff);
    uintptr_t start = 0;
    for (int i = e->e_phnum - 1; i >= 0; i--)
        if (ph[i].p_type == PT_LOAD) start = ph[i].p_vaddr;
    uintptr_t want = (uintptr_t)func - (uintptr_t)__executable_start + start;
    for (int i = 0; i < e->e_shnum; i++) {
        if (sh[i].sh_type != SHT_SYMTAB) continue;
        const Elf64_Sym *sym = (const Elf64_Sym *)(image + sh[i].sh_offset);
        const char *text = image + sh[sh[i].sh_link].sh_offset, *source = "";
        for (size_t j = 0; j < sh[i].sh_size / sizeof *sym; j++) {
            if (ELF64_ST_TYPE(sym[j].st_info) == STT_FILE) source = text + sym[j].st_name;
            if (ELF64_ST_TYPE(sym[j].st_info) != STT_FUNC || sym[j].st_value != want) continue;
            snprintf(name, room, "%s", text + sym[j].st_name);
            if (ELF64_ST_BIND(sym[j].st_info) == STB_LOCAL) snprintf(file, room, "%s", source);
            return;
        }
    }
}

static ptx_kernel *named(module *m, const char *name) {
    for (ptx_kernel *k = m->kernels; k; k = k->next)
        if (!strcmp(k->name, name)) return k;
    return nullptr;
}

ptx_kernel *ptx_find(const void *func, const char *folder) {
    static struct {
        const void *func;
        ptx_kernel *k;
    } known[512];
    size_t at = ((uintptr_t)func >> 4) % 512, i = 0;
    while (i < 512 && known[at].func && known[at].func != func) at = (at + 1) % 512, i++;
    if (known[at].func == func && known[at].k) return known[at].k;
    char symbol[512], file[512], plain[512];
    symbol_of(func, symbol, file, sizeof symbol);
    if (char *dot = strrchr(file, '.')) *dot = 0;
    bool is_static = !strncmp(symbol, "_ZL", 3);
    snprintf(plain, sizeof plain, "_Z%s", symbol + (is_static ? 3 : 2));
    ptx_kernel *k = nullptr;
    const char *text = nullptr;
    if (*file)
        module_of(folder, file);
    else /* of a header: whichever source has it */
        all_modules(folder);
    for (module *m = modules; m && !k; m = m->next)
        if (!*file || !strcmp(m->file, file)) k = named(m, plain), text = m->text;
    if (!k) {
        emu_record(cudaErrorLaunchFailure, "PTX: %s of %s is not in %s", plain, *file ? file : "?",
                   folder);
        return nullptr;
    }
    if (!k->read) read_kernel(k, text);
    if (k->wrong) {
        emu_record(cudaErrorLaunchFailure, "PTX: %s", k->wrong);
        return nullptr;
    }
    if (i < 512) known[at].func = func, known[at].k = k;
    return k;
}
