"""The only package that knows how checkpoints lay weights out: tables of names, plans, loading and export."""
