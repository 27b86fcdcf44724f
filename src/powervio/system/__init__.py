"""A managed system: declared in a file, built, started, looked at and stopped."""
