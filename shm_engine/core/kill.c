/* kill.c - dies in front of the k-th shared store; only in builds for the crash tests. */
#ifdef SE_KILL_POINTS
#include "kill.h"

#include <unistd.h>

uint64_t se_kill_count;
uint64_t se_kill_at;

void se_kill_point(void) {
    se_kill_count++;
    if (se_kill_count == se_kill_at)
        _exit(97); /* as abrupt as SIGKILL for shared memory, and quicker to start anew */
}
#else
typedef int se_kill_not_built;
#endif
