"""Room 1. What does a worker say? An array becomes signs."""
