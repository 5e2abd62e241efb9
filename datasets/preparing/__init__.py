"""What `python -m datasets.prepare` does: check, convert, fetch, fixtures, few-shot. The table of published sets is `layouts`."""
