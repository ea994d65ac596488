/* A browser without a window, driven as a reader would: Chromium over a pipe, in the words of the
 * Chrome DevTools Protocol. Whatever goes wrong fails the running test with a sentence. */
#ifndef BROWSER_H
#define BROWSER_H
#include <cJSON.h>
#include <stdbool.h>

typedef struct browser browser;
browser *browser_open(int width, int height);
void browser_close(browser *b);
/* Opens a page and waits until it is loaded; forgets requests and complaints of the one before. */
void browser_go(browser *b, const char *url);
/* The value of a JavaScript expression, for cJSON_Delete. */
cJSON *browser_value(browser *b, const char *expression);
double browser_number(browser *b, const char *expression);
/* Presses and lets go of the mouse in the middle of the first element that the selector names. */
void browser_click(browser *b, const char *selector);
void browser_key(browser *b,
                 const char *key); /* as in KeyboardEvent.key: "ArrowRight", "End", " " */
void browser_dark(browser *b, bool on);
void browser_picture(browser *b, const char *path); /* PNG of what is in sight */
/* Of this page: every URL that was asked for; errors, warnings and exceptions of its scripts. One a
 * line. */
const char *browser_requests(const browser *b);
const char *browser_complaints(const browser *b);
#endif
