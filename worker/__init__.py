"""The worker: a Celery task that wins a job's lease, a supervisor that owns a child process, and the child that grows the network."""
