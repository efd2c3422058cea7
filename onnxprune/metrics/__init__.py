"""What is measured of a model: costs, outputs, and tests of differences. It may import runtime and graph."""
