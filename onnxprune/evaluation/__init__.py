"""Hold a candidate against its original: structure, accuracy or fidelity, latency, limits. It may import surgery and what is below it."""
