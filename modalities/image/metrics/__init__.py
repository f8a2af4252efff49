"""How good a set of pictures is, in the features of which network."""
