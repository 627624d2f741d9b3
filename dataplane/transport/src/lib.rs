//! RC transport state machines, sans-IO.
