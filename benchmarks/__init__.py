"""What the project measures; `make bench-…` runs it."""
