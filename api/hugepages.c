// SPDX-License-Identifier: Apache-2.0
#include "api/hugepages.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "microvm/base/gmem.h"

// Documentation/admin-guide/mm/hugetlbpage.rst, transhuge.rst
#define POOL_DIR "/sys/kernel/mm/hugepages/hugepages-%llukB/"
#define THP_DIR "/sys/kernel/mm/transparent_hugepage/"

struct pool {
	bool there;                // the kernel has pages of this size
	uint64_t total, available; // in the pool; neither used nor reserved, or to be had on demand
};

static bool read_line(const char *path, char *line, size_t size)
{
	FILE *f = fopen(path, "re");
	bool ok = f && fgets(line, (int)size, f);
	if (f)
		fclose(f);
	return ok;
}

static bool read_number(unsigned long long kib, const char *name, uint64_t *ret_n)
{
	char path[120], line[40];
	snprintf(path, sizeof path, POOL_DIR "%s", kib, name);
	if (!read_line(path, line, sizeof line))
		return false;
	*ret_n = strtoull(line, NULL, 10);
	return true;
}

static struct pool read_pool(enum gmem_pages pages)
{
	unsigned long long kib = gmem_pages_bytes(pages) >> 10;
	uint64_t n, unused, reserved, most_surplus, surplus;
	if (!read_number(kib, "nr_hugepages", &n) || !read_number(kib, "free_hugepages", &unused) ||
	    !read_number(kib, "resv_hugepages", &reserved) ||
	    !read_number(kib, "nr_overcommit_hugepages", &most_surplus) ||
	    !read_number(kib, "surplus_hugepages", &surplus))
		return (struct pool){ 0 };
	uint64_t more = most_surplus > surplus ? most_surplus - surplus : 0; // read one after the other
	return (struct pool){ true, n, (unused > reserved ? unused - reserved : 0) + more };
}

// The word in brackets.
static bool read_choice(const char *path, char *word, size_t size)
{
	char line[120], *from, *to;
	if (!read_line(path, line, sizeof line) || !(from = strchr(line, '[')) || !(to = strchr(from, ']')))
		return false;
	*to = 0;
	snprintf(word, size, "%s", from + 1);
	return true;
}

// "always" and "madvise" are good; "never", or "" where the kernel has none.
static void thp_mode(char *word, size_t size)
{
	if (!read_choice(THP_DIR "hugepages-2048kB/enabled", word, size) || !strcmp(word, "inherit"))
		if (!read_choice(THP_DIR "enabled", word, size))
			word[0] = 0;
}

int hugepages_check(const struct vmcfg *cfg, struct api_err *err)
{
	char mode[32];
	if (!cfg->huge_pages)
		return 0;
	if (!gmem_pages_pooled(cfg->huge_pages)) {
		thp_mode(mode, sizeof mode);
		if (!strcmp(mode, "always") || !strcmp(mode, "madvise"))
			return 0;
		return api_fail(err, API_HUGE_PAGES_UNAVAILABLE,
				"huge_pages: transparent huge pages are off on this host (%s); echo madvise "
				"> " THP_DIR "enabled",
				mode[0] ? mode : "not in its kernel");
	}
	const char *name = vmcfg_huge_pages[cfg->huge_pages];
	unsigned long long bytes = gmem_pages_bytes(cfg->huge_pages);
	uint64_t want = ((uint64_t)cfg->mem_mib << 20) / bytes;
	struct pool p = read_pool(cfg->huge_pages);
	if (!p.there)
		return api_fail(err, API_HUGE_PAGES_UNAVAILABLE, "huge_pages: this host has no pages of %s",
				name);
	if (want <= p.available)
		return 0;
	return api_fail(
		err, API_HUGE_PAGES_UNAVAILABLE,
		"huge_pages: %u MiB of memory are %llu pages of %s, and %llu of the host's %llu are free; "
		"echo N > " POOL_DIR "nr_hugepages gives it N in all",
		cfg->mem_mib, (unsigned long long)want, name, (unsigned long long)p.available,
		(unsigned long long)p.total, bytes >> 10);
}

bool hugepages_describe(char *text, size_t size)
{
	struct pool two = read_pool(GMEM_2M), one = read_pool(GMEM_1G);
	char mode[32];
	thp_mode(mode, sizeof mode);
	snprintf(text, size, "2M: %llu of %llu free, 1G: %llu of %llu; transparent ones: %s",
		 (unsigned long long)two.available, (unsigned long long)two.total,
		 (unsigned long long)one.available, (unsigned long long)one.total, mode[0] ? mode : "none");
	return two.there || one.there || mode[0];
}
