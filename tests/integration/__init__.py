"""The whole service as separate processes on real servers, driven from outside: environment, HTTP and signals only."""
