# SPDX-License-Identifier: Apache-2.0
# libthaw, shared and static. The static one is one object whose other names are local, so that only thaw_* leave it;
# `thaw` and the bench link it.
LIB_O := $(call objs,$(wildcard lib/*.c))
$(LIB_O): CFLAGS_LIB := -fPIC -fvisibility=hidden
LIBTHAW_A := $(B)/lib/libthaw.a
LIBTHAW_SO := $(B)/lib/libthaw.so.$(VERSION)
LIBTHAW_LINKS := libthaw.so.$(firstword $(subst ., ,$(VERSION))) libthaw.so
LIBRARIES := $(LIBTHAW_A) $(LIBTHAW_SO)
LIB_LIBS := -lcurl -ljansson

$(LIBTHAW_A): $(LIB_O)
	$(call say,AR,$@)rm -f $@ && $(LD) -r $^ -o $(@:.a=.o) && $(OBJCOPY) --localize-hidden $(@:.a=.o) && $(AR) rcs $@ $(@:.a=.o)
$(LIBTHAW_SO): $(LIB_O) lib/libthaw.map
	$(call say,LD,$@)$(CC) -shared $(LDFLAGS_ALL) $(LIB_O) -Wl,-soname,$(firstword $(LIBTHAW_LINKS)) \
		-Wl,--version-script=lib/libthaw.map $(if $(SAN),,-Wl,-z,defs) -Wl,--as-needed $(LIB_LIBS) -o $@
	$(Q)for l in $(LIBTHAW_LINKS); do ln -sf $(@F) $(@D)/$$l; done
