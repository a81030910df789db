"""Jobs that the command line runs, with the models and data that they run on."""
