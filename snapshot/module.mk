# SPDX-License-Identifier: Apache-2.0
# Who has a sandbox links it; the others need no libseccomp.
SANDBOX_O := $(call objs,snapshot/sandbox.c)
SNAP_O := $(call objs,$(filter-out snapshot/sandbox.c,$(wildcard snapshot/*.c)))

# Static, like thaw-vmm: it starts fast and needs no file system.
PAGER := $(B)/bin/thaw-pager
PROGRAMS += $(PAGER)
