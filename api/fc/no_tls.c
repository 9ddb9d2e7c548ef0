// SPDX-License-Identifier: Apache-2.0
// libmicrohttpd is built with TLS by distributions, and thaw-firecracker is linked statically, because
// loading GnuTLS and the ten libraries behind it is half of the time from exec to the first answer. Its API
// is on a Unix socket and has no TLS: a daemon without MHD_USE_TLS calls nothing of GnuTLS but its
// initialisation. These are the names that the linker looks for; whoever calls one of them is wrong, and ends
// here.
#include <stdlib.h>

int gnutls_global_init(void);
void gnutls_global_deinit(void);
int gnutls_global_init(void) { return 0; } // GNUTLS_E_SUCCESS; MHD_init()
void gnutls_global_deinit(void) {}

#define NEVER(name)                                                                                          \
	_Noreturn void gnutls_##name(void);                                                                  \
	_Noreturn void gnutls_##name(void) { abort(); }
// clang-format off
NEVER(alpn_set_protocols)
NEVER(bye)
NEVER(certificate_allocate_credentials)
NEVER(certificate_free_credentials)
NEVER(certificate_server_set_request)
NEVER(certificate_set_dh_params)
NEVER(certificate_set_retrieve_function2)
NEVER(certificate_set_retrieve_function3)
NEVER(certificate_set_x509_key_mem)
NEVER(certificate_set_x509_key_mem2)
NEVER(certificate_set_x509_trust_mem)
NEVER(cipher_get)
NEVER(credentials_set)
NEVER(deinit)
NEVER(dh_params_deinit)
NEVER(dh_params_import_pkcs3)
NEVER(dh_params_init)
NEVER(handshake)
NEVER(init)
NEVER(malloc)
NEVER(priority_deinit)
NEVER(priority_init)
NEVER(priority_set)
NEVER(protocol_get_version)
NEVER(psk_allocate_server_credentials)
NEVER(psk_free_server_credentials)
NEVER(psk_set_server_credentials_function)
NEVER(record_check_pending)
NEVER(record_get_direction)
NEVER(record_recv)
NEVER(record_send)
NEVER(session_get_ptr)
NEVER(session_set_ptr)
NEVER(strerror)
NEVER(transport_set_int2)
// clang-format on
