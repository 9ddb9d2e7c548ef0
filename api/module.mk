# SPDX-License-Identifier: Apache-2.0
# thawd.c and thaw.c are the mains; what both use is in API_COMMON.
API_COMMON := $(call objs,$(filter-out api/thawd.c api/thaw.c,$(wildcard api/*.c)))
THAWD := $(B)/bin/thawd
THAW := $(B)/bin/thaw
ifneq ($(wildcard api/thawd.c),)
PROGRAMS += $(THAWD) $(THAW)
endif
$(THAWD): $(call objs,api/thawd.c) $(API_COMMON) $(SNAP_O) $(BASE_O)
	$(Q)mkdir -p $(@D)
	$(call say,LD,$@)$(CC) -pie $(LDFLAGS_ALL) $^ -Wl,--as-needed -lmicrohttpd -ljansson -lxxhash -luring -o $@
$(THAW): $(call objs,api/thaw.c) $(API_COMMON) $(SNAP_O) $(BASE_O)
	$(Q)mkdir -p $(@D)
	$(call say,LD,$@)$(CC) -pie $(LDFLAGS_ALL) $^ -Wl,--as-needed -lmicrohttpd -ljansson -lxxhash -luring -o $@
