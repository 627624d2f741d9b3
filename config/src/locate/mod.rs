//! Where in the text each key and value stands.
//!
//! serde_yaml gives values without places, so the text is also walked by a parser with markers. The walk
//! refuses what could make the second reading expensive or ambiguous: deep nesting, aliases that multiply,
//! duplicate keys, tags, several documents.

mod tree;

use std::sync::Arc;

use crate::diagnostic::{Diagnostic, KeyPath, Severity, printable};
use tree::Tree;

/// A stretch of one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Line, from 1.
    pub(crate) line: usize,
    /// Column in characters, from 1.
    pub(crate) column: usize,
    /// Length in characters; 0 for a place between characters.
    pub(crate) length: usize,
}

impl Place {
    pub(crate) const START: Self = Self {
        line: 1,
        column: 1,
        length: 0,
    };
}

/// A configuration text, its name, and the places of its keys and values.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    name: Arc<str>,
    text: Arc<str>,
    tree: Arc<Tree>,
}

impl Default for Source {
    fn default() -> Self {
        Self {
            name: "".into(),
            text: "".into(),
            tree: Arc::default(),
        }
    }
}

impl Source {
    /// Walks `text`. On failure the one finding that ended the walk.
    pub(crate) fn new(text: &str, name: &str) -> Result<Self, Box<Diagnostic>> {
        let mut source = Self {
            name: name.into(),
            text: text.into(),
            tree: Arc::default(),
        };
        match Tree::of(text) {
            Ok(tree) => source.tree = Arc::new(tree),
            Err(refused) => {
                let tree::Refused {
                    message,
                    help,
                    place,
                    key,
                } = *refused;
                return Err(Box::new(source.finding(
                    Severity::Error,
                    place,
                    key,
                    message,
                    Some(help),
                )));
            }
        }
        Ok(source)
    }

    /// A source whose structure is not known, for findings about the text as a whole.
    pub(crate) fn unparsed(text: &str, name: &str) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
            tree: Arc::default(),
        }
    }

    /// An error about the value at `key`, or the deepest part of that path that is written in the file.
    pub(crate) fn error(&self, key: KeyPath, message: impl Into<String>, help: Option<String>) -> Diagnostic {
        let place = self.tree.value(&key);
        self.finding(Severity::Error, place, key, message.into(), help)
    }

    /// An error about the key itself rather than its value.
    pub(crate) fn key_error(
        &self,
        key: KeyPath,
        message: impl Into<String>,
        help: Option<String>,
    ) -> Diagnostic {
        let place = self.tree.key(&key);
        self.finding(Severity::Error, place, key, message.into(), help)
    }

    /// A warning about the value at `key`.
    pub(crate) fn warning(
        &self,
        key: KeyPath,
        message: impl Into<String>,
        help: Option<String>,
    ) -> Diagnostic {
        Diagnostic {
            severity: Severity::Warning,
            ..self.error(key, message, help)
        }
    }

    /// An error at a place.
    pub(crate) fn error_at(
        &self,
        place: Place,
        message: impl Into<String>,
        help: Option<String>,
    ) -> Diagnostic {
        self.finding(Severity::Error, place, KeyPath::default(), message.into(), help)
    }

    fn finding(
        &self,
        severity: Severity,
        place: Place,
        key: KeyPath,
        message: String,
        help: Option<String>,
    ) -> Diagnostic {
        let line = self
            .text
            .lines()
            .nth(place.line.saturating_sub(1))
            .unwrap_or_default();
        Diagnostic {
            severity,
            message,
            help,
            file: self.name.clone(),
            line: place.line,
            column: place.column,
            key,
            excerpt: line
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect(),
            underlined: place.length,
        }
    }
}

/// `text` in backquotes, fit for a message.
pub(crate) fn quoted(text: &str) -> String {
    format!("`{}`", printable(text))
}
