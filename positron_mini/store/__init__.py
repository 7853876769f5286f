"""What a run leaves on the disk: the record of what it is, its logs, how far it has come, and which run a command means."""
