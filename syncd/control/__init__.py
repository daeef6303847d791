"""The control server: HTTP on a Unix socket."""
