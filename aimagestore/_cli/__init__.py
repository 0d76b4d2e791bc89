"""The command line: the store of a command, its output, and a function for every command."""
