/* layout.h - every struct that lies in shared memory.
 *
 * Why:        one place for sizes and offsets; FORMAT.md has the same tables, and a test compares
 *             the two.
 * Shared:     control segment: header, sequencer, slots, snapshots, undo log, taken log, requests.
 *             data segment: the arena with nodes, leaves, records and the retire ring.
 * Invariants: L1 only offsets, never pointers (except inside the robust mutex, which belongs to the
 *             kernel and glibc); L2 each mutable word has the writer named beside it; L3 sizes and
 *             offsets as asserted here (tests/format).
 */
#ifndef SE_LAYOUT_H
#define SE_LAYOUT_H

#include <pthread.h>
#include <stddef.h>

#include "atomics.h"

#define SE_MAGIC UINT64_C(0x31454e49474e4553) /* "SENGINE1" */
#define SE_FORMAT_VERSION 2u
#define SE_FORMAT_OLDEST_FILE 1u /* files of these versions are read */
#define SE_BYTE_ORDER 0x01020304u
#define SE_PAGE 4096u
#define SE_LINE 64

#define SE_KEY_MAX 1536u
#define SE_CLASS_COUNT 128u
#define SE_JOIN_WINDOWS 128u
#define SE_CLIENTS_MAX 4096u
#define SE_BELL_COUNT 64u
#define SE_OPS_MAX (1u << 20)
#define SE_REQUEST_MAX (UINT64_C(64) << 20)
#define SE_REQUEST_FIRST (4u * SE_PAGE) /* backed before a session writes */
#define SE_SNAPSHOT_COUNT 4096u
#define SE_UNDO_MAX (UINT64_C(1) << 24)
#define SE_TAKEN_MAX (UINT64_C(1) << 23)
#define SE_NO_SNAPSHOT UINT64_MAX
#define SE_RING_SIZE (2 * ((UINT64_C(64) << 20) + SE_PAGE)) /* twice the largest frame, and sparse */
#define SE_RING_FIRST (UINT64_C(256) << 10)
#define SE_RING_SOFT_MAX (UINT64_C(1) << 20) /* so that it stays in a core's cache */

/* A reference to a word in either segment: the data segment's have the top bit. */
#define SE_REF_DATA (UINT64_C(1) << 63)

static inline int se_file_version_known(uint32_t version) {
    return version >= SE_FORMAT_OLDEST_FILE && version <= SE_FORMAT_VERSION;
}

enum { SE_PHASE_SERVING = 1, SE_PHASE_LEAVING = 2 };

/* Written once at creation, before the magic; only read afterwards. */
typedef struct {
    uint64_t magic;
    uint32_t format_version;
    uint32_t byte_order;
    uint64_t control_size;
    uint64_t data_size;
    uint32_t max_clients;
    uint32_t snapshot_count;
    uint64_t slots_offset;
    uint64_t snapshots_offset;
    uint64_t undo_offset;
    uint64_t taken_offset;
    uint64_t requests_offset;
    uint64_t request_size;
    uint64_t wal_ring_offset; /* 0: this database keeps no log */
    uint64_t wal_ring_size;
    uint64_t pid_namespace;
    uint64_t created_us;
    uint64_t reserve_size; /* arena bytes that only deletes may use */
    uint32_t durability_kind;
    uint32_t flush_interval_ms;
    uint64_t max_pending_writes;
    uint64_t wal_ring_soft;  /* the ring is used from its start again once this much was */
    uint8_t database_id[16]; /* in every file of the database; zero without a log */
    char folder[1024];       /* path of a database with a log, UTF-8, ended by 0; else empty */
} se_header;
_Static_assert(sizeof(se_header) == 1192, "header");
_Static_assert(offsetof(se_header, slots_offset) == 40, "header.slots_offset");
_Static_assert(offsetof(se_header, pid_namespace) == 104, "header.pid_namespace");

/* How far the log has come; see log.h. Writer: the log writer. */
typedef struct {
    se_word position;     /* of the ring: all before it is in the file */
    se_word file_version; /* first version of the file, which is its name */
    se_word file_offset;  /* where the frame at `position` goes */
    se_word last_version; /* of the newest frame before it */
} se_progress;
_Static_assert(sizeof(se_progress) == 32, "progress");

/* At SE_PAGE in the control segment. Writer: the holder of the mutex, where nothing else is said. */
typedef struct {
    _Alignas(SE_LINE) pthread_mutex_t mutex;
    se_word owner_pid;

    _Alignas(SE_LINE) se_word commit_version; /* THE commit point */
    se_word durable_version;                  /* coordinator */
    se_word last_timestamp;
    se_word root; /* the index: 0, or a node, or a leaf | 1 */

    _Alignas(SE_LINE) se_word trim_horizon; /* a snapshot below it may meet cuts */
    se_word trim_effective;                 /* what trimming may use now */
    se_word removed_horizon;                /* newest tombstone whose leaf was removed */
    se_word run_epoch;                      /* changes when a run's leaf comes or goes */
    se_word safe_epoch;                     /* blocks retired up to here may be freed */
    se_word sweep_serial;                   /* steps of sweeps that changed anything */
    se_word erasing_runs;                   /* runs that were deleted and still have keys */
    se_word watched; /* bit per bell: any client sets, whoever has committed clears and rings */

    /* What every commit changes, on one line: it moves from core to core with the mutex. */
    _Alignas(SE_LINE) se_word arena_bump;
    se_word arena_free;   /* bytes on the free lists (recounted after a death) */
    se_word undo_version; /* the version being committed; see undo.h */
    se_word undo_count;
    se_word taken_count;
    se_word ring_head; /* the retire ring */
    se_word ring_tail;
    se_word commits;

    _Alignas(SE_LINE) se_word arena_allocated; /* any client, grows only: bytes backed by memory */
    se_word arena_exhausted; /* any client: 1 = the last attempt to grow found no memory */
    se_word ring_offset;
    se_word ring_capacity;
    se_word chain_next;      /* where the chain that is being freed goes on */
    se_word undo_allocated;  /* entries backed by memory */
    se_word taken_allocated; /* entries backed by memory */
    se_word arena_scraps;    /* of arena_free, bytes in blocks too small for any record */

    _Alignas(SE_LINE) se_word live_keys;
    se_word ttl_keys;     /* heads with an expiry */
    se_word garbage_size; /* superseded bytes that retention allows to go (estimate) */
    se_word trimmed_versions;
    se_word pressure_trimmed; /* of these, by the high-water rule */
    se_word conflicts;
    se_word recoveries; /* deaths of a holder that were mended */
    se_word reaped_clients;

    _Alignas(SE_LINE) se_word timing; /* anyone: 1 = count time in the critical section */
    se_word section_update_ns;
    se_word section_update_count;
    se_word section_insert_ns;
    se_word section_insert_count;

    _Alignas(SE_LINE) se_word32 keeper_bell; /* anyone rings; the keeper sleeps on it */
    se_word32 phase;                         /* coordinator */
    se_word keeper_identity;                 /* who does the coordinator's duties */

    _Alignas(SE_LINE) se_word slot_high; /* anyone raises: slots at or above it were never used */
    se_word snapshot_high;               /* anyone raises: the same for snapshots */

    _Alignas(SE_LINE) se_word pending[SE_CLIENTS_MAX / 64]; /* any client sets, the holder clears */
    _Alignas(SE_LINE) se_word free_head[SE_CLASS_COUNT];

    /* The WAL ring; positions count bytes from 0 and never fall but by a rollback. */
    _Alignas(SE_LINE) se_word wal_tail; /* through the undo log: where the next frame goes */
    se_word wal_backed;                 /* any client, grows only: bytes backed by memory */
    se_word wal_exhausted;              /* any client: 1 = the last attempt found no memory */

    _Alignas(SE_LINE) se_word wal_consumed; /* log writer: bytes below may be written over */
    se_word progress_count;                 /* log writer: progress[count % 2] is in force */
    se_progress progress[2];                /* log writer */

    _Alignas(SE_LINE) se_word log_failed; /* log writer: 0, or errno: read-only from then on */
    se_word32 log_bell;                   /* anyone rings; the log writer sleeps on it */
    se_word32 log_asleep;                 /* log writer: 1 = a commit has to ring */
    se_word32 log_parked;                 /* a waiter sets, the log writer clears */
    se_word32 progress_bell;              /* log writer: changes with every progress and failure */
    se_word sync_batch;                   /* log writer: commits in the last sync */
    se_word syncs;                        /* log writer: how many there were */
    se_word sync_wanted;                  /* anyone raises: sync up to this version now */
    se_word log_size;                     /* log writer: bytes of log since the checkpoint */

    _Alignas(SE_LINE) se_word checkpoint_wanted; /* anyone adds 1 */
    se_word checkpoint_done;                     /* coordinator: requests answered */
    se_word checkpoint_version;                  /* coordinator: of the newest one */
    se_word checkpoint_failed;                   /* coordinator: errno of the last one, or 0 */
    se_word checkpoint_size;                     /* coordinator: bytes of the newest one */
    se_word32 checkpoint_bell;                   /* coordinator */

    _Alignas(SE_LINE) char log_failure[256]; /* log writer, before log_failed: what failed, UTF-8 */

    /* Free blocks that are being joined with their neighbours; see join.h. */
    _Alignas(SE_LINE) se_word join_from; /* where the stretch under way begins, 0: none is */
    se_word join_class;                  /* the free lists below it have been gone through */
    se_word join_rest;                   /* what is left of the list of that class */
    se_word join_window;                 /* the windows below it have been built anew */
    se_word join_next;                   /* where the next stretch ends, 0: at the arena's end */
    se_word join_count;                  /* stretches that were done */
    _Alignas(SE_LINE) se_word join_head[SE_JOIN_WINDOWS];

    _Alignas(SE_LINE) se_word32 bells[SE_BELL_COUNT]; /* futex words of those who watch keys */
} se_sequencer;
_Static_assert(offsetof(se_sequencer, commit_version) == 64, "sequencer.commit_version");
_Static_assert(offsetof(se_sequencer, trim_horizon) == 128, "sequencer.trim_horizon");
_Static_assert(offsetof(se_sequencer, arena_bump) == 192, "sequencer.arena_bump");
_Static_assert(offsetof(se_sequencer, arena_allocated) == 256, "sequencer.arena_allocated");
_Static_assert(offsetof(se_sequencer, live_keys) == 320, "sequencer.live_keys");
_Static_assert(sizeof(se_sequencer) <= SE_PAGE, "sequencer fits its page");

enum { SE_REQUEST_IDLE = 0, SE_REQUEST_PENDING = 1, SE_REQUEST_TAKEN = 2 };
enum { SE_SLOT_THREAD = 1, SE_SLOT_MEMBER = 2, SE_SLOT_ORPHAN = 3 };

/* One per thread that uses the database, and one "member" per handle, which keeps it open. */
typedef struct {
    _Alignas(SE_LINE) se_word identity; /* 0 free, else start time << 32 | pid; by compare-and-swap */
    se_word kind;                       /* the owner */

    _Alignas(SE_LINE) se_word pin; /* the owner: 0, or the pinned epoch + 1 */

    _Alignas(SE_LINE) se_word32 request_state; /* owner: idle/pending; holder: pending -> taken */
    se_word32 request_seq;                     /* owner */
    se_word request_size;                      /* owner: bytes of the write set */
    se_word request_ops;                       /* owner */
    se_word request_snapshot;                  /* owner: CHECK means "unchanged since" */
    se_word request_now_us;                    /* owner */
    se_word request_run_leaf;                  /* owner: the run's record, 0 = not registered */
    se_word request_run_epoch;                 /* owner */

    _Alignas(SE_LINE) se_word32 reply_seq; /* holder; the owner parks on it */
    se_word32 parked;                      /* owner sets, holder clears */
    se_word outcome_seq;                   /* holder, through the undo log */
    se_word reply_status;                  /* holder */
    se_word reply_version;                 /* holder */
    se_word reply_timestamp;               /* holder */
    se_word reply_detail;                  /* holder: what was found */
    se_word reply_op;                      /* holder: which operation failed */
} se_slot;
_Static_assert(sizeof(se_slot) == 256, "slot");
_Static_assert(offsetof(se_slot, reply_seq) == 192, "slot.reply_seq");

/* An announced snapshot: the versions it sees are not trimmed. */
typedef struct {
    se_word identity; /* 0 free, else the process that owns the entry */
    se_word version;  /* SE_NO_SNAPSHOT: none at the moment */
} se_snapshot;
_Static_assert(sizeof(se_snapshot) == 16, "snapshot");

typedef struct {
    se_word ref;
    se_word old;
} se_undo_entry;
_Static_assert(sizeof(se_undo_entry) == 16, "undo entry");

/* A block waiting until no pinned epoch can see it. */
typedef struct {
    se_word block; /* class << 57 | chain << 56 | freeing << 55 | offset */
    se_word epoch; /* the version at which it was unlinked */
} se_retired;
_Static_assert(sizeof(se_retired) == 16, "retired");

/* One version of one key. Immutable once published, but for prev, which may become SE_CUT. */
typedef struct {
    se_word prev; /* 0 first version, SE_CUT older ones were trimmed, else the older record */
    uint64_t version;
    uint64_t timestamp_us;
    uint64_t expires_us; /* 0 = never */
    uint32_t value_size;
    uint32_t flags;
    uint8_t value[];
} se_record;
_Static_assert(sizeof(se_record) == 40, "record");
#define SE_CUT 1u
#define SE_RECORD_TOMBSTONE 1u

typedef struct {
    se_word head; /* the newest record, or SE_LEAF_REMOVED; the only word readers race on */
    uint16_t key_size;
    uint8_t key[];
} se_leaf;
#define SE_LEAF_KEY_OFFSET 10u
_Static_assert(offsetof(se_leaf, key) == SE_LEAF_KEY_OFFSET, "leaf");
#define SE_LEAF_REMOVED 1u

typedef struct {
    se_word meta;  /* type | prefix size << 8; never changes */
    se_word count; /* children in use; grows by one release store */
    uint8_t prefix[];
} se_node;
_Static_assert(sizeof(se_node) == 16, "node");
enum { SE_NODE4 = 1, SE_NODE16 = 2, SE_NODE48 = 3, SE_NODE256 = 4 };

enum {
    SE_OP_PUT = 1,
    SE_OP_DELETE = 2, /* argument: 0, or the only version that may be deleted */
    SE_OP_CHECK = 3,  /* the key has not changed since request_snapshot */
    SE_OP_EXPECT = 4, /* argument: the current version must be this; 0 = absent */
    SE_OP_INCREMENT = 5,
    SE_OP_CHECK_RANGE = 6, /* nothing with this prefix has changed since request_snapshot */
    SE_OP_APPEND = 7,      /* an event; argument: -1, or the sequence that it must get */
    SE_OP_BUMP = 8         /* a counted value; argument: -1, or the counter to find, 0 = absent */
};

/* One operation of a write set; key and value follow, the whole padded to 8 bytes. */
typedef struct {
    uint8_t kind;
    uint8_t flags;
    uint16_t key_size;
    uint32_t value_size;
    uint64_t leaf; /* where the client found the key, 0 = nowhere; a hint, checked */
    uint64_t expires_us;
    int64_t argument;
    int64_t result; /* written by the holder: FORMAT.md, "Request" */
} se_op;
_Static_assert(sizeof(se_op) == 40, "op");

/* What a database survives (se_header.durability_kind). */
enum { SE_IN_MEMORY = 0, SE_NO_DURABILITY = 1, SE_BUFFERED = 2, SE_STRICT = 3 };

/* Others: see runs.py; none of them accepts writes. */
enum { SE_RUN_UNREGISTERED = 0, SE_RUN_ACTIVE = 1, SE_RUN_DELETED = 7 };
enum { SE_RETAIN_DEFAULT = 0, SE_RETAIN_ALL = 1, SE_RETAIN_LAST = 2, SE_RETAIN_FOR = 3 };

/* The value of a run's own record, under run id | SE_TAG_RUN | 0. */
typedef struct {
    uint8_t status;
    uint8_t retention_kind;
    uint8_t zero[6];
    uint64_t retention_argument; /* versions, or microseconds */
} se_run_record;
_Static_assert(sizeof(se_run_record) == 16, "run record");
#define SE_RUN_ID_SIZE 16u
#define SE_TAG_EVENT 0x02u
#define SE_TAG_TRACE 0x04u
#define SE_TAG_RUN 0x05u

/* Behind the tags of events, traces and runs: whose history nobody reads, and what is written once. */
#define SE_SPACE_BOOKKEEPING 0x01u
#define SE_SPACE_ENTRY 0x02u

#endif
