//! What an operator does with servers: adding, trusting, refusing, removing.
