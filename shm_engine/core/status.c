/* status.c - the texts of the outcomes. */
#include "status.h"

const char *se_status_text(se_status status) {
    switch (status) {
#define SE_CASE(code, name, text, exception) \
    case SE_##name:                          \
        return text;
        SE_STATUS_LIST(SE_CASE)
#undef SE_CASE
    }
    return "unknown status";
}

const char *se_status_exception(se_status status) {
    switch (status) {
#define SE_CASE(code, name, text, exception) \
    case SE_##name:                          \
        return exception;
        SE_STATUS_LIST(SE_CASE)
#undef SE_CASE
    }
    return "InternalError";
}
