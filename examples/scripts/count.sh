#!/bin/sh
# Counts to ten, or as far as its argument says.
seq "${1:-10}"
