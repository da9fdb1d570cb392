"""The roof: the only place that reads the command line, the environment, the device and the log level."""
