"""Room 0b. Which part of each leaf is here? Parameters that are cut inside each worker."""
