/* reader.h - what a key holds at a snapshot.
 *
 * Why:        a run is deleted by one commit, which marks its record; its keys go later, in small
 *             steps (erase.h). Until they are gone a reader has to ask whether the run is marked,
 *             and only until then: `erasing_runs` says whether any run is.
 * Used by:    any pinned thread.
 * Invariants: D1 a snapshot that sees the mark sees no key of the run: the mark is published with
 *             erasing_runs, which falls only after the last key was unlinked; a reader acquires its
 *             snapshot, then erasing_runs, then the key.
 * Cost:       a load of a word that rarely changes; while a run is being erased, a look-up more.
 */
#ifndef SE_READER_H
#define SE_READER_H

#include "index.h"

/* Whether the run of this key was deleted before the snapshot. SE_TRIMMED: only a newer one tells. */
se_status se_reader_hides(const se_store *store, const uint8_t *key, uint64_t snapshot,
                          bool *hidden);
/* The newest record <= snapshot, tombstones included; *record NULL: there is none. */
se_status se_reader_find(const se_store *store, const uint8_t *key, uint32_t key_size,
                         uint64_t snapshot, const se_record **record);

#endif
