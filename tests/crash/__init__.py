"""Nothing lost: faults, kills, power cuts, random histories and hostile files."""
