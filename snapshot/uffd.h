// SPDX-License-Identifier: Apache-2.0
// The two things that everybody who answers a userfaultfd does in the same way. The other side
// is hostile: its process shares the open file.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct uffd_msg; // linux/userfaultfd.h

// Reads what is there without waiting. Bytes, or -1 and errno as read(2).
ssize_t uffd_read(int uffd, struct uffd_msg *m, size_t bytes);

// Lets whoever waits for these pages try again; fails only when the process is gone.
void uffd_wake(int uffd, uint64_t start, uint64_t len_bytes);
