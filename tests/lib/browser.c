/* Owns the pipe to Chromium: messages are JSON ended by a zero byte, to its descriptor 3 and from
 * its descriptor 4 (--remote-debugging-pipe). */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "browser.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE_S = 40, NOTES = 8192 };

struct browser {
    pid_t pid;
    int to, from, id;
    char folder[64], session[128];
    char *held; /* what came, the message at its start not yet whole */
    size_t n, cap;
    bool loaded;
    char requests[NOTES], complaints[NOTES];
};

/* ---- starting and ending -------------------------------------------------------------------- */
static void become_chromium(int in, int out, const char *folder, int width, int height) {
    static const char *const name[] = {"chromium", "chromium-browser", "google-chrome"};
    char profile[96], size[64];
    snprintf(profile, sizeof profile, "--user-data-dir=%s", folder);
    snprintf(size, sizeof size, "--window-size=%d,%d", width, height);
    int quiet = open("/dev/null", O_RDWR);
    int a = fcntl(in, F_DUPFD, 10), z = fcntl(out, F_DUPFD, 10); /* out of the way of 3 and 4 */
    if (dup2(quiet, 0) < 0 || dup2(quiet, 1) < 0 || dup2(quiet, 2) < 0 || dup2(a, 3) < 0 ||
        dup2(z, 4) < 0)
        _exit(126);
    setpgid(0, 0); /* its own processes end with it */
    for (int i = 0; i < 3; i++)
        execlp(name[i], name[i], "--headless=new", "--no-sandbox", "--disable-gpu",
               "--no-first-run", "--disable-extensions", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", "--hide-scrollbars",
               "--disable-dev-shm-usage", /* small in containers */
               "--remote-debugging-pipe", profile, size, "about:blank", (char *)NULL);
    _exit(127);
}

static void fail_browser(browser *b, const char *what) {
    int st = 0;
    if (waitpid(b->pid, &st, WNOHANG) == b->pid && WIFEXITED(st) && WEXITSTATUS(st) == 127)
        fail_msg("chromium is not installed (./install.sh --tests installs it)");
    fail_msg("chromium: %s", what);
}

/* ---- messages ------------------------------------------------------------------------------- */
static void note(char *notes, const char *line) {
    size_t n = strlen(notes);
    if (line) snprintf(notes + n, NOTES - n, "%s\n", line);
}

static const char *text(const cJSON *o, const char *key) {
    return cJSON_GetStringValue(cJSON_GetObjectItem(o, key));
}

static void event(browser *b, const char *method, const cJSON *p) {
    if (!strcmp(method, "Page.loadEventFired")) b->loaded = true;
    if (!strcmp(method, "Network.requestWillBeSent"))
        note(b->requests, text(cJSON_GetObjectItem(p, "request"), "url"));
    if (!strcmp(method, "Runtime.exceptionThrown")) {
        const cJSON *d = cJSON_GetObjectItem(p, "exceptionDetails");
        const char *why = text(cJSON_GetObjectItem(d, "exception"), "description");
        note(b->complaints, why ? why : text(d, "text"));
    }
    const char *type = text(p, "type");
    if (!strcmp(method, "Runtime.consoleAPICalled") && type &&
        (!strcmp(type, "error") || !strcmp(type, "warning") || !strcmp(type, "assert")))
        note(b->complaints, type);
    if (!strcmp(method, "Log.entryAdded"))
        note(b->complaints, text(cJSON_GetObjectItem(p, "entry"), "text"));
}

/* The next whole message; NULL: none came in time. */
static cJSON *receive(browser *b, double until) {
    for (;;) {
        char *end = b->n ? memchr(b->held, 0, b->n) : NULL;
        if (end) {
            cJSON *m = cJSON_Parse(b->held);
            size_t used = (size_t)(end - b->held) + 1;
            memmove(b->held, b->held + used, b->n -= used);
            return m;
        }
        if (b->cap - b->n < 65536) {
            b->cap = 2 * b->cap + 65536;
            b->held = realloc(b->held, b->cap);
            if (!b->held) fail_browser(b, "out of memory");
        }
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        double left = until - (double)now.tv_sec;
        struct pollfd p = {b->from, POLLIN, 0};
        if (left <= 0 || poll(&p, 1, (int)(left * 1000)) <= 0) return NULL;
        ssize_t got = read(b->from, b->held + b->n, b->cap - b->n);
        if (got <= 0 && errno != EINTR) return NULL;
        if (got > 0) b->n += (size_t)got;
    }
}

static double deadline(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + PATIENCE_S;
}

/* Waits for the answer to `id`; 0: until the page is loaded. Its "result", or NULL. */
static cJSON *await(browser *b, int id) {
    for (double until = deadline(); id || !b->loaded;) {
        cJSON *m = receive(b, until);
        if (!m) fail_browser(b, "it did not answer");
        const cJSON *of = cJSON_GetObjectItem(m, "id");
        if (!of)
            event(b, text(m, "method") ? text(m, "method") : "", cJSON_GetObjectItem(m, "params"));
        if (of && of->valueint == id) {
            const char *wrong = text(cJSON_GetObjectItem(m, "error"), "message");
            if (wrong) fail_browser(b, wrong);
            cJSON *result = cJSON_DetachItemFromObject(m, "result");
            cJSON_Delete(m);
            return result;
        }
        cJSON_Delete(m);
    }
    return NULL;
}

/* Takes params over. */
static cJSON *ask(browser *b, const char *method, cJSON *params) {
    cJSON *m = cJSON_CreateObject();
    cJSON_AddNumberToObject(m, "id", ++b->id);
    cJSON_AddStringToObject(m, "method", method);
    cJSON_AddItemToObject(m, "params", params ? params : cJSON_CreateObject());
    if (*b->session) cJSON_AddStringToObject(m, "sessionId", b->session);
    char *line = cJSON_PrintUnformatted(m);
    size_t n = strlen(line) + 1, at = 0;
    while (at < n) {
        ssize_t wrote = write(b->to, line + at, n - at);
        if (wrote < 0 && errno != EINTR) fail_browser(b, "it has ended");
        if (wrote > 0) at += (size_t)wrote;
    }
    free(line);
    cJSON_Delete(m);
    return await(b, b->id);
}

static cJSON *with(const char *key, const char *value) {
    cJSON *p = cJSON_CreateObject();
    cJSON_AddStringToObject(p, key, value);
    return p;
}

browser *browser_open(int width, int height) {
    browser *b = calloc(1, sizeof *b);
    int to[2], from[2];
    assert_non_null(b);
    strcpy(b->folder, "/tmp/tapir-browser-XXXXXX");
    assert_non_null(mkdtemp(b->folder));
    assert_int_equal(pipe(to) | pipe(from), 0);
    signal(SIGPIPE, SIG_IGN);
    b->pid = fork();
    if (!b->pid) become_chromium(to[0], from[1], b->folder, width, height);
    close(to[0]);
    close(from[1]);
    b->to = to[1];
    b->from = from[0];
    cJSON *made = ask(b, "Target.createTarget", with("url", "about:blank"));
    cJSON *p = with("targetId", text(made, "targetId"));
    cJSON_AddBoolToObject(p, "flatten", true);
    cJSON *joined = ask(b, "Target.attachToTarget", p);
    snprintf(b->session, sizeof b->session, "%s", text(joined, "sessionId"));
    cJSON_Delete(made);
    cJSON_Delete(joined);
    static const char *const domain[] = {"Page.enable", "Network.enable", "Runtime.enable",
                                         "Log.enable"};
    for (int i = 0; i < 4; i++) cJSON_Delete(ask(b, domain[i], NULL));
    p = cJSON_CreateObject();
    cJSON_AddNumberToObject(p, "width", width);
    cJSON_AddNumberToObject(p, "height", height);
    cJSON_AddNumberToObject(p, "deviceScaleFactor", 1);
    cJSON_AddBoolToObject(p, "mobile", false);
    cJSON_Delete(ask(b, "Emulation.setDeviceMetricsOverride", p));
    return b;
}

void browser_close(browser *b) {
    char command[96];
    close(b->to);
    close(b->from);
    kill(-b->pid, SIGKILL); /* the group that it began */
    waitpid(b->pid, NULL, 0);
    snprintf(command, sizeof command, "rm -rf %s", b->folder);
    if (system(command)) fprintf(stderr, "%s stays\n", b->folder);
    free(b->held);
    free(b);
}

/* ---- a page --------------------------------------------------------------------------------- */
static void navigate(browser *b, const char *url) {
    b->loaded = false;
    cJSON *r = ask(b, "Page.navigate", with("url", url));
    if (text(r, "errorText")) fail_browser(b, text(r, "errorText"));
    cJSON_Delete(r);
    await(b, 0);
}

void browser_go(browser *b, const char *url) {
    navigate(b, "about:blank"); /* from page#1 to page#2 nothing would be loaded */
    b->requests[0] = b->complaints[0] = 0;
    navigate(b, url);
}

cJSON *browser_value(browser *b, const char *expression) {
    cJSON *p = with("expression", expression);
    cJSON_AddBoolToObject(p, "returnByValue", true);
    cJSON_AddBoolToObject(p, "awaitPromise", true);
    cJSON *r = ask(b, "Runtime.evaluate", p);
    const cJSON *wrong = cJSON_GetObjectItem(r, "exceptionDetails");
    if (wrong)
        fail_msg("%s: %s", expression,
                 text(cJSON_GetObjectItem(wrong, "exception"), "description"));
    cJSON *v = cJSON_DetachItemFromObject(cJSON_GetObjectItem(r, "result"), "value");
    cJSON_Delete(r);
    return v ? v : cJSON_CreateNull();
}

double browser_number(browser *b, const char *expression) {
    cJSON *v = browser_value(b, expression);
    if (!cJSON_IsNumber(v)) fail_msg("%s is no number", expression);
    double x = v->valuedouble;
    cJSON_Delete(v);
    return x;
}

static void mouse(browser *b, const char *type, double x, double y) {
    cJSON *p = with("type", type);
    cJSON_AddNumberToObject(p, "x", x);
    cJSON_AddNumberToObject(p, "y", y);
    cJSON_AddStringToObject(p, "button", "left");
    cJSON_AddNumberToObject(p, "buttons", strcmp(type, "mousePressed") ? 0 : 1);
    cJSON_AddNumberToObject(p, "clickCount", 1);
    cJSON_Delete(ask(b, "Input.dispatchMouseEvent", p));
}

void browser_click(browser *b, const char *selector) {
    char js[640]; /* where it stays for two frames: a click on a slow machine met what had moved */
    snprintf(js, sizeof js,
             "(async () => { const at = () => { const r = document.querySelector('%s')"
             ".getBoundingClientRect(); return [r.left + r.width / 2, r.top + r.height / 2]; };"
             " const frame = () => new Promise(done => requestAnimationFrame(done));"
             " for (let was = '', same = 0; same < 2;) { await frame(); const now = String(at());"
             " same = now === was ? same + 1 : 0; was = now; }"
             " return at(); })()",
             selector);
    cJSON *at = browser_value(b, js);
    double x = cJSON_GetArrayItem(at, 0)->valuedouble, y = cJSON_GetArrayItem(at, 1)->valuedouble;
    cJSON_Delete(at);
    mouse(b, "mousePressed", x, y);
    mouse(b, "mouseReleased", x, y);
}

void browser_key(browser *b, const char *key) {
    for (int i = 0; i < 2; i++) {
        cJSON *p = with("type", i ? "keyUp" : "keyDown");
        cJSON_AddStringToObject(p, "key", key);
        cJSON_Delete(ask(b, "Input.dispatchKeyEvent", p));
    }
}

void browser_dark(browser *b, bool on) {
    cJSON *p = cJSON_CreateObject(), *f = with("name", "prefers-color-scheme");
    cJSON_AddStringToObject(f, "value", on ? "dark" : "light");
    cJSON_AddItemToArray(cJSON_AddArrayToObject(p, "features"), f);
    cJSON_Delete(ask(b, "Emulation.setEmulatedMedia", p));
}

/* ---- a picture ------------------------------------------------------------------------------ */
static int digit(char c) {
    const char *all = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(all, c) : NULL;
    return at ? (int)(at - all) : -1;
}

void browser_picture(browser *b, const char *path) {
    cJSON *r = ask(b, "Page.captureScreenshot", with("format", "png"));
    const char *data = text(r, "data");
    FILE *f = fopen(path, "wb");
    if (!f || !data) fail_browser(b, "no picture");
    unsigned bits = 0;
    int have = 0;
    for (; digit(*data) >= 0; data++) { /* base64 */
        bits = bits << 6 | (unsigned)digit(*data);
        if ((have += 6) >= 8) fputc((int)(bits >> (have -= 8)) & 0xff, f);
    }
    assert_int_equal(fclose(f), 0);
    cJSON_Delete(r);
}

const char *browser_requests(const browser *b) { return b->requests; }
const char *browser_complaints(const browser *b) { return b->complaints; }
