"""Tasks: where they come from, how they are checked, changed, batched, compared and drawn."""
