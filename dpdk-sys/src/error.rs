//! What can go wrong on the control path, in words an operator can act on.

use std::ffi::{CStr, CString, c_int};
use std::fmt;

use crate::ffi;

/// An error number as DPDK reports it: a positive `errno`, or one of DPDK's own numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// The calling thread's `rte_errno`.
    pub(crate) fn last() -> Self {
        // SAFETY: reads a thread-local integer; valid before EAL is up too.
        Errno(unsafe { ffi::dpdk_errno() })
    }

    /// From a return code: `-1` means "see `rte_errno`", any other negative is the number itself.
    pub(crate) fn from_return(code: c_int) -> Self {
        let last = Self::last();
        if code == -1 && last.0 != 0 {
            last
        } else {
            Errno(code.saturating_neg())
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: rte_strerror answers every number with a string: a constant, or one in a
        // thread-local buffer that stays as it is until this thread calls it again.
        let text = unsafe { CStr::from_ptr(ffi::rte_strerror(self.0)) };
        write!(f, "{} (errno {})", text.to_string_lossy(), self.0)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Failure of a control-path call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// DPDK or the driver refused.
    #[error("cannot {action} {object}: {errno}")]
    Call {
        /// What was attempted, as a verb.
        action: &'static str,
        /// What it was attempted on.
        object: String,
        /// The reason given.
        errno: Errno,
    },
    /// A name or argument has a NUL byte inside.
    #[error("{0:?} contains a NUL byte, which DPDK cannot take")]
    NulByte(String),
    /// No port has this name.
    #[error(
        "no DPDK port is named {name:?}; ports present: [{present}]. \
         Give EAL the device (--vdev=..., or -a with a PCI address) or plug it in first"
    )]
    NoSuchPort {
        /// The name asked for.
        name: String,
        /// Names of all ports, separated by commas.
        present: String,
    },
    /// Another [`EthDev`](crate::EthDev) holds the port.
    #[error("port {0} is already in use by this process; close its other handle first")]
    PortInUse(String),
    /// The port was closed or its device removed.
    #[error("port {0} is closed")]
    PortClosed(String),
    /// The call needs the port stopped, and it is running.
    #[error("cannot {action} port {port} while it is started; stop it first")]
    PortStarted {
        /// What was attempted.
        action: &'static str,
        /// The port.
        port: String,
    },
    /// Queue handles of the port are still held by poll threads.
    #[error(
        "cannot {action} port {port}: {held} of its queue handles are still held; \
         have the poll threads drop them"
    )]
    QueuesHeld {
        /// What was attempted.
        action: &'static str,
        /// The port.
        port: String,
        /// How many handles are out.
        held: usize,
    },
    /// The queue number is beyond what was configured.
    #[error("port {port} has {count} {direction} queues, there is no queue {queue}")]
    NoSuchQueue {
        /// The port.
        port: String,
        /// `rx` or `tx`.
        direction: &'static str,
        /// The number asked for.
        queue: u16,
        /// How many were configured.
        count: usize,
    },
    /// The queue cannot be used: it was not set up, is handed out already, or the port is not started.
    #[error("{direction} queue {queue} of port {port} {why}")]
    QueueNotReady {
        /// The port.
        port: String,
        /// `rx` or `tx`.
        direction: &'static str,
        /// The queue.
        queue: u16,
        /// The rest of the sentence.
        why: &'static str,
    },
    /// A setting is outside what the device can do.
    #[error("port {port} ({driver}) supports {setting} from {min} to {max}, not {asked}")]
    OutOfRange {
        /// The port.
        port: String,
        /// Its driver.
        driver: String,
        /// Which setting.
        setting: &'static str,
        /// The value asked for.
        asked: u32,
        /// The smallest allowed.
        min: u32,
        /// The largest allowed.
        max: u32,
    },
    /// The thread has a DPDK id already: it initialised EAL, or registered before.
    #[error("this thread is known to DPDK as lcore {0} already")]
    ThreadRegistered(u32),
}

impl Error {
    /// Builds a [`Error::Call`] from a return code.
    pub(crate) fn call(action: &'static str, object: impl Into<String>, code: c_int) -> Self {
        Error::Call {
            action,
            object: object.into(),
            errno: Errno::from_return(code),
        }
    }

    /// Whether the device simply lacks the operation: the caller can go on without it.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self,
            Error::Call {
                errno: Errno(libc::ENOTSUP),
                ..
            }
        )
    }
}

/// Turns a DPDK return code into a result; any non-negative code is success.
pub(crate) fn check(action: &'static str, object: &str, code: c_int) -> Result<(), Error> {
    if code >= 0 {
        Ok(())
    } else {
        Err(Error::call(action, object, code))
    }
}

/// A C string from text, refusing inner NUL bytes.
pub(crate) fn c_string(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::NulByte(text.to_owned()))
}
