"""How fast is it? One module per hot path; each runs beside its peers and prints ratios."""
