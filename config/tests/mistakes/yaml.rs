//! Text that is not YAML, or YAML meant to hurt, and files that cannot be read.

use rnic_config::{Config, ConfigError};

use super::{errors, one_error, parse, with};

#[test]
fn text_that_is_not_yaml_gives_the_place() {
    one_error("version: 1\n\tports: []\n", (2, 1), "", "never tabs");
    one_error("version: 1\nports: [\n", (3, 1), "", "not YAML");
    one_error("version: \"1\n", (1, 10), "", "not YAML");
    one_error("version: 1\nlog: @\n", (2, 6), "", "not YAML");
    one_error(&with("log: { level: *nothing }"), (2, 15), "", "anchor");
    one_error("version: 1\n---\nversion: 1\n", (2, 1), "", "second document");
    one_error(&with("log: !secret x"), (2, 6), "log", "tags have no meaning");
    one_error(&with("[a]: 1"), (2, 1), "", "cannot be a key");
    one_error(
        &with("log: &a { level: *a }"),
        (2, 18),
        "log.level",
        "part of its own anchor",
    );
}

#[test]
fn empty_files_are_told_where_to_begin() {
    for text in ["", "\n\n", "# only a comment\n", "---\n", "~\n", "\u{feff}"] {
        one_error(text, (1, 1), "", "--print-sample laptop");
    }
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_accepted() {
    let text = format!("\u{feff}{}", with("log: {}").replace('\n', "\r\n"));
    parse(&text).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn deep_huge_and_multiplying_files_are_refused_quickly() {
    let deep = format!("version: {}", "[".repeat(40));
    one_error(
        &deep,
        (1, 41),
        &format!("version{}", "[0]".repeat(31)),
        "nested more than 32 deep",
    );
    let deeper = format!("version: {}", "[".repeat(500_000));
    assert_eq!(errors(&deeper)[0].line, 1);
    let steps: String = (0..700)
        .map(|n| {
            format!(
                "{}a:
",
                " ".repeat(n)
            )
        })
        .collect();
    assert!(errors(&steps)[0].message.contains("nested more than 32 deep"));
    let huge = "x".repeat(2 << 20);
    one_error(&huge, (1, 1), "", "larger than 1MiB");
    let many: String = (0..110_000).map(|n| format!("a{n}: 1\n")).collect();
    assert!(errors(&many[..(1 << 20) - 1]).len() == 1);
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..30 {
        let aliases = vec![format!("*a{}", n - 1); 10].join(", ");
        bomb.push_str(&format!("a{n}: &a{n} [{aliases}]\n"));
    }
    let found = errors(&bomb);
    assert!(
        found[0].message.contains("more than 100000 values"),
        "{}",
        found[0]
    );
    assert_eq!(found[0].line, 5);
}

#[test]
fn aliases_work_and_errors_in_them_point_at_the_alias() {
    let text = "version: 1\nports:\n  - name: rnic0\n    device: &d { pci: 01:00.0 }\n    addresses: [10.0.0.1/24]\n  - name: rnic1\n    addresses: [10.0.0.2/24]\n    device: *d\n";
    one_error(text, (8, 13), "ports[1].device.pci", "that of rnic0 already");
}

#[test]
fn files_that_cannot_be_read_say_why() {
    let error = Config::load("/nonexistent/rnicd.yaml").unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }));
    assert!(
        error
            .to_string()
            .contains("cannot read `/nonexistent/rnicd.yaml`: No such file")
    );
    assert!(Config::load("/").is_err());

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latin1.yaml");
    std::fs::write(&path, b"version: 1\nlog: \xe9\n").unwrap();
    let error = Config::load(&path).unwrap_err();
    let found = &error.diagnostics()[0];
    assert_eq!((found.line, found.column), (2, 6));
    assert!(found.message.contains("not UTF-8"));
    assert!(
        Config::load("/dev/zero")
            .unwrap_err()
            .to_string()
            .contains("larger than 1MiB")
    );
}
