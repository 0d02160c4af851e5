"""Is everything backed up? The answer as values, and as lines, metrics and pages made of them."""
