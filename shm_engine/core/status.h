/* status.h - the outcomes of the core.
 *
 * Why:     every function that can fail returns one se_status; one list gives its number, its name
 *          and its text, and which Python exception it becomes (see _core.pyx).
 * Used by: coordinator and clients, any thread.
 */
#ifndef SE_STATUS_H
#define SE_STATUS_H

/* code, name, text, exception class in shm_engine.errors ("" = handled inside the core) */
#define SE_STATUS_LIST(X)                                                                      \
    X(0, OK, "done", "")                                                                       \
    X(1, NOT_FOUND, "no such key at this version", "KeyNotFound")                              \
    X(2, CONFLICT, "a key that was read has changed since", "TransactionConflict")             \
    X(3, MISMATCH, "the expected version is not the current one", "VersionMismatch")           \
    X(4, WRONG_TYPE, "the stored value is of another type", "WrongType")                       \
    X(5, OVERFLOW, "the result does not fit a signed 64-bit integer", "ConstraintViolation")   \
    X(6, FULL, "no shared memory is left for this database", "StorageFull")                    \
    X(7, NEED_SPACE, "the arena must grow before this commit", "")                             \
    X(8, STALE_RUN, "the run's record moved; look it up again", "")                            \
    X(9, RUN_CLOSED, "the run is not active", "RunError")                                      \
    X(10, TRIMMED, "the version asked for has been trimmed", "HistoryTrimmed")                 \
    X(11, CORRUPT, "shared memory holds an impossible value", "Corruption")                    \
    X(12, FORMAT, "the segments have another format", "FormatMismatch")                        \
    X(13, BUSY, "another client holds the sequencer", "")                                      \
    X(14, TOO_MANY, "no client slot is free", "Unavailable")                                   \
    X(15, TOO_LARGE, "the write set is larger than a commit may be", "ConstraintViolation")    \
    X(16, INVALID, "the request makes no sense", "InternalError")                              \
    X(17, CLOSED, "the database is closed", "Closed")                                          \
    X(18, IO, "a system call failed", "IoError")                                               \
    X(19, IN_DOUBT, "the commit is in the hands of a stopped process", "Unavailable")          \
    X(20, NEED_LOG, "the log must be written before this commit", "")                          \
    X(21, READ_ONLY, "the log could not be written", "IoError")                                \
    X(22, DAMAGED, "a file of the database is damaged", "Corruption")

#define SE_STATUS_ENUM(code, name, text, exception) SE_##name = code,
typedef enum { SE_STATUS_LIST(SE_STATUS_ENUM) } se_status;
#undef SE_STATUS_ENUM

const char *se_status_text(se_status status);
const char *se_status_exception(se_status status);

#define SE_TRY(call)                         \
    do {                                     \
        se_status try_status_ = (call);      \
        if (try_status_ != SE_OK)            \
            return try_status_;              \
    } while (0)

#endif
