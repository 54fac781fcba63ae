"""Who runs where: processes, the command line, and the one file that knows every part."""
