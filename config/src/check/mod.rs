//! Checks across keys, and ranges of quantities. They report all findings, and know where each key is written.

mod congestion;
mod port;
mod sections;
mod wiring;

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::diagnostic::{Diagnostic, KeyPath};
use crate::schema::Config;

/// All findings about `config`, errors and warnings.
pub(crate) fn config(config: &Config) -> Vec<Diagnostic> {
    let mut checks = Checks::new(config);
    sections::control(&mut checks);
    sections::eal(&mut checks);
    sections::cores(&mut checks);
    sections::limits(&mut checks);
    for index in 0..config.ports.len() {
        port::check(&mut checks, index);
    }
    wiring::check(&mut checks);
    checks.finish()
}

/// A configuration under examination, and what was found so far.
pub(crate) struct Checks<'a> {
    pub(crate) config: &'a Config,
    found: Vec<Diagnostic>,
}

impl<'a> Checks<'a> {
    pub(crate) fn new(config: &'a Config) -> Self {
        Self {
            config,
            found: Vec::new(),
        }
    }

    pub(crate) fn error(&mut self, key: KeyPath, message: impl Into<String>, help: impl Into<String>) {
        self.found
            .push(self.config.source.error(key, message, Some(help.into())));
    }

    pub(crate) fn warn(&mut self, key: KeyPath, message: impl Into<String>, help: impl Into<String>) {
        self.found
            .push(self.config.source.warning(key, message, Some(help.into())));
    }

    /// Reports `value` unless it is in `range`.
    fn within<T: PartialOrd + Display>(&mut self, key: KeyPath, value: T, range: RangeInclusive<T>) {
        if !range.contains(&value) {
            let help = format!("allowed are {} to {}", range.start(), range.end());
            self.error(key, format!("{value} is out of range"), help);
        }
    }

    /// What was found, in the order of the file.
    pub(crate) fn finish(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|finding| (finding.line, finding.column));
        self.found
    }
}
