"""``embedded://``: a Faust transport over a SQLite log, for one process on one machine.

The file comes from the application object (``app.embedded_log_path``), because a URL without a host is false to
Faust and its settings take no keys of ours.
"""

from streamapp.broker.embedded.transport import EmbeddedApp, Transport

__all__ = ["EmbeddedApp", "Transport"]
