/* config_yaml: configuration files in, through libyaml's events, and out.
 *
 * A config is one mapping of groups, each a mapping of scalars. Whatever else YAML can say is
 * refused by name: it would either be ignored or mean something else to another reader. */
#include "data/config.h"
#include "data/config_schema.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml.h>

enum { WORDS = 256, MOST_BYTES = 1 << 20 };

typedef struct reader {
    tp_ctx *c;
    tp_config *cfg; /* a copy: the caller's is untouched until all went well */
    const char *name;
    yaml_parser_t parser;
    yaml_event_t event;                 /* the current one, or type YAML_NO_EVENT */
    int32_t line[TP_CONFIG_KEYS];       /* where this file set a row; 0: not yet */
    int32_t group_line[TP_CONFIG_KEYS]; /* the same for a group, by its first row */
} reader;

static int line_of(yaml_mark_t mark) {
    return mark.line < INT32_MAX - 1 ? (int)mark.line + 1 : INT32_MAX;
}

/* The next event into r->event. Refuses what configs never hold, so that callers see only scalars
 * and the starts and ends of mappings, sequences, documents. */
static tp_status next(reader *r) {
    yaml_event_delete(&r->event);
    memset(&r->event, 0, sizeof r->event);
    if (!yaml_parser_parse(&r->parser, &r->event)) {
        const yaml_parser_t *p = &r->parser;
        if (p->error == YAML_MEMORY_ERROR)
            return tp_fail(r->c, TP_ENOMEM, "%s: out of memory while reading", r->name);
        char why[96];
        const char *problem = p->problem ? p->problem : "no reason given";
        tp_quote(why, sizeof why, problem, strlen(problem));
        if (p->error == YAML_READER_ERROR)
            return tp_fail(r->c, TP_EFORMAT, "%s: not YAML: %s at byte %zu", r->name, why,
                           p->problem_offset);
        return tp_fail(r->c, TP_EFORMAT, "%s:%d: not YAML: %s", r->name, line_of(p->problem_mark),
                       why);
    }
    int line = line_of(r->event.start_mark);
    const yaml_char_t *anchor = NULL, *tag = NULL;
    switch (r->event.type) {
    case YAML_ALIAS_EVENT:
        return tp_fail(r->c, TP_EFORMAT, "%s:%d: aliases (*name) are not used in configs", r->name,
                       line);
    case YAML_SCALAR_EVENT:
        anchor = r->event.data.scalar.anchor;
        tag = r->event.data.scalar.tag;
        break;
    case YAML_MAPPING_START_EVENT:
        anchor = r->event.data.mapping_start.anchor;
        tag = r->event.data.mapping_start.tag;
        break;
    case YAML_SEQUENCE_START_EVENT:
        return tp_fail(r->c, TP_EFORMAT, "%s:%d: a list; configs hold only keys with one value",
                       r->name, line);
    default:
        break;
    }
    if (anchor)
        return tp_fail(r->c, TP_EFORMAT, "%s:%d: anchors (&name) are not used in configs", r->name,
                       line);
    if (tag)
        return tp_fail(r->c, TP_EFORMAT, "%s:%d: tags (!name) are not used in configs", r->name,
                       line);
    return TP_OK;
}

static const char *scalar(const reader *r, size_t *n) {
    *n = r->event.data.scalar.length;
    return (const char *)r->event.data.scalar.value;
}

static bool is_plain(const reader *r) {
    return r->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
}

/* `key:` with nothing after it, or one of YAML's words for nothing. */
static bool is_null(const reader *r) {
    size_t n;
    const char *s = scalar(r, &n);
    return is_plain(r) && (!n || !strcmp(s, "~") || !strcmp(s, "null") || !strcmp(s, "Null") ||
                           !strcmp(s, "NULL"));
}

static tp_status unknown_key(reader *r, int line, const char *name) {
    char hint[TP_CONFIG_HINT];
    return tp_fail(r->c, TP_EARG, "%s:%d: %s: unknown key%s", r->name, line, name,
                   tp_config_hint(hint, name));
}

/* The value of `row` is the current event. */
static tp_status read_value(reader *r, int row, int line) {
    char words[WORDS], shown[96];
    const tp_key *k = &tp_config_keys[row];
    tp_config_allowed(words, sizeof words, k);
    if (r->event.type != YAML_SCALAR_EVENT)
        return tp_fail(r->c, TP_EARG, "%s:%d: %s must %s, got a group of keys", r->name, line,
                       k->name, words);
    if (is_null(r))
        return tp_fail(r->c, TP_EARG, "%s:%d: %s must %s, got nothing%s", r->name, line, k->name,
                       words, k->type == TP_KEY_TEXT ? " (write \"\" for an empty text)" : "");
    size_t n;
    const char *s = scalar(r, &n);
    tp_quote(shown, sizeof shown, s, n);
    if (k->type != TP_KEY_TEXT && !is_plain(r))
        return tp_fail(r->c, TP_EARG,
                       "%s:%d: %s must %s, got the text \"%s\": leave out the quotes", r->name,
                       line, k->name, words, shown);
    const char *why = tp_config_put(r->cfg, row, s, n, words, sizeof words);
    if (why)
        return tp_fail(r->c, TP_EARG, "%s:%d: %s must %s, got \"%s\"", r->name, line, k->name, why,
                       shown);
    r->cfg->line[row] = r->line[row] = line;
    return TP_OK;
}

/* A key that the top level or `group` does not have, with the way to write it where that is plain.
 */
static tp_status wrong_place(reader *r, const char *group, const char *key, const char *full,
                             int line) {
    const char *dot = strchr(key, '.');
    if (dot && tp_config_find(key, strlen(key)) >= 0)
        return tp_fail(r->c, TP_EARG, "%s:%d: %s: write it as '%.*s:' with '%s:' indented under it",
                       r->name, line, key, (int)(dot - key), key, dot + 1);
    if (group &&
        (tp_config_find(key, strlen(key)) >= 0 || tp_config_group_row(key, strlen(key)) >= 0))
        return tp_fail(r->c, TP_EARG, "%s:%d: %s does not belong under %s: do not indent it",
                       r->name, line, key, group);
    return unknown_key(r, line, full);
}

static tp_status read_group(reader *r, const char *group);

/* The key is the current event, a scalar; reads its value too. group: NULL at the top. */
static tp_status read_pair(reader *r, const char *group) {
    char key[64], full[136];
    size_t n;
    const char *s = scalar(r, &n);
    int line = line_of(r->event.start_mark);
    tp_quote(key, sizeof key, s, n);
    snprintf(full, sizeof full, "%s%s%s", group ? group : "", group ? "." : "", key);
    int row = strchr(key, '.') ? -1 : tp_config_find(full, strlen(full));
    bool is_group = !group && tp_config_group_row(key, strlen(key)) >= 0;
    if (row < 0 && !is_group) return wrong_place(r, group, key, full, line);
    if (row >= 0 && r->line[row])
        return tp_fail(r->c, TP_EARG, "%s:%d: %s was already set in line %d", r->name, line, full,
                       (int)r->line[row]);
    tp_status st = next(r);
    if (st) return st;
    if (row >= 0) return read_value(r, row, line);
    row = tp_config_group_row(key, strlen(key));
    if (r->group_line[row])
        return tp_fail(r->c, TP_EARG, "%s:%d: %s: this group was already given in line %d", r->name,
                       line, key, (int)r->group_line[row]);
    r->group_line[row] = line;
    if (r->event.type == YAML_SCALAR_EVENT) {
        if (is_null(r)) return TP_OK; /* all its keys are commented out */
        return tp_fail(r->c, TP_EARG, "%s:%d: %s is a group: indent its keys in lines of their own",
                       r->name, line, key);
    }
    return read_group(r, key);
}

/* The current event starts a mapping; reads up to its end. Depth is bounded: a group's values are
 * scalars. */
static tp_status read_group(reader *r, const char *group) {
    for (;;) {
        tp_status st = next(r);
        if (st) return st;
        if (r->event.type == YAML_MAPPING_END_EVENT) return TP_OK;
        if (r->event.type != YAML_SCALAR_EVENT)
            return tp_fail(r->c, TP_EFORMAT, "%s:%d: a key must be a word", r->name,
                           line_of(r->event.start_mark));
        if ((st = read_pair(r, group))) return st;
    }
}

static tp_status read_stream(reader *r) {
    tp_status st;
    if ((st = next(r))) return st; /* the stream's start, */
    if ((st = next(r))) return st; /* then a document's */
    if (r->event.type != YAML_DOCUMENT_START_EVENT)
        return tp_fail(r->c, TP_EFORMAT, "%s: holds no configuration", r->name);
    if ((st = next(r))) return st;
    if (r->event.type != YAML_MAPPING_START_EVENT)
        return tp_fail(r->c, TP_EFORMAT,
                       "%s:%d: not a configuration: 'key: value' lines are wanted", r->name,
                       line_of(r->event.start_mark));
    if ((st = read_group(r, NULL)) || (st = next(r)) || (st = next(r))) return st;
    if (r->event.type != YAML_STREAM_END_EVENT)
        return tp_fail(r->c, TP_EFORMAT, "%s:%d: a second document (---); configs have one",
                       r->name, line_of(r->event.start_mark));
    return TP_OK;
}

tp_status tp_config_read(tp_ctx *c, tp_config *cfg, const char *name, const char *yaml, size_t n) {
    char shown[200];
    tp_quote(shown, sizeof shown, name, strlen(name));
    tp_config *copy = tp_malloc(c, sizeof *copy);
    reader *r = tp_calloc(c, 1, sizeof *r);
    tp_status st = TP_ENOMEM;
    if (!copy || !r) goto done;
    *copy = *cfg;
    *r = (reader){.c = c, .cfg = copy, .name = shown};
    if (!yaml_parser_initialize(&r->parser)) {
        st = tp_fail(c, TP_ENOMEM, "%s: out of memory while reading", shown);
        goto done;
    }
    yaml_parser_set_input_string(&r->parser, (const unsigned char *)yaml, n);
    snprintf(copy->file, sizeof copy->file, "%s", shown);
    /* lines of an earlier file would be named under this one's name */
    for (int i = 0; i < tp_config_nkeys; i++)
        if (copy->line[i] > 0) copy->line[i] = 0;
    st = read_stream(r);
    yaml_event_delete(&r->event);
    yaml_parser_delete(&r->parser);
    if (!st) *cfg = *copy;
done:
    tp_free(r);
    tp_free(copy);
    return st;
}

tp_status tp_config_load(tp_ctx *c, tp_config *cfg, const char *path) {
    char *text = NULL;
    size_t n = 0;
    struct stat info;
    tp_status st = TP_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang us */
    if (fd < 0) return tp_fail(c, TP_EIO, "%s: cannot open: %s", path, strerror(errno));
    if (fstat(fd, &info))
        st = tp_fail(c, TP_EIO, "%s: cannot read: %s", path, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        st = tp_fail(c, TP_EIO, "%s: not a file", path);
    else if (info.st_size > MOST_BYTES)
        st = tp_fail(c, TP_EFORMAT, "%s: not a configuration: larger than 1 MiB", path);
    else if (!(text = tp_malloc(c, MOST_BYTES)))
        st = TP_ENOMEM;
    while (!st && n < MOST_BYTES) {
        ssize_t got = read(fd, text + n, MOST_BYTES - n);
        if (!got) break;
        if (got > 0)
            n += (size_t)got;
        else if (errno != EINTR)
            st = tp_fail(c, TP_EIO, "%s: cannot read: %s", path, strerror(errno));
    }
    if (!st) st = tp_config_read(c, cfg, path, text, n);
    tp_free(text);
    close(fd);
    return st;
}

char *tp_config_text(tp_ctx *c, const tp_config *cfg) {
    char words[WORDS];
    tp_str t;
    tp_str_init(&t, c);
    const char *group = "";
    size_t group_len = 0;
    for (int i = 0; i < tp_config_nkeys; i++) {
        const tp_key *k = &tp_config_keys[i];
        const char *dot = strchr(k->name, '.');
        size_t len = dot ? (size_t)(dot - k->name) : 0;
        if (len && (len != group_len || memcmp(group, k->name, len)))
            tp_str_printf(&t, "\n%.*s:\n", (int)len, k->name);
        group = k->name;
        group_len = len;
        tp_config_allowed(words, sizeof words, k);
        const char *pad = len ? "  " : "";
        tp_str_printf(&t, "%s# %s (%s)\n%s%s: ", pad, k->doc, words + 3, pad,
                      len ? dot + 1 : k->name);
        tp_config_value(&t, cfg, i);
        tp_str_add(&t, "\n", 1);
    }
    if (!t.failed) return t.at;
    tp_str_clear(&t);
    return NULL;
}

tp_status tp_config_write(tp_ctx *c, const tp_config *cfg, const char *path) {
    char *text = tp_config_text(c, cfg);
    if (!text) return TP_ENOMEM;
    tp_status st = tp_write_file(c, path, text, strlen(text));
    tp_free(text);
    return st;
}
