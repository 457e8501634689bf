
/*
 * Copyright (C) The nginx referral module authors
 *
 * The portable way is slicing-by-8 (Kounavis and Berry, "A Systematic
 * Approach to Building High Performance, Software-based, CRC Generators").
 */


#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "referral_crc32c.h"

#include <string.h>

#if defined(__x86_64__)
#include <nmmintrin.h>

#elif defined(__aarch64__)
#include <sys/auxv.h>

#ifndef HWCAP_CRC32
#define HWCAP_CRC32  (1 << 7)
#endif
#endif


#define REFERRAL_CRC32C_POLYNOMIAL  0x82f63b78    /* reflected */


typedef uint32_t (*referral_crc32c_pt)(uint32_t crc, const u_char *p,
    size_t len);


static void referral_crc32c_init(void) __attribute__((constructor));
static uint32_t referral_crc32c_slices(uint32_t crc, const u_char *p,
    size_t len);


static uint32_t            referral_crc32c_tables[8][256];
static referral_crc32c_pt  referral_crc32c_update = referral_crc32c_slices;


uint32_t
referral_crc32c(uint32_t seed, const void *buf, size_t len)
{
    return ~referral_crc32c_update(~seed, buf, len);
}


uint32_t
referral_crc32c_portable(uint32_t seed, const void *buf, size_t len)
{
    return ~referral_crc32c_slices(~seed, buf, len);
}


static uint32_t
referral_crc32c_slices(uint32_t crc, const u_char *p, size_t len)
{
    for ( /* void */ ; len >= 8; len -= 8, p += 8) {

        crc ^= (uint32_t) p[0] | (uint32_t) p[1] << 8
               | (uint32_t) p[2] << 16 | (uint32_t) p[3] << 24;

        crc = referral_crc32c_tables[7][crc & 0xff]
              ^ referral_crc32c_tables[6][crc >> 8 & 0xff]
              ^ referral_crc32c_tables[5][crc >> 16 & 0xff]
              ^ referral_crc32c_tables[4][crc >> 24]
              ^ referral_crc32c_tables[3][p[4]]
              ^ referral_crc32c_tables[2][p[5]]
              ^ referral_crc32c_tables[1][p[6]]
              ^ referral_crc32c_tables[0][p[7]];
    }

    while (len--) {
        crc = referral_crc32c_tables[0][(crc ^ *p++) & 0xff] ^ crc >> 8;
    }

    return crc;
}


#if defined(__x86_64__)

__attribute__((target("sse4.2")))
static uint32_t
referral_crc32c_machine(uint32_t crc, const u_char *p, size_t len)
{
    uint64_t  wide, word;

    wide = crc;

    for ( /* void */ ; len >= 8; len -= 8, p += 8) {
        memcpy(&word, p, 8);
        wide = _mm_crc32_u64(wide, word);
    }

    crc = (uint32_t) wide;

    while (len--) {
        crc = _mm_crc32_u8(crc, *p++);
    }

    return crc;
}

#elif defined(__aarch64__)

/* not arm_acle.h: clang's has these only when the whole file is for them */

static uint32_t
referral_crc32c_machine(uint32_t crc, const u_char *p, size_t len)
{
    uint64_t  word;

    for ( /* void */ ; len >= 8; len -= 8, p += 8) {
        memcpy(&word, p, 8);
        __asm__(".arch_extension crc\n\t"
                "crc32cx %w0, %w0, %x1" : "+r" (crc) : "r" (word));
    }

    while (len--) {
        __asm__(".arch_extension crc\n\t"
                "crc32cb %w0, %w0, %w1" : "+r" (crc) : "r" (*p++));
    }

    return crc;
}

#endif


/* runs before main() or inside dlopen(): no thread can see it half done */

static void
referral_crc32c_init(void)
{
    uint32_t  crc;
    unsigned  i, n;

    for (i = 0; i < 256; i++) {
        crc = i;

        for (n = 0; n < 8; n++) {
            crc = (crc & 1) ? crc >> 1 ^ REFERRAL_CRC32C_POLYNOMIAL : crc >> 1;
        }

        referral_crc32c_tables[0][i] = crc;
    }

    for (i = 0; i < 256; i++) {
        for (n = 1; n < 8; n++) {
            crc = referral_crc32c_tables[n - 1][i];
            referral_crc32c_tables[n][i] =
                          referral_crc32c_tables[0][crc & 0xff] ^ crc >> 8;
        }
    }

#if defined(__x86_64__)

    __builtin_cpu_init();

    if (__builtin_cpu_supports("sse4.2")) {
        referral_crc32c_update = referral_crc32c_machine;
    }

#elif defined(__aarch64__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__

    if (getauxval(AT_HWCAP) & HWCAP_CRC32) {
        referral_crc32c_update = referral_crc32c_machine;
    }

#endif
}
