//! Owns: the life of one exchange.
