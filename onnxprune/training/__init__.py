"""Everything that needs gradients: the graph run by torch, fine-tuning, and importances from gradients. The only importer of torch."""
