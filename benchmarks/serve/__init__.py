"""The reward service under load; `python -m benchmarks.serve FOLDER`."""
