"""Running tasks: processes, budgets, records, one stream of events."""
