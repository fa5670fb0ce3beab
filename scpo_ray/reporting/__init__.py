"""What the report says and draws: pure functions from numbers to words, figures and one HTML page."""
