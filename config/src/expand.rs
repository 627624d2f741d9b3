//! `${VAR}` and `${VAR:-default}` in strings.
//!
//! A default may itself contain variables. `$${` stands for a literal `${`; any other `$` is itself.

/// Deepest nesting of defaults.
const MAX_NESTING: usize = 8;
/// Longest result, in bytes.
const MAX_LENGTH: usize = 64 * 1024;

/// Looks up an environment variable; `None` if unset.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What is wrong with a text to be expanded, and what would be right.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ExpandError {
    pub(crate) message: String,
    pub(crate) help: String,
}

/// `text` with its variables replaced.
pub(crate) fn expand(text: &str, lookup: Lookup<'_>) -> Result<String, ExpandError> {
    expand_nested(text, lookup, 0)
}

fn expand_nested(text: &str, lookup: Lookup<'_>, nesting: usize) -> Result<String, ExpandError> {
    if nesting > MAX_NESTING {
        return Err(wrong(
            format!("defaults are nested more than {MAX_NESTING} deep"),
            "write a simpler default",
        ));
    }
    let mut result = String::new();
    let mut rest = text;
    while let Some(dollar) = rest.find("${") {
        let (before, after) = (&rest[..dollar], &rest[dollar + 2..]);
        if let Some(literal) = before.strip_suffix('$') {
            result.push_str(literal);
            result.push_str("${");
            rest = after;
            continue;
        }
        result.push_str(before);
        let end = closing_brace(after).ok_or_else(|| {
            wrong(
                "a `${` is not closed".into(),
                "write `}` at its end, or `$${` for a literal `${`",
            )
        })?;
        let (variable, default) = match after[..end].split_once(":-") {
            Some((variable, default)) => (variable, Some(default)),
            None => (&after[..end], None),
        };
        result.push_str(&value_of(variable, default, lookup, nesting)?);
        if result.len() > MAX_LENGTH {
            return Err(wrong(
                format!("the text grows past {MAX_LENGTH} bytes"),
                "shorten the variables in it",
            ));
        }
        rest = &after[end + 1..];
    }
    result.push_str(rest);
    Ok(result)
}

fn value_of(
    variable: &str,
    default: Option<&str>,
    lookup: Lookup<'_>,
    nesting: usize,
) -> Result<String, ExpandError> {
    let first_is_letter = variable.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !first_is_letter || !variable.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        let name = crate::locate::quoted(variable);
        let message = format!("{name} is not the name of an environment variable");
        return Err(wrong(message, "write `${NAME}` or `${NAME:-default}`"));
    }
    match (lookup(variable).filter(|value| !value.is_empty()), default) {
        (Some(value), _) => Ok(value),
        (None, Some(default)) => expand_nested(default, lookup, nesting + 1),
        (None, None) => {
            let help = format!("set it, or give a default: `${{{variable}:-default}}`");
            Err(wrong(
                format!("the environment variable `{variable}` is not set or empty"),
                &help,
            ))
        }
    }
}

/// Position of the `}` that closes a `${` just before `text`.
fn closing_brace(text: &str) -> Option<usize> {
    let mut open = 1_usize;
    let mut previous = 0;
    for (position, byte) in text.bytes().enumerate() {
        match byte {
            b'{' if previous == b'$' => open += 1,
            b'}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(position);
        }
        previous = byte;
    }
    None
}

fn wrong(message: String, help: &str) -> ExpandError {
    ExpandError {
        message,
        help: help.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "DIR" => Some("/run/user/1000".into()),
            "EMPTY" => Some(String::new()),
            "ODD" => Some("${DIR}".into()),
            _ => None,
        }
    }

    #[test]
    fn variables_and_defaults_are_replaced() {
        for (text, expected) in [
            ("${DIR}/a", "/run/user/1000/a"),
            ("${NONE:-/tmp}/a", "/tmp/a"),
            ("${EMPTY:-/tmp}/a", "/tmp/a"),
            ("${NONE:-}", ""),
            ("${NONE:-${ALSO_NONE:-/tmp}}/a${DIR}", "/tmp/a/run/user/1000"),
            ("$DIR costs $5 {x}", "$DIR costs $5 {x}"),
            ("$${DIR}", "${DIR}"),
            ("${ODD}", "${DIR}"),
            ("", ""),
        ] {
            assert_eq!(expand(text, &environment).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn mistakes_are_explained() {
        for (text, why) in [
            ("${NONE}", "`NONE` is not set"),
            ("${EMPTY}", "`EMPTY` is not set or empty"),
            ("${DIR", "not closed"),
            ("${NONE:-${DIR}", "not closed"),
            ("${}", "not the name"),
            ("${1A}", "not the name"),
            ("${A-b}", "not the name"),
        ] {
            let message = expand(text, &environment).unwrap_err().message;
            assert!(message.contains(why), "{text}: {message}");
        }
        let deep = format!("{}{}", "${A:-".repeat(20), "}".repeat(20));
        assert!(
            expand(&deep, &environment)
                .unwrap_err()
                .message
                .contains("nested")
        );
    }
}
