// SPDX-License-Identifier: Apache-2.0
// Configuration files of thaw and thawd: lines "key = value", with the names of the program's options; empty
// lines, and those that begin with '#'. Spaces around key and value do not count. One thread, one file per
// program; trusted input.
#pragma once
#include "microvm/base/err.h"

// Takes one setting, whose texts stay for as long as the program runs; NULL, or what is wrong with it.
typedef const char *conf_fn(void *arg, const char *key, const char *value);

// -ENOENT: there is no such file. Other errors name file and line.
int conf_read(const char *path, conf_fn *fn, void *arg, struct mv_err *err);
