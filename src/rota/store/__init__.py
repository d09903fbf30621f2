"""Where the cluster's records are kept: a small port, and what stands behind it."""
