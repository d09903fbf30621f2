"""The controller's shell: everything between the cluster's machine and the world."""

import os

# TLS 1.3 alone. grpcio cannot be told so; but this setting names the ciphers of TLS 1.2 only, and the one
# named here needs an RSA certificate, of which the authority makes none: no TLS 1.2 handshake finds a
# cipher. gRPC reads it when it is imported; should it have been imported before, `peers` still refuses each
# call.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES128-GCM-SHA256"

# Whoever knocks with something else than TLS is not worth a line in the log.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
