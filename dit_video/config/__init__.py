"""Values as JSON and as words of a command line, and users' own files; knows no subject."""
