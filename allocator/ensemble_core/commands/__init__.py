"""The verbs of `ensemble` that need no torch; each module has add_arguments(parser) and run(arguments)."""
