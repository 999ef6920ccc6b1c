"""Rules in which each thing of a grid takes an action."""
