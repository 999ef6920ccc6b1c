"""Drawings: what a whole grid becomes by one procedure, such as stamps at their anchors or colours by a key."""
