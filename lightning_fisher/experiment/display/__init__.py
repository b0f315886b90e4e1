"""How things are shown: on a terminal, in figures."""
