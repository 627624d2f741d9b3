//! A port in the words of a command line.

use std::fmt::Write;

/// From `name=rnic2 device.vdev=net_null0 addresses=[10.0.0.3/24]` to YAML: keys as in the configuration, those of
/// nested maps joined by dots, values in YAML.
///
/// # Errors
/// The word that is no `key=value`, or a key given twice.
pub fn port_yaml(words: &[String]) -> Result<String, String> {
    let mut root = Vec::new();
    for word in words {
        let Some((path, value)) = word.split_once('=').filter(|(path, _)| !path.is_empty()) else {
            return Err(format!("`{word}` is not of the form key=value"));
        };
        if word.contains(['\n', '\r']) {
            return Err(format!("`{}` has more than one line", word.escape_debug()));
        }
        insert(&mut root, path, value).ok_or_else(|| format!("the key {path} is given twice"))?;
    }
    let mut text = String::new();
    print(&root, 0, &mut text);
    Ok(text)
}

enum Node<'a> {
    Value(&'a str),
    Map(Map<'a>),
}

type Map<'a> = Vec<(&'a str, Node<'a>)>;

fn insert<'a>(map: &mut Map<'a>, path: &'a str, value: &'a str) -> Option<()> {
    let (key, rest) = path
        .split_once('.')
        .map_or((path, None), |(key, rest)| (key, Some(rest)));
    let at = map.iter().position(|(other, _)| *other == key);
    match (rest, at) {
        (None, None) => map.push((key, Node::Value(value))),
        (Some(rest), None) => {
            let mut inner = Vec::new();
            insert(&mut inner, rest, value)?;
            map.push((key, Node::Map(inner)));
        }
        (Some(rest), Some(at)) => match &mut map[at].1 {
            Node::Map(inner) => insert(inner, rest, value)?,
            Node::Value(_) => return None,
        },
        (None, Some(_)) => return None,
    }
    Some(())
}

fn print(map: &Map<'_>, indent: usize, text: &mut String) {
    for (key, node) in map {
        // Writing to a string cannot fail.
        let _ = match node {
            Node::Value(value) => writeln!(text, "{:indent$}{key}: {value}", ""),
            Node::Map(inner) => {
                let _ = writeln!(text, "{:indent$}{key}:", "");
                print(inner, indent + 2, text);
                Ok(())
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use rnic_config::{Config, Device};

    use super::*;

    fn yaml(words: &[&str]) -> Result<String, String> {
        port_yaml(&words.iter().map(|word| word.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn words_become_the_port_they_describe() {
        let text = yaml(&[
            "name=rnic3",
            "device.vdev=net_af_packet0,iface=veth0",
            "faults.tx.drop=1%",
            "faults.seed=7",
            "mac=02:00:00:00:00:09",
            "addresses=[10.0.0.3/24, 'fd00::3/64']",
        ])
        .unwrap();
        let ports = Config::parse_ports(&text, "words").unwrap_or_else(|error| panic!("{error}"));
        let [port] = &ports[..] else { panic!("one port") };
        assert_eq!(port.device, Device::Vdev("net_af_packet0,iface=veth0".into()));
        assert_eq!((port.addresses.len(), port.faults.as_ref().unwrap().seed), (2, 7));
        assert_eq!(port.mac.unwrap().0, [2, 0, 0, 0, 0, 9]);
    }

    #[test]
    fn words_that_are_no_pairs_or_come_twice_are_named() {
        assert!(yaml(&["name"]).unwrap_err().contains("`name`"));
        assert!(yaml(&["=3"]).unwrap_err().contains("`=3`"));
        assert!(yaml(&["a=1", "a=2"]).unwrap_err().contains("a is given twice"));
        assert!(
            yaml(&["a=1", "a.b=2"])
                .unwrap_err()
                .contains("a.b is given twice")
        );
        assert!(yaml(&["a=1\nb: 2"]).unwrap_err().contains("more than one line"));
    }
}
