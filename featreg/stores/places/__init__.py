"""Where a store lies: a local folder, or whatever fsspec opens."""
