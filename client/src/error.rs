//! What can go wrong.
use std::io;
use std::path::PathBuf;

/// Result of a call of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The daemon's socket could not be reached.
    #[error("cannot connect to rnicd at {}: {source}; is the daemon running, and may this user open the socket?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No device has the name asked for.
    #[error("there is no device {name:?}; the daemon has {}", list(available))]
    NoDevice {
        /// The name asked for.
        name: String,
        /// The names there are.
        available: Vec<String>,
    },
    /// The daemon refused a request.
    #[error("{op} refused: {text} ({})", io::Error::from_raw_os_error(*errno))]
    Daemon {
        /// The request, by its verbs name.
        op: &'static str,
        /// The errno it was refused with.
        errno: i32,
        /// The daemon's own words.
        text: String,
    },
    /// The daemon closed the connection: it was stopped, or it ended this session.
    #[error("the daemon closed the connection ({during}); open a new context")]
    Disconnected {
        /// What was being done.
        during: &'static str,
    },
    /// The daemon did not answer.
    #[error("the daemon did not answer {op} within {seconds} s")]
    NoAnswer {
        /// The request.
        op: &'static str,
        /// How long the library waited.
        seconds: u64,
    },
    /// The daemon said or wrote something that makes no sense.
    #[error("the daemon broke the protocol: {0}; are library and daemon of the same version?")]
    Protocol(String),
    /// An argument cannot be used.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// The work queue has no room for the batch; nothing of it was posted.
    #[error(
        "the {queue} queue of QP {qpn:#x} is full ({depth} units); poll its CQ, or ask for a deeper queue"
    )]
    QueueFull {
        /// `send` or `receive`.
        queue: &'static str,
        /// Number of the QP.
        qpn: u32,
        /// Units of the queue.
        depth: u32,
    },
    /// The object is still used by others.
    #[error("{0}")]
    Busy(String),
    /// The time allowed is over.
    #[error("timed out: {0}")]
    TimedOut(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The exchange with the peer over TCP failed.
    #[error("exchange with the peer over TCP: {0}")]
    Exchange(String),
}

impl Error {
    /// The errno the daemon refused the request with, if it was the daemon that did.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Daemon { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Wraps the error of a system call.
    pub(crate) fn io(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Error {
        move |errno| Error::Io {
            what,
            source: errno.into(),
        }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".into()
    } else {
        names.join(", ")
    }
}
