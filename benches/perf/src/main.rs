//! Client-side benchmarks with perftest's habits.
fn main() {}
