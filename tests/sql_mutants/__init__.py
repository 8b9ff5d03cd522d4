"""Mutants of the product's SQL: each drops one guard, and a test on PostgreSQL has to go red."""
