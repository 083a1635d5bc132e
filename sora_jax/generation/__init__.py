"""From what a person asks for to files: options, the Python API, sampling in bulk."""
