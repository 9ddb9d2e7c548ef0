// SPDX-License-Identifier: Apache-2.0
// Wrapped little-endian integers and guest addresses: a value from a guest, a file
// or the wire cannot be added to or dereferenced by accident.
#pragma once
#include <endian.h>
#include <stdint.h>

// clang-format off
typedef struct { uint16_t raw; } le16_t;
typedef struct { uint32_t raw; } le32_t;
typedef struct { uint64_t raw; } le64_t;
typedef struct { uint64_t v; } gpa_t; // a guest-physical address, unchecked
// clang-format on

static inline uint16_t le16_get(le16_t x) { return le16toh(x.raw); }
static inline uint32_t le32_get(le32_t x) { return le32toh(x.raw); }
static inline uint64_t le64_get(le64_t x) { return le64toh(x.raw); }
static inline le16_t le16_make(uint16_t v) { return (le16_t){ htole16(v) }; }
static inline le32_t le32_make(uint32_t v) { return (le32_t){ htole32(v) }; }
static inline le64_t le64_make(uint64_t v) { return (le64_t){ htole64(v) }; }
static inline gpa_t gpa(uint64_t v) { return (gpa_t){ v }; }
