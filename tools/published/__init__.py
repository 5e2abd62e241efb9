"""Names of the published programs, and what they mean here: paths of configurations, keys of files, flags."""
