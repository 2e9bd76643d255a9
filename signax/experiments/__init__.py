"""Room 9: Flax models, data, figures and the command line. Nothing above this room imports it."""
