//! Prometheus metrics: low cardinality, base units. Global registry behind functions.
