"""The benchmark: a real server on one core, the load generator on the other, one table of figures."""
