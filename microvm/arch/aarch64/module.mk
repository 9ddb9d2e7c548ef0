# SPDX-License-Identifier: Apache-2.0
ARCH_LIBS := -lfdt -lz
