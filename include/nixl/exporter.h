/* What a telemetry exporter is given and gives: plain C, so that any language can make one. A
 * plugin libtelemetry_exporter_NAME.so whose table (nixl/plugin.h) has the kind TELEMETRY_EXPORTER
 * points to one nixl_exporter. NIXL_TELEMETRY_EXPORTER names it. docs/telemetry.md explains. */
#ifndef NIXL_EXPORTER_H
#define NIXL_EXPORTER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NIXL_EXPORTER_ABI 1

/* NOLINTBEGIN(readability-identifier-naming, modernize-use-using): the names are C's. */
typedef struct nixl_label {
    const char* name;
    const char* value; /* UTF-8, any character */
} nixl_label;

typedef enum nixl_metric_kind {
    NIXL_METRIC_COUNTER = 0,
    NIXL_METRIC_GAUGE = 1,
    NIXL_METRIC_HISTOGRAM = 2
} nixl_metric_kind;

typedef struct nixl_sample {
    const nixl_label* labels;
    size_t label_count;
    double value;            /* of a histogram: the sum of what was observed */
    const uint64_t* buckets; /* of a histogram: bound_count + 1 numbers, each of its bucket alone */
} nixl_sample;

typedef struct nixl_metric {
    const char* name; /* letters, digits and '_' */
    const char* help;
    nixl_metric_kind kind;
    const double* bounds; /* of a histogram: rising upper bounds */
    size_t bound_count;
    const nixl_sample* samples;
    size_t sample_count;
} nixl_metric;

/* Everything of one agent at one moment; valid during the call only. */
typedef struct nixl_metrics {
    double time;      /* seconds since 1970 */
    const char* json; /* the same, and more, as one line of JSON */
    const nixl_metric* metrics;
    size_t metric_count;
} nixl_metrics;

typedef struct nixl_exporter_setup {
    const char* agent;     /* its name */
    const char* id;        /* unique among agents, usable in a file's name */
    const char* directory; /* of the user alone; several processes may share it */
    const char* (*parameter)(void* context, const char* name); /* validated; null: not declared */
    void (*warn)(void* context, const char* text);             /* into the library's log */
    void* context;                                             /* valid until destroy returns */
} nixl_exporter_setup;

/* All but create are called on one thread, one at a time; none may throw. What fails is written to
 * `error`, told once in the log, and counted; the library goes on without it. */
typedef struct nixl_exporter {
    uint32_t abi; /* NIXL_EXPORTER_ABI */
    /* Null on failure. */
    void* (*create)(const nixl_exporter_setup* setup, char* error, size_t error_size);
    /* Every interval, and once more before the end. 0: done. */
    int (*publish)(void* self, const nixl_metrics* metrics, char* error, size_t error_size);
    /* Where it is read, such as http://127.0.0.1:9090/metrics; empty: nowhere. May be null. */
    const char* (*endpoint)(void* self);
    void (*destroy)(void* self);
} nixl_exporter;
/* NOLINTEND(readability-identifier-naming, modernize-use-using) */

#ifdef __cplusplus
}
#endif

#endif
