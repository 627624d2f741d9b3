//! Checks a document against the JSON schema of [`Config`](crate::Config): unknown and missing keys, types,
//! names to choose from, ranges of numbers and lengths of lists. All findings are reported, each with what
//! would be right, so that the schema is the one place that says so.
//!
//! Only the parts of JSON Schema that schemars makes for this crate are understood.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use schemars::Schema;
use schemars::transform::{RecursiveTransform, Transform};
use serde_json::{Map, Value as Json};
use serde_yaml::Value;

use crate::Config;
use crate::diagnostic::{Diagnostic, KeyPath, Step};
use crate::locate::{Source, quoted};

type SchemaObject = Map<String, Json>;

static SCHEMA: LazyLock<Json> = LazyLock::new(|| {
    let mut schema = schemars::schema_for!(Config);
    RecursiveTransform(unwrap_description).transform(&mut schema);
    schema.into()
});

/// Doc comments are wrapped for the source; editors wrap descriptions themselves.
fn unwrap_description(schema: &mut Schema) {
    if let Some(Json::String(description)) = schema.get_mut("description") {
        *description = description
            .replace("\n\n", "\0")
            .replace('\n', " ")
            .replace('\0', "\n\n");
    }
}

/// The JSON schema of a configuration file.
pub(crate) fn schema() -> &'static Json {
    &SCHEMA
}

/// All places where `document` is not as the schema says.
pub(crate) fn check(document: &Value, source: &Source) -> Vec<Diagnostic> {
    let mut checker = Checker {
        source,
        found: Vec::new(),
    };
    checker.value(&forms(&SCHEMA), document, &KeyPath::default());
    checker.found
}

/// What would be right at `path`, as far as the schema says it.
pub(crate) fn expected_at(path: &KeyPath) -> Option<String> {
    let mut here = forms(&SCHEMA);
    for step in path.steps() {
        here = match step {
            Step::Key(key) => properties(&here).get(key.as_str()).map(|schema| forms(schema))?,
            Step::Index(_) => here.iter().find_map(|form| form.get("items")).map(forms)?,
        };
    }
    Some(format!("expected {}", expectation(&here)))
}

/// The alternative forms a schema allows, references resolved.
fn forms(schema: &'static Json) -> Vec<&'static SchemaObject> {
    let Some(object) = schema.as_object() else {
        return Vec::new();
    };
    if let Some(reference) = object.get("$ref").and_then(Json::as_str) {
        return SCHEMA
            .pointer(reference.trim_start_matches('#'))
            .map(forms)
            .unwrap_or_default();
    }
    match object
        .get("oneOf")
        .or_else(|| object.get("anyOf"))
        .and_then(Json::as_array)
    {
        Some(alternatives) => alternatives.iter().flat_map(forms).collect(),
        None => vec![object],
    }
}

fn properties<'a>(forms: &[&'a SchemaObject]) -> BTreeMap<&'a str, &'a Json> {
    forms
        .iter()
        .filter_map(|form| form.get("properties").and_then(Json::as_object))
        .flat_map(|properties| properties.iter().map(|(key, schema)| (key.as_str(), schema)))
        .collect()
}

fn allows(form: &SchemaObject, kind: &str) -> bool {
    match form.get("type") {
        Some(Json::String(only)) => only == kind,
        Some(Json::Array(several)) => several.iter().any(|one| one == kind),
        _ => true,
    }
}

/// The words a form allows; none if it allows any.
fn words(form: &SchemaObject) -> Vec<&str> {
    let listed = form
        .get("enum")
        .and_then(Json::as_array)
        .map_or(&[][..], Vec::as_slice);
    form.get("const")
        .into_iter()
        .chain(listed)
        .filter_map(Json::as_str)
        .collect()
}

struct Checker<'a> {
    source: &'a Source,
    found: Vec<Diagnostic>,
}

impl Checker<'_> {
    fn value(&mut self, allowed: &[&'static SchemaObject], value: &Value, path: &KeyPath) {
        let (kind, shown) = kind_of(value);
        let fitting: Vec<_> = allowed
            .iter()
            .copied()
            .filter(|form| allows(form, kind))
            .collect();
        if fitting.is_empty() {
            let fits_number = kind == "integer" && allowed.iter().any(|form| allows(form, "number"));
            if !fits_number {
                self.wrong_kind(allowed, value, &shown, path);
            }
            return;
        }
        match value {
            Value::String(text) => self.word(&fitting, text, path),
            Value::Number(number) => self.number(&fitting, number, path),
            Value::Sequence(items) => {
                self.length(&fitting, items.len(), path);
                let Some(form) = fitting.iter().find_map(|form| form.get("items")) else {
                    return;
                };
                let form = forms(form);
                for (index, item) in items.iter().enumerate() {
                    self.value(&form, item, &path.index(index));
                }
            }
            Value::Mapping(map) => self.map(&fitting, map, path),
            _ => {}
        }
    }

    fn wrong_kind(&mut self, allowed: &[&'static SchemaObject], value: &Value, shown: &str, path: &KeyPath) {
        let mut expected = expectation(allowed);
        if value.is_null() {
            expected.push_str("; remove the key to take its default, if it has one");
        } else if (value.is_number() || value.is_bool())
            && allowed
                .iter()
                .any(|form| words(form).is_empty() && allows(form, "string"))
        {
            expected.push_str("; put it in quotes");
        }
        self.found.push(self.source.error(
            path.clone(),
            format!("{shown} does not fit here"),
            Some(format!("expected {expected}")),
        ));
    }

    fn word(&mut self, fitting: &[&SchemaObject], text: &str, path: &KeyPath) {
        let allowed: Vec<_> = fitting.iter().map(|form| words(form)).collect();
        let any_text = fitting
            .iter()
            .zip(&allowed)
            .any(|(form, words)| words.is_empty() && allows(form, "string"));
        let allowed: Vec<_> = allowed.into_iter().flatten().collect();
        if any_text || allowed.contains(&text) {
            return;
        }
        let planned = fitting
            .iter()
            .filter_map(|form| form.get("x-not-yet")?.as_array());
        let message = if planned.flatten().any(|word| word == text) {
            format!("{} is not supported yet", quoted(text))
        } else {
            format!("{} is not one of the values allowed here", quoted(text))
        };
        let help = suggestion(
            text,
            allowed.iter().copied(),
            &format!("expected {}", expectation(fitting)),
        );
        self.found
            .push(self.source.error(path.clone(), message, Some(help)));
    }

    fn number(&mut self, fitting: &[&SchemaObject], number: &serde_yaml::Number, path: &KeyPath) {
        let Some(value) = number.as_f64() else { return };
        let in_range = |form: &&SchemaObject| {
            let bound = |key: &str| form.get(key).and_then(Json::as_f64);
            bound("minimum").is_none_or(|min| value >= min) && bound("maximum").is_none_or(|max| value <= max)
        };
        if !fitting.iter().any(in_range) {
            let help = format!("expected {}", expectation(fitting));
            self.found.push(
                self.source
                    .error(path.clone(), format!("{number} is out of range"), Some(help)),
            );
        }
    }

    fn length(&mut self, fitting: &[&SchemaObject], length: usize, path: &KeyPath) {
        let bound = |key: &str| fitting.iter().find_map(|form| form.get(key)?.as_u64());
        let (min, max) = (
            bound("minItems").unwrap_or(0),
            bound("maxItems").unwrap_or(u64::MAX),
        );
        if !(min..=max).contains(&(length as u64)) {
            let help = match max {
                u64::MAX => format!("at least {min}"),
                _ => format!("{min} to {max} elements are allowed"),
            };
            self.found.push(self.source.error(
                path.clone(),
                format!("the list has {length} elements"),
                Some(help),
            ));
        }
    }

    fn map(&mut self, fitting: &[&'static SchemaObject], map: &serde_yaml::Mapping, path: &KeyPath) {
        let known = properties(fitting);
        for (key, value) in map {
            let Some(key) = key_text(key) else { continue };
            let path = path.key(&key);
            match known.get(key.as_str()) {
                Some(schema) => self.value(&forms(schema), value, &path),
                None => {
                    let message = format!("unknown key {}", quoted(&key));
                    self.found.push(self.source.key_error(
                        path,
                        message,
                        Some(unknown_key_help(&key, &known)),
                    ));
                }
            }
        }
        // Of several alternative maps none is required as such; the type itself says which combinations are right.
        let [form] = fitting else { return };
        for key in form
            .get("required")
            .and_then(Json::as_array)
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
        {
            if !map.contains_key(key) {
                let help = known
                    .get(key)
                    .map(|schema| format!("add `{key}:` with {}", expectation(&forms(schema))));
                // The key does not exist, so the place shown is the map it should be in.
                self.found.push(self.source.error(
                    path.key(key),
                    format!("the key `{key}` is missing"),
                    help,
                ));
            }
        }
    }
}

/// The text of a scalar key, as the tree of places has it.
fn key_text(key: &Value) -> Option<String> {
    match key {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Null => Some("null".to_owned()),
        _ => None,
    }
}

fn unknown_key_help(key: &str, known: &BTreeMap<&str, &Json>) -> String {
    if key == "<<" {
        return "merge keys are not supported; write the keys out".to_owned();
    }
    let names: Vec<_> = known.keys().map(|name| format!("`{name}`")).collect();
    suggestion(
        key,
        known.keys().copied(),
        &format!("known keys here are {}", names.join(", ")),
    )
}

/// "did you mean" if one of `candidates` is much like `written`, and in any case `otherwise`.
fn suggestion<'a>(written: &str, candidates: impl Iterator<Item = &'a str>, otherwise: &str) -> String {
    let written: String = written
        .chars()
        .take(64)
        .collect::<String>()
        .to_lowercase()
        .replace('-', "_");
    let closest = candidates
        .map(|name| (strsim::jaro_winkler(&written, name), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match closest {
        Some((_, name)) => format!("did you mean `{name}`? {otherwise}"),
        None => otherwise.to_owned(),
    }
}

fn kind_of(value: &Value) -> (&'static str, String) {
    match value {
        Value::Null => ("null", "an empty value".to_owned()),
        Value::Bool(value) => ("boolean", format!("the truth value `{value}`")),
        Value::Number(number) if number.is_f64() => ("number", format!("the number {number}")),
        Value::Number(number) => ("integer", format!("the number {number}")),
        Value::String(text) => ("string", format!("the text {}", quoted(text))),
        Value::Sequence(_) => ("array", "a list".to_owned()),
        Value::Mapping(_) => ("object", "a map".to_owned()),
        Value::Tagged(_) => ("tag", "a tagged value".to_owned()),
    }
}

/// What a value must be, in words: `an integer from 1 to 16`, `` `text` or `json` ``.
fn expectation(allowed: &[&SchemaObject]) -> String {
    let mut parts: Vec<String> = Vec::new();
    for form in allowed {
        let words = words(form);
        if words.is_empty() {
            parts.extend(form_in_words(form));
        } else {
            parts.extend(words.iter().map(|word| format!("`{word}`")));
        }
    }
    let map = "a map with";
    if parts.len() > 1 && parts.iter().all(|part| part.starts_with(map)) {
        let keys: Vec<_> = parts
            .iter()
            .map(|part| part.trim_start_matches(map).trim())
            .collect();
        return format!("a map with exactly one of {}", keys.join(", "));
    }
    match parts.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => "nothing".to_owned(),
    }
}

fn form_in_words(form: &SchemaObject) -> Option<String> {
    let example = || match form.get("examples")?.get(0)? {
        Json::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let is = |kind| allows(form, kind);
    let named = form
        .get("title")
        .and_then(Json::as_str)
        .filter(|_| !form.contains_key("properties"));
    let mut text = if let Some(title) = named {
        title.to_owned()
    } else if is("object") {
        let properties = form.get("properties").and_then(Json::as_object)?;
        let keys: Vec<_> = properties.keys().map(|key| format!("`{key}`")).collect();
        format!("a map with {}", keys.join(", "))
    } else if is("array") {
        "a list".to_owned()
    } else if is("integer") || is("number") {
        let bound = |key: &str| {
            form.get(key)
                .filter(|bound| bound.as_f64() < Some(1e15))
                .map(Json::to_string)
        };
        let kind = if is("integer") { "an integer" } else { "a number" };
        match (bound("minimum"), bound("maximum")) {
            (Some(min), Some(max)) if min == max => min,
            (Some(min), Some(max)) => format!("{kind} from {min} to {max}"),
            (Some(min), None) => format!("{kind}, at least {min}"),
            _ => kind.to_owned(),
        }
    } else if is("boolean") {
        "`true` or `false`".to_owned()
    } else if form.get("format").and_then(Json::as_str) == Some("ip") {
        "an IP address".to_owned()
    } else if is("string") {
        "text".to_owned()
    } else {
        return None;
    };
    if let Some(example) = example() {
        text.push_str(&format!(", such as `{example}`"));
    }
    Some(text)
}
