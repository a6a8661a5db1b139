/* harness.h - what the C tests share: a store on memory of their own, writes, reads, the check. */
#ifndef HARNESS_H
#define HARNESS_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arena.h"
#include "client.h"
#include "commit.h"
#include "futex.h"
#include "index.h"
#include "join.h"
#include "keeper.h"
#include "msgpack.h"
#include "node.h"
#include "retire.h"
#include "sequencer.h"
#include "session.h"
#include "sweep.h"
#include "undo.h"

/* What a test is at, printed with a failure. */
extern uint64_t test_context;

#define REQUIRE(condition)                                                                  \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            fprintf(stderr, "%s:%d: not true: %s (context %llu)\n", __FILE__, __LINE__,     \
                    #condition, (unsigned long long)test_context);                          \
            exit(1);                                                                        \
        }                                                                                   \
    } while (0)

typedef struct {
    int control_fd;
    int data_fd;
} test_segments;

test_segments test_segments_make(void);
void test_segments_close(test_segments segments);
se_store *test_store_make(test_segments segments, uint64_t map_size);
void test_store_free(se_store *store);

/* A key of the test run: "k" and the number, as keys.py would write it. */
uint32_t test_key(uint8_t *key, const char *name);
extern const uint8_t test_run[16];

se_status test_put(se_session *session, const char *name, const void *value, uint32_t size);
se_status test_delete(se_session *session, const char *name);
se_status test_increment(se_session *session, const char *name, int64_t delta, int64_t *result);
se_status test_submit(se_session *session);
/* From what submit answered to the outcome. */
se_status test_finish(se_session *session, se_status status);
/* The value at a snapshot (UINT64_MAX: now) as a string in buffer; SE_NOT_FOUND. */
se_status test_get(se_session *session, const char *name, uint64_t snapshot, char *buffer,
                   uint32_t size);
se_status test_set_retention(se_session *session, uint8_t kind, uint64_t argument);

/* Walks everything: index, chains, free lists, retire ring; every block is in exactly one place. */
void test_check(se_store *store);
/* How many live keys a walk finds. */
uint64_t test_count_live(se_store *store);

#endif
