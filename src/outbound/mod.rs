//! Intake from JetStream → lane per peer → attempt → outcome.
