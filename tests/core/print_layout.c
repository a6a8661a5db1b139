/* print_layout.c - what C makes of the shared structs, for tests/format.
 *
 * Why:     FORMAT.md states the same numbers; a test compares the two, line by line:
 *          "struct field offset size" (field "-": the struct itself; size 0: up to the end),
 *          "constant name value", "status name number", "class number size".
 * Used by: tests/format/test_layout.py
 */
#include "harness.h"
#include "checkpoint.h"
#include "frame.h"
#include "msgpack.h"
#include "node.h"
#include "undo.h"
#include "wal.h"

#define FIELD(type, field) \
    printf(#type " " #field " %zu %zu\n", offsetof(type, field), sizeof(((type *)0)->field))

#define STRUCT(type) printf(#type " - 0 %zu\n", sizeof(type))
#define TAIL(type, field) printf(#type " " #field " %zu 0\n", offsetof(type, field))
#define CONSTANT(name) printf("constant " #name " %llu\n", (unsigned long long)(name))
#define STATUS(code, name, text, exception) printf("status " #name " %d\n", code);

static void print_constants(void) {
    CONSTANT(SE_MAGIC);
    CONSTANT(SE_FORMAT_VERSION);
    CONSTANT(SE_FORMAT_OLDEST_FILE);
    CONSTANT(SE_BYTE_ORDER);
    CONSTANT(SE_PAGE);
    CONSTANT(SE_KEY_MAX);
    CONSTANT(SE_CLASS_COUNT);
    CONSTANT(SE_JOIN_WINDOWS);
    CONSTANT(SE_BELL_COUNT);
    CONSTANT(SE_CLIENTS_MAX);
    CONSTANT(SE_OPS_MAX);
    CONSTANT(SE_REQUEST_MAX);
    CONSTANT(SE_SNAPSHOT_COUNT);
    CONSTANT(SE_UNDO_MAX);
    CONSTANT(SE_TAKEN_MAX);
    CONSTANT(SE_NO_SNAPSHOT);
    CONSTANT(SE_UPKEEP);
    CONSTANT(SE_REF_DATA);
    CONSTANT(SE_CUT);
    CONSTANT(SE_RECORD_TOMBSTONE);
    CONSTANT(SE_LEAF_KEY_OFFSET);
    CONSTANT(SE_LEAF_REMOVED);
    CONSTANT(SE_CHILD_LEAF);
    CONSTANT(SE_BLOCK_CLASS_SHIFT);
    CONSTANT(SE_BLOCK_CHAIN);
    CONSTANT(SE_BLOCK_FREEING);
    CONSTANT(SE_BLOCK_OFFSET_MASK);
    CONSTANT(SE_RUN_ID_SIZE);
    CONSTANT(SE_TAG_EVENT);
    CONSTANT(SE_TAG_TRACE);
    CONSTANT(SE_TAG_RUN);
    CONSTANT(SE_SPACE_BOOKKEEPING);
    CONSTANT(SE_SPACE_ENTRY);
    CONSTANT(SE_RUN_DELETED);
    CONSTANT(SE_EVENT_PREVIOUS);
    CONSTANT(SE_EVENT_HASH);
    CONSTANT(SE_EVENT_CONTENT);
    CONSTANT(SE_EVENT_TYPE_MAX);
    CONSTANT(SE_EVENT_FRAME_MORE);
    CONSTANT(SE_VALUE_DEPTH_MAX);
    CONSTANT(SE_VALUE_ENTRIES_MAX);
    CONSTANT(SE_VALUE_BLOB_MAX);
    CONSTANT(SE_VALUE_ENCODED_MAX);
    CONSTANT(SE_RING_SIZE);
    CONSTANT(SE_FRAME_PUT);
    CONSTANT(SE_FRAME_DELETE);
    CONSTANT(SE_FRAME_PUT_EXPIRES);
    CONSTANT(SE_FRAME_MAX);
    CONSTANT(SE_FRAME_SKIP);
    CONSTANT(SE_WAL_MAGIC);
    CONSTANT(SE_WAL_FIRST_FRAME);
    CONSTANT(SE_CHECKPOINT_MAGIC);
    CONSTANT(SE_CHECKPOINT_BLOCK);
    CONSTANT(SE_CHECKPOINT_KEYS);
    CONSTANT(SE_CHECKPOINT_END);
    CONSTANT(SE_CHECKPOINT_CUT);
    CONSTANT(SE_CHECKPOINT_MORE);
    CONSTANT(SE_CHECKPOINT_GOES_ON);
    CONSTANT(SE_OP_PUT);
    CONSTANT(SE_OP_DELETE);
    CONSTANT(SE_OP_CHECK);
    CONSTANT(SE_OP_EXPECT);
    CONSTANT(SE_OP_INCREMENT);
    CONSTANT(SE_OP_CHECK_RANGE);
    CONSTANT(SE_OP_APPEND);
    CONSTANT(SE_OP_BUMP);
    CONSTANT(SE_NODE4);
    CONSTANT(SE_NODE16);
    CONSTANT(SE_NODE48);
    CONSTANT(SE_NODE256);
    SE_STATUS_LIST(STATUS)
    for (uint32_t size_class = 0; size_class < SE_CLASS_COUNT; size_class++)
        printf("class %u %llu\n", size_class, (unsigned long long)se_class_size(size_class));
}

static void print_header(void) {
    STRUCT(se_header);
    FIELD(se_header, magic);
    FIELD(se_header, format_version);
    FIELD(se_header, byte_order);
    FIELD(se_header, control_size);
    FIELD(se_header, data_size);
    FIELD(se_header, max_clients);
    FIELD(se_header, snapshot_count);
    FIELD(se_header, slots_offset);
    FIELD(se_header, snapshots_offset);
    FIELD(se_header, undo_offset);
    FIELD(se_header, taken_offset);
    FIELD(se_header, requests_offset);
    FIELD(se_header, request_size);
    FIELD(se_header, wal_ring_offset);
    FIELD(se_header, wal_ring_size);
    FIELD(se_header, pid_namespace);
    FIELD(se_header, created_us);
    FIELD(se_header, reserve_size);
    FIELD(se_header, durability_kind);
    FIELD(se_header, flush_interval_ms);
    FIELD(se_header, max_pending_writes);
    FIELD(se_header, wal_ring_soft);
    FIELD(se_header, database_id);
    FIELD(se_header, folder);
}

static void print_sequencer(void) {
    STRUCT(se_sequencer);
    FIELD(se_sequencer, mutex);
    FIELD(se_sequencer, owner_pid);
    FIELD(se_sequencer, commit_version);
    FIELD(se_sequencer, durable_version);
    FIELD(se_sequencer, last_timestamp);
    FIELD(se_sequencer, root);
    FIELD(se_sequencer, trim_horizon);
    FIELD(se_sequencer, trim_effective);
    FIELD(se_sequencer, removed_horizon);
    FIELD(se_sequencer, run_epoch);
    FIELD(se_sequencer, safe_epoch);
    FIELD(se_sequencer, sweep_serial);
    FIELD(se_sequencer, erasing_runs);
    FIELD(se_sequencer, watched);
    FIELD(se_sequencer, arena_bump);
    FIELD(se_sequencer, arena_free);
    FIELD(se_sequencer, undo_version);
    FIELD(se_sequencer, undo_count);
    FIELD(se_sequencer, taken_count);
    FIELD(se_sequencer, ring_head);
    FIELD(se_sequencer, ring_tail);
    FIELD(se_sequencer, commits);
    FIELD(se_sequencer, arena_allocated);
    FIELD(se_sequencer, arena_exhausted);
    FIELD(se_sequencer, ring_offset);
    FIELD(se_sequencer, ring_capacity);
    FIELD(se_sequencer, chain_next);
    FIELD(se_sequencer, undo_allocated);
    FIELD(se_sequencer, taken_allocated);
    FIELD(se_sequencer, arena_scraps);
    FIELD(se_sequencer, live_keys);
    FIELD(se_sequencer, ttl_keys);
    FIELD(se_sequencer, garbage_size);
    FIELD(se_sequencer, trimmed_versions);
    FIELD(se_sequencer, pressure_trimmed);
    FIELD(se_sequencer, conflicts);
    FIELD(se_sequencer, recoveries);
    FIELD(se_sequencer, reaped_clients);
    FIELD(se_sequencer, timing);
    FIELD(se_sequencer, section_update_ns);
    FIELD(se_sequencer, section_update_count);
    FIELD(se_sequencer, section_insert_ns);
    FIELD(se_sequencer, section_insert_count);
    FIELD(se_sequencer, keeper_bell);
    FIELD(se_sequencer, phase);
    FIELD(se_sequencer, keeper_identity);
    FIELD(se_sequencer, slot_high);
    FIELD(se_sequencer, snapshot_high);
    FIELD(se_sequencer, pending);
    FIELD(se_sequencer, free_head);
}

static void print_log(void) {
    FIELD(se_sequencer, wal_tail);
    FIELD(se_sequencer, wal_backed);
    FIELD(se_sequencer, wal_exhausted);
    FIELD(se_sequencer, wal_consumed);
    FIELD(se_sequencer, progress_count);
    FIELD(se_sequencer, progress);
    FIELD(se_sequencer, log_failed);
    FIELD(se_sequencer, log_bell);
    FIELD(se_sequencer, log_asleep);
    FIELD(se_sequencer, log_parked);
    FIELD(se_sequencer, progress_bell);
    FIELD(se_sequencer, sync_batch);
    FIELD(se_sequencer, syncs);
    FIELD(se_sequencer, sync_wanted);
    FIELD(se_sequencer, log_size);
    FIELD(se_sequencer, checkpoint_wanted);
    FIELD(se_sequencer, checkpoint_done);
    FIELD(se_sequencer, checkpoint_version);
    FIELD(se_sequencer, checkpoint_failed);
    FIELD(se_sequencer, checkpoint_size);
    FIELD(se_sequencer, checkpoint_bell);
    FIELD(se_sequencer, log_failure);
    FIELD(se_sequencer, join_from);
    FIELD(se_sequencer, join_class);
    FIELD(se_sequencer, join_rest);
    FIELD(se_sequencer, join_window);
    FIELD(se_sequencer, join_next);
    FIELD(se_sequencer, join_count);
    FIELD(se_sequencer, join_head);
    FIELD(se_sequencer, bells);
}

static void print_clients(void) {
    STRUCT(se_slot);
    FIELD(se_slot, identity);
    FIELD(se_slot, kind);
    FIELD(se_slot, pin);
    FIELD(se_slot, request_state);
    FIELD(se_slot, request_seq);
    FIELD(se_slot, request_size);
    FIELD(se_slot, request_ops);
    FIELD(se_slot, request_snapshot);
    FIELD(se_slot, request_now_us);
    FIELD(se_slot, request_run_leaf);
    FIELD(se_slot, request_run_epoch);
    FIELD(se_slot, reply_seq);
    FIELD(se_slot, parked);
    FIELD(se_slot, outcome_seq);
    FIELD(se_slot, reply_status);
    FIELD(se_slot, reply_version);
    FIELD(se_slot, reply_timestamp);
    FIELD(se_slot, reply_detail);
    FIELD(se_slot, reply_op);
    STRUCT(se_snapshot);
    FIELD(se_snapshot, identity);
    FIELD(se_snapshot, version);
    STRUCT(se_undo_entry);
    FIELD(se_undo_entry, ref);
    FIELD(se_undo_entry, old);
}

static void print_data(void) {
    STRUCT(se_retired);
    FIELD(se_retired, block);
    FIELD(se_retired, epoch);
    STRUCT(se_record);
    FIELD(se_record, prev);
    FIELD(se_record, version);
    FIELD(se_record, timestamp_us);
    FIELD(se_record, expires_us);
    FIELD(se_record, value_size);
    FIELD(se_record, flags);
    TAIL(se_record, value);
    STRUCT(se_leaf);
    FIELD(se_leaf, head);
    FIELD(se_leaf, key_size);
    TAIL(se_leaf, key);
    STRUCT(se_node);
    FIELD(se_node, meta);
    FIELD(se_node, count);
    TAIL(se_node, prefix);
    STRUCT(se_op);
    FIELD(se_op, kind);
    FIELD(se_op, flags);
    FIELD(se_op, key_size);
    FIELD(se_op, value_size);
    FIELD(se_op, leaf);
    FIELD(se_op, expires_us);
    FIELD(se_op, argument);
    FIELD(se_op, result);
    STRUCT(se_run_record);
    FIELD(se_run_record, status);
    FIELD(se_run_record, retention_kind);
    FIELD(se_run_record, zero);
    FIELD(se_run_record, retention_argument);
}

static void print_files(void) {
    STRUCT(se_progress);
    FIELD(se_progress, position);
    FIELD(se_progress, file_version);
    FIELD(se_progress, file_offset);
    FIELD(se_progress, last_version);
    STRUCT(se_wal_header);
    FIELD(se_wal_header, magic);
    FIELD(se_wal_header, format_version);
    FIELD(se_wal_header, byte_order);
    FIELD(se_wal_header, database_id);
    FIELD(se_wal_header, first_version);
    FIELD(se_wal_header, previous_version);
    FIELD(se_wal_header, durable_version);
    FIELD(se_wal_header, previous_file);
    FIELD(se_wal_header, crc);
    STRUCT(se_frame);
    FIELD(se_frame, size);
    FIELD(se_frame, crc);
    FIELD(se_frame, version);
    FIELD(se_frame, timestamp_us);
    FIELD(se_frame, unsynced);
    FIELD(se_frame, origin);
    STRUCT(se_frame_op);
    FIELD(se_frame_op, kind);
    FIELD(se_frame_op, zero);
    FIELD(se_frame_op, key_size);
    FIELD(se_frame_op, value_size);
    STRUCT(se_checkpoint_header);
    FIELD(se_checkpoint_header, magic);
    FIELD(se_checkpoint_header, format_version);
    FIELD(se_checkpoint_header, byte_order);
    FIELD(se_checkpoint_header, database_id);
    FIELD(se_checkpoint_header, version);
    FIELD(se_checkpoint_header, created_us);
    FIELD(se_checkpoint_header, zero);
    FIELD(se_checkpoint_header, crc);
    STRUCT(se_checkpoint_block);
    FIELD(se_checkpoint_block, magic);
    FIELD(se_checkpoint_block, kind);
    FIELD(se_checkpoint_block, offset);
    FIELD(se_checkpoint_block, number);
    FIELD(se_checkpoint_block, size);
    FIELD(se_checkpoint_block, entries);
    FIELD(se_checkpoint_block, crc);
    FIELD(se_checkpoint_block, header_crc);
    STRUCT(se_checkpoint_key);
    FIELD(se_checkpoint_key, key_size);
    FIELD(se_checkpoint_key, flags);
    FIELD(se_checkpoint_key, records);
    STRUCT(se_checkpoint_record);
    FIELD(se_checkpoint_record, version);
    FIELD(se_checkpoint_record, timestamp_us);
    FIELD(se_checkpoint_record, expires_us);
    FIELD(se_checkpoint_record, value_size);
    FIELD(se_checkpoint_record, flags);
    STRUCT(se_checkpoint_end);
    FIELD(se_checkpoint_end, keys);
    FIELD(se_checkpoint_end, records);
    FIELD(se_checkpoint_end, bytes);
    FIELD(se_checkpoint_end, timestamp_us);
    FIELD(se_checkpoint_end, removed_horizon);
}

int main(void) {
    print_constants();
    print_header();
    print_sequencer();
    print_log();
    print_clients();
    print_data();
    print_files();
    return 0;
}
