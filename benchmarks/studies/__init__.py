"""What was measured on real data, and what the code itself is like."""
