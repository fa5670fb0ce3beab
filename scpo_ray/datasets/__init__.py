"""Adapters, one a file: source rows -> responses and pairs, with a ledger that accounts for every row."""
