"""Published programs that train on labels."""
