// SPDX-License-Identifier: Apache-2.0
// What run.c, snapshot.c and mmds.c need of each other. Loop's thread.
#pragma once
#include "api/fc/fc.h"

int fc_run_or_pause(struct fc *fc, bool run, struct api_err *err);
void fc_forget_fds(struct fc *fc);

int fc_send_mmds(struct fc *fc, struct api_err *err); // no document: nothing happens
int fc_read_mmds_file(struct fc *fc, const char *path, struct api_err *err);
