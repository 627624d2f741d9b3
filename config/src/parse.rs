//! From text to a checked [`Config`].

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::string::FromUtf8Error;

use serde_path_to_error::Segment;
use serde_yaml::Value;

use crate::diagnostic::{ConfigError, Diagnostic, KeyPath, Severity};
use crate::expand::{Lookup, expand};
use crate::locate::{Place, Source};
use crate::{Config, check, schema, structure};

/// Largest file that is read, in bytes.
const MAX_SIZE: usize = 1 << 20;

impl Config {
    /// Reads and checks the file at `path`, replacing `${VAR}` from the environment.
    ///
    /// # Errors
    /// [`ConfigError::Read`] if the file cannot be read, [`ConfigError::Invalid`] with every finding if it is
    /// wrong.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            File::open(path)?
                .take(MAX_SIZE as u64 + 1)
                .read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|source| ConfigError::Read {
            file: name.clone(),
            source,
        })?;
        if bytes.len() > MAX_SIZE {
            return Err(too_large(&name));
        }
        String::from_utf8(bytes).map_or_else(
            |error| Err(not_utf8(&error, &name)),
            |text| Self::parse(&text, &name),
        )
    }

    /// Checks `text`, replacing `${VAR}` from the environment. `name` is what errors call the file.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every finding.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        Self::parse_with(text, name, &|variable| std::env::var(variable).ok())
    }

    /// As [`Config::parse`], with the environment given by `lookup`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every finding.
    pub fn parse_with(
        text: &str,
        name: &str,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        if text.len() > MAX_SIZE {
            return Err(too_large(name));
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let source = Source::new(text, name).map_err(|error| one(*error))?;
        let mut document: Value = serde_path_to_error::deserialize(serde_yaml::Deserializer::from_str(text))
            .map_err(|error| one(unreadable(&source, &error)))?;
        if document.is_null() {
            let help = "print a sample to begin with: `rnicd --print-sample laptop`".to_owned();
            return Err(one(source.error_at(
                Place::START,
                "the file is empty",
                Some(help),
            )));
        }
        let mut found = Vec::new();
        expand_strings(&mut document, &KeyPath::default(), &source, lookup, &mut found);
        refuse(found)?;
        check_version(&document, &source)?;
        refuse(structure::check(&document, &source))?;

        let mut config: Self = serde_path_to_error::deserialize(document).map_err(|error| {
            let path = key_path(error.path());
            let help = structure::expected_at(&path);
            one(source.error(path, error.inner().to_string(), help))
        })?;
        config.source = source;
        let found = check::config(&config);
        if found.iter().any(|finding| finding.severity == Severity::Error) {
            return Err(invalid(found));
        }
        config.warnings = found;
        Ok(config)
    }
}

fn too_large(name: &str) -> ConfigError {
    let help = "a configuration has a few hundred lines; is this the right file?".to_owned();
    one(Source::unparsed("", name).error_at(Place::START, "the file is larger than 1MiB", Some(help)))
}

fn not_utf8(error: &FromUtf8Error, name: &str) -> ConfigError {
    let (valid, _) = error.as_bytes().split_at(error.utf8_error().valid_up_to());
    let before = String::from_utf8_lossy(valid);
    let place = Place {
        line: before.matches('\n').count() + 1,
        column: before.rsplit('\n').next().unwrap_or_default().chars().count() + 1,
        length: 1,
    };
    let text = String::from_utf8_lossy(error.as_bytes());
    let help = Some("save the file as UTF-8".to_owned());
    one(Source::unparsed(&text, name).error_at(place, "this byte is not UTF-8", help))
}

/// Replaces variables in every string of the document.
fn expand_strings(
    value: &mut Value,
    path: &KeyPath,
    source: &Source,
    lookup: Lookup<'_>,
    found: &mut Vec<Diagnostic>,
) {
    match value {
        Value::String(text) if text.contains("${") => match expand(text, lookup) {
            Ok(expanded) => *text = expanded,
            Err(error) => found.push(source.error(path.clone(), error.message, Some(error.help))),
        },
        Value::Sequence(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                expand_strings(item, &path.index(index), source, lookup, found);
            }
        }
        Value::Mapping(map) => {
            for (key, value) in map.iter_mut() {
                expand_strings(
                    value,
                    &path.key(key.as_str().unwrap_or_default()),
                    source,
                    lookup,
                    found,
                );
            }
        }
        _ => {}
    }
}

/// A file of another version is wrong in that alone: its keys cannot be judged.
fn check_version(document: &Value, source: &Source) -> Result<(), ConfigError> {
    match document.get("version").and_then(Value::as_u64) {
        Some(version) if version != u64::from(schema::VERSION) => {
            let message = format!("version {version} of the configuration is not known to this rnicd");
            let help = format!(
                "write `version: {}`, and the keys of that version",
                schema::VERSION
            );
            Err(one(source.error("version".into(), message, Some(help))))
        }
        _ => Ok(()),
    }
}

/// What serde_yaml refuses although the walk that made `source` did not.
fn unreadable(source: &Source, error: &serde_path_to_error::Error<serde_yaml::Error>) -> Diagnostic {
    let reason = error.inner().to_string();
    if reason.contains(" as u128") || reason.contains(" as i128") {
        let path = key_path(error.path());
        let help = structure::expected_at(&path);
        return source.error(
            path,
            "this number is out of range: it has more than 64 bits",
            help,
        );
    }
    let place = error.inner().location().map_or(Place::START, |location| Place {
        line: location.line(),
        column: location.column(),
        length: 1,
    });
    source.error_at(place, format!("this is not YAML: {reason}"), None)
}

fn key_path(path: &serde_path_to_error::Path) -> KeyPath {
    path.iter()
        .fold(KeyPath::default(), |path, segment| match segment {
            Segment::Seq { index } => path.index(*index),
            Segment::Map { key } => path.key(key),
            Segment::Enum { .. } | Segment::Unknown => path,
        })
}

fn refuse(found: Vec<Diagnostic>) -> Result<(), ConfigError> {
    if found.is_empty() {
        Ok(())
    } else {
        Err(invalid(found))
    }
}

fn one(diagnostic: Diagnostic) -> ConfigError {
    ConfigError::Invalid(vec![diagnostic])
}

fn invalid(mut found: Vec<Diagnostic>) -> ConfigError {
    found.sort_by_key(|finding| (finding.line, finding.column));
    ConfigError::Invalid(found)
}
