"""The command beside the lab: list, run, book, data, release, doctor, publish."""
