"""Rota runs programs on a set of machines. This package holds only what every part needs."""

import os

__version__ = "0.1.0.dev0"

# gRPC must see this before its first import anywhere in the process. Its support for fork is on by default
# and runs handlers around every fork; with a stream open, children started with another user or with a
# preexec function died by SIGSEGV in more than a third of the tries. No process of Rota forks and then goes
# on with gRPC in the child, so the support has nothing to do here. Whoever sets the variable is obeyed.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# NumPy's linear algebra would start a thread for each core when it is imported; no part multiplies matrices.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
