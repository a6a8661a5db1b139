"""The primitives: one class each, stateless faces over a Database."""
