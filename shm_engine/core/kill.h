/* kill.h - the counter of shared stores in builds with SE_KILL_POINTS. */
#ifndef SE_KILL_H
#define SE_KILL_H

#include <stdint.h>

extern uint64_t se_kill_count; /* stores so far in this process */
extern uint64_t se_kill_at;    /* die in front of this one; 0 = never */

#endif
