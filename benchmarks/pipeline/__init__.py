"""The whole path of a task against the plain recipe."""
