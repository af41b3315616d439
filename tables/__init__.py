"""Changelog-backed tables. Each has exactly one writer agent; views and the router only read them."""
