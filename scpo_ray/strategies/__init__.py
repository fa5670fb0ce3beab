"""Interchangeable parts of the method, one a file."""
