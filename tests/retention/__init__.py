"""What is forgotten, when, and what is not."""
