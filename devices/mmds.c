// SPDX-License-Identifier: Apache-2.0
#include "devices/mmds.h"

#include <errno.h>
#include <string.h>

#include "devices/mmds_json.h"

#define NS_PER_S 1000000000ull

static const char empty[] = "{}\n";

struct mmds *mmds_new(const struct mmds_config *config)
{
	struct mmds *m = calloc(1, sizeof *m);
	if (!m)
		return NULL;
	m->config = *config;
	m->document = empty;
	m->document_len = sizeof empty - 1;
	pthread_mutex_init(&m->lock, NULL);
	return m;
}

void mmds_free(struct mmds *m)
{
	if (m)
		pthread_mutex_destroy(&m->lock);
	free(m);
}

void mmds_set_document(struct mmds *m, const void *bytes, size_t len)
{
	pthread_mutex_lock(&m->lock);
	m->document = bytes ? bytes : empty;
	m->document_len = bytes ? len : sizeof empty - 1;
	pthread_mutex_unlock(&m->lock);
}

void mmds_make_token(struct mmds *m, uint32_t ttl_s, char ret_text[MMDS_TOKEN_CHARS])
{
	static const char digits[] = "0123456789abcdef";
	struct mmds_token *t = &m->token[0];
	pthread_mutex_lock(&m->lock);
	for (unsigned i = 1; i < MMDS_TOKENS; i++)
		t = m->token[i].end_ns < t->end_ns ? &m->token[i] : t;
	mv_random(t->bytes, sizeof t->bytes);
	t->end_ns = mv_now_ns() + ttl_s * NS_PER_S;
	for (unsigned i = 0; i < MMDS_TOKEN_CHARS; i++)
		ret_text[i] = digits[t->bytes[i / 2] >> (i % 2 ? 0 : 4) & 15];
	pthread_mutex_unlock(&m->lock);
}

// Compares without telling by its time how much of a token was right.
static bool same(const struct mmds_token *t, const char *text)
{
	unsigned differs = 0;
	for (unsigned i = 0; i < MMDS_TOKEN_CHARS; i++) {
		unsigned digit = t->bytes[i / 2] >> (i % 2 ? 0 : 4) & 15;
		differs |= (unsigned char)text[i] ^ (digit < 10 ? '0' + digit : 'a' + digit - 10);
	}
	return !differs;
}

bool mmds_token_ok(struct mmds *m, const char *text, size_t len)
{
	bool ok = false;
	if (len != MMDS_TOKEN_CHARS)
		return false;
	pthread_mutex_lock(&m->lock);
	uint64_t now_ns = mv_now_ns();
	for (unsigned i = 0; i < MMDS_TOKENS; i++)
		ok |= m->token[i].end_ns > now_ns && same(&m->token[i], text);
	pthread_mutex_unlock(&m->lock);
	return ok;
}

int mmds_look_up(struct mmds *m, const char *path, size_t len, bool plain, struct mv_buf *out)
{
	struct mmds_json v;
	int r = 0;
	pthread_mutex_lock(&m->lock);
	if (!mmds_json_find(m->document, m->document_len, path, len, &v))
		r = -ENOENT;
	else if (plain)
		r = mmds_json_plain(&v, out);
	else
		mv_buf_append(out, v.p, (size_t)(v.end - v.p));
	pthread_mutex_unlock(&m->lock);
	return r;
}
