//! The native Rust client library of rnicd.
