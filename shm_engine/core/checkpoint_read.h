/* checkpoint_read.h - a checkpoint's bytes, checked, and handed on key by key.
 *
 * Why:        checking, loading and reading back need the same rules; whoever wants the content
 *             gives a sink, who only checks gives none.
 * Used by:    checkpoint.c (read back), checkpoint_load.c.
 * Errors:     bytes are not trusted: nothing reaches a sink that its checksum does not cover. In
 *             salvage a block reaches the sink only after it was checked whole.
 */
#ifndef SE_CHECKPOINT_READ_H
#define SE_CHECKPOINT_READ_H

#include "checkpoint.h"

typedef struct {
    void *context;
    /* The next key, or more records of the last one (SE_CHECKPOINT_GOES_ON). common: how many bytes
     * it shares with the key before; both have more than that. */
    se_status (*key)(void *context, const se_checkpoint_key *entry, const uint8_t *key,
                     uint32_t common);
    /* As many follow as the entry says. */
    se_status (*record)(void *context, const se_checkpoint_record *record, const uint8_t *value);
    /* Salvage: blocks are missing here; no more records of the last key come. */
    void (*lost)(void *context);
} se_checkpoint_sink;

typedef struct {
    int folder_fd;
    const char *name;
    uint64_t version;
    const uint8_t *database_id; /* which the file has to have; NULL: any */
    bool salvage;               /* needs database_id, for a header that is damaged */
    se_progress_call progress;
    void *context;
} se_checkpoint_source;

/* SE_DAMAGED: report->damage; in salvage only if nothing can be told of the file. */
se_status se_checkpoint_read(const se_checkpoint_source *source, const se_checkpoint_sink *sink,
                             se_checkpoint *report);
se_status se_checkpoint_damaged(se_damage *damage, const char *file, uint64_t offset,
                                const char *reason);
/* What a block's header_crc begins with. */
uint32_t se_checkpoint_seed(const uint8_t *database_id, uint64_t version);

#endif
