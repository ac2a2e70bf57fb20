/* The peers of `precopy bench bitmap`: what a sync costs word by word, and page by page, in compiled code.
 *
 * Both take what is set in `source` over into `dest`, clear it in `source`, and return how many bits were new in `dest`.
 * Bit i of a bitmap is bit i % 64 of word i / 64.
 */
#include <stddef.h>
#include <stdint.h>

/* Whole words. The exchange is what makes this safe while other threads set bits; a zero word costs no more than a load. */
uint64_t sync_words(uint64_t *source, uint64_t *dest, size_t words)
{
    uint64_t count = 0;

    for (size_t i = 0; i < words; i++) {
        if (source[i] != 0) {
            uint64_t bits = __atomic_exchange_n(&source[i], 0, __ATOMIC_SEQ_CST);
            uint64_t fresh = bits & ~dest[i];

            dest[i] |= bits;
            count += (uint64_t)__builtin_popcountll(fresh);
        }
    }
    return count;
}

/* Any range of pages: each page's bit is tested and cleared by itself, and tested and set by itself. */
uint64_t sync_pages(uint64_t *source, uint64_t *dest, size_t start, size_t pages)
{
    uint64_t count = 0;

    for (size_t page = start; page < start + pages; page++) {
        uint64_t bit = UINT64_C(1) << (page % 64);

        if (__atomic_fetch_and(&source[page / 64], ~bit, __ATOMIC_SEQ_CST) & bit) {
            count += (dest[page / 64] & bit) == 0;
            dest[page / 64] |= bit;
        }
    }
    return count;
}
