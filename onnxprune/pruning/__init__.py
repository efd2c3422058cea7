"""What to remove and how: importance, budget and rewrite; these never import each other."""
