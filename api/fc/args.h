// SPDX-License-Identifier: Apache-2.0
// Firecracker's command line, as thaw-firecracker takes it.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct fc_args {
	const char *api_sock, *id, *config_file, *metadata;
	const char *log_path, *level, *module, *metrics_path;
	const char *describe_snapshot;
	bool no_api, show_level, show_log_origin, boot_timer, snapshot_version, version, help, table;
	bool has_mmds_size_limit;
	size_t max_payload_bytes, mmds_size_limit;
	uint64_t start_time_us, start_time_cpu_us, parent_cpu_time_us;
};

// 0, or -EINVAL with a sentence on standard error. Values stay in argv.
int fc_args_parse(int argc, char **argv, struct fc_args *ret_args);
void fc_args_help(void);
