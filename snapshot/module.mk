# SPDX-License-Identifier: Apache-2.0
SNAP_O := $(call objs,$(wildcard snapshot/*.c))
