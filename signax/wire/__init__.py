"""Room 2. How does it travel? Signs become words, and words become counts."""
