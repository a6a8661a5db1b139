/* bench_checkpoint.c - how fast a checkpoint is written and loaded.
 *
 *     bench_checkpoint FOLDER MEBIBYTES VALUE_SIZE [versions of each key]
 *
 * Keys are numbers written out, as they are in practice; the file is in the page cache when it is
 * loaded, so this is the cost of everything but the disk. One line of JSON comes out.
 */
#include "checkpoints.h"

#define BATCH 1000

/* What the processor did: on a machine with other work the clock on the wall says little. */
static double cpu_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static double seconds(uint64_t from_ns) { return (double)(se_clock_ns() - from_ns) / 1e9; }

static void fill(se_store *store, uint64_t keys, uint32_t value_size, uint64_t versions) {
    se_session session;
    uint8_t *value = malloc(value_size);
    REQUIRE(value && se_session_open(&session, store) == SE_OK);
    REQUIRE(test_set_retention(&session, SE_RETAIN_ALL, 0) == SE_OK);
    for (uint64_t number = 0; number < keys * versions;) {
        REQUIRE(se_session_begin(&session, test_run, se_clock_real_us(), 0) == SE_OK);
        for (int item = 0; item < BATCH && number < keys * versions; item++, number++) {
            char name[32];
            uint8_t key[SE_KEY_MAX];
            /* 2654435761 is odd, so every key comes once in each round */
            snprintf(name, sizeof name, "item:%010llu",
                     (unsigned long long)(number % keys * 2654435761u % keys));
            memset(value, (int)number, value_size);
            REQUIRE(se_session_add(&session, SE_OP_PUT, key, test_key(key, name), value,
                                   value_size, 0, 0) == SE_OK);
        }
        REQUIRE(test_submit(&session) == SE_OK);
    }
    se_session_close(&session);
    free(value);
}

int main(int argc, char **argv) {
    if (argc < 4)
        return 2;
    uint64_t size = strtoull(argv[2], NULL, 10) << 20;
    uint32_t value_size = (uint32_t)strtoul(argv[3], NULL, 10);
    uint64_t versions = argc > 4 ? strtoull(argv[4], NULL, 10) : 1;
    uint64_t keys = size / (8 + 33 + versions * (32 + value_size));
    test_folder folder;
    snprintf(folder.path, sizeof folder.path, "%s", argv[1]);
    folder.fd = open(folder.path, O_RDONLY | O_DIRECTORY);
    REQUIRE(folder.fd >= 0);
    uint64_t map_size = size * 2 + (UINT64_C(64) << 20);
    test_database database = test_database_make(map_size);
    uint64_t start_ns = se_clock_ns();
    fill(database.store, keys, value_size, versions);
    double filled_s = seconds(start_ns);
    se_checkpoint report;
    start_ns = se_clock_ns();
    double written_cpu_s = cpu_seconds();
    REQUIRE(se_checkpoint_write(database.store, folder.fd, NULL, NULL, &report) == SE_OK);
    double written_s = seconds(start_ns);
    written_cpu_s = cpu_seconds() - written_cpu_s;
    start_ns = se_clock_ns();
    uint64_t version = report.version;
    REQUIRE(se_checkpoint_check(folder.fd, version, NULL, NULL, &report) == SE_OK);
    double checked_s = seconds(start_ns);
    uint64_t used = se_arena_used(database.store);
    test_database_free(&database);
    double loaded_s = 1e9;
    double loaded_cpu_s = 1e9;
    for (int round = 0; round < 3; round++) {
        database = test_database_make(map_size);
        start_ns = se_clock_ns();
        double cpu_s = cpu_seconds();
        REQUIRE(se_checkpoint_load(database.store, folder.fd, version, false, NULL, NULL,
                                   &report) == SE_OK);
        loaded_s = seconds(start_ns) < loaded_s ? seconds(start_ns) : loaded_s;
        cpu_s = cpu_seconds() - cpu_s;
        loaded_cpu_s = cpu_s < loaded_cpu_s ? cpu_s : loaded_cpu_s;
        REQUIRE(report.keys == keys + 1);
        REQUIRE(se_arena_used(database.store) <= used);
        test_database_free(&database);
    }
    double mib = (double)report.size / (1 << 20);
    printf("{\"keys\": %llu, \"value_size\": %u, \"versions\": %llu, \"file_mib\": %.1f, "
           "\"fill_s\": %.2f, \"write_s\": %.2f, \"write_cpu_s\": %.2f, \"write_mib_s\": %.0f, "
           "\"check_mib_s\": %.0f, \"load_s\": %.3f, \"load_cpu_s\": %.3f, "
           "\"load_mib_s\": %.0f, \"load_cpu_mib_s\": %.0f}\n",
           (unsigned long long)keys, value_size, (unsigned long long)versions, mib, filled_s,
           written_s, written_cpu_s, mib / written_s, mib / checked_s, loaded_s, loaded_cpu_s,
           mib / loaded_s, mib / loaded_cpu_s);
    char name[SE_NAME_MAX];
    se_checkpoint_name(version, name);
    (void)se_io_remove(folder.fd, name);
    return 0;
}
