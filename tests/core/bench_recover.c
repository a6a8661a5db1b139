/* bench_recover.c - commits replayed a second.
 *
 *     bench_recover [COMMITS [KEYS [VALUE_SIZE]]]
 */
#include "logs.h"

#define FILE_SIZE (UINT64_C(16) << 20)

static double now_s(void) { return (double)se_clock_ns() / 1e9; }

static uint64_t write_log(const test_folder *folder, uint64_t commits, uint64_t keys,
                          uint32_t value_size) {
    test_log log;
    uint64_t offset = 0;
    uint8_t *bytes = malloc(FILE_SIZE);
    uint8_t *value = calloc(1, value_size);
    uint64_t total = 0;
    REQUIRE(bytes && value);
    test_log_begin(&log, folder, true);
    test_frame frame;
    test_frame_begin(&frame);
    for (uint64_t version = 1; version <= commits; version++) {
        char name[32];
        snprintf(name, sizeof name, "agent/%llu",
                 (unsigned long long)(version * 2654435761u % keys));
        frame.size = sizeof(se_frame);
        test_frame_add(&frame, SE_FRAME_PUT, name, value, value_size, 0);
        test_frame_end(&frame, version, 1);
        if (version == 1 || SE_WAL_FIRST_FRAME + offset + frame.size > FILE_SIZE) {
            if (version > 1)
                REQUIRE(se_io_write(log.fd, bytes, offset, SE_WAL_FIRST_FRAME) == SE_OK);
            log.version = version - 1;
            test_log_rotate(&log, version, FILE_SIZE);
            offset = 0;
        }
        memcpy(bytes + offset, frame.bytes, frame.size);
        offset += frame.size;
        total += frame.size;
    }
    REQUIRE(se_io_write(log.fd, bytes, offset, SE_WAL_FIRST_FRAME) == SE_OK);
    test_frame_free(&frame);
    test_log_end(&log);
    free(bytes);
    free(value);
    return total;
}

int main(int argc, char **argv) {
    uint64_t commits = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000000;
    uint64_t keys = argc > 2 ? strtoull(argv[2], NULL, 10) : 100000;
    uint32_t value_size = argc > 3 ? (uint32_t)atoi(argv[3]) : 100;
    test_folder folder = test_folder_make();
    uint64_t total = write_log(&folder, commits, keys, value_size);
    se_recover_options options = {.read_only = true};
    se_recovery report;
    double start = now_s();
    REQUIRE(se_recover(NULL, folder.fd, &options, &report) == SE_OK);
    double checked = now_s() - start;
    test_database database = test_database_make(UINT64_C(4) << 30);
    start = now_s();
    options.read_only = false;
    REQUIRE(se_recover(database.store, folder.fd, &options, &report) == SE_OK);
    double applied = now_s() - start;
    REQUIRE(report.commits == commits);
    printf("%llu commits, %.0f MB of log: checked %.2f s (%.0f MB/s), replayed %.2f s, "
           "%.0f commits/s\n",
           (unsigned long long)commits, (double)total / 1e6, checked,
           (double)total / 1e6 / checked, applied, (double)commits / applied);
    test_database_free(&database);
    test_folder_remove(&folder);
    return 0;
}
