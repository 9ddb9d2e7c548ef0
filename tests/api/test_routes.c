// SPDX-License-Identifier: Apache-2.0
// api/routes.c and api/error.h: matching, the table, and the documentation of both.
#include "tests/t.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/routes.h"
#include "api/vm.h"
#include "microvm/base/util.h"

static void test_match(void **state)
{
	(void)state;
	char name[ROUTE_NAME_LEN];
	assert_true(route_match("/v1/vms", "/v1/vms", name));
	assert_false(route_match("/v1/vms", "/v1/vms/", name));
	assert_false(route_match("/v1/vms", "/v1/vm", name));
	assert_true(route_match("/v1/vms/{name}", "/v1/vms/a", name));
	assert_string_equal(name, "a");
	assert_false(route_match("/v1/vms/{name}", "/v1/vms/", name));
	assert_false(route_match("/v1/vms/{name}", "/v1/vms/a/b", name));
	assert_true(route_match("/v1/vms/{name}/start", "/v1/vms/x.y/start", name));
	assert_string_equal(name, "x.y");
	assert_false(route_match("/v1/vms/{name}/start", "/v1/vms//start", name));
	assert_false(route_match("/v1/vms/{name}/start", "/v1/vms/x/started", name));
	char path[200] = "/v1/vms/";
	memset(path + 8, 'n', 64);
	assert_true(route_match("/v1/vms/{name}", path, name));
	path[8 + 64] = 'n';
	assert_false(route_match("/v1/vms/{name}", path, name));
}

static void test_no_route_is_there_twice(void **state)
{
	(void)state;
	for (unsigned i = 0; i < api_n_routes; i++)
		for (unsigned k = 0; k < i; k++)
			assert_true(strcmp(api_routes[i].method, api_routes[k].method) ||
				    strcmp(api_routes[i].pattern, api_routes[k].pattern));
}

static void test_refusals(void **state)
{
	(void)state;
	assert_int_equal(vm_refusal_code(MSG_BOOT, ENOEXEC), API_KERNEL_INVALID);
	assert_int_equal(vm_refusal_code(MSG_BOOT, EBUSY), API_IN_USE);
	assert_int_equal(vm_refusal_code(MSG_RESTORE, EINVAL), API_SNAPSHOT_MISMATCH);
	assert_int_equal(vm_refusal_code(MSG_RESTORE, ENOMEM), API_OUT_OF_MEMORY);
	assert_int_equal(vm_refusal_code(MSG_CONSOLE_WRITE, EBUSY), API_WRONG_STATE);
	assert_int_equal(vm_refusal_code(MSG_CONSOLE_WRITE, ENOSPC), API_LIMIT_REACHED);
	assert_int_equal(vm_refusal_code(MSG_SNAPSHOT, ENOSPC), API_NO_SPACE);
	assert_int_equal(vm_refusal_code(MSG_RUN, 4095), API_VM_FAILED);
}

static char *read_docs(void)
{
	FILE *f = fopen("docs/api.md", "re");
	if (!f)
		return NULL;
	char *text = calloc(1, 1 << 20);
	size_t n = text ? fread(text, 1, (1 << 20) - 1, f) : 0;
	fclose(f);
	if (!n) {
		free(text);
		return NULL;
	}
	return text;
}

// docs/api.md has a heading "### METHOD /path" for every route and a row "| `code` | status |"
// for every error.
static void test_documented(void **state)
{
	(void)state;
	char *text = read_docs();
	if (!text)
		skip(); // not run from the source folder
	for (unsigned i = 0; i < api_n_routes; i++) {
		char line[120];
		snprintf(line, sizeof line, "\n### %s %s\n", api_routes[i].method, api_routes[i].pattern);
		if (!strstr(text, line))
			fail_msg("docs/api.md has no heading:%s", line);
		const struct js_table *query = api_routes[i].query;
		for (uint32_t q = 0; query && q < query->n_fields; q++)
			if (!strstr(text, query->fields[q].name))
				fail_msg("docs/api.md does not know ?%s", query->fields[q].name);
	}
	for (int c = API_OK + 1; c < API_N_CODES; c++) {
		const struct api_code_info *info = api_code_info((enum api_code)c);
		char row[120];
		snprintf(row, sizeof row, "\n| `%s` | %u |", info->name, info->status);
		if (!strstr(text, row))
			fail_msg("docs/api.md has no row:%s", row);
	}
	unsigned routes = 0, codes = 0;
	for (const char *p = text; (p = strstr(p, "\n### ")); p++)
		routes++;
	for (const char *p = strstr(text, "\n## Errors"); p && (p = strstr(p, "\n| `")); p++)
		codes++;
	assert_int_equal(routes, api_n_routes);
	assert_int_equal(codes, API_N_CODES - 1);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_match),
		cmocka_unit_test(test_no_route_is_there_twice),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_documented),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
