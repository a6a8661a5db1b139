"""Worker pools and the swarm layer: processes that share one database."""
