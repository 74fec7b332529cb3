"""One method a file: settings that give a plan."""
