"""The command line: which store is meant, what is printed, and a function for every command."""
