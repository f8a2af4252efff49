"""How good a set of clouds is, and how sure that is."""
