//! What is checked of a saved request, step by step, for a person.
