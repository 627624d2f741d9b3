//! Why a request is refused: an errno for programs, a sentence for people.

use std::fmt;

use rnic_abi::MAX_ERROR_TEXT;
use rustix::io::Errno;

/// A refused request. The text names the field, its value and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    errno: Errno,
    text: String,
}

/// What a verb returns.
pub type Verb<T> = Result<T, Refusal>;

impl Refusal {
    /// A refusal with any errno.
    pub fn new(errno: Errno, text: impl fmt::Display) -> Self {
        Refusal {
            errno,
            text: text.to_string(),
        }
    }

    /// A value that cannot be right: EINVAL.
    pub fn invalid(text: impl fmt::Display) -> Self {
        Self::new(Errno::INVAL, text)
    }

    /// Something this daemon does not do: EOPNOTSUPP.
    pub fn unsupported(text: impl fmt::Display) -> Self {
        Self::new(Errno::OPNOTSUPP, text)
    }

    /// A malformed packet: EPROTO.
    pub fn protocol(text: impl fmt::Display) -> Self {
        Self::new(Errno::PROTO, text)
    }

    /// A quota or a table is used up: ENOMEM, as the verbs of an RNIC answer.
    pub fn exhausted(text: impl fmt::Display) -> Self {
        Self::new(Errno::NOMEM, text)
    }

    /// Try again soon: EAGAIN.
    pub fn again(text: impl fmt::Display) -> Self {
        Self::new(Errno::AGAIN, text)
    }

    /// The errno, positive.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// The text, cut at a character boundary to what a reply carries.
    pub fn text(&self) -> &str {
        let mut end = self.text.len().min(MAX_ERROR_TEXT);
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        &self.text[..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let refusal = Refusal::invalid("ä".repeat(400));
        assert_eq!(refusal.text().len(), MAX_ERROR_TEXT);
        let refusal = Refusal::invalid(format!("x{}", "ä".repeat(400)));
        assert_eq!(refusal.text().len(), MAX_ERROR_TEXT - 1);
    }
}
