//! The YAML schema of rnicd: parsing, units, validation and samples.
