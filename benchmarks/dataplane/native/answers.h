/* Reading HTTP/1.1 answers no further than a benchmark needs: status, size, and what a refusal says. */
#ifndef ANSWERS_H
#define ANSWERS_H
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { OK = 200, STATUSES = 1000, WORD = 48 };

typedef struct {
    int status, closes;
    size_t size;
    char reason[WORD];
    double stated_s; /* what the server says it took; negative when it does not say */
} Answer;

static const char *field(const char *line, const char *end, const char *name) {
    size_t size = strlen(name);
    if ((size_t)(end - line) <= size || line[size] != ':' || strncasecmp(line, name, size) != 0) return NULL;
    for (line += size + 1; line < end && *line == ' '; line++) {
    }
    return line;
}

static void take_word(char *word, const char *from, const char *end) {
    size_t size = 0;
    for (; from < end && size < WORD - 1; from++) {
        int is_plain = (*from >= 'a' && *from <= 'z') || (*from >= 'A' && *from <= 'Z') || (*from >= '0' && *from <= '9');
        word[size++] = is_plain || *from == '_' ? *from : '-';
    }
    word[size] = 0;
}

/* 1: whole header read; 0: not yet; -1: none that this reading understands. */
static int read_header(const char *data, size_t have, Answer *answer) {
    const char *end = memmem(data, have, "\r\n\r\n", 4);
    long length = -1;
    if (!end) return 0;
    if (end - data < 12 || memcmp(data, "HTTP/1.", 7) != 0) return -1;
    *answer = (Answer){.status = atoi(data + 9), .stated_s = -1};
    if (answer->status < 200 || answer->status >= STATUSES) return -1;
    const char *line = memchr(data, '\r', (size_t)(end - data) + 1);
    while (line < end) {
        const char *value, *stop;
        line += 2; /* past the end of the line before */
        stop = memchr(line, '\r', (size_t)(end - line) + 1);
        if ((value = field(line, stop, "content-length"))) length = strtol(value, NULL, 10);
        if ((value = field(line, stop, "connection"))) answer->closes = strncasecmp(value, "close", 5) == 0;
        if (answer->status != OK) {
            if ((value = field(line, stop, "x-infaas-dropped-reason"))) take_word(answer->reason, value, stop);
            if ((value = field(line, stop, "server-timing"))) {
                const char *total = memmem(value, (size_t)(stop - value), "total;dur=", 10);
                if (total) answer->stated_s = 1e-3 * strtod(total + 10, NULL);
            }
        }
        line = stop;
    }
    answer->size = (size_t)(end - data) + 4 + (size_t)(length < 0 ? 0 : length);
    return length < 0 ? -1 : 1;
}

#endif
