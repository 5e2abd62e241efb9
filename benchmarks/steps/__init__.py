"""What a training step costs, by method, task, number of processes, and against another checkout."""
