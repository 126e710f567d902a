/* What a small program needs: an end with a reason, memory, clocks, whole files. */
#ifndef BASICS_H
#define BASICS_H
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static void die(const char *format, ...) {
    va_list facts;
    va_start(facts, format);
    vfprintf(stderr, format, facts);
    va_end(facts);
    fputc('\n', stderr);
    exit(2);
}

static void *room_for(size_t count, size_t size) {
    void *made = calloc(count ? count : 1, size);
    if (!made) die("no memory for %zu times %zu bytes", count, size);
    return made;
}

static double now_s(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
}

static double cpu_s(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

static char *whole_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) < 0) die("%s: %s", path, strerror(errno));
    *size = (size_t)ftell(file);
    rewind(file);
    char *data = room_for(*size, 1);
    if (fread(data, 1, *size, file) != *size) die("%s cannot be read", path);
    fclose(file);
    return data;
}

static int by_size(const void *one, const void *other) {
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

#endif
