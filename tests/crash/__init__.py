"""Tests that nothing is lost: faults, kills, power cuts, random histories and hostile files."""
