"""The async shell: which blocking call runs when, and in which thread."""
