# SPDX-License-Identifier: Apache-2.0
BASE_O := $(call objs,$(wildcard microvm/base/*.c))
VMM_O := $(call objs,$(filter-out microvm/main.c,$(wildcard microvm/*.c)) $(wildcard microvm/arch/$(ARCH)/*.c))
VMM_MAIN_O := $(call objs,microvm/main.c)
BASE_CFLAGS += -Imicrovm/arch/$(ARCH)
-include microvm/arch/$(ARCH)/module.mk

# Static: a VM process starts without the dynamic linker (0.4 ms less per clone) and
# needs no file system.
VMM := $(B)/bin/thaw-vmm
PROGRAMS += $(VMM)
$(VMM): $(VMM_MAIN_O) $(VMM_O) $(DEV_O) $(SNAP_O) $(BASE_O)
	$(Q)mkdir -p $(@D)
	$(call say,LD,$@)$(CC) $(if $(SAN),-pie,-static-pie) $(LDFLAGS_ALL) $(VMM_MAIN_O) $(VMM_O) $(DEV_O) $(SNAP_O) $(BASE_O) -luring -lxxhash -llz4 $(ARCH_LIBS) -o $@

$(PAGER): $(call objs,snapshot/thaw-pager/main.c) $(SANDBOX_O) $(SNAP_O) $(BASE_O)
	$(Q)mkdir -p $(@D)
	$(call say,LD,$@)$(CC) $(if $(SAN),-pie,-static-pie) $(LDFLAGS_ALL) $^ -luring -lxxhash -llz4 -lseccomp -o $@
