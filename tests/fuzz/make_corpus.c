/* make_corpus.c - writes tests/fuzz/corpus: small logs with each kind of operation. */
#include "../core/logs.h"

static void write_frames(const char *folder, const char *name, test_frame *frames, uint32_t count) {
    char path[300];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    REQUIRE(file);
    for (uint32_t index = 0; index < count; index++)
        REQUIRE(fwrite(frames[index].bytes, 1, frames[index].size, file) == frames[index].size);
    REQUIRE(fclose(file) == 0);
}

int main(int argc, char **argv) {
    test_frame frames[6];
    char value[700];
    REQUIRE(argc == 2);
    memset(value, 'v', sizeof value);
    for (uint32_t index = 0; index < 6; index++) {
        test_frame *frame = &frames[index];
        test_frame_begin(frame);
        if (index != 1)
            test_frame_add(frame, SE_FRAME_PUT, "agent/1", value, 5 + index * 100, 0);
        if (index != 0)
            test_frame_add(frame, SE_FRAME_DELETE, "agent/22", NULL, 0, 0);
        if (index > 2)
            test_frame_add(frame, SE_FRAME_PUT_EXPIRES, "agent/3", value, 33, 1700000000000000);
        test_frame_end(frame, index * 10 + 1, index % 2 ? 10 : index * 10 + 1);
    }
    write_frames(argv[1], "put", frames, 1);
    write_frames(argv[1], "delete", frames + 1, 1);
    write_frames(argv[1], "expires", frames + 3, 1);
    write_frames(argv[1], "log", frames, 6);
    write_frames(argv[1], "gap", frames + 4, 2);
    for (uint32_t index = 0; index < 6; index++)
        test_frame_free(&frames[index]);
    return 0;
}
