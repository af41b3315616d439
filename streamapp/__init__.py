"""Self-hosted image generation on GPU hosts as a Faust stream-processing application.

Importing this package imports nothing else; see ``docs/flow.md`` for the way of a request.
"""

__version__ = "0.1.0"
