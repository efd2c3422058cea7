"""Which channels belong together: the rule table, the walk over the graph, and what follows from it."""
