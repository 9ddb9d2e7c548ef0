# SPDX-License-Identifier: Apache-2.0
SNAP_O := $(call objs,$(wildcard snapshot/*.c))

# Static, like thaw-vmm: it starts fast and needs no file system.
PAGER := $(B)/bin/thaw-pager
PROGRAMS += $(PAGER)
SANDBOX_O := $(call objs,snapshot/thaw-pager/sandbox.c)
