"""Language models, edited one fact at a time."""
