"""Who draws what next: cost estimates, and the router that picks a partition for a new task."""
