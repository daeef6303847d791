"""The long-running process: its life, and what it has to do with systemd."""
