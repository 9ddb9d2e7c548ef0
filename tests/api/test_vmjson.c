// SPDX-License-Identifier: Apache-2.0
// api/vmjson.c: request bodies to configurations, and overrides of clones.
#include "tests/t.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/vmjson.h"
#include "microvm/base/gmem.h"
#include "microvm/base/util.h"

static struct create_body body;
static struct api_err err;

// JSON with ' for ", which reads better in C.
static const char *quoted(const char *text)
{
	static char json[1000];
	size_t n = strlen(text);
	assert_true(n < sizeof json);
	for (size_t i = 0; i <= n; i++)
		json[i] = text[i] == '\'' ? '"' : text[i];
	return json;
}

static int create(const char *text)
{
	return create_parse(js_body_text(quoted(text), strlen(text)), &body, &err);
}

static void test_defaults(void **state)
{
	(void)state;
	assert_int_equal(create("{'name':'a','kernel':'/k','nets':[{'id':'n','tap':'t0'}]}"), 0);
	const struct vmcfg *c = &body.cfg;
	assert_int_equal(c->vcpus, 1);
	assert_int_equal(c->mem_mib, 128);
	assert_int_equal(c->discovery, VMCFG_ACPI);
	assert_int_equal(c->boot, VMCFG_BOOT_AUTO);
	assert_true(c->rng && !c->track_dirty);
	assert_false(body.start || c->vsock.present);
	assert_int_equal(strlen(c->id), 36);
	assert_int_equal(c->net[0].mac[0] & 3, 2); // local, unicast
}

static void test_everything_given(void **state)
{
	(void)state;
	assert_int_equal(create("{'name':'a.b-c_1','vcpus':32,'memory_mib':4,'kernel':'/k','initrd':'/i',"
				"'cmdline':'x=1','discovery':'cmdline','boot':'linux64','drives':[{'id':'d',"
				"'path':'/d','read_only':true,'serial':'01234567890123456789','rate_limit':"
				"{'bandwidth':{'size':10,'one_time_burst':9,'refill_time_ms':8}}}],"
				"'nets':[{'id':'n','tap':'t','mac':'02:00:00:00:00:01'}],"
				"'vsock':{'cid':3,'path':'/v'},'rng':false,'track_dirty':true,'start':true}"),
			 0);
	const struct vmcfg *c = &body.cfg;
	assert_true(c->drive[0].read_only && c->vsock.present && body.start && !c->rng && c->track_dirty);
	assert_string_equal(c->drive[0].serial, "01234567890123456789");
	const struct vmcfg_bucket *b = &c->drive[0].rate.bandwidth;
	assert_true(b->size == 10 && b->burst == 9 && b->refill_ms == 8 && !c->drive[0].rate.ops.size);
	char *text = js_text(js_encode(&config_table, c), false);
	assert_non_null(strstr(text, "\"rate_limit\":{\"bandwidth\":{\"size\":10,\"one_time_burst\":9,"
				     "\"refill_time_ms\":8}}"));
	assert_non_null(strstr(text, "\"vsock\":{\"cid\":3,\"path\":\"/v\"}"));
	assert_non_null(strstr(text, "\"mac\":\"02:00:00:00:00:01\""));
	assert_non_null(strstr(text, "\"track_dirty\":true"));
	free(text);
}

static void test_cpu(void **state)
{
	(void)state;
	assert_int_equal(create("{'name':'a','kernel':'/k'}"), 0);
	char *text = js_text(js_encode(&config_table, &body.cfg), false);
	assert_null(strstr(text, "cpu\":{"));
	free(text);
	assert_int_equal(create("{'name':'a','kernel':'/k','cpu':{'template':'x86-64-v3',"
				"'disable':['avx2','bmi1']}}"),
			 0);
	assert_int_equal(body.cfg.cpu.template, VMCFG_CPU_V3);
	text = js_text(js_encode(&config_table, &body.cfg), false);
	assert_non_null(strstr(text, "\"cpu\":{\"template\":\"x86-64-v3\",\"disable\":[\"avx2\",\"bmi1\"]}"));
	free(text);
	assert_int_equal(create("{'name':'a','kernel':'/k','cpu':{}}"), 0);
	text = js_text(js_encode(&config_table, &body.cfg), false);
	assert_non_null(strstr(text, "\"cpu\":{\"template\":\"host\"}"));
	free(text);
}

static void test_create_errors(void **state)
{
	(void)state;
	static const struct {
		const char *more;
		enum api_code code;
		const char *in_message;
	} cases[] = {
		{ "'cpu':1", API_WRONG_TYPE, "cpu: must be an object" },
		{ "'cpu':{'template':'x86-64-v9'}", API_INVALID_VALUE, "cpu.template: must be" },
		{ "'cpu':{'disable':'avx'}", API_WRONG_TYPE, "cpu.disable: must be an array" },
		{ "'cpu':{'disable':[1]}", API_WRONG_TYPE, "cpu.disable[0]: must be a string" },
		{ "'cpu':{'disable':['a_name_that_is_far_too_long']}", API_INVALID_VALUE, "longer" },
		{ "'vcpus':0", API_INVALID_VALUE, "vcpus: 0 is not within 1..32" },
		{ "'vcpus':33", API_INVALID_VALUE, "vcpus" },
		{ "'memory_mib':0", API_INVALID_VALUE, "memory_mib" },
		{ "'memory_mib':3", API_INVALID_VALUE, "memory_mib" },
		{ "'memory_mib':1048577", API_INVALID_VALUE, "memory_mib" },
		{ "'initrd':'i'", API_INVALID_VALUE, "absolute" },
		{ "'drives':[{'id':'d'}]", API_MISSING_FIELD, "drives[0].path" },
		{ "'drives':[{'id':'d','path':'/a','rate_limit':{'ops':{'size':1}}}]", API_MISSING_FIELD,
		  "drives[0].rate_limit.ops.refill_time_ms" },
		{ "'drives':[{'id':'d','path':'/a','rate_limit':{'ops':{'size':0,'refill_time_ms':1}}}]",
		  API_INVALID_VALUE, "drives[0].rate_limit.ops.size" },
		{ "'drives':[{'id':'d','path':'/a'},{'id':'d','path':'/b'}]", API_INVALID_VALUE, "twice" },
		{ "'nets':[{'id':'n','tap':''}]", API_INVALID_VALUE, "tap" },
		{ "'nets':[{'id':'n','tap':'a/b'}]", API_INVALID_VALUE, "tap" },
		{ "'nets':[{'id':'n','tap':'t%d'}]", API_INVALID_VALUE, "tap" },
		{ "'nets':[{'id':'n','tap':'0123456789abcdef'}]", API_INVALID_VALUE, "tap" },
		{ "'nets':[{'id':'n','tap':'t'},{'id':'m','tap':'t'}]", API_INVALID_VALUE, "twice" },
		{ "'nets':[{'id':'n'}]", API_INVALID_VALUE, "exactly one of tap, socket and user" },
		{ "'nets':[{'id':'n','tap':'t','user':{}}]", API_INVALID_VALUE, "exactly one" },
		{ "'nets':[{'id':'n','tap':'t','socket':'/s'}]", API_INVALID_VALUE, "exactly one" },
		{ "'nets':[{'id':'n','user':true}]", API_WRONG_TYPE, "nets[0].user" },
		{ "'nets':[{'id':'n','user':{'forward':[{'host_port':65536,'guest_port':1}]}}]",
		  API_INVALID_VALUE, "host_port" },
		{ "'vsock':{'path':'/v'}", API_MISSING_FIELD, "vsock.cid" },
		{ "'vsock':{'cid':0}", API_INVALID_VALUE, "vsock.cid" },
		{ "'vsock':{'cid':4294967295}", API_INVALID_VALUE, "vsock.cid" },
		{ "'kernal':'/k'", API_UNKNOWN_FIELD, "kernal" },
	};
	for (size_t i = 0; i < MV_ARRAY_LEN(cases); i++) {
		char text[400];
		snprintf(text, sizeof text, "{'name':'a','kernel':'/k',%s}", cases[i].more);
		if (!create(text))
			fail_msg("accepted: %s", text);
		assert_string_equal(api_code_info(err.code)->name, api_code_info(cases[i].code)->name);
		if (!strstr(err.msg, cases[i].in_message))
			fail_msg("\"%s\" is not in \"%s\"", cases[i].in_message, err.msg);
	}
}

static void base_config(struct vmcfg *c)
{
	assert_int_equal(create("{'name':'base','kernel':'/k','drives':[{'id':'d','path':'/d'},"
				"{'id':'e','path':'/e','read_only':true}],"
				"'nets':[{'id':'n','tap':'t','mac':'02:00:00:00:00:01'}],"
				"'vsock':{'cid':3,'path':'/v'}}"),
			 0);
	*c = body.cfg;
}

static int clone(const char *text, const struct vmcfg *base, struct vmcfg *ret_c)
{
	struct clone_body b;
	int r = clone_parse(quoted(text), strlen(text), &b, &err);
	if (!r) {
		static const struct clone_spec plain;
		r = clone_config(base, &b, b.clones ? &b.clones[0] : &plain, ret_c, &err);
	}
	clone_body_fini(&b);
	return r;
}

static void test_plain_clone(void **state)
{
	(void)state;
	struct vmcfg base, c;
	base_config(&base);
	assert_int_equal(clone("", &base, &c), 0);
	assert_string_equal(c.name, "");
	assert_string_equal(c.vsock.path, ""); // never the source's
	assert_int_equal(c.vsock.cid, 3);
	assert_string_not_equal(c.id, base.id);
	assert_memory_equal(c.net[0].mac, base.net[0].mac, 6);
	assert_string_equal(c.drive[0].path, "/d");
}

static void test_overrides(void **state)
{
	(void)state;
	struct vmcfg base, c;
	base_config(&base);
	assert_int_equal(clone("{'clones':[{'name':'x','drives':[{'id':'e','path':'/f'}],"
			       "'nets':[{'id':'n','mac':'02:00:00:00:00:02'}],'vsock':{'cid':9}}]}",
			       &base, &c),
			 0);
	assert_string_equal(c.name, "x");
	assert_string_equal(c.drive[0].path, "/d");
	assert_string_equal(c.drive[1].path, "/f");
	assert_true(c.drive[1].read_only); // untouched
	assert_string_equal(c.net[0].tap, "t");
	assert_int_equal(c.net[0].mac[5], 2);
	assert_int_equal(c.vsock.cid, 9);
	assert_string_equal(c.vsock.path, "");
	assert_int_equal(clone("{'clones':[{'vsock':{'path':'/w'},'drives':[{'id':'e','read_only':false}]}]}",
			       &base, &c),
			 0);
	assert_string_equal(c.vsock.path, "/w");
	assert_false(c.drive[1].read_only);
	assert_string_equal(c.drive[1].path, "/e");
}

// The clone's own goes before the request's, and that before the snapshot's.
static void test_huge_pages(void **state)
{
	(void)state;
	struct vmcfg base, c;
	base_config(&base);
	static const struct {
		const char *text;
		uint32_t of_4k, of_2m;
	} cases[] = {
		{ "", GMEM_4K, GMEM_2M },
		{ "{'huge_pages':'thp'}", GMEM_THP, GMEM_THP },
		{ "{'huge_pages':'thp','clones':[{}]}", GMEM_THP, GMEM_THP },
		{ "{'huge_pages':'thp','clones':[{'huge_pages':'none'}]}", GMEM_4K, GMEM_4K },
		{ "{'clones':[{'huge_pages':'1G'}]}", UINT32_MAX, UINT32_MAX }, // 128 MiB are none
	};
	for (size_t i = 0; i < MV_ARRAY_LEN(cases); i++)
		for (int k = 0; k < 2; k++) {
			uint32_t want = k ? cases[i].of_2m : cases[i].of_4k;
			base.huge_pages = k ? GMEM_2M : GMEM_4K;
			int r = clone(cases[i].text, &base, &c);
			assert_int_equal(!r, want != UINT32_MAX);
			if (!r)
				assert_int_equal(c.huge_pages, want);
		}
	char *text = js_text(js_encode(&config_table, &base), false);
	assert_non_null(strstr(text, "\"huge_pages\":\"2M\""));
	free(text);
}

static void test_networks(void **state)
{
	(void)state;
	struct vmcfg base, c;
	assert_int_equal(
		create("{'name':'b','kernel':'/k','nets':[{'id':'n','tap':'t'},{'id':'s','socket':'/s'},"
		       "{'id':'u','user':{'host_loopback':true,'forward':[{'host_port':80,'guest_port':81}]}}"
		       "]}"),
		0);
	base = body.cfg;
	assert_true(base.net[2].user.present);
	assert_int_equal(base.net[2].user.n_forwards, 1);
	assert_int_equal(clone("", &base, &c), 0);
	assert_string_equal(c.net[1].socket, "/s");
	assert_true(c.net[2].user.host_loopback);
	assert_int_equal(c.net[2].user.n_forwards, 0); // a host's port is one VM's
	// Each by each.
	assert_int_equal(clone("{'clones':[{'nets':[{'id':'n','user':{}},{'id':'s','tap':'x'},"
			       "{'id':'u','socket':'/w'}]}]}",
			       &base, &c),
			 0);
	assert_true(c.net[0].user.present && !c.net[0].tap[0] && !c.net[0].user.host_loopback);
	assert_string_equal(c.net[1].tap, "x");
	assert_string_equal(c.net[1].socket, "");
	assert_string_equal(c.net[2].socket, "/w");
	assert_false(c.net[2].user.present);
	assert_int_not_equal(clone("{'clones':[{'nets':[{'id':'n','user':{},'socket':'/w'}]}]}", &base, &c),
			     0);
	assert_non_null(strstr(err.msg, "exactly one"));
	assert_int_not_equal(clone("{'clones':[{'nets':[{'id':'n','socket':'/s'}]}]}", &base, &c), 0);
	assert_non_null(strstr(err.msg, "twice"));
}

static void test_metadata_service(void **state)
{
	(void)state;
	assert_int_equal(create("{'name':'a','kernel':'/k','nets':[{'id':'n'}],'metadata_service':{},"
				"'metadata':{'a':1}}"),
			 0);
	free(MV_TAKE(body.metadata));
	const struct vmcfg_metadata *m = &body.cfg.metadata;
	assert_true(m->present && !m->n_nets && m->version == VMCFG_METADATA_V2 && !m->imds_compat);
	assert_string_equal(m->address, "169.254.169.254");
	assert_int_equal(
		create("{'name':'a','kernel':'/k','nets':[{'id':'n'},{'id':'o','tap':'t'}],"
		       "'metadata_service':{'version':'v1','address':'169.254.1.2','imds_compat':true,"
		       "'nets':['n']}}"),
		0);
	char *text = js_text(js_encode(&config_table, &body.cfg), false);
	assert_non_null(strstr(text, "\"metadata_service\":{\"address\":\"169.254.1.2\",\"version\":\"v1\","
				     "\"imds_compat\":true,\"nets\":[\"n\"]}"));
	free(text);
	// A clone's is the snapshot's; one whose net was nobody's may have a tap.
	static struct vmcfg c;
	struct clone_spec spec = { .n_nets = 1, .net = { { .id = "n", .tap = "t2", .has_tap = true } } };
	assert_int_equal(clone_config(&body.cfg, NULL, &spec, &c, &err), 0);
	assert_memory_equal(&c.metadata, m, sizeof *m);
	assert_string_equal(c.net[0].tap, "t2");
	static const char *const bad[] = {
		"{'name':'a','kernel':'/k','metadata_service':{}}",
		"{'name':'a','kernel':'/k','nets':[{'id':'n'}]}",
		"{'name':'a','kernel':'/k','nets':[{'id':'n'}],'metadata_service':{'nets':['x']}}",
		"{'name':'a','kernel':'/k','nets':[{'id':'n'}],'metadata_service':{'version':'v3'}}",
		"{'name':'a','kernel':'/k','nets':[{'id':'n'}],'metadata_service':{'address':'1.2.3.4'}}",
		"{'name':'a','kernel':'/k','nets':[{'id':'n','tap':'t'}],'metadata':{}}",
	};
	for (size_t i = 0; i < MV_ARRAY_LEN(bad); i++) {
		assert_int_not_equal(create(bad[i]), 0);
		free(MV_TAKE(body.metadata));
		assert_int_equal(err.code, API_INVALID_VALUE);
	}
}

static void test_net_options(void **state)
{
	(void)state;
	struct vmcfg base, c;
	assert_int_equal(
		create("{'name':'b','kernel':'/k','nets':[{'id':'n','tap':'t','mtu':9000,'queues':4,"
		       "'rx_rate_limit':{'ops':{'size':10,'refill_time_ms':100}},"
		       "'tx_rate_limit':{'bandwidth':{'size':5,'refill_time_ms':7,'one_time_burst':9}}}]}"),
		0);
	base = body.cfg;
	assert_int_equal(base.net[0].mtu, 9000);
	assert_int_equal(vmcfg_net_pairs(&base.net[0]), 4);
	assert_int_equal(base.net[0].tx_rate.bandwidth.burst, 9);
	assert_int_equal(clone("{'clones':[{'nets':[{'id':'n','rx_rate_limit':{},"
			       "'tx_rate_limit':{'ops':{'size':3,'refill_time_ms':1}}}]}]}",
			       &base, &c),
			 0);
	assert_int_equal(c.net[0].queues, 4);
	assert_int_equal(c.net[0].rx_rate.ops.size, 0);
	assert_int_equal(c.net[0].tx_rate.bandwidth.size, 0);
	assert_int_equal(c.net[0].tx_rate.ops.size, 3);
	assert_int_equal(clone("", &base, &c), 0);
	assert_int_equal(c.net[0].rx_rate.ops.size, 10);
	assert_int_not_equal(create("{'name':'b','kernel':'/k','nets':[{'id':'n','tap':'t','queues':0}]}"),
			     0);
	assert_int_not_equal(create("{'name':'b','kernel':'/k','nets':[{'id':'n','tap':'t','mtu':65536}]}"),
			     0);
}

static void test_layers(void **state)
{
	(void)state;
	struct vmcfg base, c;
	assert_int_equal(create("{'name':'b','kernel':'/k','drives':[{'id':'d','path':'/d'},"
				"{'id':'e','path':'/e','layer':'kept','layer_path':'/l'}]}"),
			 0);
	base = body.cfg;
	assert_int_equal(base.drive[1].layer, VMCFG_LAYER_KEPT);
	assert_int_equal(clone("", &base, &c), 0); // a fresh one, never the source's
	assert_int_equal(c.drive[0].layer, VMCFG_LAYER_NONE);
	assert_int_equal(c.drive[1].layer, VMCFG_LAYER_EPHEMERAL);
	assert_string_equal(c.drive[1].layer_path, "");
	assert_int_equal(clone("{'clones':[{'drives':[{'id':'e','layer':'kept','layer_path':'/m'},"
			       "{'id':'d','layer':'ephemeral'}]}]}",
			       &base, &c),
			 0);
	assert_int_equal(c.drive[0].layer, VMCFG_LAYER_EPHEMERAL);
	assert_int_equal(c.drive[1].layer, VMCFG_LAYER_KEPT);
	assert_string_equal(c.drive[1].layer_path, "/m");
	assert_int_equal(clone("{'clones':[{'drives':[{'id':'e','layer':'none','path':'/f'}]}]}", &base, &c),
			 0);
	assert_int_equal(c.drive[1].layer, VMCFG_LAYER_NONE);
}

static void test_clone_errors(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		enum api_code code;
	} cases[] = {
		{ "{'count':0}", API_INVALID_VALUE },
		{ "{'count':4097}", API_INVALID_VALUE },
		{ "{'count':1,'clones':[{}]}", API_INVALID_VALUE },
		{ "{'clones':[]}", API_INVALID_VALUE },
		{ "{'clones':[{'drives':[{'id':'z'}]}]}", API_INVALID_VALUE },
		{ "{'clones':[{'nets':[{'id':'z'}]}]}", API_INVALID_VALUE },
		{ "{'clones':[{'nets':[{'id':'n','tap':''}]}]}", API_INVALID_VALUE },
		{ "{'clones':[{'drives':[{'id':'d','serial':'s'}]}]}", API_UNKNOWN_FIELD },
		{ "{'name':'x'}", API_UNKNOWN_FIELD },
		{ "{'run':1}", API_WRONG_TYPE },
	};
	struct vmcfg base, c;
	base_config(&base);
	for (size_t i = 0; i < MV_ARRAY_LEN(cases); i++) {
		if (!clone(cases[i].text, &base, &c))
			fail_msg("accepted: %s", cases[i].text);
		assert_string_equal(api_code_info(err.code)->name, api_code_info(cases[i].code)->name);
	}
	base.vsock.present = false;
	assert_int_not_equal(clone("{'clones':[{'vsock':{'cid':9}}]}", &base, &c), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_everything_given),
		cmocka_unit_test(test_cpu),
		cmocka_unit_test(test_create_errors),
		cmocka_unit_test(test_plain_clone),
		cmocka_unit_test(test_overrides),
		cmocka_unit_test(test_networks),
		cmocka_unit_test(test_net_options),
		cmocka_unit_test(test_networks),
		cmocka_unit_test(test_layers),
		cmocka_unit_test(test_clone_errors),
		cmocka_unit_test(test_huge_pages),
		cmocka_unit_test(test_metadata_service),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
