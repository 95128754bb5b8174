"""What users type; thin, over the packages."""
