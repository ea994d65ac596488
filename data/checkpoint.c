/* checkpoint: entries of a checkpoint in HDF5, written and read one at a time.
 *
 * Each entry is one contiguous dataset in little-endian order with an attribute "type" (its
 * tp_dtype's name, or "text"); bf16 lies as 16-bit unsigned integers. The dataset "entries" lists
 * the names in the order they were put, so reading follows that list and no link in the file. */
#include "data/checkpoint.h"
#include "data/checkpoint_seal.h"
#include "data/files.h"
#include "data/hdf5_lock.h"
#include "data/text.h"
#include "tapir_version.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char code_version[] = TAPIR_VERSION " " TAPIR_COMMIT;
static const char list_name[] = "entries", text_type[] = "text";

struct tp_checkpoint_writer {
    tp_ctx *c;
    char *path, *tmp;
    int64_t step;
    hid_t file;
    tp_str list; /* names, a line each */
    tp_status status;
};

struct tp_checkpoint_reader {
    tp_ctx *c;
    char *path, *list; /* list: names, each ended by NUL */
    tp_seal seal;
    hid_t file;
    tp_checkpoint_entry *entries;
    int64_t n;
};

/* In the file and in memory. Only valid under the lock: HDF5's type constants are calls. */
static hid_t file_type(tp_dtype t) {
    switch (t) {
    case TP_F32:
        return H5T_IEEE_F32LE;
    case TP_F64:
        return H5T_IEEE_F64LE;
    case TP_BF16:
        return H5T_STD_U16LE;
    case TP_I32:
        return H5T_STD_I32LE;
    case TP_I64:
        return H5T_STD_I64LE;
    case TP_U8:
        return H5T_STD_U8LE;
    case TP_NDTYPE:
        break;
    }
    return -1;
}

static hid_t memory_type(tp_dtype t) {
    switch (t) {
    case TP_F32:
        return H5T_NATIVE_FLOAT;
    case TP_F64:
        return H5T_NATIVE_DOUBLE;
    case TP_BF16:
        return H5T_NATIVE_UINT16;
    case TP_I32:
        return H5T_NATIVE_INT32;
    case TP_I64:
        return H5T_NATIVE_INT64;
    case TP_U8:
        return H5T_NATIVE_UINT8;
    case TP_NDTYPE:
        break;
    }
    return -1;
}

/* Bytes of a shape, or -1 where it is none: negative, or more than memory can hold. */
static int64_t shape_bytes(tp_dtype t, int ndim, const int64_t *shape) {
    int64_t bytes = (int64_t)tp_dtype_size(t);
    if (ndim < 0 || ndim > TP_MAXDIM) return -1;
    for (int i = 0; i < ndim; i++)
        if (shape[i] < 0 || __builtin_mul_overflow(bytes, shape[i], &bytes)) return -1;
    return bytes;
}

static void shape_words(char out[160], tp_dtype t, int ndim, const int64_t *shape) {
    if (ndim < 0 || ndim > TP_MAXDIM) { /* shape may not be that long */
        snprintf(out, 160, "%s of %d dimensions", tp_dtype_name(t), ndim);
        return;
    }
    size_t o = (size_t)snprintf(out, 160, "%s[", tp_dtype_name(t));
    for (int i = 0; i < ndim; i++)
        o += (size_t)snprintf(out + o, 160 - o, "%s%lld", i ? "," : "", (long long)shape[i]);
    snprintf(out + o, 160 - o, "]");
}

/* ---- writing -------------------------------------------------------------------------------- */
static bool name_ok(const char *name) {
    size_t n = strlen(name), part = 0;
    if (n >= TP_CHECKPOINT_NAME) return false;
    for (size_t i = 0; i <= n; i++) {
        if (name[i] == '/' || !name[i]) {
            /* HDF5 takes "." and "" for the group itself */
            if (!part || (part == 1 && name[i - 1] == '.')) return false;
            part = 0;
        } else {
            bool word = (name[i] >= 'a' && name[i] <= 'z') || (name[i] >= 'A' && name[i] <= 'Z') ||
                        (name[i] >= '0' && name[i] <= '9') || strchr("._-", name[i]);
            if (!word) return false;
            part++;
        }
    }
    return strcmp(name, list_name) != 0;
}

/* HDF5 stamps objects with the time unless told not to; then equal content has equal bytes. */
static hid_t plain_list(hid_t kind) {
    hid_t list = H5Pcreate(kind);
    if (list >= 0 && H5Pset_obj_track_times(list, false) < 0) {
        H5Pclose(list);
        list = -1;
    }
    return list;
}

static hid_t create_file(const char *path) {
    hid_t file = -1, creation = plain_list(H5P_FILE_CREATE), access = H5Pcreate(H5P_FILE_ACCESS);
    if (creation >= 0 && access >= 0 && H5Pset_userblock(creation, TP_SEAL_BYTES) >= 0 &&
        H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110) >= 0 &&
        H5Pset_fclose_degree(access, H5F_CLOSE_STRONG) >= 0)
        file = H5Fcreate(path, H5F_ACC_TRUNC, creation, access);
    if (creation >= 0) H5Pclose(creation);
    if (access >= 0) H5Pclose(access);
    return file;
}

static bool put_attribute(hid_t object, const char *name, const char *text) {
    hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR), at = -1;
    bool good = type >= 0 && space >= 0 && H5Tset_size(type, strlen(text) + 1) >= 0 &&
                (at = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT)) >= 0 &&
                H5Awrite(at, type, text) >= 0;
    if (at >= 0) H5Aclose(at);
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    return good;
}

/* Makes the groups of "a/b/name" that are not there yet. */
static bool make_groups(hid_t file, const char *name) {
    char group[TP_CHECKPOINT_NAME];
    hid_t creation = plain_list(H5P_GROUP_CREATE);
    bool good = creation >= 0;
    for (const char *slash = strchr(name, '/'); good && slash; slash = strchr(slash + 1, '/')) {
        snprintf(group, sizeof group, "%.*s", (int)(slash - name), name);
        htri_t there = H5Lexists(file, group, H5P_DEFAULT);
        good = there >= 0;
        if (there) continue;
        hid_t made = H5Gcreate2(file, group, H5P_DEFAULT, creation, H5P_DEFAULT);
        good = made >= 0 && H5Gclose(made) >= 0;
    }
    if (creation >= 0) H5Pclose(creation);
    return good;
}

static bool put_dataset(hid_t file, const char *name, const char *type, tp_dtype t, int ndim,
                        const int64_t *shape, const void *data) {
    hsize_t dims[TP_MAXDIM];
    bool empty = false;
    for (int i = 0; i < ndim; i++) {
        dims[i] = (hsize_t)shape[i];
        empty = empty || !shape[i];
    }
    hid_t set = -1, space = ndim ? H5Screate_simple(ndim, dims, NULL) : H5Screate(H5S_SCALAR);
    hid_t creation = plain_list(H5P_DATASET_CREATE);
    bool good = space >= 0 && creation >= 0 && make_groups(file, name) &&
                (set = H5Dcreate2(file, name, file_type(t), space, H5P_DEFAULT, creation,
                                  H5P_DEFAULT)) >= 0 &&
                put_attribute(set, "type", type) &&
                (empty || H5Dwrite(set, memory_type(t), H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
    if (good) { /* closing writes what HDF5 has kept back, and fails like a write */
        good = H5Dclose(set) >= 0;
        set = -1;
    }
    /* After a failed write HDF5 must not write again: what it closes goes to memory from here on.
     */
    hid_t errors = good ? -1 : H5Eget_current_stack();
    if (!good) tp_h5_divert(file);
    if (set >= 0) H5Dclose(set);
    if (creation >= 0) H5Pclose(creation);
    if (space >= 0) H5Sclose(space);
    if (errors >= 0) H5Eset_current_stack(errors);
    return good;
}

static void writer_free(tp_checkpoint_writer *w) {
    tp_str_clear(&w->list);
    tp_free(w->tmp);
    tp_free(w->path);
    tp_free(w);
}

void tp_checkpoint_abandon(tp_checkpoint_writer *w) {
    if (!w) return;
    if (w->file >= 0) {
        tp_h5_lock();
        tp_h5_divert(w->file);
        H5Fclose(w->file);
        tp_h5_unlock();
    }
    unlink(w->tmp);
    writer_free(w);
}

static tp_status make_folder(tp_ctx *c, const char *path) {
    const char *slash = strrchr(path, '/');
    if (!slash || slash == path) return TP_OK;
    char *folder = tp_strdup(c, path);
    if (!folder) return TP_ENOMEM;
    folder[slash - path] = 0;
    tp_status st = TP_OK;
    if (mkdir(folder, 0777) && errno != EEXIST)
        st = tp_fail(c, TP_EIO, "%s: cannot make the folder: %s", folder, strerror(errno));
    tp_free(folder);
    return st;
}

tp_status tp_checkpoint_create(tp_checkpoint_writer **out, tp_ctx *c, const char *path,
                               int64_t step) {
    *out = NULL;
    if (step < 0) return tp_fail(c, TP_EARG, "%s: step %lld is negative", path, (long long)step);
    tp_status st = make_folder(c, path);
    if (!st) st = tp_may_replace(c, path);
    if (st) return st;
    tp_checkpoint_writer *w = tp_calloc(c, 1, sizeof *w);
    if (!w) return TP_ENOMEM;
    *w = (tp_checkpoint_writer){.c = c, .step = step, .file = -1};
    tp_str_init(&w->list, c);
    tp_str tmp;
    tp_str_init(&tmp, c);
    tp_str_printf(&tmp, "%s.tmp", path);
    w->tmp = tmp.at;
    if (!(w->path = tp_strdup(c, path)) || tmp.failed) {
        writer_free(w);
        return TP_ENOMEM;
    }
    if (unlink(w->tmp) && errno != ENOENT) {
        st = tp_fail(c, TP_EIO, "%s: cannot replace it: %s", w->tmp, strerror(errno));
        writer_free(w);
        return st;
    }
    tp_h5_lock();
    w->file = create_file(w->tmp);
    /* what `h5dump -A` shows; the seal is what counts */
    bool good = w->file >= 0 && put_attribute(w->file, "format", "tapir-checkpoint") &&
                put_attribute(w->file, "version", "1") &&
                put_attribute(w->file, "code", code_version);
    if (!good) st = tp_h5_fail(c, TP_EIO, "%s: cannot write", path);
    tp_h5_unlock();
    if (st)
        tp_checkpoint_abandon(w);
    else
        *out = w;
    return st;
}

static tp_status put_as(tp_checkpoint_writer *w, const char *name, const char *type, tp_dtype t,
                        int ndim, const int64_t *shape, const void *data, size_t bytes) {
    char shown[96], words[160];
    if (w->status) return w->status;
    tp_quote(shown, sizeof shown, name, strlen(name));
    if (!name_ok(name))
        return w->status =
                   tp_fail(w->c, TP_EARG, "%s: \"%s\" cannot name an entry", w->path, shown);
    int64_t want = shape_bytes(t, ndim, shape);
    if (want < 0 || (uint64_t)want != bytes) {
        shape_words(words, t, ndim, shape);
        return w->status = tp_fail(w->c, TP_ESHAPE, "%s: %s: %s is not %zu bytes", w->path, shown,
                                   words, bytes);
    }
    tp_h5_lock();
    if (!put_dataset(w->file, name, type, t, ndim, shape, data))
        w->status = tp_h5_fail(w->c, TP_EIO, "%s: cannot write %s", w->path, shown);
    tp_h5_unlock();
    tp_str_printf(&w->list, "%s\n", name);
    if (w->list.failed && !w->status) w->status = TP_ENOMEM;
    return w->status;
}

tp_status tp_checkpoint_put(tp_checkpoint_writer *w, const char *name, tp_dtype dtype, int ndim,
                            const int64_t *shape, const void *data, size_t bytes) {
    return put_as(w, name, tp_dtype_name(dtype), dtype, ndim, shape, data, bytes);
}

tp_status tp_checkpoint_put_i64(tp_checkpoint_writer *w, const char *name, int64_t v) {
    return tp_checkpoint_put(w, name, TP_I64, 0, NULL, &v, sizeof v);
}

tp_status tp_checkpoint_put_f64(tp_checkpoint_writer *w, const char *name, double v) {
    return tp_checkpoint_put(w, name, TP_F64, 0, NULL, &v, sizeof v);
}

tp_status tp_checkpoint_put_text(tp_checkpoint_writer *w, const char *name, const char *text) {
    size_t n = strlen(text);
    return put_as(w, name, text_type, TP_U8, 1, (int64_t[]){(int64_t)n}, text, n);
}

tp_status tp_checkpoint_finish(tp_checkpoint_writer *w) {
    tp_status st = w->status;
    if (st) {
        tp_checkpoint_abandon(w);
        return st;
    }
    tp_h5_lock();
    bool good = put_dataset(w->file, list_name, text_type, TP_U8, 1,
                            (int64_t[]){(int64_t)w->list.len}, w->list.at);
    if (good ? tp_h5_finish(w->file) < 0 : H5Fclose(w->file) < 0) good = false;
    w->file = -1;
    if (!good) st = tp_h5_fail(w->c, TP_EIO, "%s: cannot write", w->path);
    tp_h5_unlock();
    if (!st) st = tp_seal_write(w->c, w->tmp, w->step, code_version);
    if (!st) st = tp_commit_file(w->c, w->tmp, w->path);
    if (st)
        tp_checkpoint_abandon(w);
    else
        writer_free(w);
    return st;
}

/* ---- reading -------------------------------------------------------------------------------- */
int64_t tp_checkpoint_step(const tp_checkpoint_reader *r) { return r->seal.step; }
const char *tp_checkpoint_code(const tp_checkpoint_reader *r) { return r->seal.code; }
const char *tp_checkpoint_path(const tp_checkpoint_reader *r) { return r->path; }
int64_t tp_checkpoint_count(const tp_checkpoint_reader *r) { return r->n; }

const tp_checkpoint_entry *tp_checkpoint_at(const tp_checkpoint_reader *r, int64_t i) {
    return i >= 0 && i < r->n ? &r->entries[i] : NULL;
}

const tp_checkpoint_entry *tp_checkpoint_find(const tp_checkpoint_reader *r, const char *name) {
    for (int64_t i = 0; i < r->n; i++)
        if (!strcmp(r->entries[i].name, name)) return &r->entries[i];
    return NULL;
}

void tp_checkpoint_close(tp_checkpoint_reader *r) {
    if (!r) return;
    if (r->file >= 0) {
        tp_h5_lock();
        H5Fclose(r->file);
        tp_h5_unlock();
    }
    tp_free(r->entries);
    tp_free(r->list);
    tp_free(r->path);
    tp_free(r);
}

/* The attribute "type" of an open dataset, read as at most 15 bytes. */
static bool get_type(char out[16], hid_t set) {
    memset(out, 0, 16);
    hid_t at = H5Aopen(set, "type", H5P_DEFAULT), have = -1, want = H5Tcopy(H5T_C_S1);
    bool good = at >= 0 && want >= 0 && (have = H5Aget_type(at)) >= 0 &&
                H5Tget_class(have) == H5T_STRING && !H5Tis_variable_str(have) &&
                H5Tget_size(have) <= 15 && H5Aget_storage_size(at) <= 15 &&
                H5Tset_size(want, 16) >= 0 && H5Aread(at, want, out) >= 0;
    out[15] = 0;
    if (want >= 0) H5Tclose(want);
    if (have >= 0) H5Tclose(have);
    if (at >= 0) H5Aclose(at);
    return good;
}

/* Our datasets lie in one piece in the file itself; others may lie in files that the seal does not
 * cover, or take their time and memory to unpack. */
static bool plain_layout(hid_t set) {
    hid_t creation = H5Dget_create_plist(set);
    bool plain = creation >= 0 && H5Pget_layout(creation) == H5D_CONTIGUOUS &&
                 !H5Pget_external_count(creation);
    if (creation >= 0) H5Pclose(creation);
    return plain;
}

/* Fills e from its dataset, which stays open in *set. Returns NULL, or what is wrong with it. */
static const char *look(tp_checkpoint_entry *e, hid_t file, hid_t *set) {
    char type[16];
    hsize_t dims[TP_MAXDIM];
    hid_t have = -1, space = -1;
    const char *why = NULL;
    if ((*set = H5Dopen2(file, e->name, H5P_DEFAULT)) < 0) return "is missing";
    if (!plain_layout(*set)) {
        why = "is not stored in one piece";
        goto done;
    }
    if (!get_type(type, *set)) {
        why = "has no type";
        goto done;
    }
    e->is_text = !strcmp(type, text_type);
    e->dtype = e->is_text ? TP_U8 : TP_NDTYPE;
    for (int t = 0; t < TP_NDTYPE && !e->is_text; t++)
        if (!strcmp(type, tp_dtype_name((tp_dtype)t))) e->dtype = (tp_dtype)t;
    if (e->dtype == TP_NDTYPE || (have = H5Dget_type(*set)) < 0 ||
        H5Tequal(have, file_type(e->dtype)) <= 0) {
        why = "has a type that is not known";
        goto done;
    }
    if ((space = H5Dget_space(*set)) < 0 || H5Sget_simple_extent_type(space) == H5S_NULL ||
        (e->ndim = H5Sget_simple_extent_ndims(space)) < 0 || e->ndim > TP_MAXDIM ||
        H5Sget_simple_extent_dims(space, dims, NULL) < 0) {
        why = "has a shape that cannot be used";
        goto done;
    }
    bool fits = true;
    for (int i = 0; i < e->ndim; i++) {
        fits = fits && dims[i] <= INT64_MAX;
        e->shape[i] = fits ? (int64_t)dims[i] : -1;
    }
    int64_t bytes = shape_bytes(e->dtype, e->ndim, e->shape);
    /* a shape larger than what lies in the file would make readers allocate it */
    if (bytes < 0 || (uint64_t)bytes != H5Dget_storage_size(*set) || (e->is_text && e->ndim != 1))
        why = "has a shape that its bytes do not fill";
    e->bytes = (size_t)bytes;
done:
    if (have >= 0) H5Tclose(have);
    if (space >= 0) H5Sclose(space);
    return why;
}

/* Reads the list of names into r->list, a NUL after each, and counts them. */
static const char *read_list(tp_checkpoint_reader *r, size_t *len) {
    tp_checkpoint_entry e = {.name = list_name};
    hid_t set = -1;
    const char *why = look(&e, r->file, &set);
    if (!why && (!e.is_text || e.bytes >= SIZE_MAX - 1)) why = "is no text";
    if (!why && !(r->list = tp_calloc(r->c, e.bytes + 1, 1))) why = "does not fit in memory";
    if (!why && e.bytes &&
        H5Dread(set, H5T_NATIVE_UINT8, H5S_ALL, H5S_ALL, H5P_DEFAULT, r->list) < 0)
        why = "cannot be read";
    if (set >= 0) H5Dclose(set);
    *len = e.bytes;
    if (why) return why;
    if (*len && r->list[*len - 1] != '\n') return "has a last line that does not end";
    for (size_t i = 0; i < *len; i++) {
        if (r->list[i] != '\n') continue;
        r->list[i] = 0;
        r->n++;
    }
    return NULL;
}

static tp_status read_entries(tp_checkpoint_reader *r) {
    size_t len = 0;
    const char *why = read_list(r, &len), *what = list_name;
    if (!why && !(r->entries = tp_calloc(r->c, (size_t)r->n, sizeof *r->entries)))
        why = "does not fit in memory";
    const char *name = r->list;
    for (int64_t i = 0; !why && i < r->n; i++, name += strlen(name) + 1) {
        tp_checkpoint_entry *e = &r->entries[i];
        hid_t set = -1;
        e->name = what = name;
        /* H5Dopen2 of a path through a missing group is an error, never a crash */
        why = name_ok(name) ? look(e, r->file, &set) : "is not a name";
        if (set >= 0) H5Dclose(set);
    }
    if (!why) return TP_OK;
    if (tp_error_status(r->c) == TP_ENOMEM) return TP_ENOMEM;
    char shown[96];
    return tp_fail(r->c, TP_EFORMAT, "%s: entry %s %s", r->path,
                   tp_quote(shown, sizeof shown, what, strlen(what)), why);
}

tp_status tp_checkpoint_open(tp_checkpoint_reader **out, tp_ctx *c, const char *path) {
    *out = NULL;
    tp_checkpoint_reader *r = tp_calloc(c, 1, sizeof *r);
    if (!r) return TP_ENOMEM;
    *r = (tp_checkpoint_reader){.c = c, .file = -1};
    tp_status st = TP_ENOMEM;
    if (!(r->path = tp_strdup(c, path)) || (st = tp_seal_check(&r->seal, c, path))) goto done;
    tp_h5_lock();
    r->file = tp_h5_open(path);
    st = r->file < 0 ? tp_h5_fail(c, TP_EFORMAT, "%s: not HDF5 after its first %d bytes", path,
                                  TP_SEAL_BYTES)
                     : read_entries(r);
    tp_h5_unlock();
done:
    if (st)
        tp_checkpoint_close(r);
    else
        *out = r;
    return st;
}

static tp_status read_data(tp_checkpoint_reader *r, const tp_checkpoint_entry *e, void *data) {
    if (!e->bytes) return TP_OK;
    tp_status st = TP_OK;
    tp_h5_lock();
    hid_t set = H5Dopen2(r->file, e->name, H5P_DEFAULT);
    if (set < 0 || H5Dread(set, memory_type(e->dtype), H5S_ALL, H5S_ALL, H5P_DEFAULT, data) < 0)
        st = tp_h5_fail(r->c, TP_EIO, "%s: cannot read %s", r->path, e->name);
    if (set >= 0) H5Dclose(set);
    tp_h5_unlock();
    return st;
}

static tp_status want_entry(const tp_checkpoint_entry **out, tp_checkpoint_reader *r,
                            const char *name) {
    if ((*out = tp_checkpoint_find(r, name))) return TP_OK;
    return tp_fail(r->c, TP_EARG, "%s: has no entry %s", r->path, name);
}

tp_status tp_checkpoint_get(tp_checkpoint_reader *r, const char *name, tp_dtype dtype, int ndim,
                            const int64_t *shape, void *data, size_t bytes) {
    const tp_checkpoint_entry *e;
    char have[160], want[160];
    tp_status st = want_entry(&e, r, name);
    if (st) return st;
    bool same = e->ndim == ndim;
    for (int i = 0; same && i < ndim; i++) same = e->shape[i] == shape[i];
    same = same && e->dtype == dtype;
    if (!same || e->bytes != bytes) {
        shape_words(have, e->dtype, e->ndim, e->shape);
        shape_words(want, dtype, ndim, shape);
        return tp_fail(r->c, e->dtype != dtype ? TP_EDTYPE : TP_ESHAPE,
                       "%s: %s: the file has %s of %zu bytes, wanted %s of %zu bytes", r->path,
                       name, have, e->bytes, want, bytes);
    }
    return read_data(r, e, data);
}

tp_status tp_checkpoint_get_i64(tp_checkpoint_reader *r, const char *name, int64_t *v) {
    return tp_checkpoint_get(r, name, TP_I64, 0, NULL, v, sizeof *v);
}

tp_status tp_checkpoint_get_f64(tp_checkpoint_reader *r, const char *name, double *v) {
    return tp_checkpoint_get(r, name, TP_F64, 0, NULL, v, sizeof *v);
}

tp_status tp_checkpoint_get_text(tp_checkpoint_reader *r, const char *name, char **text) {
    const tp_checkpoint_entry *e;
    *text = NULL;
    tp_status st = want_entry(&e, r, name);
    if (st) return st;
    if (!e->is_text) return tp_fail(r->c, TP_EDTYPE, "%s: %s: is no text", r->path, name);
    char *at = tp_malloc(r->c, e->bytes + 1);
    if (!at) return TP_ENOMEM;
    at[e->bytes] = 0;
    if ((st = read_data(r, e, at)))
        tp_free(at);
    else
        *text = at;
    return st;
}
