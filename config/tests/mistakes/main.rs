//! Each kind of mistake gives an error with the right line, column and key, and says what would be right.

use rnic_config::{Config, ConfigError, Diagnostic, Severity};

mod form;
mod ports;
mod sections;
mod values;
mod yaml;

/// The smallest valid file, with `lines` in place of its comment (line 2).
fn with(lines: &str) -> String {
    format!(
        "version: 1\n{lines}\nports:\n  - {{ name: rnic0, device: {{ pci: 01:00.0 }}, addresses: [10.0.0.1/24] }}\n"
    )
}

/// A file with one port, whose further keys are `lines`, beginning at line 5, column 5.
fn with_port(lines: &str) -> String {
    format!("version: 1\nports:\n  - name: rnic0\n    device: {{ pci: 01:00.0 }}\n    {lines}\n")
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse_with(text, "test.yaml", &|name| {
        (name == "TEN").then(|| "10".to_owned())
    })
}

fn errors(text: &str) -> Vec<Diagnostic> {
    let error = parse(text).expect_err(text);
    let found = error.diagnostics().to_vec();
    for finding in &found {
        let shown = finding.to_string();
        assert!(
            shown.contains(&format!("test.yaml:{}:{}", finding.line, finding.column)),
            "{shown}"
        );
    }
    found
        .into_iter()
        .filter(|finding| finding.severity == Severity::Error)
        .collect()
}

/// The only error of `text` is at `(line, column)`, about `key`, and shows `expected` somewhere.
#[track_caller]
fn one_error(text: &str, at: (usize, usize), key: &str, expected: &str) {
    let found = errors(text);
    let [only] = found.as_slice() else {
        panic!("{text}\n{found:#?}")
    };
    assert_eq!(
        ((only.line, only.column), only.key.to_string().as_str()),
        (at, key),
        "{text}\n{only}"
    );
    assert!(
        only.to_string().contains(expected),
        "{text}\n{only}\nlacks: {expected}"
    );
}

#[track_caller]
fn one_warning(text: &str, at: (usize, usize), key: &str, expected: &str) {
    let config = parse(text).unwrap_or_else(|error| panic!("{text}\n{error}"));
    let [only] = config.warnings() else {
        panic!("{text}\n{:#?}", config.warnings())
    };
    assert_eq!(
        ((only.line, only.column), only.key.to_string().as_str()),
        (at, key),
        "{text}\n{only}"
    );
    assert!(
        only.to_string().contains(expected),
        "{text}\n{only}\nlacks: {expected}"
    );
}
