"""What a run will do, fixed before the first image: its samples, its layers, what decides their values, its tasks."""
