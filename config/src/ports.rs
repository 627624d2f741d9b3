//! Ports by themselves, as they are added to a running daemon.

use serde_yaml::Value;

use crate::{Config, ConfigError, Port};

/// How far the text moves to the right when it becomes a part of a configuration.
const INDENT: &str = "  ";

impl Config {
    /// Checks the ports in `text`: one port written as an element of `ports`, a list of such, or a map with the key
    /// `ports`. `name` is what errors call the file. Whether they go together with other ports is not checked.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every finding.
    pub fn parse_ports(text: &str, name: &str) -> Result<Vec<Port>, ConfigError> {
        let (first, before) = match serde_yaml::from_str(text) {
            Ok(Value::Mapping(map)) if map.contains_key("ports") => {
                return Self::parse(&format!("{text}\nversion: 1\n"), name).map(|config| config.ports);
            }
            Ok(Value::Sequence(_)) => (INDENT, "ports:"),
            // What is wrong with anything else is found below.
            _ => ("- ", "ports:"),
        };
        let mut whole = before.to_owned();
        for (number, line) in text.lines().enumerate() {
            whole.push('\n');
            whole += if number == 0 { first } else { INDENT };
            whole += line;
        }
        whole += "\nversion: 1\n";
        match Self::parse(&whole, name) {
            Ok(config) => Ok(config.ports),
            Err(ConfigError::Invalid(mut found)) => {
                for finding in &mut found {
                    finding.line = finding.line.saturating_sub(1).max(1);
                    finding.column = finding.column.saturating_sub(INDENT.len()).max(1);
                    finding.excerpt = finding.excerpt.chars().skip(INDENT.len()).collect();
                }
                Err(ConfigError::Invalid(found))
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        let ports = Config::parse_ports(text, "port.yaml").unwrap_or_else(|error| panic!("{error}"));
        ports.iter().map(|port| port.name.to_string()).collect()
    }

    #[test]
    fn a_port_a_list_and_a_section_are_understood() {
        assert_eq!(
            names("name: rnic4\ndevice: {vdev: net_null4}\nmtu: 4200\n"),
            ["rnic4"]
        );
        assert_eq!(names("{name: rnic4, device: {vdev: net_null4}}"), ["rnic4"]);
        let rings = "- name: rnic4\n  device: {ring: {peer: rnic5}}\n- {name: rnic5, device: {ring: {peer: rnic4}}}\n";
        assert_eq!(names(rings), ["rnic4", "rnic5"]);
        assert_eq!(
            names("ports:\n- {name: rnic4, device: {vdev: net_null4}}"),
            ["rnic4"]
        );
    }

    #[test]
    fn findings_say_where_in_the_text_as_it_was_given() {
        for (text, line, column, excerpt) in [
            ("name: rnic4\ndevice: {vdev: net_null4}\nmtu: 4\n", 3, 6, "mtu: 4"),
            (
                "- name: rnic4\n  device: {vdev: net_null4}\n  mtu: 4\n",
                3,
                8,
                "  mtu: 4",
            ),
            (
                "ports:\n- {name: rnic4, device: {vdev: net_null4}, mtu: 4}",
                2,
                49,
                "- {name: rnic4, device: {vdev: net_null4}, mtu: 4}",
            ),
        ] {
            let error = Config::parse_ports(text, "port.yaml").unwrap_err();
            let [found] = error.diagnostics() else {
                panic!("{error}")
            };
            assert_eq!(
                (found.line, found.column, found.excerpt.as_str()),
                (line, column, excerpt),
                "{error}"
            );
        }
    }

    #[test]
    fn nonsense_is_an_error_whatever_it_is() {
        for text in [
            "",
            "7",
            "\u{0}",
            "- - -",
            "{",
            "---\n---\n",
            "ports: 3",
            "name: rnic4",
            "limits: {clients: 3}",
        ] {
            assert!(Config::parse_ports(text, "port.yaml").is_err(), "{text:?}");
        }
    }
}
