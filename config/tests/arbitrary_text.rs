//! No text makes the parser panic, and every refusal says where.

use proptest::prelude::*;
use rnic_config::{Config, samples};

fn survives(text: &str) {
    match Config::parse_with(text, "fuzz.yaml", &|_| None) {
        Ok(config) => drop(rnic_config::eal_args(&config)),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            let lines = text.lines().count() + 1;
            for found in error.diagnostics() {
                assert!((1..=lines).contains(&found.line) && found.column >= 1, "{found}");
                assert!(found.to_string().lines().all(|line| !line.contains('\u{1b}')));
            }
        }
    }
}

/// Pieces that mean something to YAML or to the schema.
fn fragment() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "version: 1\n",
        "ports:\n",
        "  - ",
        "name: ",
        "rnic0",
        "device: ",
        "{ pci: ",
        "01:00.0",
        " }",
        "[",
        "]",
        "{",
        "}",
        ": ",
        ", ",
        "- ",
        "\n",
        "\n  ",
        "\n    ",
        "\t",
        "&a ",
        "*a",
        "!x ",
        "| \n",
        "> \n",
        "\"",
        "'",
        "# ",
        "? ",
        "---\n",
        "...\n",
        "%YAML 1.2\n",
        "${",
        "}",
        ":-",
        "$${",
        "A",
        "é",
        "\u{feff}",
        "\0",
        "\u{1b}[31m",
        "<<: ",
        "mtu: ",
        "5%",
        "-1",
        "1e999",
        ".nan",
        "0x10",
        "~",
        "2GiB",
        "100us",
        "addresses: ",
        "10.0.0.1/24",
        "ring: ",
        "peer: ",
        "limits: ",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        survives(&text);
    }

    #[test]
    fn arbitrary_characters_never_panic(text in any::<String>()) {
        survives(&text);
    }

    #[test]
    fn yaml_like_text_never_panics(pieces in prop::collection::vec(fragment(), 0..60)) {
        survives(&pieces.concat());
    }

    #[test]
    fn damaged_samples_never_panic(
        which in 0..samples::ALL.len(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), fragment(), 0_usize..12), 1..4),
    ) {
        let mut text: Vec<char> = samples::ALL[which].text.chars().collect();
        for (index, piece, removed) in edits {
            let start = index.index(text.len() + 1);
            let end = (start + removed).min(text.len());
            text.splice(start..end, piece.chars());
        }
        survives(&text.into_iter().collect::<String>());
    }
}
