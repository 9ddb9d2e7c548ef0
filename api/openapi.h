// SPDX-License-Identifier: Apache-2.0
// The OpenAPI 3.1 document of the REST interface. Any thread.
#pragma once

char *openapi_text(void); // to be freed; NULL: no memory
int openapi_init(void);   // makes what is served; 0 or -ENOMEM
