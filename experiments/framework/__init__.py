"""What every experiment stands on: claims, settings from the command line, records, figures, the report."""
