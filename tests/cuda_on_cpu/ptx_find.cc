/* Finds the kernel that a launch means: its address is looked up in the program's own symbols,
 * which name its source file and, but for the mark of a static function, it as nvcc does. */
#include <dirent.h>
#include <elf.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include "ptx.h"

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
    char *text = (char *)ptx_must(malloc((size_t)st.st_size + 1));
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
    module *m = (module *)ptx_must(calloc(1, sizeof *m));
    m->file = ptx_copy(file, strlen(file));
    m->text = contents(path, &bytes);
    m->next = modules, modules = m;
    for (const char *s = m->text; s && (s = strstr(s, ".entry ")); s++) {
        const char *q = ptx_past_name(s + 7);
        ptx_kernel *k = (ptx_kernel *)ptx_must(calloc(1, sizeof *k));
        k->name = ptx_copy(s + 7, (size_t)(q - s - 7));
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
    if (!k->read) ptx_read(k, text);
    if (k->wrong) {
        emu_record(cudaErrorLaunchFailure, "PTX: %s", k->wrong);
        return nullptr;
    }
    if (i < 512) known[at].func = func, known[at].k = k;
    return k;
}
