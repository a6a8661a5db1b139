# _declarations.pxi - what _core.pyx uses of the C core.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "stdbool.h":
    ctypedef unsigned char c_bool "bool"


cdef extern from "status.h" nogil:
    ctypedef enum se_status:
        SE_OK
        SE_NOT_FOUND
        SE_CONFLICT
        SE_MISMATCH
        SE_WRONG_TYPE
        SE_OVERFLOW
        SE_FULL
        SE_NEED_SPACE
        SE_RUN_CLOSED
        SE_TRIMMED
        SE_CORRUPT
        SE_FORMAT
        SE_BUSY
        SE_TOO_MANY
        SE_TOO_LARGE
        SE_INVALID
        SE_CLOSED
        SE_IO
        SE_IN_DOUBT
        SE_NEED_LOG
        SE_READ_ONLY
        SE_DAMAGED
    const char *se_status_text(se_status status)
    const char *se_status_exception(se_status status)


cdef extern from "layout.h" nogil:
    uint32_t SE_FORMAT_VERSION, SE_BYTE_ORDER
    uint64_t SE_REQUEST_MAX
    uint32_t SE_OPS_MAX
    uint32_t SE_RECORD_TOMBSTONE
    int SE_OP_PUT, SE_OP_DELETE, SE_OP_CHECK, SE_OP_EXPECT, SE_OP_INCREMENT, SE_OP_CHECK_RANGE
    int SE_OP_APPEND, SE_OP_BUMP
    int SE_TAG_EVENT, SE_TAG_TRACE, SE_TAG_RUN
    int SE_SLOT_THREAD, SE_SLOT_MEMBER
    int SE_PHASE_SERVING, SE_PHASE_LEAVING
    int SE_IN_MEMORY, SE_STRICT
    ctypedef struct se_word:
        pass
    ctypedef struct se_word32:
        pass
    ctypedef struct se_header:
        uint64_t data_size
        uint64_t created_us
        uint32_t max_clients
        uint32_t durability_kind
        uint32_t flush_interval_ms
        uint64_t max_pending_writes
        uint64_t wal_ring_size
        char folder[1024]
    ctypedef struct se_progress:
        se_word file_version, file_offset, last_version
    ctypedef struct se_sequencer:
        se_word commit_version, durable_version, trim_horizon, trim_effective, removed_horizon
        se_word erasing_runs
        se_word arena_bump, arena_allocated, ring_head, ring_tail
        se_word live_keys, ttl_keys, garbage_size, trimmed_versions, pressure_trimmed
        se_word commits, conflicts, recoveries, reaped_clients
        se_word timing, section_update_ns, section_update_count
        se_word section_insert_ns, section_insert_count
        se_word keeper_identity, slot_high
        se_word32 phase
        se_word wal_tail, wal_backed, wal_consumed, log_failed, log_size, syncs, sync_batch
        se_word checkpoint_wanted, checkpoint_done, checkpoint_version
        se_word checkpoint_failed, checkpoint_size
        se_word32 checkpoint_bell
        char log_failure[256]
        se_word progress_count
        se_progress progress[2]
    ctypedef struct se_leaf:
        uint16_t key_size
        uint8_t key[1]
    ctypedef struct se_record:
        uint64_t version
        uint64_t timestamp_us
        uint64_t expires_us
        uint32_t value_size
        uint32_t flags
        uint8_t value[1]


cdef extern from "atomics.h" nogil:
    uint64_t se_load_acquire(const se_word *word)
    uint64_t se_load_relaxed(const se_word *word)
    void se_fence_full()
    uint32_t se_load_acquire_u32(const se_word32 *word)
    void se_store_relaxed(se_word *word, uint64_t value)
    int se_swap_if_equal_u32(se_word32 *word, uint32_t expected, uint32_t value)
    uint64_t se_fetch_add(se_word *word, uint64_t more)


cdef extern from "store.h" nogil:
    ctypedef struct se_store:
        se_header *header
        se_sequencer *seq
        uint64_t identity
        uint64_t mapped_to
        int control_fd
        int data_fd
    ctypedef struct se_options:
        uint64_t map_size
        uint32_t max_clients
        uint32_t durability_kind
        uint32_t flush_interval_ms
        uint64_t max_pending_writes
        uint64_t created_us
        uint8_t database_id[16]
        char folder[1024]
    se_status se_store_create(se_store *store, int control_fd, int data_fd,
                              const se_options *options)
    se_status se_store_attach(se_store *store, int control_fd, int data_fd, uint32_t *found)
    void se_store_detach(se_store *store)
    uint64_t se_process_identity(uint32_t pid)
    int se_process_alive(uint64_t identity)


cdef extern from "arena.h" nogil:
    uint64_t se_arena_used(const se_store *store)
    se_status se_arena_grow(se_store *store, uint64_t need)


cdef extern from "record.h" nogil:
    se_leaf *se_leaf_at(const se_store *store, uint64_t offset)
    int se_record_dead(const se_record *record, uint64_t now_us)
    se_status se_record_visible(const se_store *store, const se_leaf *leaf, uint64_t snapshot,
                                const se_record **found)
    se_status se_record_older(const se_store *store, const se_record *record,
                              const se_record **older)
    c_bool se_counted_check(const uint8_t *value, uint32_t size)
    uint64_t se_counted_read(const uint8_t *value)
    void se_counted_write(uint8_t *value, uint64_t counter)


cdef extern from "reader.h" nogil:
    se_status se_reader_hides(const se_store *store, const uint8_t *key, uint64_t snapshot,
                              c_bool *hidden)
    se_status se_reader_find(const se_store *store, const uint8_t *key, uint32_t key_size,
                             uint64_t snapshot, const se_record **record)


cdef extern from "event.h" nogil:
    int SE_EVENT_CONTENT, SE_EVENT_TYPE_MAX
    void se_event_pack(uint8_t *value, uint32_t size)
    uint32_t se_event_head_key(uint8_t *key, const uint8_t *run)


cdef extern from "erase.h" nogil:
    ctypedef enum se_erase_state:
        SE_ERASE_MORE
        SE_ERASE_WAITS
        SE_ERASE_DONE
    se_status se_erase_step(se_store *store, const uint8_t *run, se_erase_state *state)


cdef extern from "bell.h" nogil:
    uint64_t se_bell_of(const uint8_t *key, uint32_t key_size)
    uint32_t se_bell_watch(se_store *store, uint64_t bell)
    void se_bell_wait(se_store *store, uint64_t bell, uint32_t seen, uint64_t bound_ns)


cdef extern from "index.h" nogil:
    ctypedef struct se_iter:
        pass
    se_status se_iter_seek(se_iter *iter, const se_store *store, const uint8_t *key,
                           uint32_t key_size)
    se_status se_iter_next(se_iter *iter, uint64_t *leaf)


cdef extern from "client.h" nogil:
    se_status se_client_join(se_store *store, uint32_t kind, uint32_t *slot)
    void se_client_leave(se_store *store, uint32_t slot)
    uint64_t se_visible_version(const se_store *store)
    uint32_t se_client_members(const se_store *store)
    uint32_t se_client_count(const se_store *store, uint32_t kind)
    uint32_t se_snapshot_count(const se_store *store)
    se_status se_snapshot_claim(se_store *store, uint32_t *entry)
    void se_snapshot_release(se_store *store, uint32_t entry)
    void se_snapshot_open(se_store *store, uint32_t entry, uint64_t *opened)
    void se_snapshot_close(se_store *store, uint32_t entry)


cdef extern from "sequencer.h" nogil:
    uint32_t se_sequencer_owner(const se_store *store)
    se_status se_sequencer_lock(se_store *store, uint64_t bound_ns)
    void se_sequencer_finish(se_store *store)


cdef extern from "session.h" nogil:
    ctypedef struct se_session:
        bint waiting
        bint repairing
        bint committing
        uint8_t run[16]
        uint64_t used
        uint64_t op_count
    uint64_t se_session_pin(se_session *session)
    void se_session_unpin(se_session *session)
    se_status se_session_begin(se_session *session, const uint8_t *run, uint64_t now_us,
                               uint64_t snapshot)
    se_status se_session_add(se_session *session, uint32_t kind, const uint8_t *key,
                             uint32_t key_size, const void *value, uint32_t value_size,
                             uint64_t expires_us, int64_t argument)
    void se_session_abandon(se_session *session)
    se_status se_session_submit(se_session *session)
    se_status se_session_wait(se_session *session, uint64_t bound_ns)
    se_status se_session_withdraw(se_session *session)
    se_status se_session_outcome(se_session *session)
    se_status se_session_repair(se_session *session)
    uint64_t se_session_reply_version(const se_session *session)
    uint64_t se_session_reply_timestamp(const se_session *session)
    uint64_t se_session_reply_detail(const se_session *session)
    uint64_t se_session_reply_op(const se_session *session)
    int64_t se_session_first_result(const se_session *session)
    uint64_t se_session_next_event(const se_session *session, uint64_t *at, const uint8_t **hash)
    uint64_t se_session_count_results(const se_session *session, uint32_t kind)


cdef extern from "thread.h" nogil:
    uint64_t se_fork_count
    uint64_t se_threads_open(se_store *store)
    void se_threads_close(uint64_t threads_id)
    c_bool se_threads_committing(uint64_t threads_id)
    void se_threads_after_fork(uint64_t threads_id)
    se_status se_thread_session(uint64_t threads_id, se_session **session)


cdef extern from "keeper.h" nogil:
    ctypedef struct se_keeper:
        pass
    ctypedef struct se_keeper_thread:
        pass
    se_status se_keeper_tick(se_keeper *keeper, se_store *store)
    void se_keeper_sleep(se_store *store, uint64_t bound_ns)
    void se_keeper_ring(se_store *store)
    void se_keeper_resign(se_store *store)
    se_keeper_thread *se_keeper_start(se_store *store)
    void se_keeper_stop(se_keeper_thread *thread)


cdef extern from "sweep.h" nogil:
    se_status se_sweep_all(se_store *store, uint64_t pressure, uint64_t now_us)


cdef extern from "msgpack.h" nogil:
    size_t se_msgpack_check(const uint8_t *data, size_t size, c_bool *binary)


cdef extern from "codec.h":
    size_t se_codec_write(object value, uint8_t *bytes, size_t room)
    PyObject *se_codec_read(const uint8_t *bytes, size_t size)


cdef extern from "futex.h" nogil:
    uint64_t se_clock_ns()
    uint64_t se_clock_real_us()


cdef extern from "log.h" nogil:
    ctypedef struct se_log:
        pass
    void se_log_begin(se_store *store, uint64_t version)
    se_status se_log_open(se_store *store, int folder_fd, se_log **log)
    se_status se_log_drain(se_log *log)
    se_status se_log_start(se_log *log)
    se_status se_log_stop(se_log *log)
    void se_log_close(se_log *log)
    se_status se_log_wait_durable(se_store *store, uint64_t version, uint64_t bound_ns)
    void se_log_want_sync(se_store *store, uint64_t version)
    void se_log_want_checkpoint(se_store *store, uint64_t *ticket)
    se_status se_log_wait_checkpoint(se_store *store, uint64_t ticket, uint64_t bound_ns)
    void se_log_tell_checkpoint(se_store *store)
    void se_log_answer_checkpoint(se_store *store, uint64_t ticket, int error)


cdef extern from "checkpoint.h" nogil:
    ctypedef struct se_damage:
        char file[96]
        uint64_t offset
        char reason[160]
    ctypedef struct se_checkpoint:
        uint64_t version
        uint64_t timestamp_us
        uint64_t keys
        uint64_t records
        uint64_t size
        uint64_t lost_blocks
        se_damage damage
    ctypedef c_bool (*se_progress_call)(void *context, uint64_t done, uint64_t total) noexcept
    se_status se_checkpoint_list(int folder_fd, uint64_t **versions, uint32_t *count)
    se_status se_checkpoint_write(se_store *store, int folder_fd, se_progress_call progress,
                                  void *context, se_checkpoint *report)
    se_status se_checkpoint_check(int folder_fd, uint64_t version, se_progress_call progress,
                                  void *context, se_checkpoint *report)
    se_status se_checkpoint_prune(int folder_fd, uint64_t version)


cdef extern from "recover.h" nogil:
    ctypedef struct se_recover_options:
        bint salvage
        bint read_only
        se_progress_call progress
        void *context
    ctypedef struct se_recovery:
        uint64_t checkpoint_version
        uint64_t checkpoint_bytes
        uint64_t skipped_checkpoint
        uint64_t commits
        uint64_t log_bytes
        uint64_t last_version
        uint64_t last_timestamp_us
        uint64_t keys
        char cut_file[96]
        uint64_t cut_offset
        uint64_t cut_bytes
        uint64_t lost_blocks
        char aside[96]
        uint32_t aside_files
        se_damage damage
    se_status se_recover_identity(int folder_fd, uint8_t *database_id, c_bool *found,
                                  se_damage *damage)
    se_status se_recover(se_store *store, int folder_fd, const se_recover_options *options,
                         se_recovery *report)


cdef extern from "frame.h" nogil:
    ctypedef struct se_frame:
        uint32_t size
        se_word version
        uint64_t timestamp_us
        uint32_t unsynced
        uint32_t origin
    ctypedef struct se_frame_item:
        uint32_t kind
        uint32_t key_size
        uint32_t value_size
        uint64_t expires_us
        const uint8_t *key
        const uint8_t *value
    c_bool se_frame_check(const void *data, uint64_t room)
    c_bool se_frame_next(const se_frame *frame, uint64_t *at, se_frame_item *item)


cdef extern from "crc32c.h" nogil:
    uint32_t se_crc32c(uint32_t crc, const void *data, size_t size)


cdef extern from "wal.h" nogil:
    uint64_t SE_WAL_MAGIC
    ctypedef struct se_wal_header:
        uint64_t magic
        uint32_t format_version
        uint32_t byte_order
        uint32_t previous_file
        uint32_t crc
        uint8_t database_id[16]
        uint64_t first_version
        uint64_t previous_version
        uint64_t durable_version
    se_status se_wal_check_header(const void *data, uint64_t size, uint64_t first_version,
                                  se_wal_header *header)
