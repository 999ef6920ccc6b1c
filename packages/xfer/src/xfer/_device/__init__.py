"""Device memory under a budget."""
