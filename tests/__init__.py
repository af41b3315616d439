"""The test set; helpers inside it are imported as ``tests.…`` from the repository root."""
