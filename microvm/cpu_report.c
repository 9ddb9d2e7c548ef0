// SPDX-License-Identifier: Apache-2.0
#include "microvm/cpu_report.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "microvm/base/scratch.h"
#include "microvm/sections.h"
#include "snapshot/format.h"

void cpu_report_add(struct mv_buf *list, const char *fmt, ...)
{
	char text[160];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	if (list->len)
		mv_buf_append(list, ", ", 2);
	mv_buf_append(list, text, strlen(text));
}

static int report(int state_fd, const char *kvm_path, const struct vmcfg_cpu *cpu, struct cpu_report *r,
		  struct mv_err *err)
{
	MV_SCRATCH uint8_t *payload = NULL;
	struct snap_section sec;
	size_t len, pos = 0;
	int e = snap_container_read(state_fd, SNAP_MAGIC_STATE, "state", SNAP_STATE_MAX_BYTES, &payload, &len,
				    err);
	if (e)
		return e;
	while ((e = snap_section_next(payload, len, &pos, &sec, err)) > 0)
		if (sec.kind == SECTION_VCPU && !sec.index)
			return cpu_report_arch(sec.bytes, sec.len, kvm_path, cpu, r, err);
	return e ? e : mv_fail(err, EINVAL, "state: has no vCPU");
}

int cpu_report(int state_fd, const char *kvm_path, const struct vmcfg_cpu *cpu, struct cpu_report *ret_report,
	       struct mv_err *err)
{
	struct cpu_report r = { 0 };
	int e = report(state_fd, kvm_path, cpu, &r, err);
	mv_buf_append(&r.features, "", 1);
	mv_buf_append(&r.missing, "", 1);
	if (!e && (r.features.failed || r.missing.failed))
		e = mv_fail(err, ENOMEM, "out of memory");
	if (e)
		cpu_report_fini(&r);
	else
		*ret_report = r;
	return e;
}

void cpu_report_fini(struct cpu_report *r)
{
	mv_buf_fini(&r->features);
	mv_buf_fini(&r->missing);
}
