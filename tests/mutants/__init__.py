"""Small changes that each break privacy, and what applies them one by one: `make mutants`."""
