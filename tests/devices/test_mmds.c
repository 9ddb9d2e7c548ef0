// SPDX-License-Identifier: Apache-2.0
// The metadata service's requests and answers: mmds.c, mmds_http.c, mmds_json.c.
#include "tests/t.h"

#include <errno.h>
#include <stdio.h>

#include "devices/mmds.h"
#include "devices/mmds_json.h"
#include "devices/mmds_tcp.h"

static const char document[] =
	"{\"latest\":{\"meta-data\":{\"ami-id\":\"ami-1\",\"tags\":{\"a/b\":\"slash\",\"~\":\"tilde\"}},"
	"\"user-data\":\"#!/bin/sh\\necho \\\"hi\\\"\\t\\u00e4\\ud83d\\ude00\xc3\xa4\\\\/\\/\"},"
	"\"n\":-1.5e3,\"yes\":true,\"none\":null,\"list\":[1,[\"x\",{\"k\":\"v\"}],\"]}\"],\"empty\":{},"
	"\"el\":[],"
	"\"\\u006bey\":\"escaped key\"}\n";

struct fixture {
	struct mmds *m;
	char *text;  // of the last answer
	size_t used; // of the request
	bool last;
};

static struct fixture *make(bool tokens, bool imds_compat)
{
	struct fixture *f = calloc(1, sizeof *f);
	const struct mmds_config config = { { 169, 254, 169, 254 }, tokens, imds_compat };
	f->m = mmds_new(&config);
	assert_non_null(f->m);
	mmds_set_document(f->m, document, sizeof document - 1);
	return f;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	mmds_free(f->m);
	free(f->text);
	free(f);
	return 0;
}

static int set_up_v1(void **state) { return (*state = make(false, false)) ? 0 : -1; }
static int set_up_v2(void **state) { return (*state = make(true, false)) ? 0 : -1; }
static int set_up_compat(void **state) { return (*state = make(false, true)) ? 0 : -1; }

// The answer to these bytes; "": more are needed.
static const char *ask_bytes(struct fixture *f, const char *request, size_t len)
{
	MV_BUF answer = { 0 };
	MV_FREE uint8_t *exact = malloc(len + !len);
	memcpy(exact, request, len);
	f->last = false;
	f->used = mmds_http_request(f->m, exact, len, &answer, &f->last);
	assert_true(f->used <= len && !answer.failed);
	mv_buf_append(&answer, "", 1);
	free(f->text);
	f->text = (char *)MV_TAKE(answer.p);
	return f->text;
}

static const char *ask(struct fixture *f, const char *request)
{
	return ask_bytes(f, request, strlen(request));
}

static const char *body(struct fixture *f)
{
	const char *p = strstr(f->text, "\r\n\r\n"), *n = strstr(f->text, "Content-Length: ");
	assert_true(p && n && n < p);
	assert_int_equal(strtoul(n + 16, NULL, 10), strlen(p + 4));
	return p + 4;
}

static void expect(struct fixture *f, const char *request, const char *status, const char *text)
{
	ask(f, request);
	if (strncmp(f->text, status, strlen(status)) || strcmp(body(f), text))
		fail_msg("%s\nexpected %s\n%s\ngot %s", request, status, text, f->text);
	assert_int_equal(f->used, strlen(request));
}

#define GET(path, ...) "GET " path " HTTP/1.1\r\nHost: 169.254.169.254\r\n" __VA_ARGS__ "\r\n"
#define JSON "Accept: application/json\r\n"
#define OK "HTTP/1.1 200 OK\r\n"
#define NOT_FOUND "HTTP/1.1 404 Not Found\r\n"

static void test_paths(void **state)
{
	struct fixture *f = *state;
	expect(f, GET("/"), OK, "latest/\nn\nyes\nnone\nlist\nempty/\nel\nkey");
	expect(f, GET("/latest"), OK, "meta-data/\nuser-data");
	expect(f, GET("/latest/"), OK, "meta-data/\nuser-data");
	expect(f, GET("//latest///meta-data/"), OK, "ami-id\ntags/");
	expect(f, GET("/latest/meta-data/ami-id"), OK, "ami-1");
	expect(f, GET("http://169.254.169.254/latest/meta-data/ami-id"), OK, "ami-1");
	expect(f, GET("/latest/meta-data/tags/a~1b"), OK, "slash");
	expect(f, GET("/latest/meta-data/tags/~0"), OK, "tilde");
	expect(f, GET("/latest/user-data"), OK,
	       "#!/bin/sh\necho \"hi\"\t\xc3\xa4\xf0\x9f\x98\x80\xc3\xa4\\//");
	expect(f, GET("/key"), OK, "escaped key");
	expect(f, GET("/list/1/0"), OK, "x");
	expect(f, GET("/list/1/1"), OK, "k");
	expect(f, GET("/list/2"), OK, "]}");
	expect(f, GET("/empty"), OK, "");
	static const char *const missing[] = { "/lates",
					       "/latestx",
					       "/latest/meta-data/ami-id/x",
					       "/list/3",
					       "/list/-1",
					       "/list/01",
					       "/list/x",
					       "/el/0",
					       "/empty/x",
					       "/n/x",
					       "/list/99999999999999999999",
					       "/none/x",
					       "/\"latest",
					       "/~2" };
	for (unsigned i = 0; i < MV_ARRAY_LEN(missing); i++) {
		char request[200], text[100];
		snprintf(request, sizeof request, "GET %s HTTP/1.1\r\n\r\n", missing[i]);
		snprintf(text, sizeof text, "Resource not found: %s.", missing[i]);
		expect(f, request, NOT_FOUND, text);
	}
	static const char *const others[] = { "/n", "/yes", "/none", "/list", "/list/0", "/el" };
	for (unsigned i = 0; i < MV_ARRAY_LEN(others); i++) {
		char request[100];
		snprintf(request, sizeof request, "GET %s HTTP/1.1\r\n\r\n", others[i]);
		expect(f, request, "HTTP/1.1 501 Not Implemented\r\n",
		       "Cannot retrieve value. The value has an unsupported type.");
	}
}

static void test_json(void **state)
{
	struct fixture *f = *state;
	char whole[sizeof document];
	memcpy(whole, document, sizeof document);
	whole[sizeof document - 2] = 0; // no newline
	expect(f, GET("/", JSON), OK, whole);
	assert_non_null(strstr(f->text, "\r\nContent-Type: application/json\r\n"));
	expect(f, GET("/latest/meta-data/ami-id", "accept:application/json\r\n"), OK, "\"ami-1\"");
	expect(f, GET("/latest/meta-data", "Accept: text/html, Application/JSON;q=0.9\r\n"), OK,
	       "{\"ami-id\":\"ami-1\",\"tags\":{\"a/b\":\"slash\",\"~\":\"tilde\"}}");
	expect(f, GET("/n", JSON), OK, "-1.5e3");
	expect(f, GET("/none", JSON), OK, "null");
	expect(f, GET("/list", JSON), OK, "[1,[\"x\",{\"k\":\"v\"}],\"]}\"]");
	expect(f, GET("/list/1/1", JSON), OK, "{\"k\":\"v\"}");
	expect(f, GET("/el", JSON), OK, "[]");
	expect(f, GET("/nothing", JSON), NOT_FOUND, "Resource not found: /nothing.");
	assert_non_null(strstr(f->text, "\r\nContent-Type: text/plain\r\n"));
	expect(f, GET("/latest/meta-data/ami-id", "Accept: */*\r\n"), OK, "ami-1");
	expect(f, GET("/latest/meta-data/ami-id", "Accept: application/jsonx\r\n"), OK, "ami-1");
	assert_non_null(strstr(f->text, "\r\nContent-Type: text/plain\r\n"));
	// Another document, and white space in it.
	static const char spaced[] = " { \"a\" : [ 1 , { } ] ,\n\t\"b\" : \"c\" }\n";
	mmds_set_document(f->m, spaced, sizeof spaced - 1);
	expect(f, GET("/"), OK, "a\nb");
	expect(f, GET("/a/1", JSON), OK, "{ }");
	expect(f, GET("/b"), OK, "c");
	mmds_set_document(f->m, NULL, 0);
	expect(f, GET("/"), OK, "");
	expect(f, GET("/", JSON), OK, "{}");
}

static void test_compat(void **state)
{
	struct fixture *f = *state;
	expect(f, GET("/latest/meta-data/ami-id", JSON), OK, "ami-1");
	assert_non_null(strstr(f->text, "\r\nContent-Type: text/plain\r\n"));
}

static void test_http(void **state)
{
	struct fixture *f = *state;
	static const char whole[] = GET("/latest/meta-data/ami-id");
	for (size_t n = 0; n < sizeof whole - 1; n++) {
		ask_bytes(f, whole, n);
		assert_int_equal(f->used, 0);
		assert_string_equal(f->text, "");
	}
	expect(f, whole, OK, "ami-1");
	assert_false(f->last);
	assert_non_null(strstr(f->text, "\r\nConnection: keep-alive\r\n"));
	ask(f, GET("/latest") GET("/latest/meta-data")); // one of two
	assert_int_equal(f->used, strlen(GET("/latest")));
	assert_string_equal(body(f), "meta-data/\nuser-data");
	expect(f, GET("/latest/meta-data/ami-id", "Connection: close\r\n"), OK, "ami-1");
	assert_true(f->last);
	expect(f, "GET /latest/meta-data/ami-id HTTP/1.0\n\n", "HTTP/1.0 200 OK\r\n", "ami-1");
	assert_true(f->last);
	expect(f, "GET /latest/meta-data/ami-id HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
	       "HTTP/1.0 200 OK\r\n", "ami-1");
	assert_false(f->last);
	// A body belongs to its request.
	expect(f, GET("/latest/meta-data/ami-id", "Content-Length: 5\r\n") "abcde", OK, "ami-1");
	ask(f, GET("/latest/meta-data/ami-id", "Content-Length: 5\r\n") "abcd");
	assert_int_equal(f->used, 0);

	static const char *const others[] = { "POST", "PATCH", "DELETE", "get", "OPTIONS", "X" };
	for (unsigned i = 0; i < MV_ARRAY_LEN(others); i++) {
		char request[100];
		snprintf(request, sizeof request, "%s / HTTP/1.1\r\n\r\n", others[i]);
		expect(f, request, "HTTP/1.1 405 Method Not Allowed\r\n", "Not allowed HTTP method.");
		assert_non_null(strstr(f->text, "\r\nAllow: GET, PUT\r\n"));
	}
	ask(f, "HEAD / HTTP/1.1\r\n\r\n");
	assert_non_null(strstr(f->text, "HTTP/1.1 405 "));
	assert_string_equal(strstr(f->text, "\r\n\r\n"), "\r\n\r\n");

	static const char *const bad[] = { "GET\r\n\r\n",
					   "GET /\r\n\r\n",
					   "GET / HTTP/2\r\n\r\n",
					   "GET / HTTP/1.1 \r\n\r\n",
					   "GET / HTTP/1.1x\r\n\r\n",
					   "GET latest HTTP/1.1\r\n\r\n",
					   "GET http:// HTTP/1.1\r\n\r\n",
					   "GET  / HTTP/1.1\r\n\r\n",
					   "\r\n\r\n",
					   "\n\n",
					   "GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
					   "GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
					   "GET / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
					   "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" };
	for (unsigned i = 0; i < MV_ARRAY_LEN(bad); i++) {
		ask(f, bad[i]);
		if (!strstr(f->text, " 400 Bad Request\r\n") || !f->last || f->used != strlen(bad[i]))
			fail_msg("%s: %s", bad[i], f->text);
	}
	expect(f, "GET http://x HTTP/1.1\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n", "Invalid URI.");

	static char large[MMDS_TCP_ROOM + 1];
	memset(large, 'x', sizeof large - 1);
	ask_bytes(f, large, MMDS_TCP_ROOM - 1);
	assert_int_equal(f->used, 0);
	ask_bytes(f, large, MMDS_TCP_ROOM);
	assert_true(strstr(f->text, " 413 Content Too Large\r\n") && f->last && f->used == MMDS_TCP_ROOM);
	ask(f, GET("/", "Content-Length: 4096\r\n"));
	assert_true(strstr(f->text, " 413 Content Too Large\r\n") && f->last);
}

#define PUT(path, ...) "PUT " path " HTTP/1.1\r\n" __VA_ARGS__ "\r\n"
#define BAD_REQUEST "HTTP/1.1 400 Bad Request\r\n"
#define UNAUTHORIZED "HTTP/1.1 401 Unauthorized\r\n"

static void make_token(struct fixture *f, char token[MMDS_TOKEN_CHARS + 1])
{
	ask(f, PUT("/latest/api/token", "X-metadata-token-ttl-seconds: 60\r\n"));
	assert_memory_equal(f->text, OK, strlen(OK));
	assert_non_null(strstr(f->text, "\r\nX-metadata-token-ttl-seconds: 60\r\n"));
	assert_int_equal(strlen(body(f)), MMDS_TOKEN_CHARS);
	memcpy(token, body(f), MMDS_TOKEN_CHARS + 1);
}

static const char *get_with(struct fixture *f, const char *header, const char *token)
{
	char request[300];
	snprintf(request, sizeof request, "GET /latest/meta-data/ami-id HTTP/1.1\r\n%s: %s\r\n\r\n", header,
		 token);
	return ask(f, request);
}

static void test_tokens(void **state)
{
	struct fixture *f = *state;
	char a[MMDS_TOKEN_CHARS + 1], b[MMDS_TOKEN_CHARS + 1];
	expect(f, GET("/latest/meta-data/ami-id"), UNAUTHORIZED,
	       "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to "
	       "specify "
	       "the session token.");
	make_token(f, a);
	make_token(f, b);
	assert_string_not_equal(a, b);
	get_with(f, "X-metadata-token", a);
	assert_string_equal(body(f), "ami-1");
	get_with(f, "x-aws-EC2-metadata-token", b);
	assert_string_equal(body(f), "ami-1");
	b[7] ^= 1;
	get_with(f, "X-metadata-token", b);
	assert_string_equal(body(f), "MMDS token not valid.");
	assert_memory_equal(f->text, UNAUTHORIZED, strlen(UNAUTHORIZED));
	static const char *const wrong[] = { "", "0", "000000000000000000000000000000000000000000000000" };
	for (unsigned i = 0; i < MV_ARRAY_LEN(wrong); i++) {
		get_with(f, "X-metadata-token", wrong[i]);
		assert_memory_equal(f->text, UNAUTHORIZED, strlen(UNAUTHORIZED));
	}
	expect(f,
	       PUT("/latest/api/token", "X-metadata-token-ttl-seconds: 60\r\nX-Forwarded-For: 10.0.0.1\r\n"),
	       BAD_REQUEST, "Invalid header. Reason: Unsupported header name. Key: X-Forwarded-For");
	expect(f, PUT("/latest/api/token"), BAD_REQUEST,
	       "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or "
	       "`X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime.");
	expect(f, PUT("/latest/api/token", "X-metadata-token-ttl-seconds: 0\r\n"), BAD_REQUEST,
	       "Invalid time to live value provided for token: 0. Please provide a value between 1 and "
	       "21600.");
	expect(f, PUT("/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds: 21601\r\n"), BAD_REQUEST,
	       "Invalid time to live value provided for token: 21601. Please provide a value between 1 and "
	       "21600.");
	expect(f, PUT("/latest/api/token", "X-metadata-token-ttl-seconds: 4294967356\r\n"), BAD_REQUEST,
	       "Invalid header. Reason: Invalid value. Key:X-metadata-token-ttl-seconds; Value:4294967356");
	expect(f, PUT("/latest/api/token", "X-metadata-token-ttl-seconds: -1\r\n"), BAD_REQUEST,
	       "Invalid header. Reason: Invalid value. Key:X-metadata-token-ttl-seconds; Value:-1");
	expect(f, PUT("/latest", "X-metadata-token-ttl-seconds: 60\r\n"), NOT_FOUND,
	       "Resource not found: /latest.");
	// One that has ended; and another VM's.
	for (unsigned i = 0; i < MMDS_TOKENS; i++)
		if (f->m->token[i].end_ns)
			f->m->token[i].end_ns = 1;
	get_with(f, "X-metadata-token", a);
	assert_memory_equal(f->text, UNAUTHORIZED, strlen(UNAUTHORIZED));
	make_token(f, a);
	struct fixture *other = make(true, false);
	get_with(other, "X-metadata-token", a);
	assert_memory_equal(other->text, UNAUTHORIZED, strlen(UNAUTHORIZED));
	void *p = other;
	tear_down(&p);
	// Of more tokens than there is room for the last ones are good.
	for (unsigned i = 0; i < MMDS_TOKENS; i++)
		make_token(f, b);
	get_with(f, "X-metadata-token", b);
	assert_string_equal(body(f), "ami-1");
	get_with(f, "X-metadata-token", a);
	assert_memory_equal(f->text, UNAUTHORIZED, strlen(UNAUTHORIZED));
}

static void test_tokens_are_optional_in_v1(void **state)
{
	struct fixture *f = *state;
	char a[MMDS_TOKEN_CHARS + 1];
	make_token(f, a);
	get_with(f, "X-metadata-token", a);
	assert_string_equal(body(f), "ami-1");
	get_with(f, "X-metadata-token", "none");
	assert_string_equal(body(f), "ami-1");
}

// A text that is no JSON has nothing in it, wherever it is cut off or changed.
static void test_broken_documents(void **state)
{
	static const char *const paths[] = { "",           "latest", "latest/user-data",
					     "list/1/1/k", "list/2", "\\u006bey",
					     "key" };
	struct mmds_json v;
	(void)state;
	for (size_t n = 0; n < sizeof document; n++)
		for (unsigned i = 0; i < MV_ARRAY_LEN(paths); i++) {
			MV_BUF out = { 0 };
			MV_FREE char *exact = malloc(n + !n);
			memcpy(exact, document, n);
			if (n < sizeof document - 2 && !paths[i][0])
				assert_false(mmds_json_find(exact, n, paths[i], 0, &v));
			else if (mmds_json_find(exact, n, paths[i], strlen(paths[i]), &v))
				assert_true(v.p >= exact && v.p < v.end && v.end <= exact + n);
			for (size_t k = 0; k < n; k++) { // and changed
				char was = exact[k];
				exact[k] = "\"{}[],:\\u"[(n + k) % 9];
				if (mmds_json_find(exact, n, paths[i], strlen(paths[i]), &v)) {
					assert_true(v.p >= exact && v.p < v.end && v.end <= exact + n);
					mmds_json_plain(&v, &out);
				}
				exact[k] = was;
			}
		}
	assert_true(mmds_json_find(document, sizeof document - 1, "n", 1, &v));
	assert_int_equal(mmds_json_plain(&v, &(struct mv_buf){ 0 }), -ENOTSUP);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_paths, set_up_v1, tear_down),
		cmocka_unit_test_setup_teardown(test_json, set_up_v1, tear_down),
		cmocka_unit_test_setup_teardown(test_compat, set_up_compat, tear_down),
		cmocka_unit_test_setup_teardown(test_http, set_up_v1, tear_down),
		cmocka_unit_test_setup_teardown(test_tokens, set_up_v2, tear_down),
		cmocka_unit_test_setup_teardown(test_tokens_are_optional_in_v1, set_up_v1, tear_down),
		cmocka_unit_test(test_broken_documents),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
