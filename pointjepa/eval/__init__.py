"""Published programs that evaluate."""
