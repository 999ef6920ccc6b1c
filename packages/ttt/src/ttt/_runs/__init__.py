"""Running tasks: a process per task, budgets, records, one stream of events."""
