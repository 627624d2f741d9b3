//! What is wrong with a configuration, where, and what would be right.

use std::fmt;
use std::io;
use std::sync::Arc;

/// A path of keys through the document, such as `ports[0].mtu`. Empty is the document itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyPath(Vec<Step>);

/// One step of a [`KeyPath`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

impl KeyPath {
    /// This path and then `key`.
    pub(crate) fn key(&self, key: &str) -> Self {
        self.then(Step::Key(key.to_owned()))
    }
    /// This path and then element `index` of a list.
    pub(crate) fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }
    pub(crate) fn then(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }
    pub(crate) fn steps(&self) -> &[Step] {
        &self.0
    }
}

impl From<&str> for KeyPath {
    /// A path of one key.
    fn from(key: &str) -> Self {
        Self::default().key(key)
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if position == 0 => f.write_str(&printable(key))?,
                Step::Key(key) => write!(f, ".{}", printable(key))?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// Whether a finding prevents the daemon from starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can be used, but probably not as meant.
    Warning,
}

/// One finding: what, where, and what would be right. Displays on several lines, as rustc does.
#[derive(Debug, Clone)]
pub struct Diagnostic {
    /// Whether it prevents the start.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What would be right, if that can be said.
    pub help: Option<String>,
    /// The file, as named by the caller.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The key concerned; empty for the document itself.
    pub key: KeyPath,
    /// The line of the file, without control characters.
    pub(crate) excerpt: String,
    /// How many characters of it to underline.
    pub(crate) underlined: usize,
}

/// Longest excerpt shown, in characters.
const MAX_EXCERPT: usize = 160;

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let gutter = self.line.to_string().len();
        writeln!(f, "{severity}: {}", self.message)?;
        write!(f, "{:gutter$}--> {}:{}:{}", "", self.file, self.line, self.column)?;
        let indent = self.column.saturating_sub(1);
        if !self.excerpt.is_empty() && indent < MAX_EXCERPT {
            let excerpt: String = self.excerpt.chars().take(MAX_EXCERPT).collect();
            let width = self.underlined.clamp(1, MAX_EXCERPT - indent);
            write!(
                f,
                "\n{:gutter$} |\n{} | {excerpt}\n{:gutter$} | ",
                "", self.line, ""
            )?;
            write!(f, "{:indent$}{:^<width$}", "", "")?;
        }
        if !self.key.steps().is_empty() {
            write!(f, "\n{:gutter$} = key: {}", "", self.key)?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n{:gutter$} = help: {help}", "")?;
        }
        Ok(())
    }
}

/// Why a configuration cannot be used. Displays every finding on several lines.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("error: cannot read `{file}`: {source}\n = help: give the path of a readable YAML file")]
    Read {
        /// The file.
        file: String,
        /// Why not.
        source: io::Error,
    },
    /// The file was read and is wrong. At least one finding is an error; warnings are listed too.
    #[error("{}", Findings(.0))]
    Invalid(Vec<Diagnostic>),
}

impl ConfigError {
    /// All findings, in the order of the file; none if the file could not be read.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        match self {
            Self::Read { .. } => &[],
            Self::Invalid(diagnostics) => diagnostics,
        }
    }
}

struct Findings<'a>(&'a [Diagnostic]);

impl fmt::Display for Findings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in self.0 {
            write!(f, "{diagnostic}\n\n")?;
        }
        let errors = self
            .0
            .iter()
            .filter(|found| found.severity == Severity::Error)
            .count();
        match errors {
            1 => f.write_str("1 error in the configuration"),
            _ => write!(f, "{errors} errors in the configuration"),
        }
    }
}

/// `text` with control characters replaced and cut to a length that fits a message.
pub(crate) fn printable(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(64)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(64).is_some() {
        shown.push('…');
    }
    shown
}
