"""One view per resource; each reads rows and read models and draws nothing."""
