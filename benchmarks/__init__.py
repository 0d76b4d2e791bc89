"""What the store costs, measured side by side with what else could be used."""
