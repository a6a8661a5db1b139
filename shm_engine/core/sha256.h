/* sha256.h - SHA-256, block by block.
 *
 * Why:     an event's hash covers its content, which the client knows long before the commit, and its
 *          place in the chain, which only the holder knows. The content comes first and fills whole
 *          blocks, so that the client hashes it in its own time and hands over the state between two
 *          blocks; one block is left to do under the sequencer.
 * Used by: any thread. No shared state.
 * Source:  FIPS 180-4, section 6.2.
 */
#ifndef SE_SHA256_H
#define SE_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SE_SHA256_SIZE 32u
#define SE_SHA256_BLOCK 64u

typedef struct {
    uint32_t word[8];
} se_sha256;

void se_sha256_begin(se_sha256 *state);
/* Takes size bytes in, then zeros up to the end of a block; returns how many bytes that were. */
uint64_t se_sha256_add_padded(se_sha256 *state, const uint8_t *bytes, uint64_t size);
/* The last bytes, at most 55, of a message of so many bytes in all. */
void se_sha256_end(se_sha256 *state, const uint8_t *bytes, uint32_t size, uint64_t message_size,
                   uint8_t *digest);
/* The state between two blocks as 32 bytes, and back. */
void se_sha256_save(const se_sha256 *state, uint8_t *bytes);
void se_sha256_restore(se_sha256 *state, const uint8_t *bytes);

#endif
