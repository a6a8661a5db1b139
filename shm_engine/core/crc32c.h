/* crc32c.h - the checksum of the log and the checkpoints (Castagnoli, as in iSCSI).
 *
 * Used by:    coordinator, command line; any thread.
 * Cost:       about 10 GB/s with the CPU's instruction, 1 GB/s by tables without.
 * Source:     RFC 3720, appendix B.4 (test vectors in tests/core/test_crc32c.c).
 */
#ifndef SE_CRC32C_H
#define SE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Goes on from `crc` (0 at first), so that pieces give the same as the whole. */
uint32_t se_crc32c(uint32_t crc, const void *bytes, size_t size);
/* The same by tables alone; for the test that compares the two. */
uint32_t se_crc32c_by_tables(uint32_t crc, const void *bytes, size_t size);

#endif
