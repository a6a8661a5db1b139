/* commit.h - carries out one write set.
 *
 *     b  check expectations and the read set against the heads; a conflict is replied
 *     c  take records, copy bytes, link; every shared word that changes goes through se_undo_store
 *     d  append the frame to the WAL ring (databases with a log)
 *     e  commit_version = v  <- THE commit point
 *     f  empty the undo log; the caller replies
 *
 * Why:        the request lies in the client's queue area; the holder reads it there, whoever it is.
 * Used by:    the holder of the sequencer.
 * Errors:     the request's bytes are not trusted: what cannot be is SE_INVALID; the reply says which
 *             operation failed (reply_detail: what was found). Nothing of a failed write set stays.
 * Cost:       O(operations); no system calls, but for replies to parked clients.
 */
#ifndef SE_COMMIT_H
#define SE_COMMIT_H

#include "frame.h"
#include "store.h"

/* Writes status, version, timestamp and detail into the slot's reply. */
void se_commit_serve(se_store *store, se_slot *slot, uint32_t index);
/* Carries out a frame of the log again, with its version and time, in a store that has no other
 * user. The frame has passed se_frame_check and its version is above commit_version. Finds memory
 * by itself. SE_FULL: map_size is too small. */
se_status se_commit_replay(se_store *store, const se_frame *frame);

#endif
