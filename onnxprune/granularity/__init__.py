"""What is smaller than a filter, or larger: taps of kernels, blocks of channels, directions, branches; scored, chosen and rewritten."""
