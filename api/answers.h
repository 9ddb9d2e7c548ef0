// SPDX-License-Identifier: Apache-2.0
// What the API's answers look like, in the tables of json.h, for /v1/openapi.json alone: the answers
// themselves are put together where they are known. The end-to-end tests hold each answer they
// get against these. JS_REQUIRED is what is always there. Constant data.
#pragma once
#include "api/json.h"

extern const struct js_table info_answer, vm_answer, vm_list_answer, snapshot_answer, snapshot_list_answer,
	snapshot_created_answer, imported_answer, verify_answer, flatten_answer, prepare_answer, clone_answer,
	fork_answer, gc_answer, event_answer, balloon_answer, usage_answer, devices_answer, error_answer,
	any_answer, operation_list_answer;
