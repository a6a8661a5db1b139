/* event.h - an event as it lies in a record, and its place in the chain of its run.
 *
 *     94 | c4 20 previous hash | c4 20 hash | type (str) | payload       under  run 02 02 sequence
 *     92 | cf next sequence    | c4 20 hash of the newest one            under  run 02 01 'h'
 *     c0                                                                 under  run 02 01 't' type 0 sequence
 *
 * Why:        sequence and hashes are known only inside the commit, everything else before it. They
 *             lie in front, at fixed places, and the client leaves the state of the hash over type and
 *             payload where the hash will be: one block is left to the holder. Both records are
 *             plain MessagePack lists, so every reader of values reads them.
 * Used by:    clients (pack); the holder (the rest), inside a change.
 * Shared:     FORMAT.md, "Event"
 * Invariants: H1 hash = SHA-256(type and payload, zeros up to a whole block, previous hash, sequence,
 *             timestamp_us), both numbers big-endian (tests/format, verify_chain)
 * Cost:       pack: a block for each 64 bytes; chain: one block.
 */
#ifndef SE_EVENT_H
#define SE_EVENT_H

#include <stdbool.h>

#include "layout.h"
#include "sha256.h"

#define SE_EVENT_PREVIOUS 3u /* where the hashes are in an event's value */
#define SE_EVENT_HASH 37u
#define SE_EVENT_CONTENT 69u
#define SE_EVENT_TYPE_MAX 256u
#define SE_EVENT_KEY_SIZE (SE_RUN_ID_SIZE + 2 + 8)
#define SE_EVENT_TYPE_KEY_MAX (SE_RUN_ID_SIZE + 3 + SE_EVENT_TYPE_MAX + 1 + 8)
#define SE_EVENT_HEAD_KEY_SIZE (SE_RUN_ID_SIZE + 3)
#define SE_EVENT_HEAD_SIZE 44u
/* What an APPEND adds to a frame beyond its own bytes in the request: keys, heads and the type's
 * entry; once a commit the head of the log. */
#define SE_EVENT_FRAME_MORE 384u

/* Where a run's log stands. */
typedef struct {
    uint64_t next; /* sequence of the next event */
    uint8_t hash[SE_SHA256_SIZE];
} se_event_head;

/* Fills in what stands before type and payload, which are there already. */
void se_event_pack(uint8_t *value, uint32_t size);
/* Whether the value has the shape that pack makes; its type, which lies in the value. */
bool se_event_check(const uint8_t *value, uint32_t size, const uint8_t **type,
                    uint32_t *type_size);
/* Puts the packed event behind the head: its hashes are filled in, and the head moves. */
void se_event_chain(uint8_t *value, uint32_t size, uint64_t timestamp_us, se_event_head *head);
bool se_event_read_head(const uint8_t *value, uint32_t size, se_event_head *head);
void se_event_write_head(uint8_t *value, const se_event_head *head);

/* Keys; they return the size. */
uint32_t se_event_head_key(uint8_t *key, const uint8_t *run);
uint32_t se_event_key(uint8_t *key, const uint8_t *run, uint64_t sequence);
uint32_t se_event_type_key(uint8_t *key, const uint8_t *run, const uint8_t *type,
                           uint32_t type_size, uint64_t sequence);

#endif
