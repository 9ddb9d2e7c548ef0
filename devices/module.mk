# SPDX-License-Identifier: Apache-2.0
DEV_O := $(call objs,$(wildcard devices/*.c))
